"""Pipelines from end to end: parts compressed and judged as a whole, the one that hurts taken back, folders written."""

import json
import sys

import numpy as np
import onnxruntime as ort
import pytest

import onnxcompress as oc
from onnxcompress.composite import layouts
from onnxcompress.composite.whole import WholeLoss
from onnxcompress.errors import DataError, LimitError, UsageError
from onnxcompress.jobs import pipeline_parts
from onnxcompress.jobs.compress_pipeline import pipeline_of
from onnxcompress.jobs.pipeline_result import PipelineResult
from onnxcompress.numerics.statistics.estimate import Estimate
from onnxcompress.report.tables_pipeline import pipeline_tables
from tests.cli.test_cli import _run as command
from tests.composite import toys

HURTS = """
import numpy as np

def blunt(graph):
    names = {tensor.name for tensor in graph.tensors().values()}
    if "logits" in names and "encoder_hidden_states" in names:  # the part that begins to decode
        for name in ("head",):
            graph.tensors()[name].values = np.zeros_like(graph.tensors()[name].values)
"""


@pytest.fixture
def folder(tmp_path):
    return toys.translation(tmp_path / "model")


@pytest.fixture
def labelled(folder):
    """Samples whose labels are what the original gives."""
    pipeline = layouts.recognise(folder)
    sessions = {name: _session(path) for name, path in pipeline.parts.items()}
    return [{**sample, "label": pipeline.run(sessions, sample)} for sample in toys.sentences(6)]


def _session(path):
    from onnxcompress.composite.sessions import PartSession

    return PartSession.opened(path)


def test_a_folder_becomes_a_smaller_folder_that_decodes_the_same(folder, labelled, tmp_path):
    found = oc.compress_pipeline(folder, recipe="int8-weights", data=labelled, max_drop=0.05)
    report = found.save(tmp_path / "out")
    assert report.quality.metric == "wer"
    assert report.quality.original == 0.0
    assert report.quality.drop <= 0.05
    written = sum(path.stat().st_size for path in (tmp_path / "out").glob("*.onnx*"))
    written += sum(path.stat().st_size for path in (tmp_path / "out").glob("*.data"))
    assert written < 0.5 * report.input.bytes
    assert (tmp_path / "out" / "tokenizer.json").is_file()
    assert [part.samples > 0 for part in report.parts] == [True] * 3
    again = oc.compress_pipeline(tmp_path / "out", recipe="fold", data=labelled)
    assert again.report.quality.original == pytest.approx(report.quality.compressed)


def test_weights_of_two_files_are_stored_once_and_both_open(folder, labelled, tmp_path):
    found = oc.compress_pipeline(folder, recipe="int8-weights", data=labelled, share_weights="always")
    report = found.save(tmp_path / "out")
    assert report.shared_bytes > 0
    (data,) = (tmp_path / "out").glob("*.data")
    total = sum(path.stat().st_size for path in [data, *(tmp_path / "out").glob("*.onnx")])
    apart = oc.compress_pipeline(folder, recipe="int8-weights", data=labelled, share_weights="never")
    apart.save(tmp_path / "apart")
    assert not list((tmp_path / "apart").glob("*.data"))
    assert total < apart.report.output.bytes
    feed = {"input_ids": np.array([[0]]), "encoder_hidden_states": np.ones((1, 2, toys.WIDTH), np.float32)}
    results = [
        ort.InferenceSession(tmp_path / name / "decoder_model.onnx").run(None, feed)[0] for name in ("out", "apart")
    ]
    np.testing.assert_array_equal(*results)


def test_the_part_that_hurts_is_taken_back(folder, labelled, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.delitem(sys.modules, "hurting", raising=False)
    (tmp_path / "hurting.py").write_text(HURTS, encoding="utf-8")
    options = {"recipe": "int8-weights", "settings": ["surgery.function=hurting:blunt"], "data": labelled}
    unlimited = oc.compress_pipeline(folder, **options)
    assert unlimited.report.quality.drop > 0.2, "the test's own damage does hurt"
    report = oc.compress_pipeline(folder, **options, max_drop=0.05).report
    assert report.quality.drop <= 0.05
    outcome = {part.name: part.candidate for part in report.parts}
    assert outcome == {"encoder": "int8-weights", "decoder": "original", "decoder_with_past": "int8-weights"}
    (change,) = report.changes
    assert (change.target, str(change.action)) == ("decoder", "rolled-back")
    costs = {part.name: part.drop for part in report.parts}
    assert costs["decoder"] > 0.2 > costs["encoder"]
    assert report.choices[-1].chosen


class _NoGentler:
    def add_gentler(self, _):
        return False


def _part(name, **candidates):
    part = pipeline_parts.PipelinePart(name=name, path=None, recorded=None, is_complete=True)
    part.candidates = [
        pipeline_parts.PartCandidate(label=label, path=None, bytes=size, model=None)
        for label, size in candidates.items()
    ]
    return part


def test_losses_that_do_not_add_up_are_found_out():
    seen = []

    def measure(choice):
        labels = {name: each.label for name, each in choice.items()}
        seen.append(labels)
        small = sum(label == "small" for label in labels.values())
        loss = {0: 0.0, 1: 0.004, 2: 0.05}[small]
        return WholeLoss(original=0.0, compressed=loss, drop=Estimate.exact(loss))

    parts = [_part("a", small=1, original=9), _part("b", small=1, original=5)]
    chooser = pipeline_parts.PartChooser(parts, _NoGentler(), measure, lambda drop: drop.value)
    chosen = chooser.settle(0.01)
    assert {name: each.label for name, each in chosen.items()} == {"a": "small", "b": "original"}
    assert seen[0] == {"a": "small", "b": "small"}, "all the boldest first"


def test_a_pipeline_of_the_user_s_own(folder, tmp_path, monkeypatch):
    def run(sessions, sample):
        states = sessions["encoder"].run(None, {"x": sample["x"]})[0]
        return float(states.mean())

    pipeline = oc.Pipeline(parts={"encoder": folder / "encoder_model.onnx"}, run=run, metric="spearman")
    samples = [{**each, "label": float(index)} for index, each in enumerate(toys.sentences(8))]
    found = oc.compress_pipeline(pipeline, recipe="int8-weights", data=samples, eval_data=samples)
    assert isinstance(found, PipelineResult)
    assert abs(found.report.quality.drop) < 0.2
    assert found.report.parts[0].samples == 8
    with pytest.raises(LimitError, match="more than 100"):
        oc.compress_pipeline(pipeline, recipe="int8-weights", data=samples, max_bytes=100)


def test_perplexity_of_a_causal_decoder(tmp_path):
    toys.causal(tmp_path / "lm" / "model.onnx")
    report = oc.compress_pipeline(tmp_path / "lm", recipe="int8-weights", data=toys.texts(20)).report
    assert report.quality.metric == "perplexity"
    assert report.quality.original > 1
    expected = report.quality.compressed / report.quality.original - 1
    assert report.quality.drop == pytest.approx(expected)
    (part,) = report.parts
    assert part.samples == 16
    assert report.latency.runs == 5, "every fourth of 20"


def test_what_can_not_be_is_said(folder, labelled):
    with pytest.raises(UsageError, match="there are no samples"):
        oc.compress_pipeline(folder, recipe="int8-weights")
    with pytest.raises(UsageError, match="--only is for one model"):
        oc.compress_pipeline(folder, data=labelled, only=["a"])
    with pytest.raises(UsageError, match="unknown metric 'wre'"):
        oc.compress_pipeline(folder, data=labelled, metric="wre")
    bad = [{"x": np.ones((1, 2, 3), np.float32)}]
    with pytest.raises(DataError):
        oc.compress_pipeline(folder, data=bad, recipe="fold")


def test_functions_that_return_no_pipeline(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.delitem(sys.modules, "mine", raising=False)
    (tmp_path / "mine.py").write_text("def one():\n    return 1\n\n\ndef two():\n    1 / 0\n", encoding="utf-8")
    with pytest.raises(UsageError, match="returns a int"):
        pipeline_of("mine:one", [])
    with pytest.raises(UsageError, match="ZeroDivisionError"):
        pipeline_of("mine:two", [])


def test_the_tables_show_the_whole_and_its_parts(folder, labelled):
    report = oc.compress_pipeline(folder, recipe="int8-weights", data=labelled).report
    tables = pipeline_tables(report)
    cells = [str(cell) for table in tables[:2] for column in table.columns for cell in column.cells]
    assert "wer (6 samples)" in cells
    assert {"encoder", "decoder", "decoder_with_past"} <= set(cells)
    document = json.loads(json.dumps(report.as_json()))
    assert set(document["parts"]) == {"encoder", "decoder", "decoder_with_past"}
    assert document["schema"] == 1


def test_the_command_line(folder, labelled, tmp_path):
    for index, sample in enumerate(labelled):
        np.savez(tmp_path / f"{index}.npz", **sample)
    (tmp_path / "data").mkdir()
    for path in tmp_path.glob("*.npz"):
        path.rename(tmp_path / "data" / path.name)
    args = ("compress", folder, "--recipe", "int8-weights", "--data", tmp_path / "data", "--json", "r.json")
    done = command(*args, "--max-drop", "0.05", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert "wer (6 samples)" in done.stdout
    out = tmp_path / "model-compressed"
    assert (out / "generation_config.json").is_file()
    report = json.loads((tmp_path / "r.json").read_text(encoding="utf-8"))
    assert report["output"]["path"] == str(out)
    assert command(*args, cwd=tmp_path).returncode == 2, "the folder is there"
    assert command("compress", folder, "--plan", cwd=tmp_path).returncode == 2
    assert command("compress", cwd=tmp_path).returncode == 2
