"""A search ends by its own CPU seconds or by the time limit, whichever comes first."""

from onnxcompress.base.clock import Clock
from onnxcompress.search import candidates as search
from onnxcompress.search.effort import SearchEffort
from tests.search.test_candidates import _Sums


def test_the_first_of_two_limits_counts():
    cpu, wall = [0.0], [0.0]
    effort = SearchEffort(Clock(20, now=lambda: wall[0]), 10, now=lambda: cpu[0])
    assert not effort.is_over
    cpu[0] = 10.0
    assert effort.is_over
    cpu[0], wall[0] = 0.0, 20.0
    assert effort.is_over


def test_without_a_time_limit_cpu_seconds_count_from_the_start():
    cpu = [100.0]
    effort = SearchEffort(Clock(), 10, now=lambda: cpu[0])
    cpu[0] = 109.0
    assert not effort.is_over
    cpu[0] = 110.0
    assert effort.is_over


def test_layers_are_not_measured_one_by_one_when_the_effort_is_spent():
    judge = _Sums({"a": 0.001, "b": 0.02, "c": 0.002})
    spent = SearchEffort(Clock(), 0.0)
    sites = dict.fromkeys(judge.drops, 1.0)
    assert search.least_left_out(lambda out: frozenset(judge.drops) - out, sites, judge, 0.005, clock=spent) is None
    assert len(judge.asked) == 1
