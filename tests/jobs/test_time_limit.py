"""What is handed over when the time is up, whatever the run is doing then; the tests turn the clock."""

import logging
import time
from typing import ClassVar

import numpy as np
import onnx
import pytest
from pydantic.dataclasses import dataclass

import onnxcompress as oc
from onnxcompress.base.clock import Clock
from onnxcompress.core import GRAPH, Action, Change, Context, Need
from onnxcompress.errors import LimitError
from onnxcompress.graph import edit, query
from onnxcompress.io import model_io
from onnxcompress.jobs import batch, measure_result, setup, time_budget
from onnxcompress.jobs import compress as compress_job
from onnxcompress.jobs.options import CompressOptions
from onnxcompress.jobs.time_budget import Finishing, TimeBudget
from onnxcompress.passes.fold.constants import FoldConstants
from onnxcompress.passes.prune.sparsify import Sparsify
from onnxcompress.runtime import processes
from tests.helpers import floats, run, with_constants

LIMIT = 1000.0
TEXT = """g (float[n, 16] x, float[16, 32] a, float[32, 32] b, float[32, 4] c, float[4] d) => (float[n, 4] y) {
    [first] u = MatMul(x, a) r = Relu(u) [second] v = MatMul(r, b) s = Relu(v) [third] w = MatMul(s, c)
    e = Add(d, d) y = Add(w, e) }"""
FEEDS = [{"x": floats(1, 16, seed=seed)} for seed in range(40)]


class Hand:
    """A clock's hand: seconds that tests move on."""

    now = 0.0


@pytest.fixture(autouse=True)
def hand(monkeypatch):
    found = Hand()
    monkeypatch.setattr(compress_job, "Clock", lambda limit: Clock(limit, now=lambda: found.now))
    monkeypatch.setattr(time_budget, "predicted", lambda _: Finishing(judging=200.0, writing=5.0))
    return found


NO_MORE_PASSES = 900.0
"""Seconds at which lossy passes are over, and their proof and the figures are not."""


def endless(hand, now=LIMIT):
    """Do something until an interrupt comes."""
    hand.now = now
    while True:
        time.sleep(0.001)


def net():
    return with_constants(
        TEXT, a=floats(16, 32), b=floats(32, 32, seed=1), c=floats(32, 4, seed=2), d=floats(4, seed=3)
    )


@dataclass(frozen=True, kw_only=True)
class Lossy:
    """Halves the last weight in a copy that it offers, then does not end; `is_wrong`: the copy gives no numbers."""

    name: ClassVar[str] = "lossy"
    lossless: ClassVar[bool] = False
    needs: ClassVar[frozenset[Need]] = frozenset({Need.DATA_IF_GIVEN})
    hand: ClassVar[Hand]
    offers: bool = True
    is_wrong: bool = False
    ends: bool = False

    def run(self, model, context: Context):
        copy = model_io.clone(model)
        weight = next(v for v in copy.graph.initializers.values() if v.shape == (32, 4))
        factor = np.float32(np.nan if self.is_wrong else 0.5)
        edit.set_weight(weight, query.constant(weight) * factor)
        done = [Change.applied(self.name, "halved", target=weight.name)]
        if self.offers:
            context.best.offer(copy, done)
        if self.ends and context.gate.admits(self.name, GRAPH):
            edit.become(model, copy)
            return done
        endless(self.hand, NO_MORE_PASSES)
        return []


@dataclass(frozen=True, kw_only=True)
class Endless:
    """Lossless, and does not end."""

    name: ClassVar[str] = "endless"
    lossless: ClassVar[bool] = True
    needs: ClassVar[frozenset[Need]] = frozenset()
    hand: ClassVar[Hand]

    def run(self, model, context):  # noqa: ARG002 - the protocol's signature
        model.graph.remove(model.graph[-1])  # what it was editing is not to be used
        endless(self.hand)
        return []


def compressed(hand, *passes, **options):
    Lossy.hand = Endless.hand = hand
    recipe = oc.Recipe("mine", "", passes)
    return oc.compress(net(), recipe=recipe, data=FEEDS, time_limit=LIMIT, **options)


def outcome(result):
    return {change.pass_name: (change.action, change.reason) for change in result.changes}


def halves(result):
    """Return what the result gives, as a part of what the original gives."""
    return run(result.model, FEEDS[0])["y"] - 2 * floats(4, seed=3), run(net(), FEEDS[0])["y"] - 2 * floats(4, seed=3)


def test_the_best_so_far_is_proved_scored_and_handed_over(hand, caplog):
    result = compressed(hand, FoldConstants(), Lossy())
    got, whole = halves(result)
    np.testing.assert_allclose(got, whole / 2, rtol=1e-4, atol=1e-5)
    assert outcome(result)["lossy"] == (Action.APPLIED, "halved")
    assert "the time limit was reached: lossy cut short" in result.report.notes
    assert caplog.record_tuples == [
        (compress_job.__name__, logging.WARNING, note) for note in result.report.notes if "time limit" in note
    ]


def test_a_result_so_far_that_is_wrong_is_not_handed_over(hand):
    result = compressed(hand, FoldConstants(), Lossy(is_wrong=True))
    got, whole = halves(result)
    np.testing.assert_allclose(got, whole, rtol=1e-5)
    action, reason = outcome(result)["lossy"]
    assert action is Action.SKIPPED
    assert "the time limit was reached; of what it had found" in reason


def test_without_a_result_so_far_the_passes_before_count(hand):
    result = compressed(hand, FoldConstants(), Lossy(offers=False))
    np.testing.assert_allclose(*halves(result), rtol=1e-5)
    assert outcome(result)["lossy"] == (Action.SKIPPED, "the time limit was reached")
    assert outcome(result)["fold-constants"][0] is Action.APPLIED


def test_interrupted_lossless_passes_leave_the_model_as_it_was(hand):
    result = compressed(hand, FoldConstants(), Endless(), Lossy())
    np.testing.assert_array_equal(*halves(result))
    assert {action for action, _ in outcome(result).values()} == {Action.SKIPPED}
    assert set(outcome(result)) == {"fold-constants", "endless", "lossy"}
    assert "the time limit was reached: fold-constants, endless, lossy cut short" in result.report.notes


@pytest.mark.parametrize("where", [(setup, "read_inputs"), (time_budget, "predicted")])
def test_a_model_that_can_not_be_loaded_in_time_is_written_as_it_is(hand, monkeypatch, tmp_path, where):
    monkeypatch.setattr(*where, lambda *_, **__: endless(hand))
    result = compressed(hand, FoldConstants(), Lossy())
    path = result.save(tmp_path / "same.onnx")
    assert onnx.load(path).graph == onnx.load(model_io.save(net(), tmp_path / "before.onnx").path).graph
    assert "before the model and the data were loaded: the model is written as it is" in result.report.notes[0]
    assert result.report.as_json()["quality"] is None
    hand.now = 0.0
    with pytest.raises(LimitError, match="more than 10"):
        compressed(hand, FoldConstants(), Lossy(), max_bytes=10)


def test_what_was_not_scored_is_not_handed_over(hand, monkeypatch):
    monkeypatch.setattr(measure_result, "_scored_and_timed", lambda *_: endless(hand))
    result = compressed(hand, FoldConstants(), Lossy(ends=True))
    np.testing.assert_allclose(*halves(result), rtol=1e-5)
    why = "the time limit was reached before its loss was measured"
    assert outcome(result)["lossy"] == (Action.ROLLED_BACK, why)
    assert outcome(result)["fold-constants"][0] is Action.APPLIED
    assert result.report.quality is None
    assert any("neither scored nor timed, so it is the model without" in note for note in result.report.notes)


def test_passes_that_go_from_layer_to_layer_stop_between_two(hand, monkeypatch):
    stopped = []

    def timed(title, items):
        for item in items:
            yield item
            if title == "Refitting" and not stopped:
                stopped.append(hand.now)
                hand.now = 700.0  # the interrupt would come at 795

    result = compressed(hand, Sparsify(ratio=0.5, min_elements=1), progress=timed)
    found = {change.target: (change.action, change.reason) for change in result.changes}
    assert found["first"][0] is Action.APPLIED
    assert found["second"] == found["third"] == (Action.SKIPPED, "the time limit was reached before it")
    zeros = {name: float((query.constant(v) == 0).mean()) for name, v in result.model.graph.initializers.items()}
    assert zeros["a"] == pytest.approx(0.5, abs=0.01)
    assert zeros["b"] == zeros["c"] == 0
    assert "the time limit was reached: sparsify cut short" in result.report.notes
    assert result.report.quality is not None


def test_time_is_kept_for_what_comes_after_the_passes(hand):
    clock = Clock(100.0, now=lambda: hand.now)
    budget = TimeBudget(clock, Finishing(judging=20.0, writing=5.0))
    ends = []
    for lossless in (True, False):
        budget.passes(lambda soft: ends.append(soft.left_seconds), lossless=lossless)
    assert ends == [pytest.approx(75.0), pytest.approx(55.0)]  # 95 and 75 but for a score or 15%, whichever is more
    assert budget.measuring.left_seconds == 95.0
    assert budget.race_seconds == 4.0
    hand.now = 94.0
    assert budget.race_seconds == pytest.approx(0.5)
    hand.now = 96.0
    assert budget.race_seconds is None
    free = TimeBudget(Clock(), Finishing())
    assert free.passes(lambda soft: soft.is_limited, lossless=False) is False


def test_a_process_on_a_busy_processor_keeps_more_time(monkeypatch):
    monkeypatch.setattr(time_budget, "age_seconds", lambda: 10.0)
    monkeypatch.setattr(time_budget.time, "process_time", lambda: 5.0)
    twice = time_budget.writing_seconds(100_000_000)
    monkeypatch.setattr(time_budget, "age_seconds", lambda: 2.0)
    assert twice == pytest.approx(2 * time_budget.writing_seconds(100_000_000))


def test_the_start_of_a_process_counts():
    assert 0 < processes.call_isolated(processes.age_seconds).value < 60
    assert processes.age_seconds() > 0


def test_a_batch_keeps_the_limit_for_each_model(tmp_path):
    (tmp_path / "in").mkdir()
    for name in ("a", "b"):
        model_io.save(net(), tmp_path / "in" / f"{name}.onnx")
    done = batch.compress_many([tmp_path / "in"], tmp_path / "out", CompressOptions(recipe="fold", time_limit=1e-3))
    assert done.exit_code == 0
    for item in done.items:
        assert onnx.load(item.target).graph == onnx.load(item.source).graph
        assert any("the model is written as it is" in note for note in item.report["notes"])
