"""Weights become int8 with DequantizeLinear; what would not gain stays, with the reason."""

import numpy as np
import onnx_ir as ir
import pytest

from onnxcompress import graph, model_io, runtime
from onnxcompress.core import Action, Context, Gate
from onnxcompress.passes.quantize_weights import QuantizeWeights

RNG = np.random.default_rng(0)


def _model(text, **weights):
    model = model_io.load(ir.to_proto(ir.from_onnx_text(text)))
    for name, array in weights.items():
        placeholder = next(v for n in model.graph for v in n.inputs if v is not None and v.name == name)
        model.graph.inputs.remove(placeholder)
        placeholder.const_value = ir.tensor(array.astype(np.float32), name=name)
        model.graph.register_initializer(placeholder)
    return model


MATMUL = (
    '<ir_version: 8, opset_import: ["" : 17]> g (float[n, 64] x, float[64, 48] w) => (float[n, 48] y){y = MatMul(x, w)}'
)
TABLE = (
    '<ir_version: 8, opset_import: ["" : 17]> g (int64[n, t] i, float[90, 32] w) => (float[t, n, 32] y)'
    "{e = Gather(w, i) y = Transpose<perm = [1, 0, 2]>(e)}"
)


def _compare(before, after, feed, *, optimize):
    a = runtime.open_session(before, optimize=False).run(feed)["y"]
    b = runtime.open_session(model_io.to_bytes(after), optimize=optimize).run(feed)["y"]
    return float(np.square(a).sum() / np.square(a - b).sum())


def test_matmul_has_a_scale_for_each_column():
    model = _model(MATMUL, w=RNG.standard_normal((64, 48)))
    before = model_io.to_bytes(model)
    changes = QuantizeWeights().run(model, Context())
    assert [c.action for c in changes] == [Action.APPLIED]
    dequantize = next(n for n in model.graph if n.op_type == "DequantizeLinear")
    assert graph.constant(dequantize.inputs[0]).dtype == np.int8
    assert graph.constant(dequantize.inputs[1]).shape == (48,)
    feed = {"x": RNG.standard_normal((5, 64)).astype(np.float32)}
    assert _compare(before, model, feed, optimize=False) > 10**3.5  # 8 bits over a normal weight: about 43 dB
    assert not QuantizeWeights().run(model, Context())


@pytest.mark.parametrize("optimize", [False, True])
def test_a_table_stays_right_behind_a_transpose(optimize):
    model = _model(TABLE, w=RNG.standard_normal((90, 32)))
    before = model_io.to_bytes(model)
    QuantizeWeights().run(model, Context())
    gather, last = model.graph[0], model.graph[-1]
    assert (gather.op_type, last.op_type) == ("Gather", "Transpose")
    assert graph.constant(gather.inputs[0]).dtype.itemsize == 1
    feed = {"i": RNG.integers(0, 90, (2, 7))}
    assert _compare(before, model, feed, optimize=optimize) > 10**3


def test_an_old_opset_is_raised():
    model = _model(MATMUL.replace("17", "11"), w=RNG.standard_normal((64, 48)))
    assert QuantizeWeights().run(model, Context())[0].action is Action.APPLIED
    assert graph.opset(model) == 13


@pytest.mark.parametrize(
    ("array", "reason"),
    [(np.ones((40, 1)), "fewer than 1024 elements"), (np.full((64, 48), np.nan), "NaN")],
)
def test_what_does_not_gain_is_left_with_the_reason(array, reason):
    model = _model(MATMUL.replace("48", str(array.shape[1])).replace("64", str(array.shape[0])), w=array)
    change = QuantizeWeights().run(model, Context())[0]
    assert change.action is Action.SKIPPED
    assert reason in change.reason
    assert [n.op_type for n in model.graph] == ["MatMul"]


def test_a_weight_that_something_else_reads_is_left():
    text = (
        '<ir_version: 8, opset_import: ["" : 17]> g (float[n, 64] x, float[64, 48] w)'
        "=> (float[n, 48] y, float[64, 48] z) {y = MatMul(x, w) z = Neg(w)}"
    )
    change = QuantizeWeights().run(_model(text, w=RNG.standard_normal((64, 48))), Context())[0]
    assert change.action is Action.SKIPPED


def test_only_and_the_gate_are_respected():
    model = _model(MATMUL, w=RNG.standard_normal((64, 48)))
    assert QuantizeWeights().run(model, Context(selects=lambda _: False))[0].action is Action.SKIPPED
    assert not QuantizeWeights().run(model, Context(gate=Gate(limit=0)))


def test_a_shared_weight_is_stored_once():
    text = (
        '<ir_version: 8, opset_import: ["" : 17]> g (float[n, 64] x, float[64, 64] w) => (float[n, 64] y)'
        "{h = MatMul(x, w) y = MatMul(h, w)}"
    )
    model = _model(text, w=RNG.standard_normal((64, 64)))
    QuantizeWeights().run(model, Context())
    assert sum(n.op_type == "DequantizeLinear" for n in model.graph) == 1
