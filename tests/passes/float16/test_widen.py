"""Arithmetic in 16 bits becomes float32, everywhere or nowhere; inputs, outputs and stored weights keep their type."""

from __future__ import annotations

import ml_dtypes
import numpy as np
import onnx
import onnx.parser
import onnx_ir as ir
import pytest

from onnxcompress.base.gate import Gate
from onnxcompress.core import Action, Context
from onnxcompress.errors import ModelError
from onnxcompress.graph import query
from onnxcompress.io import model_io
from onnxcompress.passes.float16.widen import WidenFloat16, computed_types, widened
from tests.helpers import floats, from_text, op_types, run, with_constants

HALF, SINGLE = ir.DataType.FLOAT16, ir.DataType.FLOAT


def _half(*shape, seed=0, scale=1.0):
    return (floats(*shape, seed=seed) * scale).astype(np.float16)


CONV = """g (float16[n, 3, 16, 16] x, float16[32, 3, 3, 3] k, float16[32] kb, float16[64, 32, 3, 3] l)
  => (float16[n, 64, 16, 16] y)
{
    c = Conv<pads = [1, 1, 1, 1]>(x, k, kb)
    low = Constant<value = float16[1] {0}>()
    high = Constant<value = float16[1] {6}>()
    r = Clip(c, low, high)
    y = Conv<pads = [1, 1, 1, 1]>(r, l)
}"""
LSTM = """g (float16[s, 2, 16] x, float16[1, 64, 16] w, float16[1, 64, 16] r)
  => (float16[s, 1, 2, 16] y, float16[1, 2, 16] h)
{ y, h = LSTM<hidden_size = 16>(x, w, r) }"""
MIXED = """g (float[n, 64] x, float16[64, 64] w, float[64, 64] v) => (float[n, 64] y, float16[n, 64] z)
{
    h = Cast<to = 10>(x)
    z = MatMul(h, w)
    s = Relu(z)
    f = Cast<to = 1>(s)
    y = MatMul(f, v)
}"""
TYPED = """g (float16[4, 4] x, int64[2] dims) => (float16[4, 4] y, float16[a, b] filled)
{
    eye = EyeLike<dtype = 10>(x)
    like = CastLike(dims, x)
    sum = ReduceSum<keepdims = 0>(like)
    filled = ConstantOfShape<value = float16[1] {2}>(dims)
    m = MatMul(x, eye)
    y = Add(m, sum)
}"""
SEQUENCE = """g (float16[4] x) => (float16[8] y)
{
    e = SequenceEmpty<dtype = 10>()
    a = SequenceInsert(e, x)
    d = Add(x, x)
    b = SequenceInsert(a, d)
    y = ConcatFromSequence<axis = 0>(b)
}"""
BRANCHES = """g (bool c, float16[n, 64] x, float16[64, 64] w) => (float16[n, 64] y)
{
    h = Relu(x)
    t = If(c) <
        then_branch = a () => (float16[n, 64] p) { p = MatMul(h, w) },
        else_branch = b () => (float16[n, 64] q) { k = Constant<value = float16[1] {3}>() q = Mul(x, k) }
    >
    y = Neg(t)
}"""
LOOP = """g (float16[4] x, int64 m, bool go) => (float16[4] y, float16[m, 4] all)
{
    y, all = Loop(m, go, x) <
        body = b (int64 i, bool before, float16[4] state) => (bool after, float16[4] next, float16[4] out)
        { after = Identity(before) next = Add(state, x) out = Mul(next, next) }
    >
}"""
SCAN = """g (float16[4] start, float16[m, 4] xs) => (float16[4] last, float16[m, 4] all)
{
    last, all = Scan<num_scan_inputs = 1,
        body = b (float16[4] state, float16[4] each) => (float16[4] next, float16[4] out)
        { next = Add(state, each) out = Relu(next) }
    >(start, xs)
}"""
FEEDS = {
    CONV: {"x": _half(2, 3, 16, 16)},
    LSTM: {"x": _half(5, 2, 16)},
    MIXED: {"x": floats(3, 64)},
    TYPED: {"x": _half(4, 4), "dims": np.array([2, 3])},
    SEQUENCE: {"x": _half(4)},
    BRANCHES: {"c": np.array(True), "x": _half(2, 64)},
    LOOP: {"x": _half(4), "m": np.array(3), "go": np.array(True)},
    SCAN: {"start": _half(4), "xs": _half(3, 4, seed=1)},
}
WEIGHTS = {
    CONV: {"k": _half(32, 3, 3, 3, scale=0.2), "kb": _half(32), "l": _half(64, 32, 3, 3, scale=0.05)},
    LSTM: {"w": _half(1, 64, 16, scale=0.3), "r": _half(1, 64, 16, seed=1, scale=0.3)},
    MIXED: {"w": _half(64, 64, scale=0.1), "v": floats(64, 64)},
    BRANCHES: {"w": _half(64, 64, scale=0.1)},
}


def _close(before, after, feed, *, least_db=50):
    """Assert that two models have the same outputs up to the rounding of float16."""
    expected = run(before, feed)
    for optimize in (False, True):
        found = run(after, feed, optimize=optimize)
        assert list(found) == list(expected)
        for name, array in expected.items():
            assert (found[name].dtype, found[name].shape) == (array.dtype, array.shape)
            wide = array.astype(np.float64)
            noise = np.square(wide - found[name]).sum()
            assert noise <= np.square(wide).sum() * 10 ** (-least_db / 10)


def _left(model):
    """Return the values of 16 bits that nodes make, beside outputs of the model, as onnx infers their types."""
    proto = onnx.shape_inference.infer_shapes(onnx.load_from_string(model_io.to_bytes(model)), check_type=True)
    half = {onnx.TensorProto.FLOAT16, onnx.TensorProto.BFLOAT16}
    graphs, found = [proto.graph], []
    while graphs:
        graph = graphs.pop()
        outside = {info.name for info in (*graph.input, *graph.output)} if graph is proto.graph else set()
        for node in graph.node:
            graphs += [attribute.g for attribute in node.attribute if attribute.HasField("g")]
        infos = [*graph.value_info, *([] if graph is proto.graph else [*graph.input, *graph.output])]
        found += [i.name for i in infos if i.type.tensor_type.elem_type in half and i.name not in outside]
    return found


IDS = ["conv", "lstm", "mixed", "typed", "sequence", "branches", "loop", "scan"]


@pytest.mark.parametrize("text", list(FEEDS), ids=IDS)
def test_whole_models_compute_in_float32_and_keep_their_inputs_outputs_and_stored_weights(text):
    model = with_constants(text, **WEIGHTS.get(text, {}))
    assert computed_types(model) == {HALF}
    before = model_io.to_bytes(model)
    found = widened(model)
    assert model_io.to_bytes(model) == before
    assert computed_types(found) == set()
    assert _left(found) == []
    assert [(v.name, v.dtype) for v in found.graph.inputs] == [(v.name, v.dtype) for v in model.graph.inputs]
    assert [(v.name, v.dtype) for v in found.graph.outputs] == [(v.name, v.dtype) for v in model.graph.outputs]
    large = {name: a for name, a in WEIGHTS.get(text, {}).items() if a.dtype == np.float16 and a.nbytes > 200}
    for name, array in large.items():
        np.testing.assert_array_equal(found.graph.initializers[name].const_value.numpy(), array)
    assert len(model_io.to_bytes(found)) < len(before) + 1500
    _close(model, found, FEEDS[text])


def test_no_cast_between_float32_and_float32_is_left():
    found = widened(with_constants(MIXED, **WEIGHTS[MIXED]))
    assert op_types(found) == ["Cast", "Cast", "MatMul", "MatMul", "Relu"]  # of the weight, of the output z


def test_local_functions_are_widened_and_their_parameters_that_name_a_type():
    text = """<ir_version: 8, opset_import: ["": 17, "own": 1]>
    g (float[4] x) => (float16[4] y)
    { h = own.to<kind = 10>(x) y = own.twice(h) }
    <domain: "own", opset_import: ["": 17]> to <kind> (a) => (b) { b = Cast<to: int = @kind>(a) }
    <domain: "own", opset_import: ["": 17]> twice (a) => (b)
    { k = Constant<value = float16[1] {2}>() b = Mul(a, k) }"""
    model = model_io.load(onnx.parser.parse_model(text))
    found = widened(model)
    call = next(node for node in found.graph if node.op_type == "to")
    assert call.attributes["kind"].as_int() == int(SINGLE)
    constants = [node for node in query.nodes(found) if node.op_type == "Constant"]
    assert [node.attributes["value"].as_tensor().dtype for node in constants] == [SINGLE]
    _close(model, found, {"x": floats(4)})


def test_optionals_are_widened_with_the_type_that_an_attribute_names():
    half = onnx.helper.make_tensor_type_proto(onnx.TensorProto.FLOAT16, [4])
    nodes = [
        onnx.helper.make_node("Add", ["x", "x"], ["d"]),
        onnx.helper.make_node("Optional", ["d"], ["o"]),
        onnx.helper.make_node("OptionalGetElement", ["o"], ["y"]),
        onnx.helper.make_node("Optional", [], ["e"], name="empty", type=half),
        onnx.helper.make_node("OptionalHasElement", ["e"], ["has"]),
    ]
    ends = [onnx.helper.make_value_info(name, half) for name in ("x", "y")]
    ends.append(onnx.helper.make_tensor_value_info("has", onnx.TensorProto.BOOL, []))
    graph = onnx.helper.make_graph(nodes, "g", ends[:1], ends[1:])
    model = model_io.load(onnx.helper.make_model(graph, opset_imports=[onnx.helper.make_opsetid("", 17)], ir_version=8))
    found = widened(model)
    empty = next(node for node in found.graph if node.name == "empty")
    assert empty.attributes["type"].value.type.dtype is SINGLE
    _close(model, found, {"x": _half(4)})


def test_bfloat16_runs_where_onnxruntime_has_no_kernel_for_it():
    text = """g (float[n, 64] x, bfloat16[64, 32] w) => (float[n, 32] y)
    { h = Cast<to = 16>(x) m = MatMul(h, w) r = Relu(m) y = Cast<to = 1>(r) }"""
    weight = floats(64, 32).astype(ml_dtypes.bfloat16)
    model = with_constants(text, w=weight)
    feed = {"x": floats(3, 64, seed=1)}
    with pytest.raises(ModelError):
        run(model, feed)
    found = widened(model)
    assert found.graph.initializers["w"].dtype is ir.DataType.BFLOAT16
    np.testing.assert_allclose(
        run(found, feed)["y"], np.maximum(feed["x"] @ weight.astype(np.float32), 0), rtol=1e-5, atol=1e-5
    )


def test_numbers_beyond_float16_are_more_exact_than_before():
    text = "g (float16[n] x) => (float16[n] y) { s = Mul(x, x) y = Sqrt(s) }"
    x = np.array([300, 3], np.float16)
    np.testing.assert_array_equal(run(widened(from_text(text)), {"x": x})["y"], x)  # 300 * 300 is beyond 65504


def test_inputs_and_constants_that_are_outputs_themselves_stay_as_they_are():
    text = "g (float16[4] x, float16[200] w) => (float16[4] x, float16[200] w, float16[200] y) { y = Neg(w) }"
    proto = onnx.parser.parse_model('<ir_version: 8, opset_import: ["": 17]>\n' + text)
    model = model_io.load(proto)
    value = next(v for v in model.graph.inputs if v.name == "w")
    model.graph.inputs.remove(value)
    value.const_value = ir.tensor(_half(200), name="w")
    model.graph.register_initializer(value)
    found = widened(model)
    assert [(v.name, v.dtype) for v in found.graph.outputs] == [("x", HALF), ("w", HALF), ("y", HALF)]
    assert computed_types(found) == set()
    _close(model, found, {"x": _half(4)})


def test_an_input_with_a_default_can_still_be_given():
    model = from_text("g (float16[4] x, float16[4] b = {1, 2, 3, 4}) => (float16[4] y) { y = Add(x, b) }")
    found = widened(model)
    for feed in ({"x": _half(4)}, {"x": _half(4), "b": _half(4, seed=1)}):
        _close(model, found, feed)


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("g (float16[4] x) => (float16[4] y) { y = other.Op(x) }", "of other"),
        (
            "g (seq(float16[4]) s) => (float16[4] y) { y = ConcatFromSequence<axis = 0>(s) }",
            "s is no",
        ),
    ],
)
def test_what_can_not_be_widened_stays_whole_and_the_reason_is_said(text, reason):
    header = '<ir_version: 8, opset_import: ["": 17, "other": 1]>\n'
    model = model_io.load(onnx.parser.parse_model(header + text))
    before = model_io.to_bytes(model)
    (change,) = WidenFloat16().run(model, Context())
    assert change.action is Action.SKIPPED
    assert reason in change.reason
    assert model_io.to_bytes(model) == before


def test_models_that_only_store_16_bits_have_nothing_to_widen():
    stored = "g (float[n, 64] x, float16[64, 64] w) => (float[n, 64] y) { v = Cast<to = 1>(w) y = MatMul(x, v) }"
    for model in (with_constants(stored, w=_half(64, 64)), from_text("g (float[n] x) => (float[n] y) { y = Neg(x) }")):
        before = model_io.to_bytes(model)
        assert WidenFloat16().run(model, Context()) == []
        assert model_io.to_bytes(model) == before


def test_it_runs_where_the_target_gains_and_the_gate_admits_it():
    model = with_constants(CONV, **WEIGHTS[CONV])
    before = model_io.to_bytes(model)
    (kept,) = WidenFloat16().run(model, Context(target="tensorrt"))
    assert kept.action is Action.SKIPPED
    assert "fast on tensorrt" in kept.reason
    assert WidenFloat16().run(model, Context(gate=Gate(denied=frozenset({("widen-float16", "graph")})))) == []
    assert model_io.to_bytes(model) == before
    (done,) = WidenFloat16().run(model, Context())
    assert done.action is Action.APPLIED
    assert "computes in float32 instead of float16" in done.reason
    assert computed_types(model) == set()
    assert WidenFloat16().run(model, Context()) == []
