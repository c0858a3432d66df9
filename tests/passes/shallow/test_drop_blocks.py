"""Blocks go by what their going costs, and later layers make up for it."""

from __future__ import annotations

import fnmatch
from dataclasses import replace

import numpy as np
import onnx_ir as ir
import pytest

from onnxcompress.core import Action, Change, Context, Trial
from onnxcompress.graph import edit
from onnxcompress.passes.shallow.drop_blocks import DropBlocks
from onnxcompress.quality.divergence import Divergence
from tests.helpers import floats, op_types, run, with_constants

WIDTH = 6
FEEDS = [{"x": floats(1, WIDTH, seed=seed)} for seed in range(240)]


def _chain(strengths: list[float], *, activation: str = "Relu", last: bool = True) -> ir.Model:
    """Return residual branches of two products each, added with these strengths, and a last product."""
    random = np.random.default_rng(7)
    arrays, lines, value = {}, [], "x"
    for number, strength in enumerate(strengths):
        arrays[f"u{number}"] = random.standard_normal((WIDTH, 12)).astype(np.float32) / 2
        arrays[f"v{number}"] = (random.standard_normal((12, WIDTH)) * strength).astype(np.float32)
        lines.append(f"a{number} = MatMul({value}, u{number})  b{number} = {activation}(a{number})")
        lines.append(f"c{number} = MatMul(b{number}, v{number})  s{number} = Add({value}, c{number})")
        value = f"s{number}"
    arrays["w"] = random.standard_normal((WIDTH, 5)).astype(np.float32)
    lines.append(f"y = MatMul({value}, w)" if last else f"t = Tanh({value})  y = Mul(t, t)")
    if not last:
        del arrays["w"]
    inputs = ", ".join(f"float[{', '.join(map(str, array.shape))}] {name}" for name, array in arrays.items())
    out = 5 if last else WIDTH
    return with_constants(
        f"g (float[N, {WIDTH}] x, {inputs}) => (float[N, {out}] y) {{ {'  '.join(lines)} }}", **arrays
    )


def _missed(model: ir.Model, original: ir.Model) -> float:
    feed = {"x": floats(200, WIDTH, seed=1000)}
    right, got = (run(each, feed)["y"] for each in (original, model))
    return float(np.square(right - got).mean() / right.var())


def _gone(changes: list[Change]) -> list[str]:
    return [c.target for c in changes if c.action is Action.APPLIED and c.target != "graph"]


def _names(model: ir.Model) -> set[str]:
    return {output.name or "" for node in model.graph for output in node.outputs}


STRENGTHS = [0.3, 0.3, 0.01, 0.3]


def test_the_branch_that_matters_least_goes():
    model, original = _chain(STRENGTHS), _chain(STRENGTHS)
    changes = DropBlocks(distill_steps=0, keep_macs=0.8).run(model, Context(feeds=FEEDS))
    assert "a2" not in _names(model)
    assert {"a0", "a1", "a3", "s2"} <= _names(model)
    assert len(_gone(changes)) == 1
    assert _missed(model, original) < 2e-3
    summary = changes[0]
    assert summary.details["macs_kept"] == pytest.approx(1 - 144 / (4 * 144 + 30))
    assert 0 < summary.details["measured_divergence"] < 0.01
    assert summary.bytes_after < summary.bytes_before


def test_a_plan_removes_the_same_branch_and_fits_nothing():
    model, original = _chain(STRENGTHS), _chain(STRENGTHS)
    changes = DropBlocks(keep_macs=0.8).run(model, Context(feeds=FEEDS, is_plan=True))
    assert _gone(changes) == _gone(
        DropBlocks(distill_steps=0, keep_macs=0.8).run(_chain(STRENGTHS), Context(feeds=FEEDS))
    )
    assert "a2" not in _names(model)
    assert changes[0].details["macs_kept"] == pytest.approx(1 - 144 / (4 * 144 + 30))
    assert "distillation" not in changes[0].details
    weights = original.graph.initializers
    for name in ("u0", "v0", "u3", "v3", "w"):
        assert np.array_equal(model.graph.initializers[name].const_value.numpy(), weights[name].const_value.numpy())


def test_a_plan_keeps_to_the_most_blocks():
    changes = DropBlocks(keep_macs=0.1, most=2).run(_chain(STRENGTHS), Context(feeds=FEEDS, is_plan=True))
    assert len(_gone(changes)) == 2


def test_later_layers_make_up_for_what_is_gone():
    model, original = _chain([0.3, 0.1]), _chain([0.3, 0.1])
    DropBlocks(distill_steps=0, keep_macs=0.6).run(model, Context(feeds=FEEDS))
    plain = _chain([0.3, 0.1])
    cut = next(node for node in plain.graph if node.outputs[0].name == "s1")
    edit.replace_value(cut.outputs[0], cut.inputs[0])  # type: ignore[arg-type]
    assert "a1" not in _names(model)
    assert _missed(model, original) < 0.7 * _missed(plain, original)


def test_as_many_go_as_the_budget_takes_and_no_more():
    model = _chain(STRENGTHS)
    changes = DropBlocks(distill_steps=0, keep_macs=0.55).run(model, Context(feeds=FEEDS))
    assert _gone(changes) in (["Add:s3"], ["Add:s2", "Add:s3"])  # the last two branches, at once or each
    assert {"a0", "a1", "a2", "a3"} & _names(model) == {"a0", "a1"}
    assert changes[0].details["macs_kept"] == pytest.approx(1 - 2 * 144 / (4 * 144 + 30))


def test_no_more_than_the_most_go():
    model = _chain(STRENGTHS)
    assert len(_gone(DropBlocks(distill_steps=0, keep_macs=0.2, most=1).run(model, Context(feeds=FEEDS)))) == 1
    assert not _gone(DropBlocks(distill_steps=0, keep_macs=0.2, most=0).run(model, Context(feeds=FEEDS)))


def test_a_linear_map_stands_in_for_a_branch_that_is_nearly_linear():
    missed = {}
    for by in ("bias", "linear"):
        model = _chain([0.5], activation="Identity", last=False)
        DropBlocks(distill_steps=0, keep_macs=0.6, by=by).run(model, Context(feeds=FEEDS))
        assert "a0" not in _names(model)
        missed[by] = _missed(model, _chain([0.5], activation="Identity", last=False))
    assert missed["linear"] < 1e-4 < 0.1 < missed["bias"]


def test_a_linear_map_of_channels_is_a_convolution():
    def made() -> ir.Model:
        return with_constants(
            """g (float[N, 4, 5, 5] x, float[8, 4, 1, 1] u, float[4, 8, 1, 1] v) => (float[N, 4, 5, 5] y)
               { a = Conv(x, u)  b = Identity(a)  c = Conv(b, v)  s = Add(c, x)  y = Tanh(s) }""",
            u=floats(8, 4, 1, 1, seed=1) / 3,
            v=floats(4, 8, 1, 1, seed=2) / 3,
        )

    model = made()
    DropBlocks(distill_steps=0, keep_macs=0.5, by="linear").run(
        model, Context(feeds=[{"x": floats(1, 4, 5, 5, seed=n)} for n in range(60)])
    )
    assert op_types(model) == ["Add", "Conv", "Tanh"]
    feed = {"x": floats(3, 4, 5, 5, seed=99)}
    np.testing.assert_allclose(run(model, feed)["y"], run(made(), feed)["y"], atol=5e-3)


def test_nodes_that_are_kept_away_stay():
    model = _chain(STRENGTHS)
    context = Context(feeds=FEEDS, selects=lambda node: not fnmatch.fnmatch(node.outputs[0].name or "", "a2"))
    DropBlocks(distill_steps=0, keep_macs=0.8).run(model, context)
    assert "a2" in _names(model)


class _Strict:
    """Allows no drop; says that everything beyond `allowed` gone blocks loses too much."""

    limit = 0.01
    prefer = "balanced"

    def __init__(self, allowed: int) -> None:
        self._allowed = allowed

    def score(self, model: ir.Model, *, most: int | None = None) -> Trial:
        assert most is None
        gone = 4 - sum(name.startswith("a") and name[1:].isdigit() for name in _names(model))
        return Trial(bytes=1, size_ratio=1, latency_ratio=None, drop=0.0 if gone <= self._allowed else 0.5)

    def fault(self, model: ir.Model) -> str | None:
        return None if op_types(model) else "it is empty"


@pytest.mark.parametrize(("allowed", "left"), [(0, 4), (1, 3), (2, 2)])
def test_blocks_come_back_while_the_score_is_below_the_limit(allowed, left):
    model = _chain(STRENGTHS)
    context = replace(Context(feeds=FEEDS), judge=_Strict(allowed))  # type: ignore[arg-type]
    changes = DropBlocks(distill_steps=0, keep_macs=0.55).run(model, context)
    assert sum(name.startswith("a") and name[1:].isdigit() for name in _names(model)) == left
    assert sum("falls by 0.5" in c.reason for c in changes) == 2 - allowed


def test_models_without_branches_are_kept():
    model = with_constants(
        "g (float[N, 6] x, float[6, 6] u) => (float[N, 6] y) { a = MatMul(x, u)  y = Relu(a) }", u=floats(6, 6)
    )
    (change,) = DropBlocks(distill_steps=0).run(model, Context(feeds=FEEDS))
    assert change.action is Action.SKIPPED
    assert change.reason == "there is no residual branch or block to bypass"


def test_recurrent_samples_are_refused():
    (change,) = DropBlocks(distill_steps=0).run(_chain(STRENGTHS), Context(feeds=FEEDS, state={"x": "y"}))
    assert change.action is Action.SKIPPED


def test_training_all_layers_comes_last_where_it_is_wanted():
    feeds = [{"x": floats(1, WIDTH, seed=seed)} for seed in range(200)]
    judge = Divergence(_chain([0.3, 0.3]), [{"x": floats(1, WIDTH, seed=7000 + seed)} for seed in range(200)])
    losses = {}
    for steps in (0, 150):
        model = _chain([0.3, 0.3])
        changes = DropBlocks(keep_macs=0.6, distill_steps=steps).run(model, Context(feeds=feeds))
        assert ("distillation" in changes[0].details) == bool(steps)
        losses[steps] = judge.of(model)
        details = changes[0].details
        assert (details["measured_divergence"] < details["refitted_divergence"]) == bool(steps)
    assert losses[150] < losses[0]
