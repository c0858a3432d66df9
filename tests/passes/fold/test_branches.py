"""An If whose condition is constant becomes its branch; one that depends on an input does not."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir
import pytest

from onnxcompress.base.gate import Gate
from onnxcompress.core import Context, Feed
from onnxcompress.graph import query
from onnxcompress.passes.fold.branches import FoldBranches
from tests.helpers import floats, from_text, op_types, run


def _fold(model: ir.Model, feed: Feed) -> int:
    """Run the pass, check outputs, a second run and a closed gate, and return the number of changes."""
    before, kinds = run(model, feed), op_types(model)
    assert not FoldBranches().run(model, Context(gate=Gate(limit=0)))
    assert op_types(model) == kinds
    changes = FoldBranches().run(model, Context())
    after = run(model, feed)
    assert list(after) == list(before)
    for name, expected in before.items():
        np.testing.assert_array_equal(after[name], expected)
    assert not FoldBranches().run(model, Context())
    return len(changes)


_IF = (
    "then_branch = t () => (float[N] a) <float[1] w = {2}> { m = Mul(x, w) a = Exp(m) }, "
    "else_branch = e () => (float[N] b) { m = Neg(x) b = Relu(m) }"
)


@pytest.mark.parametrize(("taken", "kinds"), [(1, ["Exp", "Mul"]), (0, ["Neg", "Relu"])])
def test_the_branch_that_is_taken_moves_out(taken: int, kinds: list[str]) -> None:
    model = from_text(f"g (float[N] x) => (float[M] y) <bool c = {{{taken}}}> {{ y = If(c) <{_IF}> }}")
    assert _fold(model, {"x": floats(4)}) == 1
    assert op_types(model) == kinds
    assert "c" not in model.graph.initializers


def test_a_condition_that_callers_give_stays() -> None:
    model = from_text(f"g (float[N] x, bool c) => (float[M] y) {{ y = If(c) <{_IF}> }}")
    assert not _fold(model, {"x": floats(4), "c": np.array(True)})


def test_equal_names_in_both_branches_and_outside_do_not_clash() -> None:
    text = f"g (float[N] x) => (float[M] y) <bool c = {{1}}> {{ p = If(c) <{_IF}> q = If(c) <{_IF}> y = Add(p, q) }}"
    model = from_text(text)
    assert _fold(model, {"x": floats(4)}) == 2
    assert op_types(model) == ["Add", "Exp", "Exp", "Mul", "Mul"]
    names = [output.name for node in model.graph for output in node.outputs]
    assert len(set(names)) == len(names)
    assert len(model.graph.initializers) == 2


def test_an_initializer_or_input_as_result_gets_a_node_where_it_is_an_output() -> None:
    model = from_text(
        "g (float[2] x) => (float[2] y, float[2] z) <bool c = {1}> { y, z = If(c) <"
        "then_branch = t () => (float[2] k, float[2] a) <float[2] k = {1, 2}> { a = Identity(x) }, "
        "else_branch = e () => (float[2] b, float[2] d) { b = Neg(x) d = Exp(x) }> }"
    )
    assert _fold(model, {"x": floats(2)}) == 1
    assert op_types(model) == ["Identity", "Identity"]


def test_bodies_in_bodies() -> None:
    model = from_text(
        "g (float[N] x, bool d) => (float[M] y) <bool c = {1}> { y = If(d) <"
        f"then_branch = o () => (float[M] p) {{ p = If(c) <{_IF}> }}, "
        "else_branch = u () => (float[M] q) { q = Abs(x) }> }"
    )
    assert _fold(model, {"x": floats(4), "d": np.array(True)}) == 1
    assert op_types(model) == ["Abs", "Exp", "If", "Mul"]


def test_what_only_the_dropped_branch_read_goes() -> None:
    model = from_text(
        "g (float[N] x) => (float[M] y) <bool c = {0}, float[1] w = {3}> { k = Mul(x, w) y = If(c) <"
        "then_branch = t () => (float[N] a) { a = Exp(k) }, else_branch = e () => (float[N] b) { b = Neg(x) }> }"
    )
    assert _fold(model, {"x": floats(4)}) == 1
    assert op_types(model) == ["Neg"]
    assert not model.graph.initializers


_LOOP = "<body = b (int64 i, bool e, float[N] v) => (bool f, float[N] w) { f = Identity(e) w = Exp(v) }>"


@pytest.mark.parametrize(("rounds", "count"), [(0, 1), (2, 0)])
def test_a_loop_without_a_round(rounds: int, count: int) -> None:
    weights = f"<int64 n = {{{rounds}}}, bool c = {{1}}>"
    model = from_text(f"g (float[N] x) => (float[M] y) {weights} {{ l = Loop(n, c, x) {_LOOP} y = Neg(l) }}")
    assert _fold(model, {"x": floats(4)}) == count
    assert ("Loop" in op_types(model)) is (count == 0)


def test_a_loop_whose_collected_outputs_are_read_stays() -> None:
    model = from_text(
        "g (float[2] x) => (float[2] y, float[K, L] z) <int64 n = {0}, bool c = {1}> { y, z = Loop(n, c, x) "
        "<body = b (int64 i, bool e, float[2] v) => (bool f, float[2] w, float[2] o) "
        "{ f = Identity(e) w = Exp(v) o = Neg(v) }> }"
    )
    assert not _fold(model, {"x": floats(2)})


@pytest.mark.parametrize(("mask", "kind"), [("1, 1", "Exp"), ("0, 0", "Neg")])
def test_a_where_that_takes_one_side(mask: str, kind: str) -> None:
    body = "a = Exp(x) b = Neg(x) w = Where(c, a, b) y = Relu(w)"
    model = from_text(f"g (float[N, 2] x) => (float[N, 2] y) <bool[2] c = {{{mask}}}> {{ {body} }}")
    assert _fold(model, {"x": floats(3, 2)}) == 1
    assert op_types(model) == sorted([kind, "Relu"])


@pytest.mark.parametrize(
    ("mask", "output"),
    [("bool[2] c = {1, 0}", "float[N, 2] y"), ("bool[3, 1, 1] c = {1, 1, 1}", "float[3, N, 2] y")],
    ids=["both sides", "the mask stretches"],
)
def test_a_where_that_must_stay(mask: str, output: str) -> None:
    model = from_text(f"g (float[N, 2] x) => ({output}) <{mask}> {{ a = Exp(x) w = Where(c, a, x) y = Relu(w) }}")
    assert not _fold(model, {"x": floats(3, 2)})


def test_readers_of_a_shared_condition_keep_it() -> None:
    model = from_text(f"g (float[N] x) => (float[M] y, bool z) <bool c = {{1}}> {{ y = If(c) <{_IF}> z = Not(c) }}")
    assert _fold(model, {"x": floats(4)}) == 1
    assert query.constant(model.graph.initializers["c"]) is not None
