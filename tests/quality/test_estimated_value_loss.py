"""Losses of outputs that score no classes: values, vectors, sets of rows and signals."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from onnxcompress.quality.estimated_value_loss import (
    MASK_SPREAD,
    ErrorMoments,
    detection_error,
    differing_share,
    duration_error,
    embedding_error,
    selection_error,
    share,
    signal_distance,
)

RANDOM = np.random.default_rng(0)


def _error(pairs, axis=None, **options):
    moments = ErrorMoments(axis, **options)
    for one, other in pairs:
        moments.add(np.asarray(one), np.asarray(other))
    return moments.relative_error()


def _pairs(values, error):
    return list(zip(values, values + error, strict=True))


def test_the_error_is_half_of_its_square_over_the_variance_of_each_column():
    values = RANDOM.standard_normal((16, 30, 2)) + np.array([290, -5])
    error = 0.1 * RANDOM.standard_normal(values.shape)
    centred = values - values.reshape(-1, 2).mean(0)
    expected = 0.5 * np.square(error).sum() / np.square(centred).sum()
    assert _error(_pairs(values, error), 1).value == pytest.approx(expected)
    found = _error(_pairs(values, error), 1)
    assert found.low <= found.value <= found.high


@given(st.floats(0.001, 1000), st.floats(-1e3, 1e3))
def test_neither_scale_nor_offset_count(scale, offset):
    values = np.random.default_rng(1).standard_normal((8, 20))
    error = 0.1 * np.random.default_rng(2).standard_normal(values.shape)
    plain = _error(_pairs(values, error)).value
    assert _error(_pairs(scale * (values + offset), scale * error)).value == pytest.approx(plain, rel=1e-3)


def test_boxes_hide_no_scores():
    boxes, scores = 300 * RANDOM.random((16, 50, 4)), RANDOM.random((16, 50, 1))
    values = np.concatenate([boxes, scores], -1)
    error = np.concatenate([0 * boxes, 0.2 * RANDOM.standard_normal(scores.shape)], -1)
    expected = 0.5 * np.square(error).sum() / np.square(scores - scores.mean()).sum()
    assert _error(_pairs(values, error), 1).value == pytest.approx(expected)
    assert _error(_pairs(values, error)).value < 1e-4


def test_a_constant_column_is_measured_by_its_square_and_zeros_by_the_others():
    values = np.concatenate(
        [RANDOM.standard_normal((16, 50, 1)), np.full((16, 50, 1), 100.0), np.zeros((16, 50, 1))], -1
    )
    for column, expected in ((1, 0.5 * 0.1**2 / 100**2), (2, 0.5 * 0.1**2 / values[..., 0].var())):
        error = np.zeros_like(values)
        error[..., column] = 0.1
        # the column of zeros is in one group with the first
        share_of_group = 2 if column == 2 else 1
        assert _error(_pairs(values, error), 1).value == pytest.approx(expected / share_of_group, rel=1e-6)


def test_a_mask_without_a_yes_is_measured_by_its_noes():
    values = 1e-5 * RANDOM.random((16, 1, 20, 20))
    quiet, loud = np.full_like(values, 1e-5), np.full_like(values, 0.5)
    for error, expected in ((quiet, 0.5 * 1e-10 / 1e-4), (loud, 0.5 * 0.25 / 1e-4)):
        assert _error(_pairs(values, error), 0, least_spread=MASK_SPREAD).value == pytest.approx(expected, rel=1e-3)
    assert _error(_pairs(values, quiet), 0).value > 1


def test_scalars_and_samples_of_other_widths_are_one_column():
    values = RANDOM.standard_normal(20)
    error = 0.1 * RANDOM.standard_normal(20)
    expected = 0.5 * np.square(error).sum() / np.square(values - values.mean()).sum()
    assert _error(_pairs(values, error)).value == pytest.approx(expected)
    assert _error([(values[:8], (values + error)[:8]), (values[8:], (values + error)[8:])], 0).value == pytest.approx(
        expected
    )


def test_one_sample_leaves_a_wide_interval_and_nothing_loses_nothing():
    values = RANDOM.standard_normal((1, 40))
    found = _error(_pairs(values, 0.1 * values))
    assert (found.low, found.high) == (found.value / 4, found.value * 4)
    assert _error([(np.zeros((0, 3)), np.zeros((0, 3)))], 1).value == 0


def test_numbers_that_are_not_finite_or_overflow_are_left_out():
    values = np.array([[1.0, np.inf, np.nan, 4.0, 1e300], [2.0, 3.0, 1.0, 7.0, 1e300]])
    assert _error([(values[0], values[0]), (values[1], values[1])]).value == 0


def test_vectors_are_compared_around_their_mean():
    values = RANDOM.standard_normal((32, 64)) + 20
    rotated = values.copy()
    rotated[:16] = 2 * values.mean(0) - values[:16]
    found = embedding_error(list(zip(values, rotated, strict=True)))
    assert found.value == pytest.approx(1, abs=0.05)  # half of the vectors point the other way
    scaled = values.mean(0) + 3 * (values - values.mean(0))
    assert embedding_error(list(zip(values, scaled, strict=True))).value == pytest.approx(0, abs=1e-12)
    constant = np.ones((8, 4))
    assert embedding_error(list(zip(constant, constant, strict=True))).value == 0
    assert embedding_error(list(zip(constant, 2 * constant, strict=True))).value == 1
    assert embedding_error([(values[0], values[0])]).value == pytest.approx(0)


def test_the_share_of_elements_that_differ():
    one = np.array(["a", "b", "c", "d"], object)
    pairs = [(one, one), (one, one[[0, 1, 2, 2]]), (one, one[:3]), (one[:0], one[:0])]
    assert differing_share(pairs).value == pytest.approx((0 + 0.25 + 1 + 0) / 4)
    assert differing_share(pairs, np.array([1, 2, 1, 1.0])).value == pytest.approx((0.5 + 1) / 4)
    assert share(np.array([1.0, 2.0]), np.array([2, 4])).value == 0.5


def _detected(count=10, seed=0):
    random = np.random.default_rng(seed)
    found = random.random((count, 6)) * [300, 300, 300, 300, 1, 80]
    found[:, 4] = -np.sort(-found[:, 4])
    return found


def test_detections_that_swap_lose_nothing_and_others_by_their_score():
    rows = [_detected(seed=k) for k in range(8)]
    swapped = [each[[1, 0, *range(2, 10)]] for each in rows]
    assert detection_error(list(zip(rows, swapped, strict=True))).value == 0
    gone = [each[1:] for each in rows]
    all_rows, left = (sum(each[:, 4].sum() for each in found) for found in (rows, gone))
    expected = (all_rows - left) / (all_rows + left)  # 1 - F1, weighted by score
    assert expected / 2 < detection_error(list(zip(rows, gone, strict=True))).value < 1.5 * expected
    strange = [_detected(seed=100 + k) for k in range(8)]
    assert detection_error(list(zip(rows, strange, strict=True))).value > 0.2


def test_boxes_are_compared_by_their_own_size():
    random = np.random.default_rng(0)
    corners = random.random((16, 10, 2)) * 600
    sizes = np.exp(random.normal(4, 1, (16, 10, 2)))
    scores = -np.sort(-random.random((16, 10, 1)), axis=1) + 0.2
    rows = np.concatenate([corners, corners + sizes, scores, np.zeros((16, 10, 1))], 2)

    def moved(part):
        return np.concatenate([corners + part * sizes, corners + (1 + part) * sizes, rows[..., 4:]], 2)

    losses = [detection_error(list(zip(rows, moved(part), strict=True))).value for part in (0.01, 0.03, 0.5)]
    assert losses[0] < 0.005  # an IoU of .96
    assert 0.01 < losses[1] < 0.05  # .89
    assert losses[2] > 0.9  # .14


def test_detections_more_than_the_originals_count_too():
    rows = [_detected(seed=k) for k in range(8)]
    more = [np.concatenate([each, each + 50]) for each in rows]
    gained, own = (sum(each[:, 4].sum() for each in found) for found in (more, rows))
    assert detection_error(list(zip(rows, more, strict=True))).value == pytest.approx((gained - own) / (gained + own))
    none = [each[:0] for each in rows]
    assert detection_error(list(zip(none, rows, strict=True))).value == 1
    assert detection_error(list(zip(none, none, strict=True))).value == 0


def test_indices_are_compared_as_sets_of_rows():
    one = np.array([[0, 0, 3], [0, 0, 7], [0, 1, 2]])
    assert selection_error([(one, one[::-1])]).value == 0
    assert selection_error([(one, one[:2])]).value == pytest.approx(1 - 2 * 2 / 5)
    assert selection_error([(one[:0], one[:0]), (one[:0], one)]).value == 0.5
    assert selection_error([(np.array([1, 2]), np.array([1, 3]))]).value == 1


def test_sound_is_compared_by_levels_and_length():
    time = np.arange(16_384)
    voice = np.sin(time / 5) + 0.1 * RANDOM.standard_normal(len(time))
    assert signal_distance(voice, voice) == (0, 0)
    decibels, points = signal_distance(voice, 2 * voice)
    assert decibels == pytest.approx(20 * np.log10(2), abs=0.05)
    assert points == decibels
    longer = np.concatenate([voice, voice[:2048]])
    decibels, points = signal_distance(voice, longer)
    assert decibels < 2
    assert points == pytest.approx(0.125 / 0.1)
    assert signal_distance(voice, np.zeros(0)) == (np.inf, np.inf)
    assert signal_distance(voice[:0], voice[:0]) == (0, 0)
    assert signal_distance(voice[None], voice[None, None]) == (np.inf, np.inf)


def test_frames_of_another_number_are_aligned():
    frames = RANDOM.standard_normal((80, 50))
    twice = np.concatenate([frames[:, :25], frames[:, 24:]], 1)
    error, points = signal_distance(frames, twice)
    assert error == pytest.approx(0, abs=1e-9)
    assert points == pytest.approx((1 / 50) / 0.1)
    assert signal_distance(frames.T, twice.T) == pytest.approx((error, points), abs=1e-9)
    assert signal_distance(frames, RANDOM.standard_normal((80, 51)))[1] > 10


def test_durations_differ_by_their_sum():
    pairs = [(np.array([2.0, 3, 5]), np.array([2.0, 4, 4])), (np.array([10.0]), np.array([10.0]))]
    assert duration_error(pairs).value == pytest.approx(2 / 20)
    assert duration_error([(np.array([2.0, 3]), np.array([2.0]))]).value == 1
    assert duration_error([(np.zeros(3), np.zeros(3))]).value == 0
