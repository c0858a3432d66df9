"""The driver of rewrites: sweeps until nothing applies, asks the gate, keeps refusals, skips local functions."""

from __future__ import annotations

import numpy as np
import onnx
import onnx_ir as ir
import pytest

from onnxcompress.base.gate import Gate
from onnxcompress.core import Action, Change, Context
from onnxcompress.graph import edit, query
from onnxcompress.io import model_io
from onnxcompress.passes.rewriting import Refusal, Rewrite, RewriteContext, Rule, rewrite
from tests.helpers import floats, from_text, op_types, run, with_constants

CHAIN = "g (float[N] x) => (float[N] y) { a = Neg(x)  b = Neg(a)  c = Neg(b)  y = Neg(c) }"


def _cancel(node: ir.Node, _: RewriteContext) -> Rewrite | None:
    """Remove two negations in a row."""
    before = None if node.inputs[0] is None else node.inputs[0].producer()
    if before is None or before.op_type != "Neg" or before.inputs[0] is None or node.outputs[0].is_graph_output():
        return None
    x = before.inputs[0]
    return Rewrite(
        target=query.label(node),
        reason="cancels",
        apply=lambda: edit.replace_node(node, [x]),
        bytes_before=2,
        bytes_after=1,
    )


def _refuse(node: ir.Node, _: RewriteContext) -> Refusal:
    return Refusal(target=query.label(node), reason="not now")


def _rewritten(model: ir.Model, *rules: Rule, gate: Gate | None = None, kind: str = "Neg") -> list[Change]:
    return rewrite(model, Context(gate=gate or Gate()), "test", {kind: rules})


def test_applied_rewrites_carry_the_facts_of_their_rule():
    model = from_text(CHAIN)
    (change,) = _rewritten(model, _cancel)
    expected = Change.applied("test", "cancels", target="Neg:b", bytes_before=2, bytes_after=1)
    assert change == expected
    np.testing.assert_array_equal(run(model, {"x": np.float32([1, -2])})["y"], [1, -2])


def test_a_closed_gate_leaves_every_byte():
    model = from_text(CHAIN)
    before = model_io.to_bytes(model)
    assert _rewritten(model, _cancel, gate=Gate(limit=0)) == []
    assert model_io.to_bytes(model) == before


def test_refusals_are_those_of_the_last_sweep_once_each():
    model = from_text(CHAIN)
    changes = _rewritten(model, _cancel, _refuse, kind="*")
    assert [c.target for c in changes if c.action is Action.APPLIED] == ["Neg:b"]
    refused = [c for c in changes if c.action is Action.SKIPPED]
    assert {c.target for c in refused} == {query.label(node) for node in model.graph}
    assert len(refused) == len(list(model.graph))
    assert {c.reason for c in refused} == {"not now"}


def test_rules_of_later_sweeps_see_new_nodes_and_shapes():
    model = from_text("g (float[2, 3] x) => (float[2, 3] y) { a = Neg(x)  y = Relu(a) }")
    ranks: list[int | None] = []

    def absolute(node: ir.Node, ctx: RewriteContext) -> Rewrite:
        def apply() -> None:
            edit.take_over(node.outputs[0], edit.insert_before(node, ctx.names, "Abs", [node.inputs[0]]).outputs[0])

        return Rewrite(target=query.label(node), reason="replaced", apply=apply)

    def watch(node: ir.Node, ctx: RewriteContext) -> None:
        ranks.append(ctx.shapes.rank(node.outputs[0]))

    rewrite(model, Context(), "test", {"Neg": [absolute], "Abs": [watch]})
    assert op_types(model) == ["Abs", "Relu"]
    assert ranks[-1] == 2


def test_a_removed_node_is_not_asked_again():
    model = from_text(CHAIN)
    asked: list[str] = []

    def count(node: ir.Node, _: RewriteContext) -> None:
        asked.append(node.outputs[0].name or "")

    _rewritten(model, _cancel, count)
    assert asked.count("b") == 0
    assert {"a", "c", "y"} <= set(asked)


def test_rules_that_undo_each_other_end():
    model = from_text("g (float[N] x) => (float[N] y) { a = Neg(x)  y = Relu(a) }")

    def turn(other: str) -> Rule:
        return lambda node, _: Rewrite(
            target=query.label(node), reason=other, apply=lambda: edit.turn_into(node, other, [node.inputs[0]])
        )

    changes = rewrite(model, Context(), "test", {"Neg": [turn("Abs")], "Abs": [turn("Neg")]})
    assert {c.reason for c in changes} == {"Abs", "Neg"}


@pytest.mark.parametrize("inner", [False, True])
def test_bodies_are_rewritten_and_local_functions_are_not(inner):
    text = """g (bool c, float[N] x) => (float[N] y) {
        y = If (c) <then_branch = t () => (float[N] p) { a = Neg(x)  b = Neg(a)  p = Relu(b) },
                    else_branch = e () => (float[N] q) { q = Abs(x) }> }"""
    if inner:
        assert len(_rewritten(from_text(text), _cancel)) == 1
        return
    source = """<ir_version: 8, opset_import: ["": 17, "own": 1]>
        g (float[N] x) => (float[N] y) { y = own.twice(x) }
        <domain: "own", opset_import: ["": 17]>
        twice (x) => (y) { a = Neg(x)  b = Neg(a)  y = Relu(b) }"""
    model = model_io.load(onnx.parser.parse_model(source))
    assert _rewritten(model, _cancel) == []


def test_constants_are_stored_beside_the_node_under_a_fresh_name():
    model = with_constants("g (float[N] x, float[1] w) => (float[N] y) { y = Add(x, w) }", w=floats(1))
    node = next(iter(model.graph))
    value = RewriteContext(model, Context()).add_constant(node, "w", np.float32([2]))
    assert value.graph is model.graph
    assert value.name not in ("w", None)
    np.testing.assert_array_equal(query.constant(value), [2])
