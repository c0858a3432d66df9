"""Numbers that decide how long an output is: rounded amounts, decisions, and shapes of inputs, which are none."""

import pytest

from onnxcompress.shapes.sized_by import Sizing, sizing
from tests import voice
from tests.helpers import from_text

NOTHING = Sizing((), is_computed=False)
DECISION = Sizing((), is_computed=True)


def _of(lines, start="", result="float[t] y"):
    constants = f"int64 zero = {{0}}, int64 one = {{1}}, float half = {{0.5}}{start}"
    text = f"g (float[n] x) => ({result}) <{constants}> {{ {lines} }}"
    return sizing(from_text(text))["y"]


def test_durations_size_a_signal():
    assert sizing(voice.model())["y"] == Sizing(("frames",), is_computed=True)


@pytest.mark.parametrize("rounding", ["Ceil", "Floor", "Round"])
def test_rounded_numbers_are_amounts(rounding):
    lines = f"""e = Exp(x) f = {rounding}(e) s = ReduceSum<keepdims = 0>(f) i = Cast<to = 7>(s)
        r = Range(zero, i, one) y = Cast<to = 1>(r)"""
    assert _of(lines) == Sizing(("f",), is_computed=True)


def test_without_rounding_the_cast_makes_the_amount():
    lines = "s = ReduceSum<keepdims = 0>(x) e = Exp(s) i = Cast<to = 7>(e) r = Range(zero, i, one) y = Cast<to = 1>(r)"
    assert _of(lines) == Sizing(("i",), is_computed=True)


def test_a_mask_of_lengths_is_sized_by_them():
    lines = """e = Exp(x) f = Ceil(e) m = Greater(f, half) k = NonZero(m) y = Cast<to = 1>(k)"""
    assert _of(lines, result="float[a, b] y") == Sizing(("f",), is_computed=True)


@pytest.mark.parametrize(
    "lines",
    [
        "e = Sigmoid(x) m = Greater(e, half) k = NonZero(m) y = Cast<to = 1>(k)",
        "e = Sigmoid(x) m = Greater(e, half) y = Compress(x, m)",
        "e = Relu(x) y, i, j, c = Unique(e)",
        """e = Sigmoid(x) m = Greater(e, half) i = Cast<to = 7>(m) s = ReduceSum(i) y, at = TopK(e, s)""",
        "e = Sigmoid(x) b, i = TopK(e, first) r = Reshape(i, first) y = ConstantOfShape(r)",
    ],
)
def test_decisions_are_no_amounts(lines):
    shape = "float[a, b] y" if "y = Cast" in lines else "float[t] y"
    assert _of(lines, ", int64[1] first = {1}", result=shape) == DECISION


@pytest.mark.parametrize(
    "lines",
    [
        "y = Relu(x)",
        "s = Shape(x) z = ConstantOfShape(s) y = Add(x, z)",
        "s = Size(x) r = Range(zero, s, one) y = Cast<to = 1>(r)",
        "s = Shape(x) m = Equal(s, first) w = Where(m, s, first) y = Expand(x, w)",
        """e = Sigmoid(x) m = Greater(e, half) k = NonZero(m) t = Transpose(k) u = ReduceSum(e)
           c = Shape(t) v = Slice(c, f, first) b = Expand(u, v) y = ScatterND(x, t, b)""",
    ],
)
def test_shapes_of_inputs_and_places_that_are_filled_are_neither(lines):
    assert _of(lines, ", int64[1] first = {1}, int64[1] f = {0}") == NOTHING


def test_rounds_of_a_loop_are_a_decision():
    text = """g (float x) => (float[k] y) <int64 most = {50}, bool yes = {1}> {
        last, y = Loop(most, yes, x) <body = b (int64 i, bool c, float v) => (bool go, float w, float o)
            <float limit = {10}> { w = Exp(v) o = Identity(w) go = Less(w, limit) }> }"""
    assert sizing(from_text(text))["y"] == DECISION
    fixed = text.replace("go = Less(w, limit)", "go = Identity(c)")
    assert sizing(from_text(fixed))["y"] == NOTHING


def test_amounts_in_bodies_are_no_amounts_that_can_be_given():
    text = """g (float[n] x, bool c) => (float[t] y) <int64 zero = {0}, int64 one = {1}> {
        y = If(c) <then_branch = a () => (float[t] r) {
                s = ReduceSum<keepdims = 0>(x) f = Ceil(s) i = Cast<to = 7>(f) k = Range(zero, i, one)
                r = Cast<to = 1>(k) }, else_branch = b () => (float[n] q) { q = Identity(x) }> }"""
    assert sizing(from_text(text))["y"] == DECISION
