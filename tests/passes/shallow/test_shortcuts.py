"""Ways past blocks: which values can stand in for which, what goes, what doesn't."""

from __future__ import annotations

import numpy as np

from onnxcompress.passes.shallow.shortcuts import find_shortcuts, main_shapes
from tests.helpers import floats, with_constants

X = {"x": floats(2, 4)}


def _found(text: str, **arrays: np.ndarray) -> list[tuple[str, str, list[str], int]]:
    model = with_constants(text, **arrays)
    return [
        (s.out.name or "", s.through.name or "", sorted(n.outputs[0].name or "" for n in s.nodes), s.macs)
        for s in find_shortcuts(model, main_shapes(model, X))
    ]


RESIDUAL = """g (float[N, 4] x, float[4, 8] u, float[8, 4] v) => (float[N, 4] y) {
    a = MatMul(x, u)  b = Relu(a)  c = MatMul(b, v)  s = Add(c, x)  y = Relu(s) }"""


def test_a_residual_branch_goes_with_all_that_only_it_needs():
    found = _found(RESIDUAL, u=floats(4, 8), v=floats(8, 4))
    assert found == [("s", "x", ["a", "b", "c", "s"], 2 * (32 + 32))]


def test_what_others_read_stays():
    text = RESIDUAL.replace("(float[N, 4] y)", "(float[N, 4] y, float[N, 8] b)")
    found = _found(text, u=floats(4, 8), v=floats(8, 4))
    assert found == [("s", "x", ["c", "s"], 2 * 32)]


def test_a_branch_of_another_shape_stays():
    text = """g (float[N, 4] x, float[4, 1] u) => (float[N, 4] y) { a = MatMul(x, u)  y = Add(a, x) }"""
    assert [each[:2] for each in _found(text, u=floats(4, 1))] == [("y", "x")]
    text = """g (float[N, 4] x, float[4, 1] u, float[4] k) => (float[N, 4] y)
        { a = MatMul(x, u)  t = MatMul(x, u)  y = Add(a, k) }"""
    assert not _found(text, u=floats(4, 1), k=floats(4))


def test_sums_without_multiplications_stay():
    text = "g (float[N, 4] x) => (float[N, 4] y) { a = Relu(x)  y = Add(a, x) }"
    assert not _found(text)


def test_a_block_that_ends_in_a_normalization_can_go_with_it():
    text = """g (float[N, 4] x, float[4, 4] u, float[4, 4] v, float[4] n) => (float[N, 4] z) {
        a = MatMul(x, u)  s = Add(a, x)  p = LayerNormalization(s, n)
        b = MatMul(p, v)  t = Add(b, p)  q = LayerNormalization(t, n)  z = Relu(q) }"""
    pairs = [each[:2] for each in _found(text, u=floats(4, 4), v=floats(4, 4), n=np.ones(4, np.float32))]
    assert pairs == [("s", "x"), ("p", "x"), ("t", "p"), ("z", "p"), ("z", "x")]


def test_channels_of_a_convolution_are_axis_one():
    model = with_constants(
        "g (float[N, 3, 4, 4] x, float[3, 3, 1, 1] w) => (float[N, 3, 4, 4] y) { a = Conv(x, w)  y = Add(a, x) }",
        w=floats(3, 3, 1, 1),
    )
    (found,) = find_shortcuts(model, main_shapes(model, {"x": floats(2, 3, 4, 4)}))
    assert (found.axis, found.shape) == (1, (2, 3, 4, 4))
