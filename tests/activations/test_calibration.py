"""Ranges come from one pass over any samples, are found again, and add up from parts."""

from __future__ import annotations

import numpy as np
import pytest

from onnxcompress.activations import calibration, observe
from onnxcompress.activations.calibration import Calibration, CalibrationCache, calibrate
from onnxcompress.core import Action
from onnxcompress.errors import DataError
from onnxcompress.graph import edit
from onnxcompress.io import model_io
from onnxcompress.numerics.quantization.histograms import Histogram
from tests.helpers import floats, from_text, run

TEXT = """
g (float[N, M] x) => (float[N, M] y) <float k = {2.0}> { a = Mul(x, k)  b = Relu(a)  y = Exp(b) }
"""
SHAPES = [(1, 3), (1, 7), (2, 3), (1, 1)]


def _feeds(count: int):
    return [{"x": floats(*SHAPES[i % len(SHAPES)], seed=i)} for i in range(count)]


def _same(a: Calibration, b: Calibration) -> None:
    assert list(a.histograms) == list(b.histograms)
    for name, histogram in a.histograms.items():
        one, other = histogram.arrays(), b.histograms[name].arrays()
        np.testing.assert_array_equal(one["counts"], other["counts"], err_msg=name)
        np.testing.assert_array_equal(one["extremes"][:2], other["extremes"][:2], err_msg=name)
        np.testing.assert_array_equal(one["numbers"][:5], other["numbers"][:5], err_msg=name)


def test_feeds_of_any_shape_are_counted():
    feeds = _feeds(9)
    found = calibrate(from_text(TEXT), iter(feeds), ["x", "a", "b"])
    whole = np.concatenate([feed["x"].reshape(-1) for feed in feeds])
    a, b = found.histograms["a"], found.histograms["b"]
    assert a.total == b.total == whole.size
    assert (a.low, a.high) == (2 * whole.min(), 2 * whole.max())
    assert (b.low, b.zeros) == (0, np.count_nonzero(whole <= 0))
    assert a.updates == 9


def test_parts_add_up():
    feeds, model, names = _feeds(8), from_text(TEXT), ["x", "b"]
    whole = calibrate(model, feeds, names)
    _same(calibrate(model, feeds[:3], names).merged(calibrate(model, feeds[3:], names)), whole)
    _same(Calibration().merged(whole), whole)


def test_many_samples_are_run_together_and_count_the_same():
    feeds, model = [{"x": floats(1, 5, seed=i)} for i in range(40)], from_text(TEXT)
    many, few = calibrate(model, feeds, ["a"]), calibrate(model, iter(feeds), ["a"])
    assert many.histograms["a"].updates == 3
    assert few.histograms["a"].updates == 40
    np.testing.assert_array_equal(many.histograms["a"].counts, few.histograms["a"].counts)


def test_state_is_carried():
    model = from_text("g (float[1, 1] x, float[1, 1] h) => (float[1, 1] n) { n = Add(x, h) }")
    feeds = [{"x": np.ones((1, 1), np.float32), "h": np.zeros((1, 1), np.float32)}] * 40
    assert calibrate(model, feeds, ["n"], state={"h": "n"}).histograms["n"].high == 40
    assert calibrate(model, feeds, ["n"]).histograms["n"].high == 1


def test_what_is_in_the_store_is_not_measured_again(monkeypatch):
    asked: list[list[str]] = []
    real = calibration.observe
    monkeypatch.setattr(
        calibration, "observe", lambda *args, **options: asked.append(list(args[2])) or real(*args, **options)
    )
    store, feeds, model = CalibrationCache(), _feeds(4), from_text(TEXT)
    first = calibrate(model, feeds, ["a", "k"], store=store)
    again = calibrate(model, iter(feeds), ["k", "a"], store=store)
    assert again.histograms == first.histograms
    assert again.refused == first.refused == {"k": "no such value outside of local functions"}
    assert list(calibrate(model, feeds, ["b", "a"], store=store).histograms) == ["b", "a"]
    assert asked == [["a", "k"], ["b"]]


@pytest.mark.parametrize("what", ["weight", "node", "feed", "state"])
def test_the_store_tells_models_and_samples_apart(what):
    model, feeds = from_text(TEXT), _feeds(2)
    state = {"x": "y"} if what == "state" else {}
    other, other_feeds = from_text(TEXT), _feeds(2)
    if what == "weight":
        edit.set_weight(other.graph.initializers["k"], np.float32(3))
    elif what == "node":
        next(iter(n for n in other.graph if n.op_type == "Relu")).op_type = "Neg"
    elif what == "feed":
        other_feeds[1]["x"] += 1
    assert calibration.fingerprint(model, feeds, {}) != calibration.fingerprint(other, other_feeds, state)
    assert calibration.fingerprint(model, feeds, {}) == calibration.fingerprint(from_text(TEXT), _feeds(2), {})


def test_large_weights_are_in_the_fingerprint():
    def made(last: float):
        model = from_text("g (float[1, 1000] x) => (float[1, 1000] y) { y = Neg(x) }")
        weight = np.arange(1000, dtype=np.float32)
        weight[-1] = last
        edit.add_initializer(model.graph, edit.Names(model), "w", weight)
        return calibration.fingerprint(model_io.load(model), [], {})

    assert made(1) != made(2)


def test_files_of_the_store_are_read_and_damage_is_told(tmp_path):
    model, feeds = from_text(TEXT), _feeds(3)
    first = calibrate(model, feeds, ["a", "b", "k"], store=CalibrationCache(tmp_path / "new"))
    (path,) = (tmp_path / "new").iterdir()
    _same(calibration.load(path), first)
    assert calibration.load(path).refused == first.refused
    again = calibrate(model, feeds, ["a"], store=CalibrationCache(tmp_path / "new"))
    assert again.histograms["a"].total == first.histograms["a"].total
    path.write_bytes(path.read_bytes()[:100])
    with pytest.raises(DataError, match="not a calibration"):
        calibrate(model, feeds, ["a"], store=CalibrationCache(tmp_path / "new"))


def test_an_empty_calibration_can_be_kept(tmp_path):
    calibration.save(Calibration(), tmp_path / "c.npz")
    assert calibration.load(tmp_path / "c.npz") == Calibration()


def _seen(*parts: list[float]) -> Histogram:
    histogram = Histogram()
    for part in parts:
        histogram.update(np.array(part, np.float32))
    return histogram


def test_ranges_that_are_still_widening_are_told():
    steady = _seen([-1, 1], *([[0.5]] * 9))
    widening = _seen(*([[0, float(i)]] for i in range(1, 11)))
    (note,) = Calibration({"a": steady, "b": widening, "c": steady}).notes()
    assert note.startswith("the ranges of 1 of 3 values were still widening in the last quarter")
    assert not Calibration({"a": steady, "b": widening, "c": steady, "d": steady, "e": steady}).notes()
    assert not Calibration({"few": _seen([0.0, 1], [0, 5])}).notes()


def test_what_is_not_finite_inside_is_told():
    model = from_text("g (float[N, 2] x) => (float[N, 2] y) { a = Log(x)  y = Exp(a) }")
    found = calibrate(model, [{"x": np.array([[-1, 1]], np.float32)}], ["a", "x"])
    (note,) = found.notes()
    assert note == "1 numbers of 'a' are NaN or infinite inside the model; they are left out"
    (change,) = found.changes("quantize")
    assert (change.target, change.action, change.reason) == ("graph", Action.SKIPPED, note)


def test_what_is_refused_is_in_the_report():
    found = calibrate(from_text(TEXT), _feeds(1), ["nowhere"])
    (change,) = found.changes("quantize")
    assert change.target == "nowhere"
    assert change.reason.startswith("not calibrated: no such value")


def test_a_real_model_is_calibrated_within_its_memory():
    model = model_io.load("models/vit.onnx")
    with np.load("models/fmnist_calib.npz") as data:
        feeds = [{"x": x[None]} for x in data["x"][:6]]
    names = [node.outputs[0].name for node in model.graph if node.op_type in ("MatMul", "Softmax", "Gemm")]
    found = calibrate(model, feeds, names)
    parts = calibrate(model, feeds, names, memory_bytes=200_000)
    for name, histogram in found.histograms.items():  # what is observed decides what the runtime fuses
        other = parts.histograms[name]
        assert (histogram.total, histogram.updates) == (other.total, other.updates)
        assert (histogram.low, histogram.high) == pytest.approx((other.low, other.high), rel=1e-4)
    assert all(found.histograms[n].low >= 0 and found.histograms[n].high <= 1 for n in names if "Softmax" in n)
    last = model.graph.outputs[0].name
    outputs = [run(model, feed)[last] for feed in feeds]
    exact = calibrate(model, feeds, [last]).histograms[last]
    assert exact.high == pytest.approx(float(np.max(outputs)), rel=1e-4)


def test_large_values_are_counted_on_fewer_samples(monkeypatch):
    model = from_text("g (float[2] x) => (float[2] y) { y = Neg(x) }")
    feeds = [{"x": np.full(2, index, np.float32)} for index in range(20)]
    assert calibrate(model, feeds, ["y"]).histograms["y"].updates == 20
    monkeypatch.setattr(observe.enough_feeds, "__kwdefaults__", {"most_bytes": 80})
    found = calibrate(model, feeds, ["y"]).histograms["y"]
    assert (found.updates, found.low) == (10, -18)
