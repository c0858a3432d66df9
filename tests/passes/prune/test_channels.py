"""Channels go until a budget is met; what they gave is made up for; what can't go or would cost too much stays."""

import functools
import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx_ir as ir
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import onnxcompress as oc
from onnxcompress import passes
from onnxcompress.base.gate import Gate
from onnxcompress.channels import groups as channel_groups
from onnxcompress.core import Action, Context, Need, Trial
from onnxcompress.distillation import train
from onnxcompress.errors import UsageError
from onnxcompress.graph import query
from onnxcompress.io import model_io
from onnxcompress.numerics.linear.elimination import Curve
from onnxcompress.passes.prune import budgets, consumers, loss_curves, pruner
from onnxcompress.passes.prune.channels import PruneChannels
from onnxcompress.passes.prune.options import PruneOptions
from onnxcompress.passes.prune.pruner import Pruner
from onnxcompress.quality.divergence import Divergence
from onnxcompress.search import drafts
from onnxcompress.shapes import count as counting
from tests.channels.test_remove import graphs
from tests.helpers import floats, run, with_constants
from tests.pruned import built

MODELS = Path(__file__).parents[3] / "models"
NET = """g (float[n, 3, 8, 8] x, float[16, 3, 3, 3] w1, float[16] b1, float[16, 1, 3, 3] wd, float[16] bd,
    float[16, 16, 1, 1] w2, float[16] b2, float[5, 16] w3, float[5] b3) => (float[n, 5] y) {
    [first] c1 = Conv<pads = [1, 1, 1, 1]>(x, w1, b1) r1 = Relu(c1)
    [depthwise] cd = Conv<group = 16, pads = [1, 1, 1, 1]>(r1, wd, bd) rd = Relu(cd)
    [second] c2 = Conv(rd, w2, b2) r2 = Relu(c2)
    p = GlobalAveragePool(r2) f = Flatten(p) [last] y = Gemm<transB = 1>(f, w3, b3) }"""
SHAPES = {
    "w1": (16, 3, 3, 3),
    "b1": (16,),
    "wd": (16, 1, 3, 3),
    "bd": (16,),
    "w2": (16, 16, 1, 1),
    "b2": (16,),
    "w3": (5, 16),
    "b3": (5,),
}
FEEDS = [{"x": floats(1, 3, 8, 8, seed=100 + i)} for i in range(64)]
MORE = [{"x": floats(1, 3, 8, 8, seed=500 + i)} for i in range(192)]
FRESH = {"x": floats(32, 3, 8, 8, seed=7)}
QUICK = {"distill_steps": 0, "rounds": 1, "multiple": 1}


def net(**changed):
    made = {
        name: floats(*shape, seed=i) / np.float32(np.sqrt(np.prod(shape[1:])))
        for i, (name, shape) in enumerate(SHAPES.items())
    }
    return with_constants(NET, **made | changed)


@functools.cache
def redundant():
    """A net of which every second channel of the first layer, and the third of the second, adds nothing."""
    weights = {
        n: floats(*shape, seed=i) / np.float32(np.sqrt(np.prod(shape[1:])))
        for i, (n, shape) in enumerate(SHAPES.items())
    }
    for name in ("w1", "b1", "wd", "bd"):
        weights[name][1::2] = weights[name][0::2]
    weights["w2"][::3] = weights["b2"][::3] = 0.0
    return with_constants(NET, **weights)


def prune(model, feeds=FEEDS, **options):
    judge = options.pop("judge", None)
    selects = options.pop("selects", lambda _: True)
    copy = model_io.clone(model)
    context = Context(feeds=feeds, judge=judge, selects=selects)
    changes = PruneChannels(**{**QUICK, **options}).run(copy, context)
    return copy, changes


def test_what_it_costs_to_cut_a_model_is_found_out_once(monkeypatch):
    gathered = []
    real = consumers.gather
    monkeypatch.setattr(consumers, "gather", lambda *args, **kw: gathered.append(1) or real(*args, **kw))
    apart = [model_io.to_bytes(prune(net(), keep_macs=keep)[0]) for keep in (0.8, 0.6)]
    assert len(gathered) == 2
    findings = {}

    def pruned(keep, feeds=FEEDS, **options):
        copy = net()
        context = Context(feeds=feeds, findings=findings)
        PruneChannels(**{**QUICK, "keep_macs": keep, **options}).run(copy, context)
        return model_io.to_bytes(copy)

    assert [pruned(0.8), pruned(0.6)] == apart
    assert len(gathered) == 3, "the second is cut by what the first has found out"
    pruned(0.6, FEEDS[1:])
    pruned(0.6, min_keep=0.5)
    assert len(gathered) == 5, "other samples and options have costs of their own"


def test_a_cut_goes_on_from_a_stage_that_was_reached_before(monkeypatch):
    refits = []
    real = pruner.refit
    monkeypatch.setattr(pruner, "refit", lambda *args, **kw: refits.append(1) or real(*args, **kw))
    ways = [(0.8, (0.9,)), (0.6, (0.9, 0.8)), (0.7, (0.9, 0.8)), (0.6, (0.9, 0.8, 0.7))]
    options = QUICK | {"refit": True}

    def pruned(keep, stages, findings=None):
        copy = net()
        changes = PruneChannels(**{**options, "keep_macs": keep, "stages": stages}).run(
            copy, Context(feeds=FEEDS, findings=findings)
        )
        return model_io.to_bytes(copy), changes

    apart = [pruned(*way) for way in ways]
    assert len(refits) == 2 + 3 + 3 + 4
    refits.clear()
    findings = {}
    assert [pruned(*way, findings) for way in ways] == apart
    assert len(refits) == 2 + 1 + 1 + 1
    again = pruned(*ways[-1], findings)
    assert again == apart[-1]
    assert len(refits) == 5, "what was cut is taken as it is"


def test_stages_must_fall_down_to_the_budget():
    with pytest.raises(UsageError, match="stages must fall"):
        PruneChannels(keep_macs=0.8, stages=(0.7,))
    with pytest.raises(UsageError, match="stages must fall"):
        PruneChannels(stages=(0.6, 0.7))
    assert PruneChannels(keep_macs=0.5, stages=(0.8, 0.7)).stages == (0.8, 0.7)


def distance(model, original):
    expected, got = (run(each, FRESH)["y"] for each in (original, model))
    return float(np.square(got - expected).mean() / expected.var(axis=0).mean())


def macs(model):
    return counting.count(model, FRESH).macs


def dims(model, name):
    return list(query.dims(query.constant_tensor(model.graph.initializers[name])))


def test_what_adds_nothing_goes_first_and_the_outputs_stay_what_they_were():
    model, changes = prune(redundant(), keep_macs=0.55)
    assert changes[0].action is Action.APPLIED
    assert dims(model, "wd")[0] == dims(model, "w1")[0] == dims(model, "w2")[1]
    by_weights, _ = prune(redundant(), keep_macs=0.55, criterion="magnitude", refit=False)
    assert distance(model, redundant()) < 0.1 * distance(by_weights, redundant())


@pytest.mark.parametrize("keep", [0.8, 0.5, 0.3])
def test_a_budget_of_macs_is_met(keep):
    model, changes = prune(net(), keep_macs=keep)
    assert keep - 0.06 < macs(model) / macs(net()) <= keep
    assert changes[0].details["kept"] == pytest.approx(macs(model) / macs(net()), abs=1e-3)
    assert "was asked for" not in changes[0].reason


def test_a_budget_of_parameters_is_met():
    model, _ = prune(net(), keep_parameters=0.6)
    assert 0.52 < counting.parameters(model) / counting.parameters(net()) <= 0.6


def test_a_budget_of_bytes_is_met():
    original = oc.load(MODELS / "mbv2.onnx")
    feed = {"x": np.zeros((2, 1, 28, 28), np.float32)}
    found = Pruner(original, (), feed, PruneOptions(criterion="magnitude"), of="bytes").run(0.6)
    assert 0.58 < model_io.model_bytes(found.model) / model_io.model_bytes(original) <= 0.605
    assert found.left == pytest.approx(model_io.model_bytes(found.model) / model_io.model_bytes(original), abs=0.01)


def test_without_a_budget_seven_tenths_of_the_macs_stay():
    model, _ = prune(net())
    assert 0.6 < macs(model) / macs(net()) <= 0.7


class _Judge:
    """Gives scores and times by the number of parameters that are left."""

    prefer = "balanced"

    def __init__(self, *, limit=None, drop=lambda _: 0.0, ratio=lambda _: None, fault=lambda _: None):
        self.limit, self._drop, self._ratio, self._fault = limit, drop, ratio, fault
        self.labels = []

    def __call__(self, model, label):
        self.labels.append(label)
        return replace(self.score(model), latency_ratio=self._ratio(model))

    def score(self, model, *, most=None):  # noqa: ARG002
        return Trial(bytes=1, size_ratio=1, latency_ratio=None, drop=self._drop(model))

    def fault(self, model):
        return self._fault(model)


def share(model):
    return macs(model) / macs(net())


def test_a_budget_of_time_follows_what_the_whole_model_takes(monkeypatch):
    monkeypatch.setattr(budgets, "_rates", lambda *_: {})  # each MAC takes as long: no timing decides the test
    judge = _Judge(ratio=lambda model: 0.3 + 0.7 * share(model))
    model, changes = prune(net(), keep_latency=0.65, judge=judge)
    assert 0.3 + 0.7 * share(model) == pytest.approx(0.65, rel=0.03)
    assert [label.rpartition(" ")[0] for label in judge.labels] == [
        *(f"prune-channels/draft {number}" for number in range(3)),
        "prune-channels/cut",
    ]
    assert len(set(judge.labels)) == len(judge.labels), "each time is recorded by itself"
    assert changes[0].details["asked"] == pytest.approx(0.5, abs=0.028)  # .3 + .7 x .5 is .65, which counts within 3%


def test_a_budget_of_time_is_met_by_what_is_cut_in_rounds_too():
    drafts = 0.9  # what is cut in rounds takes longer than a draft of as many MACs
    judge = _Judge(ratio=lambda model: share(model) * (drafts if "draft" in judge.labels[-1] else 1.0))
    model, _ = prune(net(), keep_latency=0.6, rounds=2, judge=judge)
    assert share(model) == pytest.approx(0.6, abs=0.04)
    assert sum("cut" in label for label in judge.labels) == 1
    unclear = _Judge(ratio=lambda _: None)
    model, changes = prune(net(), keep_latency=0.6, rounds=2, judge=unclear)
    assert changes[0].details["kept"] <= 0.6, "by the table of times, which are measured: the MACs follow them loosely"
    assert macs(model) < macs(net())
    assert len(unclear.labels) == 2, "a draft and what was cut"


def test_a_budget_of_time_without_a_clock_goes_by_the_table():
    model, changes = prune(net(), keep_latency=0.5)
    assert changes[0].details["kept"] <= 0.5
    assert macs(model) < macs(net())


def test_every_node_that_costs_macs_is_timed():
    model = net()
    feed = FEEDS[0]
    found = channel_groups.find_groups(model, FRESH)
    budget = budgets.Budgeting("latency", model, found, feed).of(model, found)
    assert budget.left == pytest.approx(1.0)
    assert budget.saved([0]) > 0


def test_more_is_kept_where_the_score_falls_too_much():
    judge = _Judge(limit=0.01, drop=lambda model: 0.2 * (1 - share(model)) ** 2)
    model, changes = prune(net(), judge=judge)
    assert changes[0].action is Action.APPLIED
    assert 0.75 < share(model) <= 0.85
    assert [c.action for c in changes].count(Action.SKIPPED) == 1
    assert "falls by 0.0" in changes[-1].reason


def test_a_budget_that_was_asked_for_is_met_all_the_same():
    judge = _Judge(limit=0.01, drop=lambda model: 1 - share(model))
    model, changes = prune(net(), keep_macs=0.4, judge=judge)
    assert share(model) <= 0.4
    assert {c.action for c in changes} == {Action.APPLIED}


def test_nothing_is_cut_where_even_a_little_is_too_much():
    judge = _Judge(limit=0.01, drop=lambda model: float(share(model) < 0.999))
    model, changes = prune(net(), judge=judge)
    assert share(model) == 1
    assert {c.action for c in changes} == {Action.SKIPPED}
    assert len(changes) == 3


def test_the_users_own_samples_have_the_last_word():
    judge = _Judge(limit=0.01, fault=lambda model: "top1 falls by 0.5" if share(model) < 0.75 else None)
    model, changes = prune(net(), judge=judge)
    assert 0.75 <= share(model) <= 0.85
    assert "top1 falls by 0.5" in changes[-1].reason


def test_compensation_and_refit_and_training_each_bring_the_outputs_nearer():
    lively = net(w3=60 * floats(5, 16, seed=6))
    options = {"keep_macs": 0.5}
    crude = distance(prune(lively, criterion="magnitude", refit=False, **options)[0], lively)
    cut = distance(prune(lively, refit=False, **options)[0], lively)
    closed = prune(lively, [*FEEDS, *MORE], **options)[0]
    assert distance(closed, lively) < cut < crude
    trained, changes = prune(lively, [*FEEDS, *MORE], **options | {"distill_steps": 200})
    assert "distilled" in changes[0].reason
    assert changes[0].details["loss"] < 0.92 * changes[0].details["loss_refitted"]
    judge = Divergence(lively, [FRESH])
    assert judge.of(trained) < judge.of(closed)


def test_predicted_and_measured_losses_are_told():
    _, changes = prune(net(), keep_macs=0.6)
    details = changes[0].details
    assert 0 < details["predicted_loss"] < 10 * details["loss_when_cut"]
    assert details["loss_refitted"] < details["loss_when_cut"]
    assert details["loss"] == details["loss_refitted"]
    assert f"predicted loss {details['predicted_loss']:.3g}" in changes[0].reason


def test_two_rounds_meet_the_same_budget_in_two_steps():
    model, changes = prune(net(), keep_macs=0.4, rounds=2)
    assert 0.3 < share(model) <= 0.4
    assert {c.target for c in changes[1:]} <= {"first -> second", "second -> last"}
    for change in changes[1:]:
        name = "w1" if change.target.startswith("first") else "w2"
        assert change.details == {"before": 16, "after": dims(model, name)[0]}


def test_floors_and_multiples():
    model, changes = prune(net(), keep_macs=0.2, min_keep=0.5)
    assert "0.200 was asked for" in changes[0].reason
    assert dims(model, "w1")[0] >= 8
    assert dims(model, "w2")[0] >= 8
    for multiple in (2, 4):
        model, _ = prune(net(), keep_macs=0.6, multiple=multiple)
        assert any(dims(model, name)[0] % multiple == 0 and dims(model, name)[0] < 16 for name in ("w1", "w2"))


def test_uniform_takes_the_same_share_everywhere_and_global_does_not():
    weights = {"w2": floats(16, 16, 1, 1, seed=9) * np.where(np.arange(16) < 2, 1, 0.01)[:, None, None, None]}
    model = net(**{name: array.astype(np.float32) for name, array in weights.items()})
    even, _ = prune(model, keep_macs=0.5, scope="uniform")
    assert abs(dims(even, "w1")[0] - dims(even, "w2")[0]) <= 1
    best, _ = prune(model, keep_macs=0.5)
    assert dims(best, "w1")[0] != dims(best, "w2")[0]


def test_norms_tell_many_small_weights_from_one_large_one():
    w1 = np.zeros((16, 3, 3, 3), np.float32)
    w1[:8] = 0.2
    w1[8:, 0, 0, 0] = 2.0
    model = net(w1=w1, b1=np.zeros(16, np.float32), wd=np.ones((16, 1, 3, 3), np.float32))
    kept = {}
    for norm in ("l1", "l2"):
        cut, _ = prune(model, (), keep_macs=0.6, criterion="magnitude", norm=norm, refit=False)
        kept[norm] = query.constant(cut.graph.initializers["w1"])[:, 0, 0, 1]
    assert (kept["l1"] > 0).sum() > (kept["l2"] > 0).sum()


def test_activation_sees_channels_that_give_nothing():
    b1 = np.zeros(16, np.float32)
    b1[:6] = -100.0
    w2 = np.full((16, 16, 1, 1), 0.01, np.float32)
    w2[:, :6] = 5.0
    model = net(b1=b1, bd=np.zeros(16, np.float32), w2=w2)
    cut, _ = prune(model, keep_macs=0.7, criterion="activation", refit=False, scope="uniform")
    assert (query.constant(cut.graph.initializers["b1"]) < -50).sum() <= 2
    big, _ = prune(model, keep_macs=0.7, criterion="magnitude", refit=False, scope="uniform")
    assert (query.constant(big.graph.initializers["b1"]) < -50).sum() >= 3


def test_nodes_that_are_not_selected_keep_their_weights():
    model, _ = prune(net(), keep_macs=0.7, selects=lambda node: query.label(node) != "first")
    assert dims(model, "w1")[0] == 16
    np.testing.assert_array_equal(
        query.constant(model.graph.initializers["w1"]), query.constant(net().graph.initializers["w1"])
    )
    assert dims(model, "w2")[0] < 16


def test_a_branch_that_no_sample_takes_stays():
    branch = "u{0} = MatMul(x, a{0}) r{0} = Relu(u{0}) y{0} = MatMul(r{0}, b{0})"
    inputs = "float[n, 6] x, float[6, 16] a1, float[16, 4] b1, float[6, 16] a2, float[16, 4] b2"
    text = f"""g ({inputs}) => (float[n, 4] y) {{
        big = ReduceMax<keepdims = 0>(x) far = Constant<value = float {{1000.0}}>() huge = Greater(big, far)
        y = If(huge)<then_branch = t () => (float[n, 4] y1) {{ {branch.format(1)} }},
                     else_branch = e () => (float[n, 4] y2) {{ {branch.format(2)} }}> }}"""
    weights = {f"{name}{i}": floats(*shape, seed=i) for i in (1, 2) for name, shape in (("a", (6, 16)), ("b", (16, 4)))}
    model = with_constants(text, **weights)
    feeds = [{"x": floats(1, 6, seed=i)} for i in range(40)]
    copy, changes = prune(model, feeds, keep_parameters=0.9)
    assert (dims(copy, "a1"), dims(copy, "a2")[1] < 16) == ([6, 16], True)
    assert [c.reason for c in changes if c.action is Action.SKIPPED] == ["no sample comes to it"]


def test_a_model_of_which_nothing_can_go_stays_as_it_is():
    model = with_constants("g (float[n, 4] x, float[4, 3] w) => (float[n, 3] y) { y = MatMul(x, w) }", w=floats(4, 3))
    feeds = [{"x": floats(1, 4, seed=i)} for i in range(8)]
    _, changes = prune(model, feeds)
    assert [(c.action, c.target) for c in changes[:1]] == [(Action.SKIPPED, "graph")]
    assert [(c.action, c.target) for c in changes[1:]] == [(Action.SKIPPED, query.label(model.graph[0]))]
    assert "no channel can go" in changes[0].reason


def test_a_weight_that_another_layer_reads_too_is_cut_and_left_uncompensated():
    text = """g (float[n, 6] x, float[6, 12] a, float[12, 12] w, float[12, 4] b) => (float[n, 4] y) {
        h = MatMul(x, a) [one] u = MatMul(h, w) r = Relu(u) [two] v = MatMul(r, w) s = Relu(v)
        [end] y = MatMul(s, b) }"""
    model = with_constants(text, a=floats(6, 12), w=floats(12, 12, seed=1), b=floats(12, 4, seed=2))
    feeds = [{"x": floats(1, 6, seed=i)} for i in range(40)]
    copy, changes = prune(model, feeds, keep_macs=0.7)
    assert changes[0].action is Action.APPLIED
    assert dims(copy, "w")[0] == dims(copy, "w")[1] < 12
    assert run(copy, {"x": floats(3, 6)})["y"].shape == (3, 4)


@pytest.mark.parametrize("bias", ["none", "shared", "in a node", "one number"])
def test_layers_without_a_bias_of_their_own_are_cut_and_make_up(bias):
    conv = {"none": "Conv(r{0}, w{1})", "one number": "Add(u{1}, c)"}.get(bias, "Conv(r{0}, w{1}, b)")
    before = "u{1} = Conv(r{0}, w{1}) " if bias == "one number" else ""
    layer = f"{before}c{{1}} = {conv} m{{1}} = Mul(c{{1}}, s) r{{1}} = Relu(m{{1}})"
    text = f"""g (float[n, 3, 8, 8] r0, float[16, 3, 3, 3] w1, float[16, 16, 3, 3] w2, float[16, 16, 3, 3] w3,
        float[16, 5] w4, float[16] b, float[1] c, float[16, 1, 1] s) => (float[n, 5] y) {{
        {" ".join(layer.format(i, i + 1) for i in range(3))}
        p = GlobalAveragePool(r3) f = Flatten(p) g = MatMul(f, w4) y = Add(g, c) }}"""
    shapes = {"w1": (16, 3, 3, 3), "w2": (16, 16, 3, 3), "w3": (16, 16, 3, 3), "w4": (16, 5), "b": (16,), "c": (1,)}
    weights = {name: floats(*shape, seed=i) / 6 for i, (name, shape) in enumerate(shapes.items())}
    model = with_constants(text, s=np.linspace(0.5, 2, 16, dtype=np.float32)[:, None, None], **weights)
    if bias == "in a node":
        for value in list(model.graph.initializers.values()):
            held = ir.node("Constant", [], {"value": value.const_value})
            held.outputs[0].name = f"{value.name}_in"
            model.graph.insert_before(model.graph[0], held)
            value.replace_all_uses_with(held.outputs[0])
            model.graph.initializers.pop(value.name)
    feeds = [{"r0": feed["x"]} for feed in FEEDS]
    found = {}
    for criterion in ("reconstruction", "magnitude"):
        cut, changes = prune(model, feeds, keep_macs=0.6, refit=False, criterion=criterion)
        found[criterion] = changes[0].details["loss_when_cut"]
        assert run(cut, {"r0": FRESH["x"]})["y"].shape == (32, 5)
        assert changes[0].details["kept"] <= 0.6
    assert found["reconstruction"] < found["magnitude"]


def test_the_gate_is_asked():
    model = net()
    gate = Gate(denied=frozenset({("prune-channels", "graph")}))
    assert PruneChannels(**QUICK).run(model, Context(feeds=FEEDS, gate=gate)) == []
    assert share(model) == 1


def test_without_data_magnitude_decides_and_other_criteria_need_some():
    assert PruneChannels.needs == PruneChannels(criterion="magnitude").needs == frozenset({Need.DATA_IF_GIVEN})
    for criterion in ("reconstruction", "activation"):
        assert PruneChannels(criterion=criterion).needs == frozenset({Need.DATA})
        _, changes = prune(net(), (), criterion=criterion)
        assert "no samples" in changes[0].reason
    model, changes = prune(net(), (), keep_macs=0.5)
    same, _ = prune(net(), (), keep_macs=0.5, criterion="magnitude")
    assert changes[0].action is Action.APPLIED
    assert share(model) <= 0.5
    np.testing.assert_array_equal(run(model, FRESH)["y"], run(same, FRESH)["y"])
    with_data, _ = prune(net(), keep_macs=0.5)
    as_asked, _ = prune(net(), keep_macs=0.5, criterion="reconstruction")
    np.testing.assert_array_equal(run(with_data, FRESH)["y"], run(as_asked, FRESH)["y"])


def test_a_plan_predicts_and_neither_refits_nor_trains():
    model = net()
    changes = PruneChannels(keep_macs=0.5).run(model, Context(feeds=FEEDS, is_plan=True))
    assert changes[0].details["predicted_loss"] > 0
    assert changes[0].details["layers_refitted"] == 0
    assert "distillation" not in changes[0].details
    assert changes[0].details["draft"] == "cut once, neither refitted nor trained"
    assert changes[0].details["draft_samples"] == len(FEEDS)


def test_a_plan_of_a_costly_model_cuts_each_family_once_and_compares_on_one_sample(monkeypatch):
    compared = []
    whole = Divergence.of
    monkeypatch.setattr(
        Divergence, "of", lambda self, model: compared.append(len(list(self._feeds))) or whole(self, model)
    )
    monkeypatch.setattr(drafts, "_MACS", 1)
    model = net()
    families = len(loss_curves.families(channel_groups.find_groups(model_io.clone(model), FEEDS[0]), lambda _: True))
    changes = PruneChannels(keep_macs=0.5).run(model, Context(feeds=FEEDS, is_plan=True))
    assert changes[0].details["draft_samples"] == 1
    assert set(compared) == {1}
    assert families < len(compared) <= families + 2
    assert changes[0].details["predicted_loss"] > 0


def test_the_predicted_loss_is_told_before_the_cut(caplog):
    with caplog.at_level("INFO"):
        prune(net(), keep_macs=0.5)
    assert [record.message.split()[-2] for record in caplog.records] == ["loss", "loss"]
    assert "predicted loss" in caplog.records[0].message
    assert "measured loss" in caplog.records[1].message


def test_several_budgets_are_refused():
    with pytest.raises(UsageError, match="keep_macs and keep_bytes are given"):
        passes.build("prune-channels", {"keep_macs": 0.5, "keep_bytes": 0.5})


def test_samples_beyond_the_most_are_left_out(monkeypatch):
    seen = []
    monkeypatch.setattr(consumers.observe, "observe", lambda _model, feeds, *_, **__: seen.append(len(list(feeds))))
    prune(net(), samples=10, criterion="activation")
    assert seen == [1], "ten samples are one joined feed"


def test_the_allocation_takes_what_is_cheap_for_what_it_saves():
    class Meter:
        def __init__(self):
            self.gone = []

        @property
        def left(self):
            return 1 - sum(0.05 if g < 10 else 0.1 for g in self.gone)

        def saved(self, groups):
            return sum(0.05 if g < 10 else 0.1 for g in groups)

        def allows(self, group):
            return group >= 0

        def remove(self, group):
            self.gone.append(group)

    same = np.linspace(0.1, 0.5, 5)[:, None]
    curves = [Curve((0, 1, 2, 3, 4), same), Curve((10, 11, 12, 13, 14), same)]
    assert loss_curves.allocate(curves, [6, 6], Meter(), 0.5) == [0, 5], "they save twice as much at the same loss"
    steep = Curve((10, 11, 12, 13, 14), np.array([0.1, 0.5, 1.5, 3.0, 9.0])[:, None])
    assert loss_curves.allocate([curves[0], steep], [6, 6], Meter(), 0.7) == [4, 1]
    assert loss_curves.uniform(curves, [6, 6], Meter(), 0.56) == [3, 3]


def test_dips_of_a_curve_are_smoothed():
    curve = Curve((0, 1, 2), np.array([1.0, 1.1, 1.2])[:, None])
    np.testing.assert_allclose(loss_curves._rising(curve.losses[:, 0]), [0.4, 0.4, 0.4])
    np.testing.assert_allclose(loss_curves._rising(np.array([0.1, 0.3, 0.6])), [0.1, 0.2, 0.3])


def test_heads_and_their_dimensions_are_cut_and_the_model_still_says_the_same():
    original = oc.load(MODELS / "vit.onnx")
    folded = oc.compress(original, recipe="fold").model
    pixels = np.load(MODELS / "fmnist_calib.npz")
    images = next(iter(pixels.values()))[:24]
    feeds = [{"x": np.asarray(image, np.float32).reshape(1, 1, 28, 28)} for image in images]
    copy, changes = prune(folded, feeds, keep_macs=0.8, scope="uniform", samples=24)
    assert changes[0].action is Action.APPLIED
    assert changes[0].details["kept"] <= 0.8
    cut = [c for c in changes[1:] if "MatMul" in c.target]
    assert cut
    expected, got = (np.concatenate([run(m, f)["logits"] for f in feeds]) for m in (folded, copy))
    assert (expected.argmax(1) == got.argmax(1)).mean() > 0.75


def test_the_recipe_runs_and_prunes_before_int8(tmp_path):
    model = oc.load(MODELS / "mbv2.onnx")
    images = next(iter(np.load(MODELS / "fmnist_calib.npz").values()))[:16]
    x = np.asarray(images, np.float32).reshape(-1, 1, 28, 28)
    settings = ["prune-channels.keep_macs=0.8", "prune-channels.distill_steps=0", "prune-channels.rounds=1"]
    result = oc.compress(model, recipe="prune", data={"x": x}, settings=settings, max_drop=1.0)
    assert result.report.output.macs <= 0.8 * result.report.input.macs
    again = oc.compress(result.model, recipe="int8", data={"x": x}, max_drop=1.0)
    assert again.report.output.bytes < 0.6 * result.report.output.bytes
    assert json.dumps([c.as_json() for c in result.changes])


def test_large_models_are_trained_on_smaller_batches_and_in_fewer_steps():
    grouped = 16 * 9 * 64
    whole = counting.count(net(), FEEDS[0]).macs + train.GROUPED_COST * grouped
    assert train.affordable(net(), FEEDS[0], 100) == (100, 128)
    assert train.affordable(net(), FEEDS[0], 100, training_macs=100 * 20.5 * whole) == (100, 20)
    assert train.affordable(net(), FEEDS[0], 100, training_macs=50 * 16.0 * whole) == (50, 16)


def test_the_cost_of_cutting_the_original_is_found_once(monkeypatch):
    looked = []
    gather = consumers.gather
    monkeypatch.setattr(
        pruner.consumers, "gather", lambda *args, **options: looked.append(1) or gather(*args, **options)
    )
    options = PruneOptions(rounds=2, distill_steps=0)
    reused = Pruner(net(), FEEDS, FRESH, options, of="macs")
    reused.run(0.7, is_draft=True)
    found = reused.run(0.5)
    assert len(looked) == 2, "of the original, and of what the first round left"
    expected = Pruner(net(), FEEDS, FRESH, options, of="macs").run(0.5)
    np.testing.assert_array_equal(run(found.model, FRESH)["y"], run(expected.model, FRESH)["y"])
    assert found.predicted == expected.predicted


@settings(max_examples=12, deadline=None, derandomize=True)
@given(graphs(), st.sampled_from(["reconstruction", "activation", "magnitude"]), st.sampled_from(["global", "uniform"]))
def test_generated_graphs_are_pruned_and_run(drawn, criterion, scope):
    text, weights = drawn
    model = built(text, "n, 3, 3, 3", weights)
    feeds = [{"x": floats(1, 3, 3, 3, seed=i)} for i in range(12)]
    cut, changes = prune(model, feeds, keep_macs=0.6, criterion=criterion, scope=scope, rounds=2)
    assert np.isfinite(run(cut, feeds[0])["y"]).all()
    left = counting.count(cut, feeds[0]).macs / counting.count(model, feeds[0]).macs
    is_cut = changes[0].action is Action.APPLIED
    assert left == pytest.approx(changes[0].details["kept"] if is_cut else 1, abs=1e-3)


def test_without_inputs_that_the_model_runs_it_says_so():
    text = """
    g (float[1, 5, 5] x, int64[2] size) => (float[1, 1, h, w] y)
    <int64[2] block = {1, 5}> { y = Col2Im(x, size, block) }
    """
    (change,) = PruneChannels().run(with_constants(text, opset=18), Context())
    assert change.action is Action.SKIPPED
    assert "--data" in change.reason
