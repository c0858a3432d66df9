"""Nodes that give back their input go; their near-misses stay."""

from __future__ import annotations

import numpy as np
import pytest

from onnxcompress.base.gate import Gate
from onnxcompress.core import Action, Context
from onnxcompress.passes.fold.noops import RemoveNoops
from tests.helpers import floats, from_text, op_types, run


def body(expression: str, constants: str = "", shape: str = "N, 3") -> str:
    dims = ", ".join(["P", "Q", "R", "S"][: shape.count(",") + 1])
    given = f"<{constants}>" if constants else ""
    return f"g (float[{shape}] x) => (float[{dims}] y) {given} {{ h = Tanh(x) {expression} }}"


GONE = [
    ("y = Transpose<perm=[0,1]>(h)", "", "N, 3"),
    ("y = Reshape(h, t)", "int64[2] t = {0, 3}", "N, 3"),
    ("y = Reshape(h, t)", "int64[2] t = {-1, 3}", "N, 3"),
    ("y = Reshape(h, t)", "int64[2] t = {0, -1}", "N, 3"),
    ("s = Shape(h) y = Reshape(h, s)", "", "N, 3"),
    ("y = Flatten(h)", "", "N, 3"),
    ("y = Cast<to=1>(h)", "", "N, 3"),
    (
        "y = Slice(h, s, e, a)",
        "int64[1] s = {0}, int64[1] e = {9223372036854775807}, int64[1] a = {0}",
        "N, 3",
    ),
    ("y = Slice(h, s, e, a)", "int64[1] s = {-3}, int64[1] e = {3}, int64[1] a = {-1}", "N, 3"),
    ("y = Pad(h, p)", "int64[4] p = {0, 0, 0, 0}", "N, 3"),
    ("y = Expand(h, t)", "int64[2] t = {1, 3}", "N, 3"),
    ("y = Tile(h, t)", "int64[2] t = {1, 1}", "N, 3"),
    ("y = Resize(h, , s)", "float[4] s = {1, 1, 1, 1}", "N, 3, 4, 4"),
    ("y = Concat<axis=0>(h)", "", "N, 3"),
    ("y = Split<axis=1>(h)", "", "N, 3"),
    ("y = Add(h, c)", "float c = {0}", "N, 3"),
    ("y = Add(c, h)", "float[3] c = {0, 0, 0}", "N, 3"),
    ("y = Sub(h, c)", "float[1, 1] c = {0}", "N, 3"),
    ("y = Mul(c, h)", "float c = {1}", "N, 3"),
    ("y = Div(h, c)", "float[1] c = {1}", "N, 3"),
    ("y = Pow(h, c)", "float c = {1}", "N, 3"),
    ("y = ReduceMax<axes=[1], keepdims=1>(h)", "", "N, 1"),
    ("y = ReduceSum<noop_with_empty_axes=1>(h)", "", "N, 3"),
    ("y = Clip(h)", "", "N, 3"),
    ("y = MaxPool<kernel_shape=[1,1]>(h)", "", "N, 3, 4, 4"),
    ("y = AveragePool<kernel_shape=[1,1], strides=[1,1]>(h)", "", "N, 3, 4, 4"),
    ("a = Neg(h) y = Neg(a)", "", "N, 3"),
    ("a = Abs(h) y = Abs(a)", "", "N, 3"),
    ("a = Relu(h) y = Relu(a)", "", "N, 3"),
    ("a = Sigmoid(h) b = Transpose(a) c = Relu(b) y = Neg(c)", "", "N, 3"),
]
STAY = [
    ("y = Transpose<perm=[1,0]>(h)", "", "N, 3"),
    ("y = Transpose(h)", "", "N, M"),
    ("y = Reshape(h, t)", "int64[2] t = {0, 3}", "N, M"),
    ("y = Reshape(h, t)", "int64[2] t = {3, -1}", "N, 3"),
    ("y = Reshape<allowzero=1>(h, t)", "int64[2] t = {0, 3}", "N, 3"),
    ("y = Flatten<axis=0>(h)", "", "N, 3"),
    ("y = Flatten(h)", "", "N, 3, 4"),
    ("y = Slice(h, s, e, a)", "int64[1] s = {0}, int64[1] e = {3}, int64[1] a = {0}", "N, 3"),
    (
        "y = Slice(h, s, e, a)",
        "int64[1] s = {1}, int64[1] e = {9223372036854775807}, int64[1] a = {0}",
        "N, 3",
    ),
    ("y = Slice(h, s, e, a)", "int64[1] s = {-3}, int64[1] e = {3}, int64[1] a = {0}", "N, 3"),
    (
        "y = Slice(h, s, e, a, k)",
        "int64[1] s = {0}, int64[1] e = {9223372036854775807}, int64[1] a = {0}, int64[1] k = {2}",
        "N, 3",
    ),
    ("y = Pad(h, p)", "int64[4] p = {0, 0, 1, 0}", "N, 3"),
    ("y = Expand(h, t)", "int64[2] t = {1, 3}", "N, M"),
    ("y = Expand(h, t)", "int64[2] t = {4, 1}", "N, 3"),
    ("y = Tile(h, t)", "int64[2] t = {1, 2}", "N, 3"),
    ("y = Resize(h, , s)", "float[4] s = {1, 1, 2, 1}", "N, 3, 4, 4"),
    (
        'y = Resize<coordinate_transformation_mode="tf_crop_and_resize">(h, r, s)',
        "float[8] r = {0, 0, 0, 0, 1, 1, 0.5, 1}, float[4] s = {1, 1, 1, 1}",
        "N, 3, 4, 4",
    ),
    ("y = Add(h, c)", "float[2, 3] c = {0, 0, 0, 0, 0, 0}", "N, 3"),
    ("y = Add(h, c)", "float[3] c = {0, 0, 0.5}", "N, 3"),
    ("y = Mul(h, c)", "float[4] c = {1, 1, 1, 1}", "N, 1"),
    ("y = Sub(c, h)", "float c = {0}", "N, 3"),
    ("y = Div(c, h)", "float c = {1}", "N, 3"),
    ("y = ReduceMax<axes=[1], keepdims=1>(h)", "", "N, M"),
    ("y = ReduceSum<keepdims=1>(h)", "", "N, 3"),
    ("y = Clip(h, c)", "float c = {0}", "N, 3"),
    ("y = MaxPool<kernel_shape=[1,1], strides=[2,2]>(h)", "", "N, 3, 4, 4"),
    ("y = MaxPool<kernel_shape=[2,1], pads=[0,0,1,0]>(h)", "", "N, 3, 4, 4"),
    ("a = Neg(h) y = Relu(a)", "", "N, 3"),
    ("a = Cast<to=7>(h) y = Cast<to=1>(a)", "", "N, 3"),
]


def feed(shape: str) -> dict[str, np.ndarray]:
    sizes = {"N": 2, "M": 3}
    dims = [sizes.get(d.strip()) or int(d) for d in shape.split(",")]
    if shape == "N, M":
        dims = [1, 3]  # an axis that a wrong rewrite would forget to stretch or reduce
    return {"x": floats(*dims)}


@pytest.mark.parametrize(("expression", "constants", "shape"), GONE)
def test_gone(expression: str, constants: str, shape: str) -> None:
    model = from_text(body(expression, constants, shape))
    expected, before = run(model, feed(shape)), len(op_types(model))
    changes = RemoveNoops().run(model, Context())
    assert changes
    assert all(c.action is Action.APPLIED for c in changes)
    assert len(op_types(model)) < before
    np.testing.assert_array_equal(run(model, feed(shape))["y"], expected["y"])
    assert not RemoveNoops().run(model, Context())


@pytest.mark.parametrize(("expression", "constants", "shape"), STAY)
def test_stay(expression: str, constants: str, shape: str) -> None:
    model = from_text(body(expression, constants, shape))
    before = op_types(model)
    if shape == "N, M" and "Reshape" in expression:
        assert RemoveNoops().run(from_text(body(expression, constants, "N, 3")), Context())
    assert not RemoveNoops().run(model, Context())
    assert op_types(model) == before


@pytest.mark.parametrize(
    ("expression", "opset"),
    [
        ("y = Squeeze<axes=[1]>(u)", 11),
        ("y = Slice<starts=[0], ends=[2147483647], axes=[0]>(u)", 9),
        ("y = Pad<pads=[0,0,0,0]>(u)", 9),
        ("y = Upsample<scales=[1.0,1.0]>(u)", 8),
    ],
)
def test_attributes_of_old_opsets(expression: str, opset: int) -> None:
    model = from_text(f"g (float[N, 3] x) => (float[P, Q] y) {{ u = Neg(x) {expression} }}", opset=opset)
    gone = "Squeeze" not in expression
    assert bool(RemoveNoops().run(model, Context())) == gone


def test_old_clip_bounds_infinity() -> None:
    model = from_text("g (float[N] x) => (float[N] y) { h = Neg(x) y = Clip(h) }", opset=9)
    assert not RemoveNoops().run(model, Context())


def test_overridable_and_outputs() -> None:
    """A default that callers may override is no constant; an input can't be an output."""
    model = from_text("g (float[N] x, float c = {0}) => (float[N] y) { h = Neg(x) y = Add(h, c) }")
    assert not RemoveNoops().run(model, Context())
    model = from_text("g (float[N] x) => (float[N] y) <float c = {0}> { y = Add(x, c) }")
    assert not RemoveNoops().run(model, Context())
    model = from_text("g (float[N] x) => (float[N] y, float[N] h) <float c = {0}> { h = Neg(x) y = Add(h, c) }")
    assert not RemoveNoops().run(model, Context())
    assert sorted(run(model, {"x": floats(2)})) == ["h", "y"]


def test_shared_constant_stays_for_the_other_reader() -> None:
    model = from_text("g (float[N] x) => (float[N] y) <float c = {1}> { h = Mul(x, c) a = Add(h, c) y = Neg(a) }")
    expected = run(model, {"x": floats(4)})
    RemoveNoops().run(model, Context())
    assert op_types(model) == ["Add", "Neg"]
    np.testing.assert_array_equal(run(model, {"x": floats(4)})["y"], expected["y"])


def test_inside_a_body() -> None:
    model = from_text("""g (bool b, float[N] x) => (float[N] y) <float c = {0}> {
        y = If (b) <then_branch = t () => (float[N] p) { q = Neg(x) r = Add(q, c) p = Abs(r) },
                    else_branch = e () => (float[N] s) { s = Add(x, c) }> }""")
    feeds = [{"b": np.array(flag), "x": floats(3)} for flag in (True, False)]
    expected = [run(model, f)["y"] for f in feeds]
    RemoveNoops().run(model, Context())
    assert op_types(model) == ["Abs", "Add", "If", "Neg"]
    for one, want in zip(feeds, expected, strict=True):
        np.testing.assert_array_equal(run(model, one)["y"], want)


def test_not_a_number_and_infinity_come_through() -> None:
    model = from_text("g (float[N] x) => (float[N] y) { a = Relu(x) b = Relu(a) y = Neg(b) }")
    odd = np.array([np.nan, np.inf, -np.inf, -0.0, -1], np.float32)
    expected = run(model, {"x": odd})["y"]
    assert RemoveNoops().run(model, Context())
    np.testing.assert_array_equal(run(model, {"x": odd})["y"], expected)


def test_gate_is_asked() -> None:
    model = from_text("g (float[N] x) => (float[N] y) <float c = {0}> { h = Neg(x) y = Add(h, c) }")
    assert not RemoveNoops().run(model, Context(gate=Gate(limit=0)))
    assert op_types(model) == ["Add", "Neg"]
