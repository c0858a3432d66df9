"""Scales and zero points: zero is exact, every value in the range is at most half a step off."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from onnxcompress.io import model_io
from onnxcompress.numerics.quantization.affine_activations import IntegerGrid, affine_for, fake_quantize, quantize
from tests.helpers import floats, from_text, run

KINDS = ["u8", "s8", "u16", "s16"]
grids = st.builds(IntegerGrid, st.sampled_from(KINDS), symmetric=st.booleans())
ends = st.floats(-1e6, 1e6, width=32)


@given(ends, ends, grids)
def test_zero_is_exact_and_the_rest_half_a_step_off(a, b, grid):
    low, high = min(a, b), max(a, b)
    affine = affine_for(low, high, grid)
    assert grid.low <= affine.zero_point <= grid.high
    assert fake_quantize(np.zeros(1, np.float32), affine)[0] == 0
    values = np.linspace(min(low, 0), max(high, 0), 101).astype(np.float32)
    error = np.abs(fake_quantize(values, affine).astype(np.float64) - values)
    step = float(affine.scale)
    # half a step by rounding, and half a step by which a rounded zero point moves the range
    assert error.max() <= step * (1 + 1e-3) + 1e-6 * np.abs(values).max()


@given(ends, grids)
def test_a_range_that_begins_or_ends_at_zero_is_not_exceeded(end, grid):
    affine = affine_for(min(end, 0), max(end, 0), grid)
    if abs(end) > 1e-6:
        steps = np.float32(grid.high - affine.zero_point) if end > 0 else np.float32(grid.low - affine.zero_point)
        assert abs(affine.scale * steps) <= abs(np.float32(end))
        assert abs(affine.scale * steps) >= abs(end) * (1 - 1e-6) or grid.symmetric
        if not grid.symmetric:
            assert affine.zero_point == (grid.low if end > 0 else grid.high)


@given(ends, ends, grids)
def test_integers_are_those_of_their_type(a, b, grid):
    affine = affine_for(min(a, b), max(a, b), grid)
    values = np.array([a, b, 0, 1e7, -1e7], np.float32)
    integers = quantize(values, affine)
    assert integers.dtype == grid.dtype
    shifted = integers.astype(np.float32) - np.float32(affine.zero_point)
    np.testing.assert_array_equal(shifted * affine.scale, fake_quantize(values, affine))


@pytest.mark.parametrize("kind", KINDS)
def test_symmetric_grids_have_a_fixed_zero_point(kind):
    grid = IntegerGrid(kind, symmetric=True)
    affine = affine_for(-0.5, 2, grid)
    assert affine.zero_point == {"u8": 128, "s8": 0, "u16": 32768, "s16": 0}[kind]
    assert affine.high == pytest.approx(2)
    assert affine.low == pytest.approx(-2)


@pytest.mark.parametrize(("low", "high"), [(0.0, 0.0), (0.0, 1e-30), (-1e-30, 0.0)])
def test_ranges_of_no_width_get_a_usable_scale(low, high):
    affine = affine_for(low, high, IntegerGrid("u8"))
    assert affine.high - affine.low == pytest.approx(1e-6)
    wider = affine_for(low, high, IntegerGrid("u8"), least_span=1e-4)
    assert wider.high - wider.low == pytest.approx(1e-4)
    assert affine_for(0, 1e-40, IntegerGrid("s8"), least_span=0).scale >= np.finfo(np.float32).tiny


@pytest.mark.parametrize(("low", "high"), [(np.nan, 1), (0, np.inf), (-1e60, 1e60)])
def test_what_is_no_range_is_refused(low, high):
    with pytest.raises(ValueError, match=r"no range|beyond float32"):
        affine_for(low, high, IntegerGrid("u8"))


@pytest.mark.parametrize("kind", ["u8", "s8"])
def test_the_runtime_rounds_the_same_way(kind):
    affine = affine_for(-1.3, 2.9, IntegerGrid(kind))
    text = f"""
    g (float[1000] x) => ({"uint8" if kind == "u8" else "int8"}[1000] q, float[1000] y)
    <float s = {{{float(affine.scale)!r}}}, {"uint8" if kind == "u8" else "int8"} z = {{{affine.zero_point}}}> {{
      q = QuantizeLinear(x, s, z)
      y = DequantizeLinear(q, s, z)
    }}
    """
    x = np.concatenate([floats(997), [0.5 * affine.scale, 1.5 * affine.scale, -2.5 * affine.scale]]).astype(np.float32)
    found = run(model_io.load(from_text(text)), {"x": x})
    np.testing.assert_array_equal(found["q"], quantize(x, affine))
    np.testing.assert_array_equal(found["y"], fake_quantize(x, affine))
