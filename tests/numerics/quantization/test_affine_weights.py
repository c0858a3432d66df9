"""Properties of affine quantization, on arbitrary arrays."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from onnxcompress.numerics import snr
from onnxcompress.numerics.quantization import affine_weights

SHAPES = hnp.array_shapes(min_dims=1, max_dims=4, min_side=1, max_side=9)
VALUES = st.floats(-(2.0**100), 2.0**100, width=32, allow_subnormal=True)
ARRAYS = hnp.arrays(np.float32, SHAPES, elements=VALUES)


@st.composite
def _cases(draw):
    array = draw(ARRAYS)
    axis = draw(st.none() | st.integers(0, array.ndim - 1))
    block = None if axis is None else draw(st.none() | st.integers(1, 5))
    return array, {"axis": axis, "block": block, "bits": draw(st.integers(2, 8)), "symmetric": draw(st.booleans())}


def _spread(quantized, shape):
    """Return the scale of every element."""
    ones = np.ones(shape, np.int8)
    return affine_weights.dequantize(
        affine_weights.Quantized(ones, quantized.scale, None, quantized.axis, quantized.block)
    )


@given(_cases())
def test_no_value_moves_by_more_than_half_a_step(case):
    array, how = case
    quantized = affine_weights.quantize(array, **how)
    grid = affine_weights.Grid(how["bits"], how["symmetric"])
    assert quantized.values.shape == array.shape
    assert quantized.values.dtype == grid.dtype
    assert quantized.values.min() >= grid.low
    assert quantized.values.max() <= grid.high
    step = _spread(quantized, array.shape).astype(float)
    error = np.abs(affine_weights.dequantize(quantized).astype(float) - array)
    # a zero point is itself rounded, which moves the ends of the range by up to half a step more
    bound = 0.5 if how["symmetric"] else 1.0
    assert np.all(error <= step * (bound + 1e-4))


@given(_cases())
def test_what_is_on_the_grid_stays(case):
    array, how = case
    once = affine_weights.dequantize(affine_weights.quantize(array, **how))
    step = _spread(affine_weights.quantize(array, **how), array.shape)
    twice = affine_weights.dequantize(affine_weights.quantize(once, **how))
    assert np.all(np.abs(once.astype(float) - twice) <= step.astype(float) * 1.001)
    assert np.all(once[array == 0] == 0)  # zero is always on the grid


@given(ARRAYS)
def test_finer_groups_have_no_greater_steps(array):
    whole = affine_weights.quantize(array, axis=None, bits=8, symmetric=True)
    for axis in range(array.ndim):
        channels = affine_weights.quantize(array, axis=axis, bits=8, symmetric=True)
        used = np.abs(np.moveaxis(array, axis, 0)).reshape(array.shape[axis], -1).max(axis=1) > 0
        assert np.all(channels.scale[used] <= whole.scale)


def test_groups_are_the_channels_and_blocks_of_the_axis():
    array = np.array([[1, 2, 3, 40], [-5, 6, 7, 80]], np.float32)
    by_row = affine_weights.quantize(array, axis=0, bits=8, symmetric=True)
    np.testing.assert_allclose(by_row.scale, [40 / 127, 80 / 127], rtol=1e-6)
    blocks = affine_weights.quantize(array, axis=1, block=3, bits=8, symmetric=True)  # the last block has one column
    np.testing.assert_allclose(blocks.scale, [[3 / 127, 40 / 127], [7 / 127, 80 / 127]], rtol=1e-6)
    assert blocks.values[0, 3] == blocks.values[1, 3] == 127
    asymmetric = affine_weights.quantize(array, axis=0, bits=8, symmetric=False)
    assert asymmetric.zero_point is not None
    assert asymmetric.zero_point.tolist() == [0, 15]


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_what_is_not_finite_is_refused(bad):
    with pytest.raises(ValueError, match="NaN or infinities"):
        affine_weights.quantize(np.array([[1, bad]], np.float32), axis=0, bits=8, symmetric=True)


@pytest.mark.parametrize(
    ("array", "options", "message"),
    [
        (np.zeros((0, 3), np.float32), {}, "empty"),
        (np.zeros((2, 3)), {}, "float64"),
        (np.zeros((2, 3), np.float32), {"axis": 2}, "no axis 2"),
        (np.zeros((2, 3), np.float32), {"bits": 9}, "9 bits"),
        (np.zeros((2, 3), np.float32), {"block": 0}, "blocks of 0"),
        (np.zeros((2, 3), np.float32), {"axis": None, "block": 2}, "need an axis"),
    ],
)
def test_arguments_that_do_not_fit(array, options, message):
    with pytest.raises(ValueError, match=message):
        affine_weights.quantize(array, **{"axis": 0, "bits": 8, "symmetric": True, **options})


def test_zeros_and_the_smallest_numbers_have_usable_scales():
    array = np.array([[0, 0], [1e-45, -1e-45], [3e38, -3e38]], np.float32)
    quantized = affine_weights.quantize(array, axis=0, bits=8, symmetric=True)
    assert quantized.scale[0] == 1
    assert quantized.scale[1] == np.finfo(np.float32).tiny
    assert np.isfinite(affine_weights.dequantize(quantized)).all()


def test_float16_scales_are_rounded_up():
    high = np.linspace(0.001, 60000, 500, dtype=np.float32)
    scale, _ = affine_weights.scale_and_zero_point(-high, high, affine_weights.Grid(8, symmetric=True), np.float16)
    assert scale.dtype == np.float16
    assert np.all(high / scale.astype(np.float32) <= 127)
    with pytest.raises(ValueError, match="beyond float16"):
        affine_weights.scale_and_zero_point(-high, high * 500, affine_weights.Grid(8, symmetric=True), np.float16)


@given(hnp.arrays(np.float32, (1, 5, 40), elements=st.floats(-8, 8, width=32)), st.integers(2, 8))
def test_clipping_never_raises_the_error_and_the_error_is_that_of_rounding(array, bits):
    grid = affine_weights.Grid(bits, symmetric=True)
    scale, _ = affine_weights.scale_and_zero_point(array.min(axis=(0, 2)), array.max(axis=(0, 2)), grid)
    candidates = affine_weights.clip_candidates(scale)
    errors = np.stack([affine_weights.squared_error(array, s, grid) for s in candidates])
    best, error = affine_weights.best_candidate(candidates, errors)
    assert np.all(error <= errors[0])
    rounded = affine_weights.round_to(array, best, None, grid) * best[:, None]
    exact = np.square(rounded.astype(float) - array).sum(axis=(0, 2))
    np.testing.assert_allclose(error, exact, rtol=1e-3, atol=1e-9)


def test_clipping_gains_at_few_bits():
    array = np.random.default_rng(0).standard_normal((1, 3, 4000)).astype(np.float32)
    grid = affine_weights.Grid(4, symmetric=True)
    scale, _ = affine_weights.scale_and_zero_point(array.min(axis=(0, 2)), array.max(axis=(0, 2)), grid)
    candidates = affine_weights.clip_candidates(scale)
    errors = np.stack([affine_weights.squared_error(array, s, grid) for s in candidates])
    assert np.all(affine_weights.best_candidate(candidates, errors)[1] < 0.8 * errors[0])


def test_arrays_beyond_one_chunk():
    array = np.random.default_rng(0).standard_normal((3, 700, 500)).astype(np.float32)
    assert array.size > 2 * snr.CHUNK_VALUES
    for axis in (None, 0, 1, 2):
        quantized = affine_weights.quantize(array, axis=axis, bits=8, symmetric=True)
        others = None if axis is None else tuple(i for i in range(3) if i != axis)
        scale = np.abs(array).max(axis=others, keepdims=True) / 127
        np.testing.assert_allclose(
            affine_weights.dequantize(quantized), np.rint(array / scale) * scale, atol=scale.max()
        )
        assert 35 < snr.sqnr_db(array, affine_weights.dequantize(quantized)) < 60
    assert snr.energy(array) == pytest.approx(np.square(array.astype(float)).sum(), rel=1e-6)


def test_decibels():
    array = np.array([3, 4], np.float32)
    assert snr.sqnr_db(array, array) == np.inf
    assert snr.sqnr_db(array, array + np.float32(0.5)) == pytest.approx(10 * np.log10(25 / 0.5))
