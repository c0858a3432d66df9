"""The best of measured candidates, and what is left out to meet a limit."""

from dataclasses import replace

import pytest

from onnxcompress import core
from onnxcompress.core import Trial
from onnxcompress.search import candidates as search
from tests.helpers import from_text

MODEL = from_text("g (float[1] x) => (float[1] y) { y = Relu(x) }")


def _trial(size=0.5, latency=0.5, drop=0.0, divergence=None):
    return Trial(
        bytes=1,
        size_ratio=size,
        latency_ratio=latency,
        drop=drop,
        divergence=drop if divergence is None else divergence,
    )


def _candidate(label, **figures):
    return core.Candidate(label=label, model=MODEL, changes=(), trial=_trial(**figures))


def _order(prefer, *candidates, limit=0.01):
    return "".join(c.label for c in search.ranked(candidates, prefer, limit))


SMALL = _candidate("s", size=0.2, latency=1.3)
FAST = _candidate("f", size=0.8, latency=0.3)
BOTH = _candidate("b", size=0.4, latency=0.5)


@pytest.mark.parametrize(("prefer", "order"), [("balanced", "bf"), ("speed", "fb"), ("size", "sbf")])
def test_the_preference_decides(prefer, order):
    assert _order(prefer, SMALL, FAST, BOTH) == order


def test_candidates_over_the_limit_are_out():
    assert _order("balanced", BOTH, _candidate("x", size=0.1, drop=0.011)) == "b"
    assert _order("balanced", _candidate("x", drop=0.5), limit=None) == "x"
    assert "0.011" in search.objection(_trial(drop=0.011), "balanced", 0.01)
    assert "slower" in search.objection(_trial(latency=1.06), "balanced", 0.01)
    assert search.objection(_trial(latency=1.06), "size", 0.01) is None


def test_what_is_slower_by_noise_alone_is_not_refused():
    slow = _trial(latency=1.15)
    assert search.objection(replace(slow, slower=False), "balanced", 0.01) is None
    assert "1.15 times" in search.objection(replace(slow, slower=True), "balanced", 0.01)


def test_costs_within_five_percent_are_decided_by_the_drop_and_then_by_order():
    near = [
        _candidate("a", latency=0.5, drop=0.002),
        _candidate("b", latency=0.52, drop=0.001),
        _candidate("c", latency=0.54),
    ]
    assert _order("balanced", *near) == "bac"
    assert _order("balanced", _candidate("a"), _candidate("b")) == "ab"


def test_a_time_that_is_not_known_counts_as_the_originals():
    assert search.cost(_trial(size=0.25, latency=None), "balanced") == 0.25


def test_without_times_the_given_order_stands_unless_size_is_wanted():
    unknown = [_candidate("a", size=0.5, latency=None), _candidate("b", size=0.2, latency=None)]
    assert _order("balanced", *unknown) == _order("speed", *unknown) == "ab"
    assert _order("size", *unknown) == "ba"


class _Sums:
    """Judges sets of sites: each adds its own error to the drop."""

    def __init__(self, drops):
        self.drops = drops
        self.asked = []
        self.limit, self.prefer = 0.01, "balanced"

    def score(self, kept, *, most=None):  # noqa: ARG002
        self.asked.append(kept)
        total = sum(self.drops[name] for name in kept)
        return _trial(drop=total, divergence=total)

    def least(self, limit, saves=None):
        sites = saves or dict.fromkeys(self.drops, 1.0)
        return search.least_left_out(lambda out: frozenset(self.drops) - out, sites, self, limit)


def test_nothing_is_left_out_within_the_limit():
    judge = _Sums({"a": 0.001, "b": 0.002})
    assert judge.least(0.01) == frozenset()
    assert len(judge.asked) == 1


def test_what_hurts_most_is_left_out_first():
    judge = _Sums({"a": 0.001, "b": 0.02, "c": 0.002, "d": 0.009})
    assert judge.least(0.0035) == {"b", "d"}
    assert judge.least(0.0125) == {"b"}


def test_of_equal_errors_the_one_that_saves_least_is_left_out():
    judge = _Sums({"a": 0.01, "b": 0.01})
    assert judge.least(0.01, {"a": 5.0, "b": 1.0}) == {"b"}


def test_a_limit_that_no_site_alone_meets_is_out_of_reach():
    assert _Sums({"a": 0.1, "b": 0.2}).least(0.01) is None


def test_many_sites_are_measured_in_groups_of_neighbours():
    drops = {f"{k:02}": 0.0001 for k in range(64)} | {"20": 0.02, "21": 0.02, "50": 0.005}
    judge = _Sums(drops)
    left_out = judge.least(0.0125)
    assert {"20", "21"} <= left_out
    assert len(left_out) <= 4
    assert sum(judge.drops[name] for name in judge.drops if name not in left_out) <= 0.0125
    assert len(judge.asked) <= 25  # not 64 and more
    assert _Sums(drops).least(0.0001) is None
