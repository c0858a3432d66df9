"""Losses on samples that fitted parameters have seen are scaled up."""

import numpy as np
import pytest

from onnxcompress.numerics.statistics.optimism import optimism

SEEN = np.arange(32) < 16


def test_a_clear_excess_of_held_out_samples_is_taken_over():
    losses = np.where(SEEN, 1.0, 3.0) * (1 + 0.01 * np.cos(np.arange(32)))
    assert optimism(losses, SEEN) == pytest.approx(3, rel=0.01)
    assert optimism(losses, SEEN) * losses[SEEN].mean() == pytest.approx(losses[~SEEN].mean(), rel=0.01)


def test_noise_does_not_pass_for_optimism():
    losses = np.where(SEEN, 1.0, 1.1) * np.random.default_rng(0).gamma(0.2, 5, 32)
    inside, outside = losses[SEEN].mean(), losses[~SEEN].mean()
    assert 1 <= optimism(losses, SEEN) < max(outside / inside, 1.0001)


@pytest.mark.parametrize(
    ("losses", "seen"),
    [
        (np.where(SEEN, 2.0, 1.0), SEEN),  # the held-out ones lose less
        (np.zeros(32), SEEN),
        (np.ones(32), np.zeros(32, bool)),
        (np.arange(6.0), np.arange(6) < 3),  # too few
    ],
    ids=["less", "nothing", "unseen", "few"],
)
def test_otherwise_nothing_is_corrected(losses, seen):
    assert optimism(losses, seen) == 1
