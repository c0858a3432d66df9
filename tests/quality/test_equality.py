"""Equality of outputs: what passes for rounding, what does not, and how a difference is told."""

from __future__ import annotations

import numpy as np
import pytest

from onnxcompress.quality import equality
from onnxcompress.quality.estimated_drop import sigmoid_values
from onnxcompress.verify.whole import WholeProof
from tests.helpers import from_text


def _fault(expected: object, got: object, *, sigmoids: tuple[str, ...] = ()) -> str | None:
    return equality.mismatch({"y": expected}, {"y": got}, sigmoids=sigmoids)


def _f32(*numbers: float) -> np.ndarray:
    return np.array(numbers, np.float32)


@pytest.mark.parametrize(
    ("expected", "got", "differs"),
    [
        (_f32(1, 2), _f32(1, 2), False),
        (_f32(100, 0), _f32(100, 4e-4), False),  # within 5e-6 of the peak
        (_f32(100, 0), _f32(100, 6e-4), True),
        (_f32(100, 1), _f32(100.009, 1), False),  # within 1e-4 of itself
        (_f32(100, 1), _f32(100.02, 1), True),
        (_f32(1e-6, 0), _f32(1e-6, 1e-7), True),  # small outputs are held to their own size
        (_f32(np.nan, np.inf), _f32(np.nan, np.inf), False),
        (_f32(np.nan, 1), _f32(0, 1), True),
        (_f32(0, 1), _f32(np.nan, 1), True),
        (_f32(np.inf, 1), _f32(-np.inf, 1), True),
        (_f32(np.inf, 1), _f32(3e38, 1), True),
        (np.zeros((0, 3), np.float32), np.zeros((0, 3), np.float32), False),
        (np.zeros((0, 3), np.float32), np.zeros((0, 4), np.float32), True),
        (np.array([1, 2]), np.array([1, 3]), True),
        (np.array([1, 2]), np.array([1, 2], np.int32), True),
        (np.array([True]), np.array([False]), True),
        (np.array(["a"], object), np.array(["b"], object), True),
        (np.array(["a"], object), np.array(["a"], object), False),
        ([_f32(1)], [_f32(1)], False),
        ([_f32(1)], [_f32(2)], True),
        ([_f32(1)], [_f32(1), _f32(1)], True),
        ({"k": 1.0}, {"k": 1.0}, False),
        ({"k": 1.0}, {"k": 2.0}, True),
        ({"k": 1.0}, {"q": 1.0}, True),
        (None, None, False),
        (None, _f32(1), True),
    ],
)
def test_what_counts_as_equal(expected: object, got: object, *, differs: bool):
    assert (_fault(expected, got) is not None) is differs


def test_the_first_reading_of_a_float16_is_its_own_rounding():
    one = np.array([1.0], np.float16)
    assert _fault(one, np.array([1.0 + 2**-9], np.float16)) is None
    assert _fault(one, np.array([1.01], np.float16)) is not None


def test_outputs_must_be_the_same_in_the_same_order():
    assert equality.mismatch({"a": _f32(1), "b": _f32(1)}, {"b": _f32(1), "a": _f32(1)}) is not None


def test_a_difference_is_told_with_its_place():
    assert _fault(_f32(1, 2, 3), _f32(1, 2.5, 3)) == (
        "output 'y' differs in 1 of 3 elements, worst at [1]: 2.5 and not 2.0, 2.33e+03 times the tolerance"
    )


def test_small_outputs_of_a_sigmoid_carry_the_rounding_of_larger_ones():
    expected, rounded, wrong = _f32(0, 2e-5), _f32(2e-7, 2e-5), _f32(1e-6, 2e-5)
    assert _fault(expected, rounded) is not None
    assert _fault(expected, rounded, sigmoids=("y",)) is None
    assert _fault(expected, wrong, sigmoids=("y",)) is not None
    assert _fault(expected, rounded, sigmoids=("other",)) is not None


def test_sigmoids_are_found_behind_what_moves_their_elements():
    model = from_text(
        """g (float[n, 2] x) => (float[n, 2] plain, float[2, n] moved, float[n, 2] other, float[n, 2] scaled) {
            plain = Sigmoid(x)
            moved = Transpose(plain)
            other = Tanh(x)
            scaled = Add(plain, plain)
        }"""
    )
    assert sigmoid_values(model.graph.outputs) == {"plain", "moved"}


def test_a_rewrite_before_a_sigmoid_far_out_is_not_taken_for_wrong():
    text = """g (float[n, 512] x) => (float[n, 512] y) <float b = {{-12}}> {{
        z = Add(x, b)
        y = {}(z)
    }}"""
    feeds = [{"x": np.random.default_rng(0).standard_normal((1, 512)).astype(np.float32) / 4}]
    moved = [{"x": feeds[0]["x"] + np.float32(4e-7)}]
    model = from_text(text.format("Sigmoid"))
    expected = WholeProof(model, moved, lossless=True)._reference
    assert WholeProof(model, feeds, lossless=True, expected=expected).problem(from_text(text.format("Sigmoid"))) is None
    assert WholeProof(model, feeds, lossless=True).problem(from_text(text.format("HardSigmoid"))) is not None
