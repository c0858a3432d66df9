"""Whatever exporters write comes out in one form, and computes what it did."""

from __future__ import annotations

import numpy as np
import onnx
import onnx.parser
import onnx_ir as ir
import pytest

import onnxcompress as oc
from onnxcompress.base.gate import Gate
from onnxcompress.core import Action, Change, Context, Feed
from onnxcompress.graph import query
from onnxcompress.io import model_io
from onnxcompress.passes.fold.normalize import Normalize
from tests.helpers import floats, from_text, op_types, run


def _normalize(model: ir.Model, feed: Feed) -> list[Change]:
    """Run the pass, check outputs, a second run and a closed gate, and return the changes."""
    before, kinds = run(model, feed), op_types(model)
    Normalize().run(model, Context(gate=Gate(limit=0)))
    assert op_types(model) == kinds
    changes = Normalize().run(model, Context())
    after = run(model, feed)
    for name, expected in before.items():
        np.testing.assert_array_equal(after[name], expected)
    assert not [c for c in Normalize().run(model, Context()) if c.action is Action.APPLIED]
    return changes


def _reasons(changes: list[Change], action: Action = Action.APPLIED) -> str:
    return "\n".join(change.reason for change in changes if change.action is action)


@pytest.mark.parametrize(
    ("attribute", "expected"),
    [
        ("value = float[2] {1, 2}", np.float32([1, 2])),
        ("value_float = 1.5", np.float32(1.5)),
        ("value_floats = [1.5, 2.5]", np.float32([1.5, 2.5])),
        ("value_int = 7", np.int64(7)),
        ("value_ints = [7, 8]", np.int64([7, 8])),
    ],
)
def test_every_kind_of_constant_becomes_an_initializer(attribute: str, expected: np.ndarray) -> None:
    model = from_text(
        f"g (float[2] x) => (float[2] y) {{ c = Constant<{attribute}>() f = Cast<to=1>(c) y = Add(x, f) }}"
    )
    _normalize(model, {"x": floats(2)})
    assert op_types(model) == ["Add", "Cast"]
    stored = query.constant(model.graph.initializers["c"])
    assert stored is not None
    assert stored.dtype == expected.dtype
    np.testing.assert_array_equal(stored, expected)


def test_strings_become_an_initializer() -> None:
    model = from_text(
        'g (float[2] x) => (float[2] y, string[2] z) { z = Constant<value_strings = ["a", "b"]>() y = Neg(x) }'
    )
    Normalize().run(model, Context())
    assert run(model, {"x": floats(2)})["z"].tolist() == ["a", "b"]
    assert op_types(model) == ["Neg"]


def test_constants_in_bodies_become_initializers_of_the_body() -> None:
    model = from_text(
        "g (bool c, float[2] x) => (float[2] y) { y = If(c) <"
        "then_branch = t () => (float[2] a) { k = Constant<value = float[2] {1, 2}>() a = Add(x, k) }, "
        "else_branch = e () => (float[2] b) { b = Constant<value = float[2] {3, 4}>() }> }"
    )
    _normalize(model, {"c": np.array(False), "x": floats(2)})
    assert op_types(model) == ["Add", "If"]
    assert run(model, {"c": np.array(False), "x": floats(2)})["y"].tolist() == [3, 4]


_FUNCTIONS = """<ir_version: 8, opset_import: ["" : 17, "my" : 1]>
g (float[N] x, bool c) => (float[N] y, float[N] z, float[N] w) {
  y = my.f<alpha=0.1>(x, c)
  z = my.f(x, c)
  w, v = my.two(x)
}
<domain: "my", opset_import: ["" : 18, "my" : 1]>
f <alpha: float=0.5> (x, c) => (o) {
  v = Add(x, x)
  q = LeakyRelu<alpha: float = @alpha>(v)
  o = If(c) <then_branch = t () => (eo) { eo = Neg(q) }, else_branch = e () => (eo) { eo = Abs(v) }>
}
<domain: "my", opset_import: ["" : 17]>
two (x) => (o, p) { o = Exp(x) p = Neg(x) }
"""


@pytest.mark.parametrize("condition", [True, False])
def test_functions_are_inlined_with_bodies_attributes_and_clashing_names(*, condition: bool) -> None:
    model = model_io.load(onnx.parser.parse_model(_FUNCTIONS))
    next(iter(model.graph)).metadata_props["origin"] = "kept"
    changes = _normalize(model, {"x": floats(5), "c": np.array(condition)})
    assert not model.functions
    assert _reasons(changes).count("inlined") == 2
    kinds = op_types(model)
    assert kinds.count("If") == 2
    assert kinds.count("LeakyRelu") == 2
    assert any(node.metadata_props.get("origin") == "kept" for node in model.graph)
    names = [v.name for g in query.graphs(model) for node in g for v in node.outputs]
    assert len(set(names)) == len(names)


@pytest.mark.parametrize(
    ("body", "opset", "reason"),
    [
        ("o = ReduceMean<axes=[0]>(x)", 17, "ReduceMean of opset 17"),
        ("o = my.f(x)", 18, "calls itself"),
    ],
)
def test_functions_that_can_not_be_inlined_stay_with_the_reason(body: str, opset: int, reason: str) -> None:
    text = (
        '<ir_version: 8, opset_import: ["" : 18, "my" : 1]> g (float[N] x) => (float[M] y) { y = my.f(x) }'
        f'<domain: "my", opset_import: ["" : {opset}, "my" : 1]> f (x) => (o) {{ {body} }}'
    )
    model = ir.from_proto(onnx.parser.parse_model(text))
    changes = Normalize().run(model, Context())
    assert len(model.functions) == 1
    assert reason in _reasons(changes, Action.SKIPPED)


def test_a_function_that_hands_its_input_out() -> None:
    text = (
        '<ir_version: 8, opset_import: ["" : 18, "my" : 1]> '
        "g (float[N] x) => (float[N] y, float[N] z) { a = Exp(x) y, z = my.f(a) }"
        '<domain: "my", opset_import: ["" : 18]> f (x) => (o, p) { o = Neg(x) p = Identity(x) }'
    )
    model = model_io.load(onnx.parser.parse_model(text))
    function = next(iter(model.functions.values()))
    identity = next(n for n in function if n.op_type == "Identity")
    function.outputs[1] = function.inputs[0]
    function.remove(identity, safe=True)
    Normalize().run(model, Context())
    assert op_types(model) == ["Exp", "Neg"]
    np.testing.assert_array_equal(run(model, {"x": floats(3)})["z"], np.exp(floats(3)))


_DECLARED = (
    "g (float[2] x, float[2] w, int64[1] s) => (float[2] y) "
    "<float[2] w = {1, 2}, int64[1] s = {2}> { a = Add(x, w) y = Reshape(a, s) }"
)


def test_old_files_are_sealed_and_raised() -> None:
    model = from_text(_DECLARED, opset=9, ir_version=3)
    changes = _normalize(model, {"x": floats(2)})
    assert [v.name for v in model.graph.inputs] == ["x"]
    assert model.ir_version == 4
    assert _reasons(changes).count("can no longer be overridden") == 2


def test_newer_files_keep_what_callers_may_override() -> None:
    model = from_text(_DECLARED, ir_version=8)
    changes = _normalize(model, {"x": floats(2)})
    assert [v.name for v in model.graph.inputs] == ["x", "w", "s"]
    assert model.ir_version == 8
    assert [c.target for c in changes if "stays an input" in c.reason] == ["w", "s"]


def test_inputs_with_a_default_are_frozen_where_that_is_asked_for() -> None:
    model = from_text(_DECLARED, ir_version=8)
    Normalize().run(model, Context(frozen_inputs=frozenset({"s"})))
    assert [v.name for v in model.graph.inputs] == ["x", "w"]


def test_an_old_file_without_weights_may_hold_constants_afterwards() -> None:
    model = from_text(
        "g (float[2] x) => (float[2] y) { c = Constant<value = float[2] {1, 2}>() y = Add(x, c) }",
        opset=9,
        ir_version=3,
    )
    _normalize(model, {"x": floats(2)})
    assert model.ir_version == 4


def test_names_become_unique_the_first_keeps_its_own_and_unnamed_nodes_stay_so() -> None:
    model = from_text("g (float[2] x) => (float[2] y) { [n] a = Neg(x) [n] b = Exp(a) c = Abs(b) y = Relu(c) }")
    Normalize().run(model, Context())  # onnxruntime refuses the model as it was
    np.testing.assert_allclose(run(model, {"x": floats(2)})["y"], np.exp(-floats(2)), rtol=1e-6)
    first, second, *others = [node.name for node in model.graph]
    assert (first, others) == ("n", ["", ""])
    assert second
    assert second != "n"


def test_thousands_of_tiny_nodes_without_names_are_folded() -> None:
    chain = " ".join(f"v{i} = Sin(v{i - 1})" for i in range(1, 1500))
    result = oc.compress(from_text(f"g (float[2] x) => (float[2] v1499) {{ v0 = Identity(x) {chain} }}"), recipe="fold")
    assert [c.reason for c in result.changes if c.action == "rolled-back"] == []
    assert result.report.output.nodes == 1499
    assert result.report.output.bytes <= result.report.input.bytes


def test_copies_go_and_names_of_inputs_and_outputs_stay() -> None:
    model = from_text(
        "g (float[2] x) => (float[2] y, float[2] z) { a = Identity(x) b = Neg(a) y = Identity(b) z = Identity(x) }"
    )
    _normalize(model, {"x": floats(2)})
    assert op_types(model) == ["Identity", "Neg"]  # z is the input itself: a node has to make it an output


def test_a_copy_of_an_outer_value_that_a_body_returns_stays() -> None:
    model = from_text(
        "g (bool c, float[2] x) => (float[2] y) { a = Neg(x) y = If(c) <"
        "then_branch = t () => (float[2] b) { b = Identity(a) }, else_branch = e () => (float[2] d) { d = Exp(a) }> }"
    )
    _normalize(model, {"c": np.array(True), "x": floats(2)})
    assert op_types(model) == ["Exp", "Identity", "If", "Neg"]


@pytest.mark.parametrize(
    ("call", "stays"),
    [
        ("a = Dropout(x) z = Not(no)", False),
        ("a = Dropout(x, r, no) z = Not(no)", False),
        ("a = Dropout(x, r, yes) z = Not(no)", True),
        ("a, m = Dropout(x) s = Size(m) z = Cast<to=9>(s)", True),
    ],
)
def test_dropout_goes_in_inference(call: str, *, stays: bool) -> None:
    weights = "<float r = {0.0}, bool yes = {1}, bool no = {0}>"
    model = from_text(f"g (float[2] x) => (float[2] y, bool z) {weights} {{ {call} y = Neg(a) }}")
    _normalize(model, {"x": floats(2)})
    assert ("Dropout" in op_types(model)) is stays


def test_declared_shapes_that_can_not_be_are_dropped_and_others_kept() -> None:
    model = from_text("g (float[N, 3] x) => (float[N, 3] y) { a = Neg(x) b = Exp(a) c = Abs(b) y = Relu(c) }")
    wrong, right, rank = (node.outputs[0] for node in tuple(model.graph)[:3])
    wrong.shape, right.shape, rank.shape = ir.Shape(["N", 4]), ir.Shape(["M", 3]), ir.Shape([3])
    changes = _normalize(model, {"x": floats(2, 3)})
    assert wrong.shape is None
    assert rank.shape is None
    assert right.shape == ir.Shape(["M", 3])
    assert _reasons(changes).count("contradicts") == 2


def test_nodes_in_the_wrong_order_are_sorted_also_for_a_body() -> None:
    model = from_text(
        "g (bool c, float[2] x) => (float[2] y) { a = Neg(x) y = If(c) <"
        "then_branch = t () => (float[2] b) { b = Abs(a) }, else_branch = e () => (float[2] d) { d = Exp(a) }> }"
    )
    expected = run(model, {"c": np.array(True), "x": floats(2)})["y"]
    neg = next(iter(model.graph))
    model.graph.remove(neg)
    model.graph.append(neg)
    assert "not in order" in _reasons(Normalize().run(model, Context()))
    np.testing.assert_array_equal(run(model, {"c": np.array(True), "x": floats(2)})["y"], expected)


def test_equal_names_in_bodies_side_by_side_are_told_apart() -> None:
    model = from_text(
        "g (bool c, float[2] x) => (float[2] y) { y = If(c) <"
        "then_branch = t () => (float[2] o) { k = Abs(x) o = Neg(k) }, "
        "else_branch = e () => (float[2] o) { k = Exp(x) o = Relu(k) }> }"
    )
    _normalize(model, {"c": np.array(False), "x": floats(2)})
    assert not query.repeated_values(model)
