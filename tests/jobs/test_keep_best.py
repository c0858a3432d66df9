"""Ctrl-C with keep_best ends the search and not the run, once; SIGINT is real, and sent when the tests say."""

import logging
import os
import signal
import threading
import time
from typing import ClassVar

import numpy as np
import pytest
from pydantic.dataclasses import dataclass

import onnxcompress as oc
from onnxcompress.core import GRAPH, Action, Change, Context, Need
from onnxcompress.graph import edit, query
from onnxcompress.io import model_io
from onnxcompress.jobs import compress as compress_job
from onnxcompress.passes.fold.constants import FoldConstants
from tests.helpers import floats, with_constants

TEXT = """g (float[n, 16] x, float[16, 4] a, float[4] d) => (float[n, 4] y) {
    [first] u = MatMul(x, a) e = Add(d, d) y = Add(u, e) }"""
FEEDS = [{"x": floats(1, 16, seed=seed)} for seed in range(40)]


def net():
    return with_constants(TEXT, a=floats(16, 4), d=floats(4, seed=3))


def ctrl_c():
    os.kill(os.getpid(), signal.SIGINT)


def until_interrupted():
    ctrl_c()
    while True:
        time.sleep(0.001)


@dataclass(frozen=True, kw_only=True)
class Searching:
    """Offers the weight halved, or (later) in other parts, then hears Ctrl-C and does not end by itself."""

    name: ClassVar[str] = "searching"
    lossless: ClassVar[bool] = False
    needs: ClassVar[frozenset[Need]] = frozenset({Need.DATA_IF_GIVEN})
    factors: tuple[float, ...] = (0.5,)
    ends: bool = False

    def run(self, model, context: Context):
        for factor in self.factors:
            copy = model_io.clone(model)
            weight = copy.graph.initializers["a"]
            edit.set_weight(weight, query.constant(weight) * np.float32(factor))
            done = [Change.applied(self.name, f"times {factor}", target="a")]
            assert context.best.is_wanted
            context.best.offer(copy, done)
        if self.ends and context.gate.admits(self.name, GRAPH):
            edit.become(model, copy)
            return done
        until_interrupted()
        return []


@dataclass(frozen=True, kw_only=True)
class Interrupted:
    """Lossless, and hears Ctrl-C."""

    name: ClassVar[str] = "interrupted"
    lossless: ClassVar[bool] = True
    needs: ClassVar[frozenset[Need]] = frozenset()

    def run(self, model, context):  # noqa: ARG002 - the protocol's signature
        ctrl_c()
        time.sleep(0.01)  # a signal that comes just before an instruction is heard after it
        return []


def compressed(*passes, **options):
    given = {"recipe": oc.Recipe("mine", "", passes), "data": FEEDS, "keep_best": True}
    return oc.compress(net(), **(given | options))


def outcome(result):
    return {change.pass_name: (change.action, change.reason) for change in result.changes}


def factor(result):
    return float(np.median(query.constant(result.model.graph.initializers["a"]) / floats(16, 4)))


@pytest.fixture(autouse=True)
def usual_handler():
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
    signal.signal(signal.SIGINT, before)


def test_the_best_so_far_is_proved_scored_and_returned(caplog):
    result = compressed(FoldConstants(), Searching(), FoldConstants())
    assert factor(result) == pytest.approx(0.5)
    assert outcome(result)["searching"] == (Action.APPLIED, "times 0.5")
    assert result.report.interrupted
    assert result.report.as_json()["interrupted"] is True
    assert result.report.quality is not None
    note = "the user interrupted the run: searching, fold-constants cut short"
    assert note in result.report.notes
    assert (compress_job.__name__, logging.WARNING, note) in caplog.record_tuples


def test_of_what_was_found_the_last_one_that_stands_its_proof_is_taken():
    result = compressed(Searching(factors=(0.5, 0.25, float("nan"))))
    assert factor(result) == pytest.approx(0.25)
    refused = compressed(Searching(factors=(float("nan"),)))
    assert factor(refused) == 1
    action, reason = outcome(refused)["searching"]
    assert action is Action.SKIPPED
    assert reason.startswith("the user interrupted the run; of what it had found, ")
    assert refused.report.interrupted


@pytest.mark.parametrize(
    ("passes", "options"),
    [
        ([Searching(factors=())], {}),
        ([Interrupted(), Searching()], {}),
        ([Searching(factors=())], {"keep_best": False}),
    ],
    ids=["nothing was found", "before the search", "not asked for"],
)
def test_otherwise_the_run_ends(passes, options):
    with pytest.raises(KeyboardInterrupt):
        compressed(*passes, **options)


def test_a_second_ctrl_c_ends_the_run(monkeypatch):
    monkeypatch.setattr(compress_job, "measure_result", lambda *_: until_interrupted())
    with pytest.raises(KeyboardInterrupt):
        compressed(Searching())


def test_a_result_that_is_only_to_be_finished_is_finished(monkeypatch, caplog):
    measured = compress_job.measure_result

    def interrupted(*args):
        ctrl_c()
        time.sleep(0.01)
        return measured(*args)

    monkeypatch.setattr(compress_job, "measure_result", interrupted)
    result = compressed(Searching(ends=True))
    assert factor(result) == pytest.approx(0.5)
    assert not result.report.interrupted
    assert "the result is being finished; Ctrl-C once more gives it up" in caplog.messages
    monkeypatch.setattr(compress_job, "measure_result", lambda *_: (ctrl_c(), time.sleep(0.01), until_interrupted()))
    with pytest.raises(KeyboardInterrupt):
        compressed(Searching(ends=True))


def test_trailing_passes_are_a_part_of_finishing(caplog):
    result = compressed(Searching(ends=True), Interrupted())
    assert factor(result) == pytest.approx(0.5)
    assert "the result is being finished; Ctrl-C once more gives it up" in caplog.messages


def test_a_time_limit_holds_beside_it():
    result = compressed(Searching(), time_limit=600)
    assert factor(result) == pytest.approx(0.5)
    assert result.report.interrupted


def test_handlers_of_others_and_other_threads_are_left_as_they_are():
    heard = []
    signal.signal(signal.SIGINT, lambda *_: heard.append(1))
    compressed(Interrupted())
    assert heard == [1]
    signal.signal(signal.SIGINT, signal.default_int_handler)
    results = []
    thread = threading.Thread(target=lambda: results.append(compressed(FoldConstants())))
    thread.start()
    thread.join(60)
    assert len(results) == 1
