"""Equality of outputs: what passes for rounding, what does not, and how a difference is told."""

from __future__ import annotations

import numpy as np
import pytest

from onnxcompress.quality import equality
from onnxcompress.quality.equality import MOST_TIMES, NoiseFloor

UNIT = 2.0**-24


def _fault(expected: object, got: object, *moved: object) -> str | None:
    """Compare an output with another, where rounding was seen to make it `moved`."""
    measured = [lambda value=value: [{"y": value}] for value in moved]
    return NoiseFloor([{"y": expected}], measured).mismatch([{"y": got}])


def _f32(*numbers: float) -> np.ndarray:
    return np.array(numbers, np.float32)


@pytest.mark.parametrize(
    ("expected", "got", "differs"),
    [
        (_f32(1, 2), _f32(1, 2), False),
        (_f32(1, 1), _f32(1 + 4 * UNIT, 1), False),
        (_f32(1, 1), _f32(1 + 16 * UNIT, 1), True),
        (_f32(1e-6, 0), _f32(1e-6, 1e-7), True),  # small outputs are held to their own size
        (_f32(0, 0), _f32(0, 1e-30), True),  # nothing moves it
        (_f32(np.nan, np.inf), _f32(np.nan, np.inf), False),
        (_f32(np.nan, 1), _f32(0, 1), True),
        (_f32(0, 1), _f32(np.nan, 1), True),
        (_f32(np.inf, 1), _f32(-np.inf, 1), True),
        (_f32(np.inf, 1), _f32(3e38, 1), True),
        (np.full(2, 1e300), np.full(2, 1e300), False),
        (np.full(2, 1e300), np.full(2, 1.001e300), True),
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
def test_what_counts_as_equal_where_nothing_was_measured(expected: object, got: object, *, differs: bool):
    assert (_fault(expected, got) is not None) is differs


def test_the_tolerance_is_a_multiple_of_what_rounding_was_seen_to_do():
    expected, moved = _f32(1, 1), _f32(1.001, 1)
    assert _fault(expected, _f32(1 + 0.99e-3 * MOST_TIMES, 1), moved) is None
    assert _fault(expected, _f32(1 + 1.01e-3 * MOST_TIMES, 1), moved) is not None
    assert _fault(np.array([1, 2]), np.array([1, 3]), np.array([0, 2])) is None


def test_nothing_is_measured_that_is_not_needed():
    asked: list[int] = []

    def measured(index: int):
        return lambda: asked.append(index) or [{"y": _f32(1 + index * 1e-5)}]

    floor = NoiseFloor([{"y": _f32(1)}], [measured(1), measured(2), measured(3)])
    assert floor.mismatch([{"y": _f32(1)}]) is None
    assert asked == []
    assert floor.mismatch([{"y": _f32(1 + 1e-4)}]) is None
    assert asked == [1, 2]
    assert floor.mismatch([{"y": _f32(2)}]) is not None
    assert floor.mismatch([{"y": _f32(2)}]) is not None
    assert asked == [1, 2, 3]


def test_a_channel_is_held_to_its_own_noise():
    expected = np.ones((1, 2, 16, 16), np.float32)
    expected[:, 0] *= 1000
    got = expected.copy()
    got[:, 1] += 1e-5
    assert _fault(expected[:, :, :8], got[:, :, :8]) is None  # too few elements for a channel
    assert "in channel 1 of axis 1" in _fault(expected, got)


def test_a_dead_channel_has_the_noise_of_all():
    expected = np.zeros((1, 2, 16, 16), np.float32)
    expected[:, 0] = 1
    got = expected.copy()
    got[:, 1] = 1e-8
    assert _fault(expected, got) is None


def test_small_outputs_of_a_sigmoid_carry_the_rounding_of_larger_ones():
    expected, rounded, wrong = _f32(0, 2e-5), _f32(2e-7, 2e-5), _f32(1e-6, 2e-5)
    floor = NoiseFloor([{"y": expected}], bounded=["y"])
    assert _fault(expected, rounded) is not None
    assert floor.mismatch([{"y": rounded}]) is None
    assert floor.mismatch([{"y": wrong}]) is not None


def test_what_changes_its_shape_with_the_rounding_is_not_compared_and_told():
    floor = NoiseFloor([{"y": _f32(1, 2), "z": _f32(1)}], [lambda: [{"y": _f32(1), "z": _f32(1.1)}]])
    assert floor.mismatch([{"y": _f32(7, 7), "z": _f32(1.1)}]) is None
    assert floor.unproved() == {"y": np.inf, "z": pytest.approx(0.1)}


def test_outputs_must_be_the_same_in_the_same_order():
    floor = NoiseFloor([{"a": _f32(1), "b": _f32(1)}])
    assert floor.mismatch([{"b": _f32(1), "a": _f32(1)}]) == "the outputs are ['b', 'a'] and not ['a', 'b']"


def test_a_difference_is_told_with_its_place():
    assert _fault(_f32(1, 2, 3), _f32(1, 2.5, 3)) == (
        "output 'y' differs by 2.8e+05 times the tolerance, worst at [1]: 2.5 and not 2.0"
    )


def test_what_makes_a_lossy_output_unusable():
    good = {"y": _f32(1)}
    assert equality.degenerate(good, {"y": _f32(7)}) is None
    assert equality.degenerate(good, {"y": _f32(np.nan)}) is not None


def test_sizes_that_a_model_computes_may_differ_and_their_number_may_not():
    one, other = {"y": np.ones((1, 3), np.float32)}, {"y": np.ones((1, 4), np.float32)}
    assert equality.degenerate(one, other) is not None
    assert equality.degenerate(one, other, sized={"y"}) is None
    assert equality.degenerate(one, {"y": np.ones(3, np.float32)}, sized={"y"}) is not None
    assert "NaN" in equality.degenerate(one, {"y": np.full((1, 4), np.nan, np.float32)}, sized={"y"})
