"""Levels of signals in dB: what is heard counts, phases and shifts don't."""

import numpy as np
import pytest

from onnxcompress.numerics.statistics.spectral_distance import FRAME, distance_db, warped_distance

RNG = np.random.default_rng(0)
TIME = np.arange(16 * FRAME)
VOICE = np.sin(TIME / 5) * (1 + np.sin(TIME / 2000)) + 0.1 * RNG.standard_normal(len(TIME))


def _plain(one, other):
    """Return the warped distance, cell by cell."""
    costs = np.sqrt(np.square(one[:, None] - other[None]).mean(2))
    total = np.full((len(one) + 1, len(other) + 1), np.inf)
    total[0, 0] = 0
    lengths = np.zeros_like(total)
    for i, j in np.ndindex(costs.shape):
        best = min((total[i, j], 0, i, j), (total[i, j + 1], 1, i, j + 1), (total[i + 1, j], 2, i + 1, j))
        total[i + 1, j + 1] = best[0] + costs[i, j]
        lengths[i + 1, j + 1] = lengths[best[2], best[3]] + 1
    return total[-1, -1] / lengths[-1, -1]


@pytest.mark.parametrize(("n", "m"), [(1, 1), (1, 4), (5, 7), (9, 3), (20, 20)])
def test_the_warped_distance_is_that_of_the_cheapest_path(n, m):
    one, other = RNG.standard_normal((n, 3)), RNG.standard_normal((m, 3))
    assert warped_distance(one, other) == pytest.approx(_plain(one, other))
    assert warped_distance(one, np.repeat(one, 3, 0)) == pytest.approx(0, abs=1e-6)


def test_a_gain_is_its_decibels():
    assert distance_db(VOICE, VOICE) == 0
    assert distance_db(VOICE, 2 * VOICE) == pytest.approx(20 * np.log10(2), abs=0.05)
    assert distance_db(VOICE, -VOICE) == 0


def test_phases_do_not_count_and_other_sounds_do():
    moved = np.sin(TIME / 5 + 1) * (1 + np.sin(TIME / 2000)) + VOICE - np.sin(TIME / 5) * (1 + np.sin(TIME / 2000))
    assert distance_db(VOICE, moved) < 1
    assert distance_db(VOICE, RNG.standard_normal(len(TIME))) > 6
    assert distance_db(VOICE, np.zeros(len(TIME))) > 6


def test_signals_of_other_lengths_are_aligned():
    stretched = np.concatenate([VOICE[: 8 * FRAME], VOICE[6 * FRAME :]])
    assert distance_db(VOICE, stretched) < 1
    assert distance_db(VOICE, RNG.standard_normal(len(TIME) + 99)) > 5


def test_what_is_far_below_the_loudest_is_masked():
    hiss = 1e-4 * RNG.standard_normal(len(TIME))
    tone = np.sin(TIME / 5)
    assert distance_db(tone, tone + hiss) < 0.01
    assert distance_db(hiss, 2 * hiss) == pytest.approx(20 * np.log10(2), abs=0.05)


def test_long_and_short_signals():
    long = RNG.standard_normal(2_000_000)
    assert distance_db(long, long[:-5000]) < 6
    assert distance_db(np.ones(3), np.ones(3)) == 0
    assert distance_db(np.stack([VOICE, VOICE]), np.stack([VOICE, 2 * VOICE])) == pytest.approx(3.01, abs=0.05)
    assert np.isfinite(distance_db(np.full(2000, np.nan), np.zeros(2000)))
