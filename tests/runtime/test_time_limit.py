"""Work ends when its time is up, by a clock that the tests turn."""

import functools
import threading
import time

import numpy as np
import pytest

from onnxcompress.base.clock import Clock
from onnxcompress.errors import ModelError, TimeUpError
from onnxcompress.io import model_io
from onnxcompress.runtime import session, time_limit
from onnxcompress.runtime.isolation import current, isolated
from onnxcompress.runtime.time_limit import WorkInterrupt, within
from tests.helpers import floats, with_constants


class Hand:
    """A clock's hand: seconds that tests move on."""

    def __init__(self):
        self.now = 0.0

    def clock(self, seconds):
        return Clock(seconds, now=lambda: self.now)


def test_without_a_limit_the_work_is_done_here():
    assert within(threading.get_ident, Clock()) == threading.get_ident()


def test_work_that_ends_in_time_gives_its_value_or_its_error_in_the_context_of_the_caller():
    clock = Hand().clock(1.0)
    assert within(lambda: 7, clock) == 7
    assert within(threading.get_ident, clock) != threading.get_ident()
    with isolated("apart"):
        assert within(current, clock) == "apart"

    def fails():
        raise ModelError("no")

    with pytest.raises(ModelError, match="no"):
        within(fails, clock)


def test_nothing_is_begun_when_the_time_is_over():
    begun = []
    with pytest.raises(TimeUpError):
        within(lambda: begun.append(1), Hand().clock(0.0))
    assert not begun


def test_work_in_python_is_interrupted_and_cleans_up():
    hand, steps, closed = Hand(), [], threading.Event()

    def endless():
        try:
            while True:
                steps.append(1)
                hand.now += 1.0
                time.sleep(0.001)
        except Exception:  # noqa: BLE001 - what takes a failure of a model for a refusal doesn't take this for one
            steps.clear()
        finally:
            closed.set()

    with pytest.raises(TimeUpError):
        within(endless, hand.clock(20.0), grace_seconds=30.0)
    assert closed.is_set()
    assert len(steps) >= 20


def test_work_that_takes_the_interrupt_for_something_else_is_interrupted_again():
    hand, caught = Hand(), []

    def stubborn():
        while True:
            try:
                while True:
                    hand.now += 1.0
                    time.sleep(0.001)
            except WorkInterrupt:
                caught.append(1)
                if len(caught) == 2:
                    raise

    with pytest.raises(TimeUpError):
        within(stubborn, hand.clock(5.0), grace_seconds=30.0)
    assert len(caught) == 2


def test_a_call_into_native_code_is_left_behind():
    hand, release = Hand(), threading.Event()

    def stuck():
        hand.now = 10.0
        release.wait()  # as long as it takes: an interrupt comes through after it only

    started = time.monotonic()
    with pytest.raises(TimeUpError):
        within(stuck, hand.clock(5.0), grace_seconds=0.1)
    assert time.monotonic() - started < 30
    left = [thread for thread in threading.enumerate() if thread.name == "onnxcompress-work"]
    assert left
    release.set()
    for thread in left:
        thread.join(30)
        assert not thread.is_alive()


def endless(stopped):
    try:
        while True:
            time.sleep(0.001)
    finally:
        stopped.set()


@pytest.mark.parametrize(("seconds", "in_thread"), [(1e6, False), (None, True)])
def test_an_interrupt_by_the_user_is_one_for_the_work(seconds, in_thread):
    stopped = threading.Event()

    class Interrupted(Clock):
        @property
        def left_seconds(self):
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        within(functools.partial(endless, stopped), Interrupted(seconds), grace_seconds=30.0, in_thread=in_thread)
    assert stopped.is_set()


def test_an_interrupt_while_the_thread_starts_is_one_for_the_work(monkeypatch):
    stopped, start = threading.Event(), threading.Thread.start

    def interrupted(thread):
        start(thread)
        raise KeyboardInterrupt

    monkeypatch.setattr(threading.Thread, "start", interrupted)
    with pytest.raises(KeyboardInterrupt):
        within(functools.partial(endless, stopped), Clock(), grace_seconds=30.0, in_thread=True)
    assert stopped.is_set()


def test_a_run_of_the_runtime_is_ended_between_two_nodes():
    text = """g (float[600, 600] x, int64 n, bool go) => (float[600, 600] y) {
        y = Loop(n, go, x) <body = b (int64 i, bool c, float[600, 600] v) => (bool k, float[600, 600] w)
            { k = Identity(c) u = MatMul(v, v) w = Tanh(u) }> }"""
    model = model_io.to_bytes(with_constants(text))
    opened = session.open_session(model, optimize=False)
    feed = {"x": floats(600, 600), "n": np.array(10**12, np.int64), "go": np.array(True)}
    hand, ended = Hand(), []

    def endless():
        hand.now = 10.0
        try:
            opened.run(feed)
        finally:
            ended.append(1)

    with pytest.raises(TimeUpError):
        within(endless, hand.clock(5.0), grace_seconds=60.0)
    assert ended
    assert opened.run(feed | {"n": np.array(1, np.int64)})["y"].shape == (600, 600)


def test_runs_outside_of_limited_work_have_no_options():
    assert time_limit.run_options(object) is None
