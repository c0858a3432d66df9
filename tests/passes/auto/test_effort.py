"""How long the search goes on: by CPU seconds that a test says, and only while something can be gained."""

import functools
import time
from dataclasses import replace
from types import SimpleNamespace

import pytest

from onnxcompress.base.clock import Clock
from onnxcompress.base.gate import Gate
from onnxcompress.core import Context, no_excess
from onnxcompress.passes.auto import build as auto_build
from onnxcompress.passes.auto import quantized as auto_quantized
from onnxcompress.passes.auto import search as auto_search
from onnxcompress.passes.auto.search import SearchBest
from onnxcompress.search.effort import SearchBudget, StepSeconds
from tests.passes.auto.test_search import FEEDS, _Judge, _model, _reasons, _Reduces, _Rounds, _Summing, stand_ins

__all__ = ["stand_ins"]  # a fixture of that module, for this one too

INT8, CUT = 20.0, 100.0
"""CPU seconds of the two kinds of step."""


class Hand:
    """CPU seconds that a test moves on."""

    now = 0.0


@pytest.fixture(autouse=True)
def hand(monkeypatch):
    found = Hand()
    monkeypatch.setattr(auto_search, "SearchBudget", functools.partial(SearchBudget, now=lambda: found.now))
    return found


def timed(hand, judge):
    """Let steps take time: the score of a reduced model, and the race of one with smaller numbers."""
    score, race = judge.score, type(judge).__call__

    class Timed(type(judge)):
        def score(self, model, *, most=None):
            hand.now += 0 if "routes" in model.metadata_props else CUT
            return score(model, most=most)

        def __call__(self, model, label):
            hand.now += INT8
            return race(self, model, label)

    judge.__class__ = Timed
    return judge


def searched(judge, *, steps=None, show=lambda _: None, clock=None, excess=no_excess, **options):
    model = _model()
    effort = options.pop("effort", "default")
    given = {"numbers": ("quantize-int8",)} | options
    context = Context(
        feeds=FEEDS,
        judge=judge,
        effort=effort,
        steps=steps,
        show=show,
        gate=Gate(),
        clock=clock or Clock(),
        excess=excess,
    )
    return model, _reasons(SearchBest(**given).run(model, context))


def test_no_build_is_begun_that_would_overrun_the_bound(hand):
    judge = timed(hand, _Judge())
    model, reasons = searched(judge)
    assert model.metadata_props["kept"] == "0.3536"  # 20, 120 and 120 CPU seconds; another 120 are too many for 300
    why = "it would take about 120 CPU s, and of 300 CPU s (--effort default) 40 are left"
    assert f"prune-channels 0.250: not tried: {why}" in reasons
    assert float(searched(timed(hand, _Judge()), effort="thorough")[0].metadata_props["kept"]) < 0.3


def test_a_time_limit_keeps_a_build_from_being_begun_too(hand):
    wall = Clock(200.0, now=lambda: hand.now)
    model, reasons = searched(timed(hand, _Judge()), clock=wall, effort="thorough", reductions=("prune-channels",))
    assert model.metadata_props["kept"] == "0.5"
    assert any("prune-channels 0.354: not tried: the time is over before it would end" in each for each in reasons)


def test_quick_gives_up_a_build_that_takes_too_long_and_has_the_whole_model_in_int8(hand, monkeypatch):
    class Endless(_Reduces):
        def run(self, model, context):  # noqa: ARG002 - the protocol's signature
            hand.now += 1000.0
            while True:
                time.sleep(0.001)

    kinds = {each.name: each for each in (_Reduces, Endless)}
    monkeypatch.setattr(auto_build, "build_pass", lambda name, options: kinds[name](**options))
    model, reasons = searched(timed(hand, _Judge()), effort="quick")
    assert "kept" not in model.metadata_props
    assert model.metadata_props["routes"] == "static,dynamic"
    assert "prune-channels 0.500: given up: no more of the 60 CPU s (--effort quick) are left for it" in reasons


def test_a_build_that_was_given_up_is_not_begun_when_the_run_is_replayed(hand):
    """Nor is one that took longer than there is now; of one that was in time the clock of the replay says nothing."""
    first = {"whole, quantize-int8": INT8}
    for seconds, is_given_up in (
        ({"prune-channels 0.500": 25.0, "prune-channels 0.500, given up": 25.0}, True),
        ({"prune-channels 0.500": 15.0}, False),
        ({"prune-channels 0.500": 500.0}, True),
    ):
        steps = StepSeconds(first | seconds)
        model, reasons = searched(timed(hand, _Judge()), effort="quick", steps=steps, builds=1)
        assert any("prune-channels 0.500: given up" in each for each in reasons) is is_given_up
        assert ("kept" in model.metadata_props) is not is_given_up
        assert ("prune-channels 0.500, given up" in steps.used) is is_given_up


def test_the_second_numbers_of_the_whole_model_are_tried_without_time_where_the_first_are_not_valid(hand, monkeypatch):
    monkeypatch.setattr(
        auto_quantized, "build_pass", lambda name, options: _Rounds(**({} if name == "quantize-blocks" else options))
    )
    both, refused = ("quantize-int8", "quantize-blocks"), "whole, quantize-blocks: not tried: the time is over"
    for latency, is_refused in ((1.0, True), (1.5, False)):
        wall = Clock(INT8, now=lambda: hand.now)
        judge = timed(hand, _Judge(latency=latency))
        reasons = searched(judge, numbers=both, reductions=(), clock=wall)[1]
        assert any(refused in each for each in reasons) is is_refused
        assert len(judge.labels) == 2 - is_refused


def test_the_second_numbers_are_given_up_where_they_take_too_long(hand, monkeypatch):
    class Endless(_Rounds):
        def run(self, model, context):  # noqa: ARG002 - the protocol's signature
            hand.now += 1000.0
            while True:
                time.sleep(0.001)

    kinds = {"quantize-int8": _Rounds, "quantize-blocks": Endless}
    monkeypatch.setattr(
        auto_quantized, "build_pass", lambda name, options: kinds[name](**({} if kinds[name] is Endless else options))
    )
    both = ("quantize-int8", "quantize-blocks")
    model, reasons = searched(timed(hand, _Judge()), numbers=both, reductions=(), effort="quick")
    assert model.metadata_props["routes"] == "static,dynamic"
    assert "whole, quantize-blocks: given up: no more of the 60 CPU s (--effort quick) are left for it" in reasons


def test_thorough_tries_all_reductions_and_as_many_builds_as_are_wanted(hand):
    judge = _Summing(least=0.4)
    model, _ = searched(judge, effort="thorough", work=1e11)
    assert set(_Summing.losses) <= set(model.metadata_props)
    assert set(_Summing.losses) & set(searched(_Summing(least=0.4))[0].metadata_props) == {"kept"}
    macs = 64 * 64 * len(FEEDS)
    assert "kept" not in searched(_Judge(), effort="thorough", work=0.5 * macs)[0].metadata_props
    assert hand.now == 0.0


def test_models_of_any_size_are_reduced_with_thorough(monkeypatch):
    monkeypatch.setattr(auto_search.counting, "count", lambda *_: SimpleNamespace(macs=10**12, parameters=1))
    assert "kept" in searched(_Judge(), effort="thorough")[0].metadata_props
    assert "kept" not in searched(_Judge())[0].metadata_props


def test_a_model_between_two_that_can_not_be_better_is_not_built():
    """Bytes do not fall between a good model and one that is reduced too far: nothing is left to gain by size."""

    class Flat(_Judge):
        def score(self, model, *, most=None):
            found = super().score(model, most=most)
            return replace(found, size_ratio=max(found.size_ratio, 0.5))

    model, reasons = searched(Flat(least=0.3, prefer="size"))
    assert model.metadata_props["kept"] == "0.5"
    why = "without any loss it would cost 0.500 at least, and prune-channels 0.500, static, carefully costs 0.500"
    assert f"prune-channels 0.297: not tried: {why}" in reasons
    _, reasons = searched(Flat(least=0.3, prefer="size"), excess=lambda _: "too slow")
    assert not any("without any loss" in each for each in reasons)


def test_how_far_it_is_is_shown(hand):
    seen = []
    searched(timed(hand, _Judge()), show=lambda status: seen.append((status.stage, status.best, status.left())))
    whole = "1.000 of the size, 1.00 of the time, drop 0.0010"
    half = "0.500 of the size, 0.50 of the time, drop 0.0010"
    assert seen[:3] == [
        ("whole, quantize-int8", "", "no time limit"),
        ("prune-channels 0.500", whole, "280 of 300 CPU s left"),
        ("prune-channels 0.500, quantize-int8", whole, "180 of 300 CPU s left"),
    ]
    assert seen[3] == ("prune-channels 0.354", half, "160 of 300 CPU s left")
    assert seen[-1][0] == "choosing"
