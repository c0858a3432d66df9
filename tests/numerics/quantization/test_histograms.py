"""Histograms count what was seen whatever its order; ranges are chosen by the error they make."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from onnxcompress.numerics.quantization import clipping
from onnxcompress.numerics.quantization.affine_activations import IntegerGrid, affine_for, fake_quantize
from onnxcompress.numerics.quantization.histograms import BINS, ChannelExtremes, Histogram
from tests.helpers import floats

GRIDS = [IntegerGrid("u8"), IntegerGrid("s8"), IntegerGrid("s8", symmetric=True), IntegerGrid("u16")]

finite = st.floats(-(2.0**100), 2.0**100, width=32)
arrays = hnp.arrays(np.float32, st.integers(0, 40), elements=finite)


def _counted(*parts: np.ndarray) -> Histogram:
    histogram = Histogram()
    for part in parts:
        histogram.update(part)
    return histogram


def _same(a: Histogram, b: Histogram) -> None:
    assert (a.low, a.high, a.zeros, a.non_finite, a.updates) == (b.low, b.high, b.zeros, b.non_finite, b.updates)
    assert (a.exponent, a.start) == (b.exponent, b.start)
    np.testing.assert_array_equal(a.counts, b.counts)


@given(st.lists(arrays, max_size=5), st.lists(arrays, max_size=5))
def test_merged_parts_equal_the_whole(first, second):
    merged = _counted(*first)
    merged.merge(_counted(*second))
    _same(merged, _counted(*first, *second))


@given(st.lists(arrays, min_size=1, max_size=5), st.randoms())
def test_the_order_of_arrays_does_not_matter(parts, random):
    shuffled = list(parts)
    random.shuffle(shuffled)
    _same(_counted(*parts), _counted(*shuffled))


@given(arrays)
def test_every_value_is_in_its_bin(values):
    histogram = _counted(values)
    assert histogram.total == values.size
    assert histogram.counts.size <= BINS
    assert histogram.counts.min(initial=0) >= 0
    expected: dict[int, int] = {}
    for value in values[values != 0].astype(np.float64):
        number = int(np.floor(value / histogram.width)) - histogram.start
        expected[number] = expected.get(number, 0) + 1
    assert {i: n for i, n in enumerate(histogram.counts) if n} == expected
    if values.size:
        assert (histogram.low, histogram.high) == (values.min(), values.max())


def test_what_is_not_finite_is_only_counted():
    histogram = _counted(np.array([1, np.nan, np.inf, -np.inf, -2], np.float32), np.full(3, np.nan, np.float32))
    assert (histogram.low, histogram.high, histogram.non_finite, histogram.total) == (-2, 1, 6, 2)
    assert histogram.updates == 2


def test_of_large_arrays_a_part_of_all_channels_is_counted_and_all_extremes():
    values = np.tile(np.arange(8, dtype=np.float32), (250, 1))  # as many values in all channels, the last axis
    values[3, 3] = 50
    values[4, 4] = -50
    histogram = Histogram(most_counted=100)
    histogram.update(values)
    assert (histogram.low, histogram.high) == (-50, 50)
    assert 80 <= histogram.total <= 100
    channels = [histogram.zeros, *(histogram.counts[int(c / histogram.width) - histogram.start] for c in range(1, 8))]
    assert min(channels) >= 10
    assert sum(channels) == histogram.total


@pytest.mark.parametrize("dtype", [np.float16, np.float64, np.uint8, np.int64, np.bool_])
def test_numbers_of_any_type_are_counted(dtype):
    histogram = _counted(np.array([[0, 1], [1, 1]], dtype))
    assert (histogram.low, histogram.high, histogram.zeros, histogram.total) == (0, 1, 1, 4)


def test_denormal_and_huge_values_are_counted():
    tiny, huge = np.float32(1e-44), np.finfo(np.float32).max
    assert _counted(np.array([tiny, 2 * tiny])).total == 2
    assert _counted(np.array([-huge, tiny, huge])).total == 3


def test_histograms_survive_a_file(tmp_path):
    histogram = _counted(floats(100), floats(50) * 9)
    np.savez(tmp_path / "h.npz", **histogram.arrays())
    with np.load(tmp_path / "h.npz") as arrays_:
        again = Histogram.from_arrays(arrays_)
    _same(again, histogram)
    more = floats(20) * 100
    histogram.update(more)
    again.update(more)
    _same(again, histogram)
    assert again.grown_at == histogram.grown_at == 3


def test_growth_of_the_range_is_dated():
    histogram = _counted(np.array([0, 1.0]), np.array([0, 2.0]), np.array([0, 2.05]), np.array([1.0]))
    assert (histogram.updates, histogram.grown_at) == (4, 2)
    late = _counted(np.array([0.5]), np.array([-3.0]))
    histogram.merge(late)
    assert (histogram.updates, histogram.grown_at) == (6, 6)


@given(arrays, st.floats(0.5, 1), st.floats(0.5, 1))
def test_more_coverage_never_narrows_the_range(values, a, b):
    histogram = _counted(values)
    (low, high), (wide_low, wide_high) = (histogram.central_range(c) for c in sorted((a, b)))
    assert wide_low <= low
    assert high <= wide_high
    assert histogram.central_range(1) == ((histogram.low, histogram.high) if values.size else (0, 0))


def test_coverage_leaves_out_the_tails():
    values = np.concatenate([np.linspace(-1, 1, 9990), np.linspace(50, 100, 10)]).astype(np.float32)
    low, high = _counted(values).central_range(0.99)
    assert low == pytest.approx(-0.99, abs=0.03)
    assert high == pytest.approx(0.99, abs=0.05)


@settings(deadline=None)
@given(arrays, st.sampled_from(GRIDS))
def test_no_candidate_is_chosen_that_is_worse_than_the_extremes(values, grid):
    found = clipping.candidates(_counted(values), grid)
    assert found[0].method == "min-max"
    assert clipping.least_squared_error(found).squared_error <= found[0].squared_error


@pytest.mark.parametrize("grid", GRIDS[:3], ids=str)
@pytest.mark.parametrize("tails", ["normal", "laplace", "student", "relu"])
def test_the_predicted_error_is_that_of_the_values(grid, tails):
    rng = np.random.default_rng(1)
    values = {
        "normal": lambda: rng.standard_normal(50_000),
        "laplace": lambda: rng.laplace(size=50_000),
        "student": lambda: rng.standard_t(3, 50_000),
        "relu": lambda: np.maximum(rng.standard_normal(50_000), 0),
    }[tails]().astype(np.float32)
    found = clipping.candidates(_counted(values), grid)
    for each in found:
        true = float(np.square(fake_quantize(values, each.affine) - values, dtype=np.float64).mean())
        assert each.squared_error == pytest.approx(true, rel=0.04)
    ends = [values.max() * f for f in np.linspace(0.2, 1, 41)]
    lows = [0.0] if tails == "relu" else [values.min() * f for f in np.linspace(0.2, 1, 41)]
    pairs = [(-e, e) for e in ends] if grid.symmetric else [(a, b) for a in lows for b in ends]
    searched = min(np.square(fake_quantize(values, affine_for(a, b, grid)) - values).mean() for a, b in pairs[::3])
    assert clipping.least_squared_error(found).squared_error <= 1.05 * searched


def test_spikes_are_not_clipped():
    values = np.clip(floats(10_000) * 5, 0, 6)
    best = clipping.least_squared_error(clipping.candidates(_counted(values), IntegerGrid("u8")))
    assert best.method == "min-max"
    assert best.affine.high == pytest.approx(6)


def test_limits_hold_and_known_ranges_are_taken_as_they_are():
    histogram = _counted(np.array([-3, 0.1, 9.0], np.float32))
    for each in clipping.candidates(histogram, IntegerGrid("u8"), within=(0, 6)):
        assert each.affine.zero_point == 0
        assert 0 < each.affine.high <= 6
    (known,) = clipping.candidates(histogram, IntegerGrid("u8"), known=(0, 1))
    assert known.method == "known"
    assert known.affine.high == pytest.approx(1)


@pytest.mark.parametrize("values", [[], [0.0, 0.0], [0.25], [-7.0, -7.0]])
def test_values_that_never_change_have_one_candidate(values):
    (only,) = clipping.candidates(_counted(np.array(values, np.float32)), IntegerGrid("u8"))
    back = fake_quantize(np.array(values, np.float32), only.affine)
    np.testing.assert_allclose(back, values, rtol=0.003)


def test_a_clip_is_kept_only_where_layers_gain():
    values = np.concatenate([floats(20_000), np.full(5, 30.0)]).astype(np.float32)
    histogram = _counted(values)
    found = clipping.candidates(histogram, IntegerGrid("u8"))
    rows = np.stack([floats(64), np.full(64, 30, np.float32)], axis=1)[None]
    lows, highs = rows[0].min(axis=0), rows[0].max(axis=0)
    blind = clipping.LayerInput(
        rows, np.array([[[1.0, 0.0]]], np.float32), lows, highs
    )  # does not read what is clipped
    sharp = clipping.LayerInput(rows, np.array([[[0.0, 1.0]]], np.float32), lows, highs)  # reads nothing else

    def error(affine, *layers: clipping.LayerInput) -> float:
        return clipping.layer_error(affine, layers, histogram)

    assert clipping.guarded(found, lambda a: error(a, blind)).affine.high < 29
    assert clipping.guarded(found, lambda a: error(a, sharp)).affine.high > 29.9
    each = error(found[1].affine, blind) + error(found[1].affine, sharp)
    assert error(found[1].affine, blind, sharp) == pytest.approx(each)
    assert clipping.guarded(found, lambda _: 1.0) is found[0]


def test_clipped_values_count_though_no_sampled_row_has_them():
    values = np.concatenate([floats(20_000), np.full(5, 30.0)]).astype(np.float32)
    histogram = _counted(values)
    found = clipping.candidates(histogram, IntegerGrid("u8"))
    narrow = next(c for c in found if c.affine.high < 20)
    rows, weight = floats(1, 100, 2), np.ones((1, 1, 2), np.float32)
    low, high = np.full(2, -5, np.float32), np.array([5, 30], np.float32)
    layer = clipping.LayerInput(rows, weight, low, high)
    expected = 200 * float(np.square(np.maximum(values - narrow.affine.high, 0)).mean())  # all in one channel of gain 1
    assert clipping.layer_error(narrow.affine, [layer], histogram) * layer.energy == pytest.approx(expected, rel=0.05)
    inside = clipping.LayerInput(rows, weight, low + 3, low + 8)
    assert clipping.layer_error(narrow.affine, [inside], histogram) * layer.energy < expected / 50


@given(st.lists(hnp.arrays(np.float32, (3, 4), elements=finite), min_size=1, max_size=4), st.integers(0, 4))
def test_extremes_of_channels_merge(parts, cut):
    whole, a, b = (ChannelExtremes(-1) for _ in range(3))
    for i, part in enumerate(parts):
        whole.update(part)
        (a if i < cut else b).update(part)
    a.merge(b)
    rows = np.concatenate(parts)
    for found in (whole, a):
        np.testing.assert_array_equal(found.lows, rows.min(axis=0))
        np.testing.assert_array_equal(found.highs, rows.max(axis=0))


def test_extremes_of_channels_leave_out_what_is_not_finite():
    extremes = ChannelExtremes(1)
    extremes.update(np.array([[1, np.nan], [2, -3]], np.float32))
    np.testing.assert_array_equal(extremes.lows, [1, -3])
    np.testing.assert_array_equal(extremes.highs, [2, 0])
