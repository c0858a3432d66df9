"""Shapes at a feed: inference first, and one run of the model for what it leaves open."""

import numpy as np
import pytest

from onnxcompress.base import size_limits
from onnxcompress.errors import ModelError
from onnxcompress.runtime import session as runtime
from onnxcompress.shapes import infer, resolve, symbolic
from tests.helpers import from_text

KNOWN = "g (float[n, 4] x) => (float[n, 4] y) { a = Relu(x) y = Neg(a) }"
OPEN = """g (float[n, 4] x, int64[2] shape) => (float[a, b] y)
    { r = Reshape(x, shape) t = Transpose<perm = [1, 0]>(r) i = NonZero(x) y = Neg(t) }"""
LOOP = """g (int64 count, bool go, float[2, 4] x, int64[2] shape) => (float[a, b] y) {
    z, all = Loop (count, go, x) <body = b (int64 i, bool c, float[p, q] s) => (bool d, float[p, q] t, float[p, q] u)
        { d = Identity(c) r = Reshape(x, shape) t = Identity(s) u = Neg(r) }>
    y = Identity(z) }"""
FEED = {"x": np.ones((2, 4), np.float32), "shape": np.array([8, 1])}


def test_what_inference_knows_is_not_run(monkeypatch):
    monkeypatch.setattr(runtime, "open_session", lambda *_, **__: pytest.fail("run"))
    model, feed = from_text(KNOWN), {"x": FEED["x"]}
    assert resolve.infer_dims(model, feed) == {"x": (2, 4), "a": (2, 4), "y": (2, 4)}
    assert resolve.resolve(model, feed, ["a"]) == {"x": (2, 4), "a": (2, 4)}


def test_what_inference_leaves_open_is_seen_in_a_run_and_empty_values_are_left_out():
    model = from_text(OPEN)
    zeros = FEED | {"x": np.zeros((2, 4), np.float32)}
    assert "r" not in resolve.infer_dims(model, FEED)
    found = resolve.resolve(model, FEED, ["r", "t", "i"])
    assert found == {"x": (2, 4), "shape": (2,), "r": (8, 1), "t": (1, 8), "i": (2, 8)}
    assert resolve.resolve(model, zeros, ["r", "i"]) == {"x": (2, 4), "shape": (2,), "r": (8, 1)}
    assert resolve.look(model, zeros, ["i"])["i"].shape == (2, 0)


def test_a_feed_that_does_not_run_is_an_error_only_where_shapes_are_needed():
    model, feed = from_text(OPEN), FEED | {"shape": np.array([5, 5])}
    assert resolve.look(model, feed, ["r"]) == {}
    with pytest.raises(ModelError):
        resolve.resolve(model, feed, ["r"])


def test_large_models_are_not_run_to_look(monkeypatch):
    assert resolve.look(from_text(OPEN), FEED, ["r"])["r"].shape == (8, 1)
    monkeypatch.setattr(size_limits, "SHAPE_RUN_BYTES", 10)
    assert resolve.look(from_text(OPEN), FEED, ["r"]) == {}
    assert resolve.resolve(from_text(OPEN), FEED, ["r"])["r"] == (8, 1)


def test_a_run_for_shapes_takes_no_values_out(monkeypatch):
    taken = []
    run = runtime.Session.run

    def recorded(self, *args, **named):
        found = run(self, *args, **named)
        taken.extend(found.values())
        return found

    monkeypatch.setattr(runtime.Session, "run", recorded)
    model = from_text("""g (float[n, 4] x, int64[2] shape) => (float16[a, b] y)
        { r = Reshape(x, shape) h = Cast<to = 10>(r) i = NonZero(x) y = Neg(h) }""")
    feed = {"x": np.ones((1000, 4), np.float32), "shape": np.array([4000, 1])}
    seen = resolve.look_shapes(model, feed, ["r", "h", "i"])
    assert {name: (found.dims, found.dtype) for name, found in seen.items()} == {
        "r": ((4000, 1), np.float32),
        "h": ((4000, 1), np.float16),
        "i": ((2, 4000), np.int64),
    }
    assert resolve.resolve(model, feed, ["h"])["h"] == (4000, 1)
    assert sum(array.nbytes for array in taken) <= 64


def test_the_shape_of_a_value_without_a_known_type_is_seen_too():
    model = from_text("""g (float[n, 4] x) => (float[a, b] y)
        { s = SplitToSequence<axis = 0>(x) p = Constant<value_int = 0>() y = SequenceAt(s, p) }""")
    seen = resolve.look_shapes(model, {"x": FEED["x"]}, ["s", "y"])
    assert {name: found.dims for name, found in seen.items()} == {"y": (1, 4)}


def test_facts_at_a_feed_know_what_a_run_shows_of_one_iteration():
    model = from_text(LOOP)
    always = symbolic.interpret(model, infer.infer(model))
    at = resolve.facts_at(model, FEED | {"count": np.array(3), "go": np.array(True)}, always)
    body = next(iter(model.graph)).attributes["body"].as_graph()
    inner = {output.name: output for node in body for output in node.outputs}
    assert (always.static(inner["r"]), at.static(inner["r"]), at.dtype(inner["r"])) == (None, (8, 1), np.float32)
    assert always.static(inner["u"]) is None
    nothing = resolve.facts_at(model, {}, always)
    assert nothing is not always
    assert nothing.static(inner["r"]) is None
