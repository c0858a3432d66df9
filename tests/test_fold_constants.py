"""Constants are computed once; what would make the file grow, or undo a quantization, is not."""

import numpy as np
import onnx_ir as ir

from onnxcompress import graph, model_io
from onnxcompress.core import Action, Context, Gate
from onnxcompress.passes.fold_constants import FoldConstants
from onnxcompress.passes.remove_dead import RemoveDead


def _model(body, inputs="float[2] x", outputs="float[2] y", weights=""):
    text = f'<ir_version: 8, opset_import: ["" : 17]> g ({inputs}) => ({outputs}) {weights} {{{body}}}'
    return model_io.load(ir.to_proto(ir.from_onnx_text(text)))


def test_a_chain_of_constants_becomes_one():
    model = _model("b = Add(a, a) c = Neg(b) y = Mul(x, c)", weights="<float[2] a = {1, 2}>")
    changes = FoldConstants().run(model, Context())
    assert [c.action for c in changes] == [Action.APPLIED]  # the chain's end is stored, the middle never is
    assert [n.op_type for n in model.graph] == ["Mul"]
    np.testing.assert_array_equal(graph.constant(model.graph[0].inputs[1]), np.float32([-2, -4]))
    assert not FoldConstants().run(model, Context())


def test_a_generator_stays_a_generator():
    model = _model("z = ConstantOfShape(s) e = Exp(z) y = Add(x, e)", "float[100000] x", "float[100000] y",
                   "<int64[1] s = {100000}>")  # fmt: skip
    FoldConstants().run(model, Context())
    assert [n.op_type for n in model.graph] == ["ConstantOfShape", "Exp", "Add"]


def test_growth_beyond_the_allowance_is_refused_with_the_figures():
    body = "e = Expand(a, s) y = Add(x, e)"
    model = _model(body, "float[900] x", "float[900] y", "<float[1] a = {1}, int64[1] s = {900}>")
    assert all(c.action is Action.SKIPPED for c in FoldConstants().run(model, Context()))
    changes = FoldConstants(allowance_bytes=4000).run(model, Context())
    assert graph.is_op(model.graph[0], "Expand") or [c.action for c in changes] == [Action.APPLIED]


def test_dequantized_weights_and_random_numbers_stay():
    body = "w = DequantizeLinear(q, s) r = RandomUniformLike(s) t = Add(w, r) y = Add(x, t)"
    model = _model(body, weights="<int8[2] q = {1, 2}, float s = {0.5}>")
    assert not FoldConstants().run(model, Context())


def test_the_gate_keeps_a_node_as_it_is():
    model = _model("b = Neg(a) y = Mul(x, b)", weights="<float[2] a = {1, 2}>")
    assert not FoldConstants().run(model, Context(gate=Gate(limit=0)))
    assert len(model.graph) == 2


def test_dead_nodes_and_weights_are_removed():
    model = _model("b = Neg(x) c = Add(b, a) y = Relu(x)", weights="<float[2] a = {1, 2}>")
    targets = {c.target for c in RemoveDead().run(model, Context())}
    assert [n.op_type for n in model.graph] == ["Relu"]
    assert not model.graph.initializers
    assert len(targets) == 3
    assert not RemoveDead().run(model, Context())
