"""A search that is cut short, goes on, hands over its front, and says all of it in a report."""

import json
from pathlib import Path

import onnx
import pytest

import onnxcompress as oc
from onnxcompress.base.clock import Clock
from onnxcompress.jobs import compress as compress_job
from onnxcompress.jobs.judge import Trials

MODELS = Path(__file__).parents[3] / "models"
RESNET, CALIBRATION = MODELS / "resnet14.onnx", str(MODELS / "fmnist_calib.npz")


def _compress(tmp_path, **options):
    given = {"recipe": "int8", "data": CALIBRATION, "settings": ["quantize-int8.routes=['static', 'weights']"]}
    result = oc.compress(RESNET, **(given | options))
    return result, result.save(tmp_path / "out.onnx", force=True).read_bytes()


def test_an_interrupted_run_goes_on_and_comes_to_the_same_model(tmp_path, monkeypatch):
    measured = Trials._measured
    monkeypatch.setattr(Trials, "_measured", _interrupts(measured, at=2))
    with pytest.raises(KeyboardInterrupt):
        _compress(tmp_path, checkpoint=tmp_path / "state")
    counted = []
    monkeypatch.setattr(Trials, "_measured", lambda *args: counted.append(args[2]) or measured(*args))
    first, data = _compress(tmp_path, checkpoint=tmp_path / "state")
    assert "quantize-int8/static" not in counted
    assert "quantize-int8/weights" in counted
    counted.clear()
    again, same = _compress(tmp_path, checkpoint=tmp_path / "state")
    assert (counted, data) == ([], same)
    assert again.report.candidates == first.report.candidates
    with pytest.raises(oc.UsageError, match="other options"):
        _compress(tmp_path, checkpoint=tmp_path / "state", prefer="size")


def _interrupts(measured, *, at):
    calls = []

    def one(*args):
        calls.append(args)
        if len(calls) == at:
            raise KeyboardInterrupt
        return measured(*args)

    return one


def test_when_the_time_is_over_the_best_so_far_is_handed_over(tmp_path, monkeypatch):
    whole, _ = _compress(tmp_path)
    assert len(whole.report.candidates) == 2
    now = [0.0]
    monkeypatch.setattr(compress_job, "Clock", lambda _: Clock(1000.0, now=lambda: now[0]))
    judged = Trials.__call__

    def slow(*args):
        now[0] = 900.0  # what is left is kept for the proof and the figures
        return judged(*args)

    monkeypatch.setattr(Trials, "__call__", slow)
    cut, _ = _compress(tmp_path, time_limit=1000)
    assert [c.label for c in cut.report.candidates] == ["quantize-int8/static"]
    assert cut.report.output.bytes < 0.3 * cut.report.input.bytes
    assert "weights: not tried, the time is over" in [c.reason for c in cut.changes]
    assert cut.report.quality["drop"] is not None


def test_no_time_at_all_leaves_a_model_that_is_right(tmp_path):
    result, _ = _compress(tmp_path, time_limit=1e-9)
    assert result.report.candidates == ()
    assert result.report.quality is None
    assert result.report.output.bytes == result.report.input.bytes
    assert any("before the model and the data were loaded" in note for note in result.report.notes)


def test_the_front_holds_models_with_the_figures_that_it_says(tmp_path):
    result, _ = _compress(tmp_path, pareto_dir=tmp_path / "front")
    index = json.loads((tmp_path / "front" / "front.json").read_text())
    assert index["chosen"] == "quantize-int8/static"
    assert "quantize-int8/static" in [each["label"] for each in index["front"]]
    for each in index["front"]:
        path = tmp_path / "front" / each["model"]
        onnx.checker.check_model(str(path))
        assert path.stat().st_size == each["bytes"]
        assert oc.compare(RESNET, path, data=CALIBRATION).quality["drop"] <= 0.01
    assert [c.label for c in result.report.candidates if c.chosen] == ["quantize-int8/static"]


def test_a_recipe_with_one_outcome_has_a_front_too(tmp_path):
    oc.compress(RESNET, recipe="int8-weights", pareto_dir=tmp_path / "front")
    index = json.loads((tmp_path / "front" / "front.json").read_text())
    assert {"result", "original"} >= {each["label"] for each in index["front"]} >= {"result"}
