"""Layers as thin ones: the forms give what they should, budgets are met, and nothing that is not worth it stays."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import onnx_ir as ir
import pytest

from onnxcompress.base.gate import Gate
from onnxcompress.core import Action, Context, Trial
from onnxcompress.errors import UsageError
from onnxcompress.graph import query
from onnxcompress.io import model_io
from onnxcompress.passes.shallow import factorizations
from onnxcompress.passes.shallow.low_rank import LowRank
from onnxcompress.quality.divergence import Divergence
from onnxcompress.search import drafts
from tests.helpers import floats, op_types, run, with_constants


def _low(outputs: int, columns: int, rank: int, seed: int) -> np.ndarray:
    random = np.random.default_rng(seed)
    rough = random.standard_normal((outputs, columns)) * 0.02
    found = random.standard_normal((outputs, rank)) @ random.standard_normal((rank, columns)) / np.sqrt(rank) + rough
    return (found / np.sqrt(columns)).astype(np.float32)


DENSE = """g (float[N, 48] x, float[48, 64] u, float[64] p, float[40, 64] v, float[40] q, float[40, 5] w)
    => (float[N, 5] y) {
    a = MatMul(x, u)  b = Add(a, p)  c = Relu(b)  d = Gemm<transB = 1, alpha = 2.0>(c, v, q)  e = Relu(d)
    y = MatMul(e, w) }"""
FEEDS = [{"x": floats(1, 48, seed=seed)} for seed in range(160)]
UNSEEN = [{"x": floats(1, 48, seed=9000 + seed)} for seed in range(60)]


def _dense() -> ir.Model:
    return with_constants(
        DENSE, u=_low(48, 64, 6, 1), p=floats(64, seed=2), v=_low(40, 64, 5, 3), q=floats(40, seed=4), w=floats(40, 5)
    )


CONV = """g (float[N, 16, 8, 8] x, float[24, 16, 3, 3] u, float[24] p, float[24, 5] w) => (float[N, 5] y) {
    a = Conv<pads = [1, 1, 1, 1], strides = [2, 1]>(x, u, p)  b = Relu(a)  c = GlobalAveragePool(b)  d = Flatten(c)
    y = MatMul(d, w) }"""


def _conv(weight: np.ndarray, text: str = CONV) -> ir.Model:
    return with_constants(text, u=weight.astype(np.float32), p=floats(24, seed=2), w=floats(24, 5, seed=3))


IMAGES = [{"x": floats(1, 16, 8, 8, seed=seed)} for seed in range(70)]


def test_products_of_low_rank_become_two_and_hardly_anything_changes():
    model, original = _dense(), _dense()
    changes = LowRank(keep_parameters=0.6, multiple=1, distill_steps=0).run(model, Context(feeds=FEEDS))
    assert op_types(model).count("MatMul") == 4
    assert [change.action for change in changes] == [Action.APPLIED] * 3
    assert Divergence(original, UNSEEN).of(model) < 0.01
    assert changes[0].bytes_after < changes[0].bytes_before
    assert {"predicted_loss", "loss_when_cut", "loss_refitted", "loss"} <= set(changes[0].details)
    numbers = sum(change.details["numbers"] for change in changes[1:])
    assert numbers <= 0.6 * (48 * 64 + 64 * 40 + 40 * 5)
    assert set(run(model, FEEDS[0])) == {"y"}


def test_a_plan_takes_the_same_ranks_without_a_refit():
    options = {"keep_parameters": 0.6, "multiple": 1}
    planned = LowRank(**options).run(_dense(), Context(feeds=FEEDS, is_plan=True))
    fitted = LowRank(**options, distill_steps=0).run(_dense(), Context(feeds=FEEDS))
    assert [c.details.get("ranks") for c in planned] == [c.details.get("ranks") for c in fitted]
    assert planned[0].bytes_after == fitted[0].bytes_after
    assert planned[0].details["loss"] == planned[0].details["loss_when_cut"]
    assert "distillation" not in planned[0].details
    assert {(c.details["draft"], c.details["draft_samples"]) for c in planned} == {
        ("neither refitted nor trained", len(FEEDS))
    }


def test_a_plan_of_a_costly_model_compares_outputs_on_few_samples(monkeypatch):
    seen = []
    start = Divergence.__init__
    monkeypatch.setattr(
        Divergence, "__init__", lambda self, model, feeds: seen.append(len(feeds)) or start(self, model, feeds)
    )
    monkeypatch.setattr(drafts, "_MACS", 2 * 3 * (48 * 64 + 64 * 40 + 40 * 5))
    planned = LowRank(keep_parameters=0.6, multiple=1).run(_dense(), Context(feeds=FEEDS, is_plan=True))
    assert seen == [planned[0].details["draft_samples"]]
    assert 1 <= seen[0] <= 3
    assert planned[0].details["predicted_loss"] > 0


def test_inputs_that_are_never_near_zero_lose_nothing_by_their_mean():
    feeds = [{"x": floats(1, 48, seed=seed) + np.float32(20)} for seed in range(160)]
    model, original = _dense(), _dense()
    (summary, *_) = LowRank(keep_parameters=0.6, multiple=1, distill_steps=0, refit=False).run(
        model, Context(feeds=feeds)
    )
    assert summary.details["loss"] == summary.details["loss_when_cut"] < 0.05
    assert summary.details["loss"] < 3 * summary.details["predicted_loss"] + 1e-3
    assert Divergence(original, feeds).of(model) < 0.05


@pytest.mark.parametrize("share", [0.3, 0.7])
def test_the_budget_is_met_in_parameters_and_macs(share):
    for name in ("keep_parameters", "keep_macs"):
        model = _dense()
        before = sum(query.constant(value).size for value in model.graph.initializers.values() if value.name in "uv")
        changes = LowRank(**{name: share}, multiple=1, distill_steps=0, refit=False).run(model, Context(feeds=FEEDS))
        assert changes[0].action is Action.APPLIED
        weights = [query.constant(v) for v in model.graph.initializers.values()]
        assert sum(array.size for array in weights if array.ndim > 1 and array.shape != (40, 5)) <= share * before


def _pattern(form: str) -> np.ndarray:
    """Return a convolution's weight that the form can write with few channels."""
    random = np.random.default_rng(5)
    if form == "rows":
        return _low(24, 144, 3, 5).reshape(24, 16, 3, 3)
    if form == "spatial":
        return np.einsum("rik,orl->oikl", random.standard_normal((8, 16, 3)), random.standard_normal((24, 8, 3))) / 20
    ends = random.standard_normal((16, 4)), random.standard_normal((24, 4))
    return np.einsum("is,or,rskl->oikl", *ends, random.standard_normal((4, 4, 3, 3))) / 50


@pytest.mark.parametrize(
    ("form", "kernels"),
    [
        ("rows", [(3, 3), (1, 1)]),
        ("spatial", [(3, 1), (1, 3)]),
        ("tucker", [(1, 1), (3, 3), (1, 1)]),
    ],
)
def test_convolutions_take_the_form_that_suits_them(form, kernels):
    weight = _pattern(form)
    losses = {}
    for conv in (form, "best"):
        model, original = _conv(weight), _conv(weight)
        changes = LowRank(keep_parameters=0.5, multiple=1, distill_steps=0, conv=conv).run(
            model, Context(feeds=IMAGES, selects=lambda node: node.op_type == "Conv")
        )
        assert changes[0].action is Action.APPLIED
        assert changes[1].details["form"] == form
        found = [tuple(v.shape[2:]) for n in model.graph if n.op_type == "Conv" and (v := n.inputs[1])]
        assert found == kernels
        losses[conv] = Divergence(original, [{"x": floats(1, 16, 8, 8, seed=800 + n)} for n in range(30)]).of(model)
    assert max(losses.values()) < 1e-3


def test_convolutions_with_automatic_padding_keep_their_size():
    text = CONV.replace("pads = [1, 1, 1, 1]", 'auto_pad = "SAME_UPPER"')
    weight = _pattern("spatial")
    model, original = _conv(weight, text), _conv(weight, text)
    LowRank(keep_parameters=0.5, multiple=1, distill_steps=0, conv="spatial").run(
        model, Context(feeds=IMAGES, selects=lambda node: node.op_type == "Conv")
    )
    assert op_types(model).count("Conv") == 2
    np.testing.assert_allclose(run(model, IMAGES[0])["y"], run(original, IMAGES[0])["y"], atol=0.05)


def test_convolutions_may_be_left_as_they_are():
    model = _conv(_pattern("rows"))
    LowRank(keep_parameters=0.5, multiple=1, distill_steps=0, conv="none").run(model, Context(feeds=IMAGES))
    assert op_types(model).count("Conv") == 1


def test_a_product_with_the_weight_on_the_left():
    text = """g (float[48, 4] x, float[40, 48] u, float[40, 1] p) => (float[40, 4] y) {
        a = MatMul(u, x)  b = Add(a, p)  y = Tanh(b) }"""
    model = with_constants(text, u=_low(40, 48, 4, 1), p=floats(40, 1, seed=2))
    original = model_io.clone(model)
    feeds = [{"x": floats(48, 4, seed=seed)} for seed in range(80)]
    LowRank(keep_parameters=0.5, multiple=1, distill_steps=0).run(model, Context(feeds=feeds))
    assert op_types(model).count("MatMul") == 2
    np.testing.assert_allclose(run(model, feeds[0])["y"], run(original, feeds[0])["y"], atol=0.05)


@pytest.mark.parametrize("kind", ["MatMul", "Conv"])
def test_layers_that_give_more_than_they_read_are_decomposed_by_what_they_read(kind, monkeypatch):
    monkeypatch.setattr(factorizations, "MOST_COLUMNS", 60)
    weight = _low(200, 40, 5, 1)
    if kind == "MatMul":
        text = "g (float[N, 40] x, float[40, 200] u) => (float[N, 200] y) { a = MatMul(x, u)  y = Tanh(a) }"
        model, shape = with_constants(text, u=weight.T), (1, 40)
    else:
        text = """g (float[N, 40, 3, 3] x, float[200, 40, 1, 1] u) => (float[N, 200, 3, 3] y) {
            a = Conv(x, u)  y = Tanh(a) }"""
        model, shape = with_constants(text, u=weight.reshape(200, 40, 1, 1)), (1, 40, 3, 3)
    original = model_io.clone(model)
    feeds = [{"x": floats(*shape, seed=seed)} for seed in range(100)]
    LowRank(keep_parameters=0.3, multiple=1, distill_steps=0).run(model, Context(feeds=feeds))
    assert [each for each in op_types(model) if each != "Add"] == [kind, kind, "Tanh"]
    unseen = [{"x": floats(*shape, seed=seed)} for seed in range(500, 520)]
    assert Divergence(original, unseen).of(model) < 0.01


def test_without_a_budget_as_much_goes_as_costs_little():
    kept = {}
    for divergence in (1e-9, 1e-2):
        model = _dense()
        LowRank(divergence=divergence, multiple=1, distill_steps=0).run(model, Context(feeds=FEEDS))
        kept[divergence] = model_io.model_bytes(model)
    assert kept[1e-2] < kept[1e-9] == model_io.model_bytes(_dense())


def test_refit_and_training_make_up_for_what_is_lost():
    losses = {}
    for name, options in {
        "cut": {"refit": False, "distill_steps": 0},
        "refitted": {"distill_steps": 0},
        "trained": {"refit": False, "distill_steps": 150},
    }.items():
        model, original = _dense(), _dense()
        changes = LowRank(keep_parameters=0.15, multiple=1, **options).run(model, Context(feeds=FEEDS))
        losses[name] = Divergence(original, UNSEEN).of(model)
        assert ("distillation" in changes[0].details) == (name == "trained")
    assert losses["refitted"] < losses["cut"]
    assert losses["trained"] < losses["cut"]


def test_ranks_are_multiples():
    model = _dense()
    changes = LowRank(keep_parameters=0.6, distill_steps=0).run(model, Context(feeds=FEEDS))
    assert all(rank % 8 == 0 for change in changes[1:] for rank in change.details["ranks"])


class _Judge:
    prefer = "balanced"

    def __init__(self, *, ratios: list[float], limit: float | None = None, drop: float = 0.0) -> None:
        self.limit = limit
        self._ratios = ratios
        self._drop = drop
        self.labels: list[str] = []

    def score(self, model: ir.Model, *, most: int | None = None) -> Trial:
        assert most is None
        size = model_io.model_bytes(model)
        return Trial(bytes=size, size_ratio=1, latency_ratio=None, drop=self._drop)

    def fault(self, model: ir.Model) -> str | None:
        return "it is empty" if not len(model.graph) else None

    def __call__(self, model: ir.Model, label: str) -> Trial:
        self.labels.append(label)
        ratio = self._ratios[min(len(self.labels), len(self._ratios)) - 1]
        return replace(self.score(model), latency_ratio=ratio)


@pytest.mark.parametrize(
    ("judge", "accept", "words"),
    [
        (_Judge(ratios=[1.0, 1.1]), "faster", "1.10 of the time, not faster"),
        (_Judge(ratios=[1.0, 1.1]), "smaller", None),
        (_Judge(ratios=[0.8, 0.7]), "faster", None),
        (_Judge(ratios=[1.0, 0.5], limit=0.01, drop=0.2), "faster", "the score falls by 0.2"),
    ],
)
def test_what_is_not_faster_or_loses_too_much_is_not_taken(judge, accept, words):
    model = _dense()
    context = replace(Context(feeds=FEEDS), judge=judge)
    changes = LowRank(keep_parameters=0.6, multiple=1, distill_steps=0, accept=accept).run(model, context)
    assert (changes[0].action is Action.SKIPPED) == (words is not None)
    assert words is None or words in changes[0].reason
    assert (op_types(model) == op_types(_dense())) == (words is not None)
    assert judge.labels[0] == "low-rank/before"


def test_what_is_left_alone():
    (change,) = LowRank().run(_dense(), Context(feeds=FEEDS, state={"x": "y"}))
    assert "carry a state" in change.reason
    (change,) = LowRank().run(_dense(), Context(feeds=FEEDS, selects=lambda _: False))
    assert "no layer is large enough" in change.reason
    (change,) = LowRank(keep_parameters=1e-6).run(_dense(), Context(feeds=FEEDS))
    assert "over the budget" in change.reason
    assert not LowRank(keep_parameters=0.5).run(_dense(), Context(feeds=FEEDS, gate=Gate(limit=0)))
    with pytest.raises(UsageError, match="Give one of them"):
        LowRank(keep_parameters=0.5, keep_macs=0.5)
