"""What may be lost is shared out between kinds of reduction so that least is left."""

import pytest

from onnxcompress.passes.auto.build import PassCall
from onnxcompress.passes.auto.strategy import Level, shared_out


def _levels(name, *figures):
    return [Level(PassCall(name=name, options=(("at", cost),)), cost, lost) for cost, lost in figures]


CUTS = _levels("cut", (0.8, 0.001), (0.6, 0.003), (0.4, 0.009))
DROPS = _levels("drop", (0.9, 0.002), (0.7, 0.02))


@pytest.mark.parametrize(
    ("most", "expected"),
    [
        (0.0005, []),
        (0.001, [0.8]),
        (0.0025, [0.8]),
        (0.003, [0.6]),
        (0.005, [0.6, 0.9]),
        (0.009, [0.4]),
        (0.011, [0.4, 0.9]),
        (1.0, [0.4, 0.7]),
        (0.0, []),
    ],
)
def test_the_levels_that_leave_least_within_what_may_be_lost(most, expected):
    assert [level.cost for level in shared_out([CUTS, DROPS], most)] == expected


def test_a_kind_without_levels_takes_no_part_and_a_gain_costs_nothing():
    assert shared_out([], 1.0) == shared_out([[]], 1.0) == ()
    assert [level.cost for level in shared_out([[], CUTS], 0.001)] == [0.8]
    better = _levels("better", (0.9, -0.004))
    assert [level.cost for level in shared_out([CUTS, better], 0.001)] == [0.8, 0.9]
