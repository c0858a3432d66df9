"""The effort of a run: in its report, in a replay, and for each model of a batch."""

import json

import pytest

import onnxcompress as oc
from onnxcompress.errors import UsageError
from onnxcompress.io import model_io
from onnxcompress.jobs import batch
from onnxcompress.jobs.judge import Timings
from onnxcompress.jobs.options import CompressOptions
from onnxcompress.passes.auto import search as auto_search
from tests.helpers import floats, with_constants

TEXT = """g (float[n, 64] x, float[64, 96] a, float[96, 10] b) => (float[n, 10] y) {
    h = MatMul(x, a) r = Relu(h) y = MatMul(r, b) }"""
GIVEN = {
    "data": {"x": floats(64, 64, seed=2)},
    "settings": ["search-best.builds=1", "search-best.numbers=['quantize-int8']"],
}


def net():
    b = floats(96, 10, seed=1)
    b[40:] *= 1e-4
    return with_constants(TEXT, a=floats(64, 96), b=b)


def reasons(report):
    return [change.reason for change in report.changes if change.pass_name == "search-best"]


def test_the_report_has_the_seconds_of_each_step_and_a_replay_decides_by_them(tmp_path):
    report = oc.compress(net(), **GIVEN).report
    content = report.as_json()
    assert content["effort"] == "default"
    assert content["interrupted"] is False
    steps = ["whole, quantize-int8", "prune-channels 0.500", "prune-channels 0.500, quantize-int8"]
    assert list(content["cpu_seconds"]) == steps
    assert all(0 < each < 100 for each in content["cpu_seconds"].values())
    content["cpu_seconds"] |= {steps[0]: 1.0, steps[1]: 100.0}
    path = tmp_path / "report.json"
    path.write_text(json.dumps(content))
    again = oc.compress(net(), effort="quick", timings=path, **GIVEN).report
    assert any(
        "prune-channels 0.500: given up: no more of the 3 CPU s (--effort quick)" in each for each in reasons(again)
    )
    assert {name: again.cpu_seconds[name] for name in steps[:2]} == {steps[0]: 1.0, steps[1]: 100.0}
    assert list(again.cpu_seconds)[1:] == [f"{steps[1]}, given up", steps[1]]
    assert again.as_json()["effort"] == "quick"


def test_timings_of_another_form_are_refused_and_may_lack_steps(tmp_path):
    path = tmp_path / "report.json"
    path.write_text(json.dumps({"timings": {}}))
    assert Timings.read(path).cpu_seconds == {}
    path.write_text(json.dumps({"timings": {}, "cpu_seconds": {"whole": "long"}}))
    with pytest.raises(UsageError, match="no report with timings"):
        Timings.read(path)


def test_each_model_of_a_batch_has_the_effort(tmp_path):
    (tmp_path / "in").mkdir()
    (tmp_path / "in" / "m.onnx").write_bytes(model_io.to_bytes(net()))
    options = CompressOptions(recipe="int8-weights", effort="thorough")
    done = batch.compress_many([tmp_path / "in"], tmp_path / "out", options)
    assert [item.report["effort"] for item in done.items] == ["thorough"]


def test_the_effort_comes_to_the_search(monkeypatch):
    seen = []

    class Noted(auto_search.SearchBudget):
        def __init__(self, effort, *given, **named):
            seen.append(effort)
            super().__init__(effort, *given, **named)

    monkeypatch.setattr(auto_search, "SearchBudget", Noted)
    oc.compress(net(), effort="thorough", data=GIVEN["data"], settings=["search-best.builds=0"])
    assert seen == ["thorough"]
