"""Candidates are kept: what was tried, what nothing beats, and what an interrupted run had found out."""

import json

import numpy as np
import pytest

import onnxcompress as oc
from onnxcompress.base.clock import Clock
from onnxcompress.base.quantities import parse_seconds
from onnxcompress.core import Action, Built, Candidate, Change, Trial
from onnxcompress.io import model_io
from onnxcompress.jobs import pareto
from onnxcompress.jobs.report import Limits, Report, ResolvedRecipe, Verification
from onnxcompress.search import candidates as search
from onnxcompress.search.archive import Archive
from onnxcompress.search.checkpoint import Checkpoint, digest
from onnxcompress.shapes.count import ModelFacts
from tests.helpers import from_text
from tests.jobs.test_judge import _trials

MODEL = from_text("g (float[1] x) => (float[1] y) { y = Relu(x) }")


def _trial(size=100, latency=0.5, drop=0.0):
    return Trial(bytes=size, size_ratio=size / 200, latency_ratio=latency, drop=drop, divergence=1e-4)


def _candidate(label, **figures):
    return Candidate(label=label, model=MODEL, changes=(), trial=_trial(**figures))


def _offered(archive, *candidates):
    for each in candidates:
        archive.offer(each, prefer="balanced", limit=0.01, place="p")
    return archive


def test_the_front_is_what_nothing_beats():
    figures = {
        "a": _trial(50, 0.9), "b": _trial(100, 0.5), "worse": _trial(100, 0.6), "c": _trial(60, 0.95, -0.1),
        "same": _trial(100, 0.5), "untimed": _trial(50, None), "lossy": _trial(40, 0.5, 0.3),
    }  # fmt: skip
    assert search.front(list(figures.items())) == ["a", "b", "lossy"]
    assert search.front([]) == []


def test_what_was_tried_is_told_with_the_verdict():
    archive = _offered(Archive(), _candidate("a"), _candidate("slow", latency=1.2), _candidate("bad", drop=0.5))
    archive.choose(_candidate("a"), place="p")
    told = [each.as_json() for each in archive.tried]
    assert [each["label"] for each in told] == ["p/a", "p/slow", "p/bad"]
    assert [each["chosen"] for each in told] == [True, False, False]
    assert told[0]["objection"] is None
    assert "slower" in told[1]["objection"]
    assert "0.5" in told[2]["objection"]


def test_models_are_kept_for_the_front_only_and_only_where_it_is_wanted():
    three = [_candidate("big", size=150), _candidate("a"), _candidate("small", size=50, latency=0.8)]
    assert _offered(Archive(), *three).front == ()
    archive = _offered(Archive(keeps_models=True), *three, _candidate("a"))
    assert [c.label for c in archive.front] == ["p/small", "p/a"]
    assert len(archive.tried) == 3


def test_what_was_built_is_read_back(tmp_path):
    change = Change(pass_name="p", target="t", action=Action.APPLIED, reason="r", bytes_before=3, details={"db": 1.5})
    again = Archive(Checkpoint(tmp_path / "c", "key")).built("a", lambda: Built(MODEL, (change,)))
    assert again.model is MODEL
    found = Archive(Checkpoint(tmp_path / "c", "key")).built("a", lambda: pytest.fail("built again"))
    assert model_io.to_bytes(found.model) == model_io.to_bytes(MODEL)
    assert found.changes == (change,)
    for damaged in (tmp_path / "c").glob("*.onnx"):
        damaged.write_bytes(b"half")
    assert Archive(Checkpoint(tmp_path / "c", "key")).built("a", lambda: Built(MODEL, ())).changes == ()


def test_a_folder_of_another_run_is_refused(tmp_path):
    Checkpoint(tmp_path / "c", "key")
    with pytest.raises(oc.UsageError, match="another model"):
        Checkpoint(tmp_path / "c", "other")
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "file").touch()
    with pytest.raises(oc.UsageError, match="not empty"):
        Checkpoint(tmp_path / "full", "key")
    with pytest.raises(oc.UsageError, match="no folder"):
        Checkpoint(tmp_path / "full" / "file", "key")
    assert Checkpoint(tmp_path / "new" / "c", "key") is not None
    assert (tmp_path / "new" / "c").is_dir()


def test_trials_are_noted_and_not_measured_again(tmp_path, monkeypatch):
    first = _trials(checkpoint=Checkpoint(tmp_path / "c", "k"))
    found, score = first(first._base.model, "a"), first.score(first._base.model)
    second = _trials(checkpoint=Checkpoint(tmp_path / "c", "k"))
    monkeypatch.setattr(second, "_measured", lambda *_: pytest.fail("measured again"))
    assert second(second._base.model, "a") == found
    assert second.score(second._base.model) == score
    assert second._timings.used["a"]["ratio"] == found.latency_ratio


def test_a_digest_tells_parts_and_kinds_apart():
    one = digest(["ab", np.zeros(2, np.float32)])
    assert one == digest([b"ab", np.zeros(2, np.float32)])
    assert len({one, digest(["a", "b", np.zeros(2, np.float32)]), digest(["ab", np.zeros(2, np.int32)])}) == 3
    assert digest([np.array(["a"], object)]) != digest([np.array(["b"], object)])


def test_a_clock_ends():
    now = [0.0]
    clock = Clock(10, now=lambda: now[0])
    assert not clock.is_over
    now[0] = 10.0
    assert clock.is_over
    assert not Clock().is_over


@pytest.mark.parametrize(("text", "seconds"), [("10m", 600), ("90s", 90), ("1h30m", 5400), ("0.5", 0.5), ("2 M", 120)])
def test_times_are_read(text, seconds):
    assert parse_seconds(text) == seconds


@pytest.mark.parametrize("text", ["", "m", "10x", "0s", "-3", "1 2", "10m5"])
def test_other_texts_are_no_times(text):
    with pytest.raises(oc.UsageError, match="--time-limit"):
        parse_seconds(text)


def test_the_front_is_written_with_its_models(tmp_path):
    facts = ModelFacts(path="m.onnx", bytes=200, nodes=1, parameters=1, macs=None)
    report = Report(
        input=facts, output=facts, recipe=ResolvedRecipe(name="r", passes=()), limits=Limits(), quality=None,
        latency=None, seconds=1, peak_memory_bytes=1, changes=(), verification=Verification(mode="full"),
    )  # fmt: skip
    broken = from_text("g (float[1] x) => (float[1] y) { y = Neg(x) }")
    wrong = Candidate(label="wrong", model=broken, changes=(), trial=_trial(10))
    front = [wrong, _candidate("int8/../a b", size=len(model_io.to_bytes(MODEL)))]
    pareto.write_front(tmp_path / "front", front, report, lambda model: "broken" if model is broken else None)
    index = json.loads((tmp_path / "front" / "front.json").read_text())
    assert [(e["model"], e["fault"]) for e in index["front"]] == [(None, "broken"), ("02-int8-..-a-b.onnx", None)]
    assert (tmp_path / "front" / "02-int8-..-a-b.onnx").stat().st_size == index["front"][1]["bytes"]
    assert sorted(p.name for p in tmp_path.rglob("*")) == ["02-int8-..-a-b.onnx", "front", "front.json"]
    assert index["original"]["bytes"] == 200
