"""Constants are computed once; what would make the file grow, or undo a quantization, is not."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir
import pytest

from onnxcompress.base.gate import Gate
from onnxcompress.core import Action, Change, Context, Feed
from onnxcompress.graph import edit, query
from onnxcompress.io import model_io
from onnxcompress.io.tensors import StoredTensor
from onnxcompress.passes.fold.constants import FoldConstants
from tests.helpers import floats, from_text, op_types, run


def _fold(model: ir.Model, feed: Feed | None = None, *, allowance_bytes: int = 128) -> list[Change]:
    """Run the pass, check outputs, the size of the file, a second run, and a closed gate.

    Outputs may differ by 1e-6 of the largest: a MatMul adds up in another order.
    """
    feed = feed or {"x": floats(2)}
    before, kinds, size_bytes = run(model, feed), op_types(model), model_io.model_bytes(model)
    folding = FoldConstants(allowance_bytes=allowance_bytes)
    assert not [c for c in folding.run(model, Context(gate=Gate(limit=0))) if c.action is Action.APPLIED]
    assert op_types(model) == kinds
    changes = folding.run(model, Context())
    for name, expected in before.items():
        peak = float(np.abs(expected).max())
        np.testing.assert_allclose(run(model, feed)[name], expected, rtol=0, atol=1e-6 * peak, strict=True)
    assert model_io.model_bytes(model) <= size_bytes + allowance_bytes * len(changes)
    assert not [c for c in folding.run(model, Context()) if c.action is Action.APPLIED]
    return changes


def _model(body: str, weights: str, x: str = "float[2] x", y: str = "float[2] y") -> ir.Model:
    return from_text(f"g ({x}) => ({y}) <{weights}> {{ {body} }}")


def _with_weight(model: ir.Model, name: str, array: np.ndarray) -> ir.Model:
    """Give an initializer larger data than text can hold."""
    edit.set_weight(model.graph.initializers[name], array)
    return model


def test_of_a_chain_only_the_end_is_stored() -> None:
    model = _model("b = Add(a, a) c = Neg(b) y = Mul(x, c)", "float[2] a = {1, 2}")
    assert [c.action for c in _fold(model)] == [Action.APPLIED]
    assert op_types(model) == ["Mul"]
    np.testing.assert_array_equal(query.constant(model.graph[0].inputs[1]), np.float32([-2, -4]))
    assert list(model.graph.initializers) == ["c"]


def test_a_generator_and_what_hangs_on_it_stay() -> None:
    body = "z = ConstantOfShape(s) r = Reshape(z, t) e = Transpose(r) y = MatMul(x, e)"
    weights = "int64[1] s = {100000}, int64[2] t = {500, 200}"
    model = _model(body, weights, "float[N, 200] x", "float[N, 500] y")
    _fold(model, {"x": floats(1, 200)})
    assert op_types(model) == ["ConstantOfShape", "MatMul", "Reshape", "Transpose"]


def test_a_generator_of_little_is_folded_and_what_a_chain_shrinks_to_too() -> None:
    body = "z = ConstantOfShape(s) r = ReduceSum<keepdims=0>(z) t = Add(x, r) e = Expand(o, p) y = Add(t, e)"
    model = _model(body, "int64[1] s = {100000}, float o = {2}, int64[1] p = {2}")
    _fold(model)
    assert op_types(model) == ["Add", "Add"]


@pytest.mark.parametrize(("allowance_bytes", "kinds"), [(0, ["Add", "Cast"]), (40000, ["Add"])])
def test_growth_is_held_against_the_allowance(allowance_bytes: int, kinds: list[str]) -> None:
    model = _model("w = Cast<to=1>(h) y = Add(x, w)", "float16[2] h = {1, 2}", "float[9000] x", "float[9000] y")
    _with_weight(model, "h", floats(9000).astype(np.float16))
    changes = _fold(model, {"x": floats(9000)}, allowance_bytes=allowance_bytes)
    assert op_types(model) == kinds
    assert len(changes) == 1
    assert ("36,000 bytes" in changes[0].reason) is (allowance_bytes == 0)


def test_a_transposed_weight_is_stored_unless_another_reader_keeps_the_original() -> None:
    body = "t = Transpose(w) a = MatMul(x, t) {} y = Relu(a)"
    only = _model(body.format(""), "float[1] w = {0}", "float[N, 200] x", "float[N, 100] y")
    _fold(_with_weight(only, "w", floats(100, 200)), {"x": floats(2, 200)})
    assert op_types(only) == ["MatMul", "Relu"]
    shared = _model(body.format("b = MatMul(a, w) z = Neg(b)"), "float[1] w = {0}", "float[N, 200] x",
                    "float[N, 100] y, float[N, 200] z")  # fmt: skip
    changes = _fold(_with_weight(shared, "w", floats(100, 200)), {"x": floats(2, 200)})
    assert "Transpose" in op_types(shared)
    assert [c.action for c in changes] == [Action.SKIPPED]


def test_large_results_wait_in_a_file() -> None:
    model = _model("t = Transpose(w) y = MatMul(x, t)", "float[1] w = {0}", "float[N, 600] x", "float[N, 600] y")
    _fold(_with_weight(model, "w", floats(600, 600)), {"x": floats(2, 600)})
    stored = model.graph.initializers["t"].const_value
    assert isinstance(stored, StoredTensor)
    np.testing.assert_array_equal(stored.numpy(), floats(600, 600).T)


def test_quantized_weights_stay_quantized_and_float_ones_become_it() -> None:
    body = "q = QuantizeLinear(w, s) d = DequantizeLinear(q, s) y = Add(x, d)"
    model = _model(body, "float[2] w = {1, 2}, float s = {0.5}")
    _fold(model)
    assert op_types(model) == ["Add", "DequantizeLinear"]
    assert query.constant(model.graph.initializers["q"]).dtype == np.uint8


@pytest.mark.parametrize(
    "node",
    [
        "w = RandomUniformLike(a)",
        "w = If(c) <then_branch = t () => (float[2] p) { p = Neg(a) }, "
        "else_branch = e () => (float[2] q) { q = Relu(a) }>",
        "b = SequenceConstruct(a) d = Cast<to=7>(x) i = ReduceMin<keepdims=0>(d) j = Clip(i, o, o) "
        "w = SequenceAt(b, j)",
    ],
)
def test_random_numbers_control_flow_and_sequences_stay(node: str) -> None:
    model = _model(
        f"{node} v = Mul(w, z) y = Add(x, v)", "float[2] a = {1, 2}, float[1] z = {0}, bool c = {1}, int64 o = {0}"
    )
    kinds = op_types(model)
    FoldConstants().run(model, Context())
    assert {"RandomUniformLike", "If", "SequenceConstruct"} & set(kinds) <= set(op_types(model))


def test_a_node_that_can_not_be_run_does_not_take_others_down() -> None:
    body = "b = Neg(a) k = Reshape(a, three) c = Exp(a) d = Add(b, c) y = Add(x, d)"
    model = model_io.load(ir.to_proto(ir.from_onnx_text(
        '<ir_version: 8, opset_import: ["" : 17]> g (float[2] x) => (float[2] y, float[3] k) '
        f"<float[2] a = {{1, 2}}, int64[1] three = {{3}}> {{ {body} }}")))  # fmt: skip
    FoldConstants().run(model, Context())
    assert op_types(model) == ["Add", "Reshape"]


def test_a_body_folds_its_own_and_captured_constants() -> None:
    model = from_text(
        "g (bool c, float[2] x) => (float[2] y) <float[2] a = {1, 2}> { o = Neg(a) y = If(c) <"
        "then_branch = t () => (float[2] p) <float[2] b = {3, 4}> { k = Mul(o, b) p = Add(x, k) }, "
        "else_branch = e () => (float[2] q) { q = Exp(a) }> }"
    )
    _fold(model, {"c": np.array(True), "x": floats(2)})
    assert op_types(model) == ["Add", "If"]
    assert run(model, {"c": np.array(False), "x": floats(2)})["y"] == pytest.approx(np.exp([1, 2]))


def test_outputs_of_a_split_are_stored_where_they_are_read() -> None:
    body = "p, q, r = Split<axis=0>(a) n = Neg(q) s = Add(x, p) y = Add(s, n)"
    model = _model(body, "float[6] a = {1, 2, 3, 4, 5, 6}")
    _fold(model)
    assert op_types(model) == ["Add", "Add"]
    assert sorted(model.graph.initializers) == ["n", "p"]


def test_a_constant_may_be_an_output() -> None:
    model = _model("z = Neg(a) y = Add(x, z)", "float[2] a = {1, 2}", y="float[2] y, float[2] z")
    _fold(model)
    assert op_types(model) == ["Add"]
    assert model.graph.outputs[1].name == "z"


def test_what_callers_may_override_is_no_constant() -> None:
    model = from_text(
        "g (float[2] x, int64[1] s) => (float[2] y) <int64[1] s = {2}> { t = Neg(s) n = Neg(t) y = Reshape(x, n) }"
    )
    assert not _fold(model)


def test_a_type_like_that_of_an_input_is_a_cast() -> None:
    model = _model("w = CastLike(a, x) y = Add(x, w)", "int64[2] a = {1, 2}")
    _fold(model)
    assert op_types(model) == ["Add"]


@pytest.mark.parametrize(
    ("a", "x", "folds"),
    [
        ("float a = {2}", "float16[2] x", False),
        ("float[2] a = {2, 3}", "float16[2] x", True),
        ("int64 a = {2}", "float16[2] x", True),
        ("float a = {2}", "double[2] x", True),
    ],
)
def test_a_float32_number_that_becomes_float16_stays(a: str, x: str, *, folds: bool) -> None:
    dtype = np.float16 if "16" in x else np.float64
    model = _model("w = CastLike(a, x) y = Mul(x, w)", a, x=x, y=x.replace("x", "y"))
    changes = _fold(model, {"x": np.ones(2, dtype)})
    assert op_types(model) == (["Mul"] if folds else ["CastLike", "Mul"])
    assert any("read as it is" in c.reason for c in changes) is not folds
