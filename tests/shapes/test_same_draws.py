"""Random operators that are replaced: equal in every run, as they were in law, in bodies and functions too."""

import numpy as np
import onnx
import onnx.parser
import pytest

from onnxcompress.graph import query
from onnxcompress.io import model_io
from onnxcompress.ops import table
from onnxcompress.shapes.same_draws import counterparts, draws, with_same_draws
from tests.helpers import floats, from_text, op_types, run

X = {"x": np.zeros((200, 50), np.float32)}
ALMOST = 0.02
"""Deviation of means and standard deviations of 10,000 numbers that is more than four times the standard error."""


def _same(model, names=None):
    found = with_same_draws(model, names or {})
    assert not draws(found)
    onnx.checker.check_model(model_io.to_bytes(found))
    return found


def _drawn(line, dtype="float", feed=X, opset=17):
    """Return what a random operator gives, after looking that a second session gives the same."""
    model = from_text(f"g ({'float' if opset else ''}[n, m] x) => ({dtype}[a, b] y) {{ {line} }}", opset=opset)
    same = _same(model)
    first, second = run(same, feed)["y"], run(same, feed, optimize=True)["y"]
    assert (first == second).all()
    assert first.dtype == run(model, feed)["y"].dtype
    assert first.shape == run(model, feed)["y"].shape
    return first


@pytest.mark.parametrize(
    "line",
    ["RandomNormalLike<mean = 2.0, scale = 3.0>(x)", "RandomNormal<mean = 2.0, scale = 3.0, shape = [200, 50]>()"],
)
def test_normal_numbers(line):
    found = _drawn(f"y = {line}")
    assert found.mean() == pytest.approx(2, abs=4 * ALMOST)
    assert found.std() == pytest.approx(3, abs=4 * ALMOST)
    assert len(np.unique(found)) > 9000


@pytest.mark.parametrize(
    "line", ["RandomUniformLike<low = 2.0, high = 6.0>(x)", "RandomUniform<low = 2.0, high = 6.0, shape = [200, 50]>()"]
)
def test_uniform_numbers(line):
    found = _drawn(f"y = {line}")
    assert 2 <= found.min() < 2.01 < 5.99 < found.max() <= 6
    assert found.mean() == pytest.approx(4, abs=4 * ALMOST)


def test_coins_have_their_chances():
    chance = np.repeat([0.0, 0.3, 1.0], [50, 100, 50]).astype(np.float32)[:, None] * np.ones((1, 50), np.float32)
    found = _drawn("y = Bernoulli(x)", feed={"x": chance})
    assert (found[:50] == 0).all()
    assert (found[150:] == 1).all()
    assert found[50:150].mean() == pytest.approx(0.3, abs=ALMOST)
    assert _drawn("y = Bernoulli<dtype = 9>(x)", "bool", {"x": chance}).dtype == bool


def test_classes_have_their_frequencies():
    scores = np.log(np.array([[0.1, 0.6, 0.3], [1.0, 1e-9, 1e-9]], np.float32))
    found = _drawn("y = Multinomial<sample_size = 5000>(x)", "int32", {"x": scores})
    assert found.shape == (2, 5000)
    assert np.bincount(found[0], minlength=3) / 5000 == pytest.approx([0.1, 0.6, 0.3], abs=ALMOST)
    assert (found[1] == 0).all()


def test_dropout_that_trains_drops_its_share_and_scales_the_rest():
    text = """g (float[n, m] x, bool on) => (float[n, m] y, bool[n, m] kept) <float ratio = {0.25}> {
        y, kept = Dropout(x, ratio, on) }"""
    model, ones = from_text(text), np.ones((200, 50), np.float32)
    found = run(_same(model), {"x": ones, "on": np.array(True)})
    assert found["kept"].mean() == pytest.approx(0.75, abs=ALMOST)
    assert found["y"] == pytest.approx(np.where(found["kept"], 1 / 0.75, 0))
    still = run(_same(model), {"x": ones, "on": np.array(False)})
    assert (still["y"] == 1).all()
    assert still["kept"].all()


def test_types_stay():
    text = "g (DOUBLE[n, m] x) => (DOUBLE[n, m] y) { y = RandomNormalLike(x) }"
    for name, dtype in (("double", np.float64), ("float16", np.float16)):
        for opset in (13, 17):
            model = from_text(text.replace("DOUBLE", name), opset=opset)
            found = run(_same(model), {"x": np.zeros((20, 30), dtype)})["y"]
            assert found.dtype == dtype
            assert found.std() == pytest.approx(1, abs=0.2)


@pytest.mark.parametrize("opset", [9, 10, 13])
def test_old_opsets(opset):
    assert _drawn("y = RandomNormalLike(x)", opset=opset).std() == pytest.approx(1, abs=ALMOST)


def test_empty_shapes():
    assert _drawn("y = RandomNormalLike(x)", feed={"x": np.zeros((0, 3), np.float32)}).shape == (0, 3)


def test_bodies_and_functions():
    text = """<ir_version: 8, opset_import: ["": 17, "local": 1]>
        g (float[n] x, bool c) => (float[n] y, float[n] f) {
            y = If(c) <then_branch = a () => (float[n] r) { r = RandomNormalLike(x) },
                       else_branch = b () => (float[n] s) { s = Identity(x) }>
            f = local.noisy(x)
        }
        <domain: "local", opset_import: ["": 17]> noisy (x) => (r) { r = RandomUniformLike(x) }"""
    model = model_io.load(onnx.parser.parse_model(text))
    assert len(draws(model)) == 2
    found = _same(model)
    feed = {"x": floats(500), "c": np.array(True)}
    first, second = run(found, feed), run(found, feed)
    assert all((first[name] == second[name]).all() for name in first)
    assert first["y"].std() == pytest.approx(1, abs=0.2)
    assert 0 <= first["f"].min() < first["f"].max() <= 1


def test_two_operators_draw_different_numbers_and_names_make_them_the_same():
    text = "g (float[n, m] x) => (float[n, m] y, float[n, m] z) { y = RandomNormalLike(x) z = RandomNormalLike(x) }"
    model = from_text(text)
    found = run(_same(model), X)
    assert abs(np.corrcoef(found["y"].ravel(), found["z"].ravel())[0, 1]) < 0.05
    swapped = run(_same(model, {"y": "z", "z": "y"}), X)
    assert (swapped["y"] == found["z"]).all()
    assert (swapped["z"] == found["y"]).all()


def test_numbers_of_a_place_do_not_depend_on_the_runs_before():
    text = "g (float[n, m] x) => (float[n, m] y) { y = RandomNormalLike(x) }"
    same = _same(from_text(text))
    short = run(same, {"x": np.zeros((2, 3), np.float32)})["y"]
    assert (run(same, {"x": np.zeros((4, 3), np.float32)})["y"][:2] == short).all()


def test_counterparts_are_found_by_name_then_by_type():
    original = (("RandomNormalLike", "a"), ("RandomUniform", "b"), ("RandomNormalLike", "c"))
    assert counterparts(original, original) == {"a": "a", "b": "b", "c": "c"}
    ours = (("RandomNormalLike", "new"), ("RandomNormalLike", "a"), ("Bernoulli", "d"))
    assert counterparts(ours, original) == {"new": "c", "a": "a", "d": "d"}


def test_every_random_operator_is_replaced():
    known = {
        "Bernoulli",
        "Dropout",
        "Multinomial",
        "RandomNormal",
        "RandomNormalLike",
        "RandomUniform",
        "RandomUniformLike",
    }
    assert known == table.STOCHASTIC  # each has a test above


def test_a_model_without_draws_is_only_copied():
    model = from_text("g (float[n] x) => (float[n] y) { d = Dropout(x) y = Relu(d) }")
    assert not draws(model)
    assert op_types(with_same_draws(model, {})) == ["Dropout", "Relu"]
    assert query.node_count(model) == 2
