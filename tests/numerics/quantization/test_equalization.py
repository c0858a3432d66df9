"""Scales between channels are exact, and lower the error of 8 bits; saturation is what the instruction does."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from onnxcompress.numerics.quantization import saturation
from onnxcompress.numerics.quantization.affine_activations import IntegerGrid
from onnxcompress.numerics.quantization.blocks import BlockGrid, round_nearest
from onnxcompress.numerics.quantization.equalization import (
    BlockSimulation,
    Int8Simulation,
    Maker,
    ScaledReader,
    best_scale,
    migration,
    spread_to,
)
from tests.helpers import floats

U8 = Int8Simulation(IntegerGrid("u8"), per_channel=True)
TENSOR = Int8Simulation(IntegerGrid("u8"), per_channel=False)
UNEVEN = np.array([100, 1, 1, 1, 1, 1, 0.01, 0], np.float32)


def _reader(channels: np.ndarray, weight: np.ndarray | None = None) -> ScaledReader:
    rows = np.maximum(floats(1, 200, channels.size), 0) * channels
    weight = floats(1, 6, channels.size, seed=1) if weight is None else weight
    return ScaledReader(rows, weight, rows.min(axis=(0, 1)), rows.max(axis=(0, 1)))


magnitudes = hnp.arrays(np.float32, 6, elements=st.floats(0, 2.0**40, width=32))


@given(magnitudes, magnitudes, st.sampled_from([0.0, 0.25, 1.0]))
def test_scales_are_powers_of_two_near_one(peaks, weights, alpha):
    scale = migration(peaks, weights, alpha)
    exponents = np.log2(scale)
    assert (exponents == np.rint(exponents)).all()
    assert np.abs(exponents).max() <= 12
    assert (scale[(peaks == 0) | (weights == 0)] == 1).all()


def test_alpha_moves_ranges_between_activation_and_weight():
    peaks, weights = np.array([64, 4, 4], np.float32), np.array([1, 1, 1], np.float32)
    np.testing.assert_array_equal(migration(peaks, weights, 1.0), [16, 1, 1])
    np.testing.assert_array_equal(migration(peaks, weights, 0.5), [4, 1, 1])
    np.testing.assert_array_equal(migration(peaks, np.array([1, 1, 16], np.float32), 0.0), [1, 1, 1 / 16])


def test_uneven_activations_gain_and_the_outputs_stay():
    reader = _reader(UNEVEN)
    scale, how, before, after = best_scale(U8, [reader], None)
    assert how.startswith("alpha")
    assert after < before / 3
    spread = spread_to(scale, 1, UNEVEN.size)
    np.testing.assert_array_equal((reader.rows / spread) @ (reader.weight * spread)[0].T, reader.outputs)
    assert U8.error(reader, scale) == after


def test_even_activations_stay():
    reader = _reader(np.ones(8, np.float32), np.sign(floats(1, 6, 8, seed=2)))
    scale, how, before, after = best_scale(U8, [reader], None)
    assert after > 0.8 * before
    assert how == "" or after < before
    if not how:
        assert (scale == 1).all()


def test_all_readers_count():
    loud, quiet = _reader(UNEVEN), _reader(UNEVEN, np.where(UNEVEN == 100, 1, 0).astype(np.float32)[None, None])
    alone = best_scale(U8, [loud], None)
    both = best_scale(U8, [loud, quiet], None)
    assert both[2] == pytest.approx(U8.error(loud, np.ones(8)) + U8.error(quiet, np.ones(8)))
    assert both[3] >= alone[3]


def test_scales_balance_the_weights_of_both_layers_where_a_weight_has_one_scale():
    rng = np.random.default_rng(3)
    rows = rng.standard_normal((1, 300, 16)).astype(np.float32)
    factors = np.array([1, 1 / 64, 1, 1 / 64, 1, 1 / 64, 1, 1 / 64], np.float32)
    first = rng.standard_normal((1, 8, 16)).astype(np.float32) * factors[None, :, None]
    second = rng.standard_normal((1, 5, 8)).astype(np.float32) / factors
    hidden = np.maximum(rows @ first[0].T, 0)
    reader = ScaledReader(hidden, second, hidden.min(axis=(0, 1)), hidden.max(axis=(0, 1)))
    scale, _, before, after = best_scale(TENSOR, [reader], Maker(rows, first))
    assert after < before / 100

    def true_error(s: np.ndarray) -> float:
        a, b = TENSOR.weight(first / s[None, :, None]), TENSOR.weight(second * s)
        out = np.maximum(rows @ a[0].T, 0) @ b[0].T
        return float(np.square(out - reader.outputs).sum() / reader.energy)

    assert true_error(scale) < true_error(np.ones(8, np.float32)) / 100
    assert U8.maker_error(Maker(rows, first), [reader], scale) == 0


def test_weights_that_meet_large_activations_are_made_larger():
    channels = np.where(np.arange(64) % 16, 1, 48).astype(np.float32)
    reader = _reader(channels, floats(1, 6, 64, seed=1))
    simulation = BlockSimulation(BlockGrid(2, 32, symmetric=True))
    scale, how, before, after = best_scale(simulation, [reader], None)
    assert how.startswith("activation-aware")
    assert scale[channels > 1].min() > scale[channels == 1].max()
    assert after == simulation.error(reader, scale) < 0.5 * before
    spread = spread_to(scale, 1, channels.size)
    rounded = round_nearest((reader.weight * spread)[0], simulation.grid).floats() / spread[0]
    plain = round_nearest(reader.weight[0], simulation.grid).floats()

    def error(weight: np.ndarray) -> float:
        return float(np.square(reader.rows[0] @ (weight - reader.weight[0]).T).sum())

    assert error(rounded) < 0.5 * error(plain)


def test_columns_of_a_channel_share_its_scale():
    np.testing.assert_array_equal(spread_to(np.array([2.0, 3]), 1, 6)[0, 0], [2, 2, 2, 3, 3, 3])
    np.testing.assert_array_equal(spread_to(np.array([2.0, 3]), 2, 3)[:, 0], [[2, 2, 2], [3, 3, 3]])


bytes_ = hnp.arrays(np.uint8, (1, 3, 5))
signed = hnp.arrays(np.int8, (1, 4, 5), elements=st.integers(-127, 127))


@given(bytes_, signed)
def test_saturation_is_what_pairs_of_columns_lose(rows, weight):
    expected = np.zeros((1, 3, 4), np.int64)
    for n in range(3):
        for out in range(4):
            for k in range(0, 5, 2):
                pair = sum(int(rows[0, n, j]) * int(weight[0, out, j]) for j in (k, k + 1) if j < 5)
                expected[0, n, out] += pair - max(-32768, min(32767, pair))
    np.testing.assert_array_equal(saturation.saturation_error(rows, weight), expected)
    if expected.any():
        assert saturation.can_saturate(weight)


@given(hnp.arrays(np.int8, (2, 7), elements=st.integers(-63, 63)))
def test_seven_bits_never_saturate(weight):
    assert not saturation.can_saturate(weight)
    assert saturation.can_saturate(np.full((1, 2), 127, np.int8))
    assert saturation.can_saturate(np.full((1, 2), -127, np.int8))
    assert not saturation.can_saturate(np.array([[127, -127]], np.int8))


def test_seven_bits_are_wanted_only_where_sums_saturate():
    weight = np.abs(floats(1, 8, 64)) + 0.5
    loud = np.full((1, 32, 64), 250, np.uint8)
    quiet = np.full((1, 32, 64), 20, np.uint8)
    assert saturation.wants_seven_bits(loud, weight)
    assert not saturation.wants_seven_bits(quiet, weight)
    assert not saturation.wants_seven_bits(loud, np.tile([1.0, -1.0], 32).astype(np.float32)[None, None])


def test_many_outputs_are_worked_on_in_parts():
    rows = np.random.default_rng(0).integers(0, 256, (2, 5, 9)).astype(np.uint8)
    weight = np.random.default_rng(1).integers(-127, 128, (2, 11, 9)).astype(np.int8)
    whole = saturation.saturation_error(rows, weight)
    assert whole.any()
    np.testing.assert_array_equal(saturation.saturation_error(rows, weight, chunk_values=60), whole)
