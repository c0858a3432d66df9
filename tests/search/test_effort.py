"""A search ends by CPU seconds or by the time limit, whichever comes first, and begins no step that would overrun."""

import math
from types import SimpleNamespace

import pytest

from onnxcompress.base.clock import Clock
from onnxcompress.errors import TimeUpError
from onnxcompress.search import candidates as search
from onnxcompress.search.checkpoint import Checkpoint
from onnxcompress.search.effort import SearchBudget, SearchEffort, StepSeconds
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
    cpu[0] = 1e9
    assert not SearchEffort(Clock(), None, now=lambda: cpu[0]).is_over


def test_layers_are_not_measured_one_by_one_when_the_effort_is_spent():
    judge = _Sums({"a": 0.001, "b": 0.02, "c": 0.002})
    spent = SearchEffort(Clock(), 0.0)
    sites = dict.fromkeys(judge.drops, 1.0)
    assert search.least_left_out(lambda out: frozenset(judge.drops) - out, sites, judge, 0.005, clock=spent) is None
    assert len(judge.asked) == 1


class Steps:
    """A budget whose steps take as long as a test says."""

    def __init__(self, effort="default", *, clock=None, log=None, workers=None):
        self.cpu, self.wall = 1000.0, 0.0
        self.clock = Clock(clock, now=lambda: self.wall)
        self.budget = SearchBudget(effort, self.clock, log, workers=workers, now=lambda: self.cpu)

    def first(self, cpu):
        with self.budget.first_step("numbers", "whole"):
            self.cpu += cpu

    def take(self, kind, cpu, wall=0.0):
        with self.budget.step(kind, f"{kind} at {self.cpu}"):
            self.cpu += cpu
            self.wall += wall


@pytest.mark.parametrize(
    ("effort", "whole", "bound"),
    [("quick", 20, 60), ("default", 20, 300), ("default", 40, 400), ("thorough", 20, math.inf)],
)
def test_the_bound_is_in_times_of_the_first_step(effort, whole, bound):
    steps = Steps(effort)
    assert steps.budget.left_seconds == math.inf
    steps.first(whole)
    assert steps.budget.bound == bound
    assert steps.budget.left_seconds == bound - whole
    assert steps.budget.left() == (
        f"{bound - whole:.0f} of {bound} CPU s left" if bound < math.inf else "no time limit"
    )


def test_a_step_that_would_overrun_the_bound_is_not_begun():
    steps = Steps()
    steps.first(20)
    assert steps.budget.objection("cut", "numbers") is None  # of cuts nothing is known yet
    steps.take("cut", 120)
    assert steps.budget.objection("cut", "numbers") is None
    steps.take("numbers", 30)
    why = "it would take about 150 CPU s, and of 300 CPU s (--effort default) 130 are left"
    assert steps.budget.objection("cut", "numbers") == why
    assert steps.budget.objection("other", "numbers") is None
    steps.take("other", 130)
    assert steps.budget.objection("new") == "300 CPU s (--effort default) are spent"


def test_what_the_step_that_runs_has_taken_counts():
    steps = Steps("quick")
    steps.first(10)
    with steps.budget.step("cut", "cut"):
        steps.cpu += 5
        assert steps.budget.left_seconds == 15


def test_a_step_that_would_overrun_the_time_limit_is_not_begun():
    steps = Steps("thorough", clock=100.0)
    steps.first(1)
    steps.take("cut", 1, wall=60.0)
    why = "the time is over before it would end: it would take about 60 s, and 40 are left"
    assert steps.budget.objection("cut") == why
    assert steps.budget.left() == "40 s left"
    steps.take("other", 1, wall=40.0)
    assert steps.budget.objection("new") == "the time is over"


def test_workers_elsewhere_count_but_not_for_the_bound(monkeypatch):
    workers = SimpleNamespace(elsewhere_seconds=0.0)
    steps = Steps(workers=workers)
    own = iter([3.0, 43.0])
    monkeypatch.setattr("onnxcompress.search.effort.time.process_time", lambda: next(own))
    with steps.budget.first_step("numbers", "whole"):
        steps.cpu += 50  # ten of them a child's, which builds ahead
        workers.elsewhere_seconds += 7
    assert steps.budget.bound == 400
    assert steps.budget.left_seconds == 400 - 57


def test_guesses_are_ordered_where_time_is_to_spare():
    for effort, before in (("quick", False), ("default", True), ("thorough", True)):
        steps = Steps(effort)
        assert steps.budget.allows_guess("cut") is before
        steps.first(10)
        assert steps.budget.allows_guess("cut")
        steps.take("cut", 290)
        assert steps.budget.allows_guess("cut") is (effort == "thorough")


def test_a_run_that_is_replayed_decides_by_the_seconds_of_the_first():
    log = StepSeconds()
    slow = Steps(log=log)
    slow.first(20)
    slow.take("cut", 150)
    again = Steps(log=StepSeconds(log.used))
    again.first(1)
    again.cpu = 1020.0
    again.take("cut", 1)
    assert again.budget.left_seconds == slow.budget.left_seconds == 130
    assert again.budget.objection("cut") == slow.budget.objection("cut")


def test_a_run_that_goes_on_counts_what_the_interrupted_one_took(tmp_path):
    checkpoint = Checkpoint(tmp_path / "state", "key")
    Steps(log=StepSeconds(checkpoint=checkpoint)).first(50)
    log = StepSeconds(checkpoint=checkpoint)
    steps = Steps(log=log)
    steps.first(1)
    assert steps.budget.bound == 500
    assert log.used == {"whole": 50.0}
    assert log.known("other") is None


def test_a_step_that_was_given_up_has_a_clock_where_there_is_more_time_now():
    log = StepSeconds({"whole": 10.0, "cut": 20.0, "cut, given up": 20.0, "other": 25.0, "long": 500.0})
    quick, default = Steps("quick", log=log), Steps("default", log=log)
    for steps in (quick, default):
        steps.first(1)
    with pytest.raises(TimeUpError):
        quick.budget.clock("cut", kept_seconds=5.0)
    assert default.budget.clock("cut", kept_seconds=5.0).left_seconds == 285
    assert quick.budget.clock("new", kept_seconds=5.0).left_seconds == 15
    with pytest.raises(TimeUpError):
        quick.budget.clock("other")
    assert not default.budget.clock("other").is_limited
    with pytest.raises(TimeUpError):
        default.budget.clock("long")
