"""Reductions are tried further and further, each with smaller numbers, and the best that is allowed is the result."""

from dataclasses import dataclass as plain
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import ClassVar

import pytest
from pydantic.dataclasses import dataclass

import onnxcompress as oc
from onnxcompress import passes
from onnxcompress.base.clock import Clock
from onnxcompress.base.gate import Gate
from onnxcompress.core import Action, Change, Context, Trial, no_excess
from onnxcompress.graph import query
from onnxcompress.io import model_io
from onnxcompress.passes.auto import build as auto_build
from onnxcompress.passes.auto import quantized as auto_quantized
from onnxcompress.passes.auto import search as auto_search
from onnxcompress.passes.auto.search import SearchBest
from onnxcompress.passes.prune.channels import PruneChannels
from onnxcompress.passes.quantize.int8 import RouteChange
from onnxcompress.passes.shallow.low_rank import LowRank
from onnxcompress.search import candidates as search
from onnxcompress.search.archive import Archive
from tests.helpers import floats, op_types, with_constants

MODELS = Path(__file__).parents[3] / "models"
STUCK = 0.2
FEEDS = [{"x": floats(1, 64, seed=seed)} for seed in range(4)]


def _model():
    text = "g (float[n, 64] x, float[64, 64] w) => (float[n, 64] y) { m = MatMul(x, w) y = Relu(m) }"
    return with_constants(text, w=floats(64, 64))


@dataclass(frozen=True, kw_only=True)
class _Reduces:
    """Write what is kept into the model."""

    name: ClassVar[str] = "prune-channels"
    lossless: ClassVar[bool] = False
    needs: ClassVar[frozenset] = frozenset()
    keep_macs: float = 0.7
    distill_steps: int = 400

    def run(self, model, context):
        assert context.judge is None
        context.gate.admits(self.name, "graph")
        if self.keep_macs < STUCK:
            return [Change(pass_name=self.name, target="graph", action=Action.SKIPPED, reason="nothing can go")]
        model.metadata_props["kept"] = str(self.keep_macs)
        model.metadata_props["trained"] = str(self.distill_steps > 0)
        return [Change(pass_name=self.name, target="graph", action=Action.APPLIED, reason="cut")]


@dataclass(frozen=True, kw_only=True)
class _Rounds:
    """Write that numbers are smaller into the model, by one of two routes."""

    name: ClassVar[str] = "quantize-int8"
    lossless: ClassVar[bool] = False
    needs: ClassVar[frozenset] = frozenset()
    routes: tuple[str, ...] = ("static", "dynamic")

    def run(self, model, context):
        assert context.judge.fault(model) is None
        context.gate.admits(self.name, "graph")
        model.metadata_props["routes"] = ",".join(self.routes)
        details = {"route": "static, carefully"}
        return [
            RouteChange(
                pass_name=self.name,
                target="graph",
                action=Action.APPLIED,
                reason="int8",
                details=details,
                route=self.routes[0],
            )
        ]


@plain
class _Judge:
    """Says how much is lost by how much is kept."""

    least: float = 0.0
    limit: float | None = 0.01
    prefer: str = "balanced"
    faults: tuple = ()
    added: float = 0.0
    trained: float = 1.0
    latency: float = 1.0
    bytes: int = 1000
    widened: float = 0.0

    def __post_init__(self):
        self.labels, self.asked = [], []

    def score(self, model, *, most=None):  # noqa: ARG002
        kept = float(model.metadata_props.get("kept", 1))
        lost = 0.001 if kept >= self.least else 0.012
        lost *= self.trained if model.metadata_props.get("trained") == "True" else 1
        lost += self.added if "routes" in model.metadata_props and kept < 1 else 0
        return Trial(
            bytes=int(self.bytes * kept), size_ratio=kept, latency_ratio=kept * self.latency, drop=lost,
            divergence=lost, decisive_drop=lost + self.widened,
        )  # fmt: skip

    def __call__(self, model, label):
        self.labels.append(label)
        return self.score(model)

    def fault(self, model):
        kept = float(model.metadata_props.get("kept", 1))
        self.asked.append(kept)
        return "the user's samples object" if kept in self.faults else None


@pytest.fixture(autouse=True)
def stand_ins(monkeypatch):
    """Passes whose figures a test can say."""
    kinds = {each.name: each for each in (_Reduces, _Drops, _Thins, _Rounds)}
    for module in (auto_quantized, auto_build):
        monkeypatch.setattr(module, "build_pass", lambda name, options: kinds[name](**options))


def _run(judge, *, archive=None, clock=None, feeds=FEEDS, excess=no_excess, **options):
    model = _model()
    given = {"numbers": ("quantize-int8",), "reductions": ("prune-channels",)} | options
    context = Context(feeds=feeds, judge=judge, archive=archive, clock=clock or Clock(), excess=excess)
    changes = SearchBest(**given).run(model, context)
    return model, changes


def _reasons(changes, action="skipped"):
    return [c.reason for c in changes if c.pass_name == "search-best" and c.action == action]


def test_it_goes_as_far_as_the_limit_allows_and_then_halves_the_way():
    judge = _Judge(least=0.3)
    model, changes = _run(judge)
    tried = sorted(float(label.split()[1].rstrip(",")) for label in judge.labels[1:])
    assert float(model.metadata_props["kept"]) == pytest.approx(tried[0], abs=1e-3)
    assert 0.3 <= tried[0] < 0.35
    assert "static, carefully" in _reasons(changes, "applied")[0]
    assert [c.pass_name for c in changes[:3]] == ["search-best", "prune-channels", "quantize-int8"]
    assert any("more than 0.0050" in reason for reason in _reasons(changes))
    assert any("another one is better" in reason for reason in _reasons(changes))


def test_the_way_that_won_on_the_whole_model_is_gone_again():
    model, _ = _run(_Judge())
    assert model.metadata_props["routes"] == "static"


def test_the_number_of_builds_is_a_limit():
    assert len(_run(_Judge(), builds=2)[1]) < len(_run(_Judge())[1])
    model, _ = _run(_Judge(), builds=0)
    assert "kept" not in model.metadata_props


def test_a_budget_that_is_set_is_the_only_one_that_is_tried():
    for options, label in (({"keep_macs": 0.6}, "0.600"), ({"keep_macs": 0.6, "distill_steps": 9}, "0.600")):
        judge = _Judge()
        model, _ = _run(judge, prune_channels=PruneChannels(**options))
        assert judge.labels == [
            f"search-best/{each}, static, carefully" for each in ("whole", f"prune-channels {label}")
        ]
        assert model.metadata_props["kept"] == "0.6"


def test_few_models_are_built_of_a_large_one_and_a_mild_one_first():
    macs = 64 * 64 * len(FEEDS)
    judge = _Judge()
    _run(judge, work=2.5 * macs)
    assert [label.split()[1] for label in judge.labels[1:]] == ["0.850,", "0.601,"]
    judge = _Judge()
    _, changes = _run(judge, work=0.5 * macs)
    assert len(judge.labels) == 1
    assert any("too long" in reason for reason in _reasons(changes))


def test_a_model_whose_multiplications_are_unknown_is_taken_by_its_weights(monkeypatch):
    counts = SimpleNamespace(macs=None, parameters=100)
    monkeypatch.setattr(auto_search.counting, "count", lambda *_: counts)
    for work, count in ((100 * 64 * len(FEEDS), 2), (99 * 64 * len(FEEDS), 1)):
        judge = _Judge()
        _run(judge, work=work)
        assert len(judge.labels) == count


def test_samples_may_hold_sequences_of_arrays_of_differing_lengths():
    feeds = [feed | {"s": [floats(2), floats(3)]} for feed in FEEDS]
    assert "kept" in _run(_Judge(), feeds=feeds)[0].metadata_props


def test_only_the_reductions_that_were_asked_for_are_tried():
    assert "kept" not in _run(_Judge(), reductions=())[0].metadata_props
    assert "kept" not in _run(_Judge(), reductions=("drop-blocks",))[0].metadata_props


def test_numbers_that_add_too_much_to_a_reduction_are_refused():
    model, changes = _run(_Judge(added=0.005))
    assert "kept" not in model.metadata_props
    assert any("with smaller numbers it would lose 0.0060, more than 0.0057" in reason for reason in _reasons(changes))
    assert "kept" in _run(_Judge(added=0.004))[0].metadata_props


def test_the_upper_end_of_the_loss_decides_where_it_is_asked_for():
    assert "kept" in _run(_Judge(widened=0.001))[0].metadata_props
    assert "kept" not in _run(_Judge(widened=0.02))[0].metadata_props


def test_a_near_miss_is_trained_where_samples_are_enough():
    many = FEEDS * 128
    model, _ = _run(_Judge(least=0.6, trained=0.1), feeds=many, builds=1)
    assert (model.metadata_props["kept"], model.metadata_props["trained"]) == ("0.5", "True")
    assert "kept" not in _run(_Judge(least=0.6, trained=0.1), builds=1)[0].metadata_props
    assert "kept" not in _run(_Judge(least=0.6, trained=0.1, limit=0.006), feeds=many, builds=1)[0].metadata_props
    assert _run(_Judge(), feeds=many, builds=1)[0].metadata_props["trained"] == "False"


def test_where_nothing_can_go_no_more_is_tried():
    _, changes = _run(_Judge(), builds=20)
    assert sum(c.reason == "nothing can go" for c in changes) == 1


def test_few_bits_are_tried_for_size_or_where_int8_saves_no_time(monkeypatch):
    tried = []

    def build(name, options):
        tried.append(name)
        return _Rounds(**({} if name == "quantize-blocks" else options))

    monkeypatch.setattr(auto_quantized, "build_pass", build)
    both = ("quantize-int8", "quantize-blocks")
    for judge, excess, count in (
        (_Judge(latency=0.5), no_excess, 0),
        (_Judge(prefer="size", latency=0.5), no_excess, 1),
        (_Judge(), no_excess, 1),
        (_Judge(latency=0.5), lambda _: "too many bytes", 1),
    ):
        tried.clear()
        _run(judge, numbers=both, reductions=(), excess=excess)
        assert tried.count("quantize-blocks") == count


def test_a_candidate_within_the_users_limits_goes_before_a_better_one():
    model, changes = _run(_Judge(), builds=1, excess=lambda trial: "too small" if trial.bytes < 600 else None)
    assert "kept" not in model.metadata_props
    assert any(reason.endswith("too small") for reason in _reasons(changes))
    assert "kept" in _run(_Judge(), builds=1, excess=lambda _: "never")[0].metadata_props


def test_the_users_samples_have_the_last_word_and_a_milder_reduction_is_tried():
    judge = _Judge(faults=(0.5,), least=0.5)
    model, changes = _run(judge, builds=2)
    assert judge.asked == [0.5, 0.7071]
    assert model.metadata_props["kept"] == "0.7071"
    assert any("samples object" in reason for reason in _reasons(changes))


def test_two_milder_ones_are_tried_at_most_and_then_the_next_best_is_taken():
    judge = _Judge(faults=(0.5, 0.7071, 0.8409), least=0.5)
    model, _ = _run(judge, builds=1)
    assert judge.asked == [0.5, 0.7071, 0.8409, 1.0]
    assert "kept" not in model.metadata_props


def test_the_model_stays_where_nothing_is_allowed():
    judge = _Judge(least=2.0)
    model, changes = _run(judge)
    assert "routes" not in model.metadata_props
    assert all(c.action == Action.SKIPPED for c in changes)
    assert judge.asked == []


def test_when_the_time_is_over_what_was_found_is_handed_over():
    now = [0.0]
    judge = _Judge()
    plain_score = judge.score

    def slow(model, *, most=None):
        now[0] += 1
        return plain_score(model, most=most)

    judge.score = slow
    model, changes = _run(judge, clock=Clock(3.5, now=lambda: now[0]))
    assert model.metadata_props["kept"] == "0.5"
    assert any("the time is over" in reason for reason in _reasons(changes))


def test_candidates_are_handed_over_and_reductions_are_not_built_twice():
    archive = Archive(keeps_models=True)
    _run(_Judge(), archive=archive, builds=1)
    assert [t.label for t in archive.tried] == ["whole, static, carefully", "prune-channels 0.500, static, carefully"]
    assert [t.chosen for t in archive.tried] == [False, True]


def test_a_gate_that_says_no_leaves_the_model_alone():
    context = Context(feeds=FEEDS, judge=_Judge(), gate=Gate(limit=0))
    assert SearchBest().run(_model(), context) == []


def test_without_data_weights_are_stored_as_int8_and_it_says_what_data_would_add():
    model = _model()
    changes = SearchBest().run(model, Context())
    assert "Cast" in op_types(model)
    assert any("--data" in reason for reason in _reasons(changes))


def test_the_shipped_recipe_finds_a_small_model(monkeypatch):
    for module in (auto_quantized, auto_build):
        monkeypatch.setattr(module, "build_pass", passes.build)
    given = ["search-best.numbers=['quantize-int8']", "search-best.reductions=[]"]
    result = oc.compress(MODELS / "resnet14.onnx", data=str(MODELS / "fmnist_calib.npz"), settings=given)
    assert result.report.output.bytes < 0.27 * result.report.input.bytes
    assert [c.label for c in result.report.candidates if c.chosen] == ["whole, static"]
    assert search.objection(result.report.candidates[0].trial, "balanced", 0.01) is None
    assert query.nodes(result.model)
    assert model_io.model_bytes(result.model) == result.report.output.bytes


@dataclass(frozen=True, kw_only=True)
class _Drops(_Reduces):
    """Write what is kept into the model too."""

    name: ClassVar[str] = "drop-blocks"
    accept: str = "faster"

    def run(self, model, context):
        context.gate.admits(self.name, "graph")
        assert context.judge is None
        model.metadata_props[self.name] = str(self.keep_macs)
        return [Change(pass_name=self.name, target="graph", action=Action.APPLIED, reason="gone")]


@dataclass(frozen=True, kw_only=True)
class _Thins(_Drops):
    """The same, and only where it may be slower."""

    name: ClassVar[str] = "low-rank"

    def run(self, model, context):
        assert (self.accept, self.distill_steps) == ("smaller", 0)
        return super().run(model, context)


class _Summing(_Judge):
    """Adds up what each reduction loses; sizes multiply."""

    losses: ClassVar[dict] = {"kept": 0.001, "drop-blocks": 0.001, "low-rank": 0.0004}
    extra = 0.0
    measured = 1.0

    def score(self, model, *, most=None):
        props = model.metadata_props
        found = {name: float(props[name]) for name in self.losses if name in props}
        kept = 1.0
        for value in found.values():
            kept *= value
        lost = sum(self.losses[name] for name in found) + (self.extra if len(found) > 1 else 0)
        if found.get("kept", 1) < self.least:
            lost = 0.012
        if len(found) > 1 and "routes" in props:
            kept **= self.measured
        return replace(
            super().score(model, most=most),
            size_ratio=kept,
            latency_ratio=kept,
            drop=lost,
            divergence=lost,
            decisive_drop=lost + self.widened,
        )


EVERY = ("drop-blocks", "prune-channels", "low-rank")


def _applied_together(judge, **options):
    model, changes = _run(judge, **({"reductions": EVERY} | options))
    return {name for name in _Summing.losses if name in model.metadata_props}, _reasons(changes), judge.labels


def test_channels_are_cut_and_other_reductions_are_tried_where_a_budget_of_theirs_is_set():
    names = []

    class Noting(_Summing):
        def score(self, model, **options):
            names.append(set(model.metadata_props))
            return super().score(model, **options)

    _applied_together(Noting(least=0.4), reductions=SearchBest().reductions)
    assert set(_Summing.losses) & set().union(*names) == {"kept"}
    names.clear()
    _applied_together(
        Noting(least=0.4), reductions=SearchBest().reductions, low_rank=LowRank(keep_macs=0.7, accept="smaller")
    )
    assert {"kept", "low-rank"} <= set().union(*names)


def test_reductions_of_several_kinds_share_what_may_be_lost():
    together, _, labels = _applied_together(_Summing(least=0.4))
    assert together == {"kept", "drop-blocks", "low-rank"}
    assert labels[-1].endswith("drop-blocks 0.850 + prune-channels 0.420 + low-rank 0.600, static, carefully")
    assert not any("low-rank 0.600," in label and "+" not in label for label in labels)  # alone it is only looked at


@pytest.mark.parametrize(
    ("changed", "why"),
    [
        ({"extra": 0.001}, "it would lose 0.0034, more than 0.0025"),
        ({"measured": 0.5}, "fewer reductions do as well"),
    ],
)
def test_reductions_together_that_lose_too_much_or_gain_nothing_are_refused(changed, why):
    judge = _Summing(least=0.4)
    for name, value in changed.items():
        setattr(judge, name, value)
    together, reasons, _ = _applied_together(judge)
    assert together == {"kept"}
    assert any(why in reason for reason in reasons)


def test_other_kinds_are_tried_where_there_is_time_for_them():
    macs = 64 * 64 * len(FEEDS)
    assert "low-rank" in _applied_together(_Summing(least=0.4), builds=2, work=4.1 * macs)[0]
    assert _applied_together(_Summing(least=0.4), builds=2, work=3.9 * macs)[0] == {"kept"}
    assert _applied_together(_Summing(least=0.4), reductions=("prune-channels",))[0] == {"kept"}
    assert _applied_together(_Summing(least=0.4), reductions=("low-rank",))[0] == {"low-rank"}
