"""Properties of affine quantization, on arbitrary arrays."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from onnxcompress.numerics import snr
from onnxcompress.numerics.quantization import affine_weights

VALUES = st.floats(-(2.0**100), 2.0**100, width=32, allow_subnormal=True)
ARRAYS = hnp.arrays(np.float32, hnp.array_shapes(min_dims=3, max_dims=3, min_side=1, max_side=9), elements=VALUES)
BITS = st.integers(2, 8)


def _scales(array, bits, dtype=np.float32):
    return affine_weights.scales_for(np.abs(array).max(axis=(0, 2)), bits, dtype)


@given(ARRAYS, BITS)
def test_no_value_moves_by_more_than_half_a_step(array, bits):
    scale = _scales(array, bits)
    integers = affine_weights.round_to(array, scale, bits)
    high = 2 ** (bits - 1) - 1
    assert (integers.shape, integers.dtype) == (array.shape, np.int8)
    assert np.abs(integers.astype(int)).max() <= high
    step = scale.astype(float)[:, None]
    assert np.all(np.abs(integers * step - array) <= step * (0.5 + 1e-4))


@given(ARRAYS, BITS)
def test_values_on_the_grid_are_kept(array, bits):
    scale = _scales(array, bits)
    once = affine_weights.round_to(array, scale, bits)
    restored = once * scale[:, None]
    np.testing.assert_array_equal(affine_weights.round_to(restored, scale, bits), once)
    assert np.all(once[array == 0] == 0)


def test_each_channel_has_its_own_scale():
    array = np.array([[1, 2, 3, 40], [-5, 6, 7, -80]], np.float32)[None]
    scale = _scales(array, 8)
    np.testing.assert_allclose(scale, [40 / 127, 80 / 127], rtol=1e-6)
    assert affine_weights.round_to(array, scale, 8)[0, :, 3].tolist() == [127, -127]


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_magnitudes_that_are_not_finite_are_refused(bad):
    with pytest.raises(ValueError, match=r"^NaN or infinities$"):
        affine_weights.scales_for(np.array([1, bad], np.float32), 8)


def test_other_numbers_of_bits_are_refused():
    for bits in (1, 9):
        with pytest.raises(ValueError, match=rf"^{bits} bits: 2 to 8 are possible$"):
            affine_weights.largest_integer(bits)


def test_the_shape_around_an_axis():
    assert affine_weights.grouped_shape((2, 3, 4, 5), 1) == (2, 3, 20)
    assert affine_weights.grouped_shape((2, 3), None) == (1, 1, 6)
    with pytest.raises(ValueError, match=r"^no axis 2 in \[2, 3\]$"):
        affine_weights.grouped_shape((2, 3), 2)


def test_zeros_and_the_smallest_numbers_have_usable_scales():
    scale = affine_weights.scales_for(np.array([0, 1e-45, 3e38], np.float32), 8)
    assert scale[0] == 1
    assert scale[1] == np.finfo(np.float32).tiny
    assert np.isfinite(scale * np.float32(127)).all()


def test_float16_scales_are_rounded_up():
    high = np.linspace(0.001, 60000, 500, dtype=np.float32)
    scale = affine_weights.scales_for(high, 8, np.float16)
    assert scale.dtype == np.float16
    assert np.all(high / scale.astype(np.float32) <= 127)
    with pytest.raises(ValueError, match="beyond float16"):
        affine_weights.scales_for(high * 500, 8, np.float16)


@given(hnp.arrays(np.float32, (1, 5, 40), elements=st.floats(-8, 8, width=32)), st.integers(2, 8))
def test_clipping_never_raises_the_error_and_the_error_is_that_of_rounding(array, bits):
    candidates = affine_weights.clip_candidates(_scales(array, bits))
    errors = np.stack([affine_weights.squared_error(array, s, bits) for s in candidates])
    best, error = affine_weights.best_candidate(candidates, errors)
    assert np.all(error <= errors[0])
    rounded = affine_weights.round_to(array, best, bits) * best[:, None]
    exact = np.square(rounded.astype(float) - array).sum(axis=(0, 2))
    np.testing.assert_allclose(error, exact, rtol=1e-3, atol=1e-9)


def test_clipping_gains_at_few_bits():
    array = np.random.default_rng(0).standard_normal((1, 3, 4000)).astype(np.float32)
    candidates = affine_weights.clip_candidates(_scales(array, 4))
    errors = np.stack([affine_weights.squared_error(array, s, 4) for s in candidates])
    assert np.all(affine_weights.best_candidate(candidates, errors)[1] < 0.8 * errors[0])


def test_arrays_beyond_one_chunk():
    array = np.random.default_rng(0).standard_normal((3, 700, 500)).astype(np.float32)
    assert array.size > 2 * snr.CHUNK_VALUES
    scale = _scales(array, 8)
    expected = np.rint(array / scale[:, None])
    np.testing.assert_array_equal(affine_weights.round_to(array, scale, 8), expected)
    exact = np.square(expected * scale[:, None].astype(float) - array).sum(axis=(0, 2))
    np.testing.assert_allclose(affine_weights.squared_error(array, scale, 8), exact, rtol=1e-3)
