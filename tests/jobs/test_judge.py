"""Candidates are scored on held-out samples and timed; times of an earlier run are replayed."""

import json

import numpy as np
import pytest

import onnxcompress as oc
from onnxcompress.data.evaluation_set import Evaluation
from onnxcompress.jobs import judge as judging
from onnxcompress.jobs.judge import Races, Timings, Trials, decisive_drop
from onnxcompress.quality.output_plan import OutputPlan
from onnxcompress.runtime.latency import Latency
from onnxcompress.runtime.loaded_model import LoadedModel
from tests.helpers import floats, from_text

TEXT = "g (float[n, 4] x) => (float[n, 4] y) <float[4] a = {{{a}}}> {{ y = Add(x, a) }}"
LATENCY = Latency(original_ms=2.0, compressed_ms=1.0, ratio=0.5, runs=3, threads=1, provider="p")


def _model(a="1, 2, 3, 4"):
    return from_text(TEXT.format(a=a))


def _trials(*, timings=None, timed=True, final=lambda _: None, count=3, checkpoint=None, confidence=None):
    feeds = [{"x": floats(2, 4, seed=seed)} for seed in range(count)]
    return Trials(
        LoadedModel(_model()),
        Evaluation(feeds=feeds, source="test"),
        feeds[:1],
        final=final,
        limit=0.01,
        prefer="balanced",
        plan=OutputPlan.of(_model()),
        timed=timed,
        timings=timings or Timings(),
        threads=1,
        checkpoint=checkpoint,
        confidence=confidence,
    )


def test_the_original_itself_loses_nothing_and_another_model_does():
    judge = _trials()
    same, other = judge.score(_model()), judge.score(_model("1, 2, 3, 9"))
    assert (same.drop, same.size_ratio, same.latency_ratio, same.divergence) == (0, 1, None, 0)
    assert (same.drop_interval, same.decisive_drop, same.limited_drop) == ((0, 0), 0, 0)
    x = np.concatenate([floats(2, 4, seed=seed) for seed in range(3)]).astype(np.float64) + np.arange(1, 5)
    lost = 0.5 * 5**2 * len(x) / np.square(x - x.mean(0)).sum()  # the columns vary alike, so they are one group
    assert other.drop == pytest.approx(lost, rel=1e-5)
    assert other.divergence == other.drop == other.decisive_drop
    assert other.drop_interval[0] < other.drop < other.drop_interval[1]


def test_the_upper_end_decides_at_a_confidence():
    half, sure = (_trials(confidence=each).score(_model("1, 2, 3, 9")) for each in (0.5, 0.95))
    assert half.decisive_drop == half.drop
    assert sure.decisive_drop == sure.limited_drop == pytest.approx(sure.drop_interval[1])
    assert decisive_drop(0.01, (0.0, 0.03), None) == 0.01
    assert decisive_drop(0.01, None, 0.95) == 0.01
    assert decisive_drop(None, None, 0.95) is None
    assert decisive_drop(0.01, (0.0, 0.03), 0.95) == pytest.approx(0.03)


def test_a_candidate_that_fails_does_not_disturb_the_next_one():
    judge = _trials()
    broken = from_text(
        "g (float[n, 4] x) => (float[n, 4] y) <float[3, 4] a = {1,1,1,1,1,1,1,1,1,1,1,1}> { y = Add(x, a) }"
    )
    with pytest.raises(oc.ModelError):
        judge.score(broken)
    assert judge.score(_model()).drop == 0


def test_times_are_recorded_and_replayed_by_label():
    timings = Timings({"known": LATENCY})
    judge = _trials(timings=timings)
    assert judge(_model(), "known").latency_ratio == 0.5
    assert 0 < judge(_model(), "new").latency_ratio < 100
    assert set(timings.used) == {"known", "new"}
    assert timings.used["known"] == LATENCY


def test_the_same_bytes_are_raced_once(monkeypatch):
    timings, raced = Timings(), []
    real = judging.timing.race_each
    monkeypatch.setattr(judging.timing, "race_each", lambda *given, **more: raced.append(1) or real(*given, **more))
    base = LoadedModel(_model())
    race = Races(base, [{"x": floats(2, 4)}], plan=OutputPlan.of(base.model), timings=timings, threads=1)
    assert race(_model("1, 2, 3, 9"), "one") == race(_model("1, 2, 3, 9"), "two")
    assert (len(raced), set(timings.used)) == (1, {"one", "two"})
    race(_model("1, 2, 3, 8"), "three")
    assert len(raced) == 2


def test_what_is_meant_for_another_processor_is_not_timed():
    assert _trials(timed=False)(_model(), "any").latency_ratio is None


def test_the_users_own_samples_have_the_last_word():
    judge = _trials(final=lambda opened: f"{opened.size_bytes > 0}")
    assert judge.fault(_model()) == "True"


def test_timings_are_read_from_a_report(tmp_path):
    path = tmp_path / "report.json"
    path.write_text(json.dumps({"timings": {"result": LATENCY.as_json()}}))
    assert Timings.read(path).race("result", lambda: pytest.fail("measured")).ratio == 0.5


@pytest.mark.parametrize("text", ["{", "[]", "{}", '{"timings": {"a": {"ratio": 1}}}', '{"timings": 3}'])
def test_other_files_than_reports_are_refused(tmp_path, text):
    path = tmp_path / "report.json"
    path.write_text(text)
    with pytest.raises(oc.UsageError, match="no report with timings"):
        Timings.read(path)
    with pytest.raises(oc.UsageError, match="can't read the timings"):
        Timings.read(tmp_path / "missing.json")


def test_samples_are_divided_with_their_labels():
    feeds = [{"x": np.full((1, 4), i, np.float32)} for i in range(40)]
    whole = Evaluation(feeds=feeds, source="test", labels=np.repeat(np.arange(40), 2))
    work, held = whole.divided()
    assert (len(work.feeds), len(held.feeds)) == (30, 10)
    numbers = [int(feed["x"][0, 0]) for feed in held.feeds]
    assert held.labels.tolist() == np.repeat(numbers, 2).tolist()
    assert {int(feed["x"][0, 0]) for feed in work.feeds[:]} | set(numbers) == set(range(40))


def test_most_of_many_samples_are_worked_with():
    held = Evaluation(feeds=[{}] * 5000, source="test").divided()[1]
    assert len(held.feeds) == 250


@pytest.mark.parametrize(
    "whole",
    [
        Evaluation(feeds=[{}] * 8, source="few"),
        Evaluation(feeds=[{}] * 100, source="state", state={"a": "b"}),
        Evaluation(feeds=[{}] * 100, source="labels", labels=np.zeros(101)),
    ],
    ids=lambda e: e.source,
)
def test_samples_that_cannot_be_divided_serve_for_both(whole):
    assert whole.divided() == (whole, whole)


def test_races_time_candidates_without_scoring_them():
    timings = Timings({"known": LATENCY})
    feed = {"x": floats(2, 4)}
    base = LoadedModel(_model())
    race = Races(base, [feed], plan=OutputPlan.of(base.model), timings=timings, threads=1)
    assert race(_model("1, 2, 3, 9"), "known") == 0.5
    assert 0 < race(_model("1, 2, 3, 9"), "new") < 100
    assert set(timings.used) == {"known", "new"}


def test_seen_samples_can_be_left_out():
    feeds = [{"x": np.full((1, 4), i, np.float32)} for i in range(64)]
    held = Evaluation(feeds=feeds, source="test").divided()[1]
    alone = held.without_seen()
    assert (len(held.feeds), held.seen, len(alone.feeds), alone.seen) == (64, 48, 16, 0)
    assert [int(feed["x"][0, 0]) for feed in alone.feeds] == list(range(3, 64, 4))
    assert alone.without_seen() is alone


def test_the_same_bytes_are_scored_once(monkeypatch):
    judge, measured = _trials(timings=Timings({"b": LATENCY})), []
    real = judging.measure
    monkeypatch.setattr(judging, "measure", lambda *given, **more: measured.append(1) or real(*given, **more))
    first = judge.score(_model("1, 2, 3, 9"))
    again = judge(_model("1, 2, 3, 9"), "b")
    assert (again.drop, again.divergence, len(measured)) == (first.drop, first.divergence, 1)
    judge.score(_model("1, 2, 3, 9"), most=2)
    judge.score(_model("1, 2, 3, 8"))
    assert len(measured) == 3
