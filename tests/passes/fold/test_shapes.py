"""Shape arithmetic becomes constants where it follows from the inputs, and stays where it does not."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir
import pytest

from onnxcompress.base.gate import Gate
from onnxcompress.core import Action, Change, Context, Feed
from onnxcompress.graph import query
from onnxcompress.passes.fold.shapes import FoldShapes
from tests.helpers import floats, from_text, op_types, run

_WEIGHTS = (
    "int64 i0 = {0}, int64 i1 = {1}, int64[1] zero = {0}, int64[1] one = {1}, int64[1] two = {2}, "
    "int64[1] three = {3}, int64[1] four = {4}, int64[1] minus = {-1}, int64[1] six = {6}"
)


def _model(
    body: str, inputs: str = "float[B, S, 12] x", outputs: str = "float[P, Q, R] y", opset: int = 17
) -> ir.Model:
    return from_text(f"g ({inputs}) => ({outputs}) <{_WEIGHTS}> {{ {body} }}")


def _fold(model: ir.Model, *feeds: Feed) -> list[Change]:
    """Run the pass, and check what holds for every use: exact outputs, a second run, a closed gate."""
    feeds = feeds or ({"x": floats(2, 5, 12)}, {"x": floats(1, 3, 12)})
    before = [run(model, feed) for feed in feeds]
    kinds = op_types(model)
    assert not FoldShapes().run(model, Context(gate=Gate(limit=0)))
    assert op_types(model) == kinds
    changes = FoldShapes().run(model, Context())
    for feed, expected in zip(feeds, before, strict=True):
        found = run(model, feed)
        for name, array in expected.items():
            np.testing.assert_array_equal(found[name], array)
            assert found[name].dtype == array.dtype
    assert not FoldShapes().run(model, Context())
    assert all(change.action is Action.APPLIED for change in changes)
    return changes


def _target(model: ir.Model, op_type: str = "Reshape") -> list[int] | None:
    node = next(n for n in query.nodes(model) if n.op_type == op_type)
    array = query.constant(node.inputs[1])
    return None if array is None else array.tolist()


_S = "s = Shape(x) q = Gather(s, i1) uq = Unsqueeze(q, zero) "
_B_S = "s = Shape(x) b = Gather(s, i0) q = Gather(s, i1) ub = Unsqueeze(b, zero) uq = Unsqueeze(q, zero) "


def test_the_chain_that_exporters_write_for_a_view() -> None:
    model = _model(_B_S + "t = Concat<axis=0>(ub, uq, three, four) y = Reshape(x, t)", outputs="float[B, S, 3, 4] y")
    _fold(model)
    assert op_types(model) == ["Reshape"]
    assert _target(model) == [0, 0, 3, 4]


def test_one_dimension_that_is_not_in_place_is_what_is_left() -> None:
    model = _model(_B_S + "n = Mul(ub, uq) t = Concat<axis=0>(n, three, four) y = Reshape(x, t)")
    _fold(model)
    assert _target(model) == [-1, 3, 4]


def test_two_dimensions_that_are_not_in_place_stay() -> None:
    model = _model(_B_S + "t = Concat<axis=0>(uq, ub, three, four) y = Reshape(x, t)", outputs="float[S, B, 3, 4] y")
    kinds = op_types(model)
    assert not _fold(model)
    assert op_types(model) == kinds


def test_a_dimension_of_another_input_is_not_taken_for_the_own() -> None:
    body = "s = Shape(z) b = Gather(s, i0) ub = Unsqueeze(b, zero) t = Concat<axis=0>(ub, minus) y = Reshape(x, t)"
    model = _model(body, "float[B, 4] x, float[C, 1] z", "float[P, Q] y")
    assert not _fold(model, {"x": floats(4, 4), "z": floats(2, 1)})
    assert _target(model) is None


def test_unnamed_dimensions_are_different_ones() -> None:
    body = "s = Shape(z) b = Gather(s, i0) ub = Unsqueeze(b, zero) t = Concat<axis=0>(ub, minus) y = Reshape(x, t)"
    model = _model(body, "float[B, 4] x, float[B, 1] z", "float[P, Q] y")
    for value in model.graph.inputs:
        value.shape = ir.Shape([None, value.shape[1]])
    assert not _fold(model, {"x": floats(4, 4), "z": floats(2, 1)})


def test_allowzero_goes_when_the_target_says_copy() -> None:
    model = _model(
        _B_S + "t = Concat<axis=0>(ub, uq, three, four) y = Reshape<allowzero=1>(x, t)", outputs="float[B,S,3,4] y"
    )
    _fold(model)
    assert "allowzero" not in next(iter(model.graph)).attributes
    assert _target(model) == [0, 0, 3, 4]


def test_a_reshape_to_the_own_shape_goes() -> None:
    model = _model("s = Shape(x) r = Reshape(x, s) y = Relu(r)")
    _fold(model)
    assert op_types(model) == ["Relu"]


def test_a_reshape_that_makes_an_output_from_an_input_stays() -> None:
    model = _model("s = Shape(x) y = Reshape(x, s)")
    _fold(model)
    assert op_types(model) == ["Reshape"]
    assert _target(model) == [0, 0, 12]


def test_static_dimensions_are_constants() -> None:
    model = _model("s = Shape<start=2>(x) y = Identity(s)", outputs="int64[1] y")
    _fold(model)
    assert not len(model.graph)
    assert model.graph.outputs[0].is_initializer()
    np.testing.assert_array_equal(query.constant(model.graph.outputs[0]), [12])


def test_shape_with_a_range_that_is_dynamic_stays() -> None:
    model = _model("y = Shape<start=1, end=2>(x)", outputs="int64[1] y")
    assert not _fold(model)


def test_the_where_of_expand() -> None:
    body = (
        "s = Shape(x) b = Gather(s, i0) ub = Unsqueeze(b, zero) t = Concat<axis=0>(ub, minus, one) n = Shape(t) "
        "o = ConstantOfShape<value = int64[1] {1}>(n) m = Mul(o, minus) e = Equal(t, m) w = Where(e, o, t) "
        "y = Expand(x, w)"
    )
    model = _model(body)
    _fold(model)
    assert op_types(model) == ["Expand"]
    assert _target(model, "Expand") == [1, 1, 1]


def test_an_expand_to_the_own_shape_goes() -> None:
    model = _model("s = Shape(x) r = Exp(x) e = Expand(r, s) y = Relu(e)")
    _fold(model)
    assert op_types(model) == ["Exp", "Relu"]


def test_an_expand_that_stretches_keeps_stretching() -> None:
    body = "s = Shape(x) b = Gather(s, i0) ub = Unsqueeze(b, zero) t = Concat<axis=0>(ub, four, six) y = Expand(x, t)"
    model = _model(body, "float[B, 1, 6] x")
    _fold(model, {"x": floats(2, 1, 6)}, {"x": floats(5, 1, 6)})
    assert _target(model, "Expand") == [1, 4, 6]


def test_a_slice_up_to_the_own_length_goes() -> None:
    body = _S + "r = Exp(x) c = Slice(r, zero, uq, one) y = Relu(c)"
    model = _model(body)
    _fold(model)
    assert op_types(model) == ["Exp", "Relu"]


def test_a_slice_that_begins_later_gets_an_open_end() -> None:
    model = _model(_S + "y = Slice(x, one, uq, one)")
    _fold(model)
    assert op_types(model) == ["Slice"]
    assert query.constant(next(iter(model.graph)).inputs[2]).tolist() == [2**63 - 1]


def test_a_slice_along_another_length_stays() -> None:
    model = _model(_B_S + "c = Slice(x, zero, ub, one) y = Relu(c)")
    assert not _fold(model)
    assert "Slice" in op_types(model)


def test_equal_expressions_are_computed_once() -> None:
    body = (
        "a = Exp(x) s = Shape(x) b = Gather(s, i0) r = Shape(a) c = Gather(r, i0) "
        "p = Mul(b, c) q = Mul(c, b) f = Cast<to=1>(p) h = Cast<to=1>(q) y = Sub(f, h)"
    )
    model = _model(body, outputs="float y")
    _fold(model)
    assert op_types(model).count("Gather") == 1
    assert op_types(model).count("Mul") == 1


def test_a_product_that_only_looks_alike_is_not_shared() -> None:
    body = (
        "s = Shape(x) b = Gather(s, i0) c = Gather(s, i1) p = Mul(b, b) q = Mul(b, c) "
        "f = Cast<to=1>(p) h = Cast<to=1>(q) y = Sub(f, h)"
    )
    model = _model(body, outputs="float y")
    assert not _fold(model)


def test_division_with_a_remainder_is_not_taken_for_exact() -> None:
    body = _B_S + "h = Div(uq, two) d = Mul(h, two) e = Equal(d, uq) y = Cast<to=1>(e)"
    model = _model(body, outputs="float[1] y")
    kinds = op_types(model)
    _fold(model)
    assert op_types(model) == kinds


def test_a_target_that_callers_give_is_not_known() -> None:
    model = _model("y = Reshape(x, t)", "float[B, S, 12] x, int64[3] t", "float[P, Q, R] y")
    assert not _fold(model, {"x": floats(2, 5, 12), "t": np.array([5, 2, 12])})


def test_declared_shapes_of_intermediate_values_are_not_believed() -> None:
    model = _model("r = NonZero(x) s = Shape(r) y = Cast<to=1>(s)", outputs="float[2] y")
    next(n for n in model.graph if n.op_type == "NonZero").outputs[0].shape = ir.Shape([3, 7])
    _fold(model)
    assert "Shape" in op_types(model)


def test_a_body_reads_what_is_known_outside_and_shares_with_it() -> None:
    model = from_text(
        "g (bool c, float[B, S, 12] x) => (float[P, Q, R, T] y) "
        f"<{_WEIGHTS}> {{ y = If(c) <"
        "then_branch = t () => (float[B, S, 3, 4] a) { s = Shape(x) b = Gather(s, i0) q = Gather(s, i1) "
        "ub = Unsqueeze(b, zero) uq = Unsqueeze(q, zero) k = Concat<axis=0>(ub, uq, three, four) a = Reshape(x, k) }, "
        "else_branch = e () => (float[B, S, 12, 1] d) { d = Unsqueeze(x, three) }> }"
    )
    feeds = [{"c": np.array(c), "x": floats(2, 5, 12)} for c in (True, False)]
    _fold(model, *feeds)
    assert op_types(model) == ["If", "Reshape", "Unsqueeze"]


def test_what_goes_round_a_loop_may_change_its_shape() -> None:
    model = from_text(
        "g (int64 n, bool c, float[1] x) => (float[P] y) "
        "{ y = Loop(n, c, x) <body = b (int64 i, bool d, float[1] v) => (bool e, float[K] w) "
        "{ e = Identity(d) s = Shape(v) f = Cast<to=1>(s) w = Concat<axis=0>(v, f) }> }"
    )
    _fold(model, {"n": np.array(3), "c": np.array(True), "x": floats(1)})
    assert "Shape" in op_types(model)


_SQUEEZE_OR_NOT = (
    "s = Shape(x) d = Gather(s, i0) e = Equal(d, i1) r = If(e) <"
    "then_branch = t () => (float[K, L] a) { a = Squeeze(x, zero) }, "
    "else_branch = f () => (float[K, L, M] b) { b = Identity(x) }> "
)


def test_a_rank_is_known_where_the_other_one_would_fail_later() -> None:
    body = "p = Shape(r) n = Size(p) m = Cast<to=1>(n) y = Transpose<perm=[1, 0]>(r) z = Relu(m)"
    model = _model(_SQUEEZE_OR_NOT + body, outputs="float[P, Q] y, float z")
    _fold(model, {"x": floats(1, 5, 12)})
    assert "Size" not in op_types(model)


def test_a_rank_that_nothing_rules_out_stays_open() -> None:
    model = _model(_SQUEEZE_OR_NOT + "p = Shape(r) n = Size(p) y = Cast<to=1>(n)", outputs="float y")
    _fold(model, {"x": floats(1, 5, 12)}, {"x": floats(2, 5, 12)})
    assert "Size" in op_types(model)


def test_a_node_that_may_not_be_reached_rules_nothing_out() -> None:
    model = from_text(
        f"g (float[B, S, 12] x, bool c) => (float y) <{_WEIGHTS}> {{ "
        + _SQUEEZE_OR_NOT
        + "p = Shape(r) n = Size(p) y = If(c) <then_branch = u () => (float k) { o = Transpose<perm=[1, 0]>(r) "
        "k = ReduceSum<keepdims=0>(o) }, else_branch = v () => (float l) { l = Cast<to=1>(n) }> }"
    )
    _fold(model, {"x": floats(1, 5, 12), "c": np.array(True)}, {"x": floats(2, 5, 12), "c": np.array(False)})
    assert "Size" in op_types(model)


@pytest.mark.parametrize("rows", [1, 4])
def test_a_shared_target_serves_both_readers(rows: int) -> None:
    model = _model(_B_S + "t = Concat<axis=0>(ub, uq, three, four) a = Reshape(x, t) z = Exp(x) d = Reshape(z, t) "
                   "y = Add(a, d)", outputs="float[B, S, 3, 4] y")  # fmt: skip
    _fold(model, {"x": floats(rows, 5, 12)})
    assert op_types(model) == ["Add", "Exp", "Reshape", "Reshape"]


@pytest.mark.parametrize(("size", "kinds"), [("0", ["Relu"]), ("2", ["Concat", "Relu"])])
def test_an_empty_operand_of_a_concat_goes(size: str, kinds: list[str]) -> None:
    model = _model(
        "c = Concat<axis=1>(z, x) y = Relu(c)", f"float[B, {size}, 12] z, float[B, S, 12] x", "float[P, Q, R] y"
    )
    _fold(model, {"z": floats(2, int(size), 12), "x": floats(2, 3, 12)})
    assert op_types(model) == kinds


def test_a_concat_of_several_loses_only_the_empty_one() -> None:
    inputs = "float[B, 1, 12] w, float[B, 0, 12] z, float[B, S, 12] x"
    model = _model("y = Concat<axis=-2>(w, z, x)", inputs)
    _fold(model, {"w": floats(2, 1, 12), "z": floats(2, 0, 12), "x": floats(2, 3, 12)})
    assert len(model.graph[0].inputs) == 2
