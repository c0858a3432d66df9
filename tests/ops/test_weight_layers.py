"""Layers with weights are found in every form: floats, and what quantizers make of them, ours included."""

from __future__ import annotations

import numpy as np
import pytest
from onnx import TensorProto, helper, numpy_helper

import onnxcompress as oc
from onnxcompress.core import Action
from onnxcompress.io import model_io
from onnxcompress.ops.weight_layers import quantized_state, weighted_layers
from tests.helpers import floats, from_text, with_constants

MICROSOFT = "com.microsoft"
RANDOM = np.random.default_rng(0)


def _int8(*shape):
    return RANDOM.integers(-127, 128, shape).astype(np.int8)


def _uint8(*shape):
    return RANDOM.integers(0, 256, shape).astype(np.uint8)


ONE, ZERO, ZERO_U = np.float32(0.1), np.int8(0), np.uint8(128)
SCALES, ZEROS = np.full(48, 0.01, np.float32), np.zeros(48, np.int8)
NBITS = {"K": 64, "N": 48, "bits": 4, "block_size": 32}
FORMS = {
    "QLinearConv": ("", ["q", ONE, ZERO_U, _int8(48, 64, 1, 1), SCALES, ZEROS, ONE, ZERO_U], {}, "int8"),
    "QLinearMatMul": ("", ["q", ONE, ZERO_U, _int8(64, 48), ONE, ZERO, ONE, ZERO_U], {}, "int8"),
    "ConvInteger": ("", ["q", _int8(48, 64, 1, 1), ZERO_U], {}, "int8"),
    "MatMulInteger": ("", ["q", _uint8(64, 48), ZERO_U], {}, "uint8"),
    "MatMulNBits": (MICROSOFT, ["x", _uint8(48, 2, 16), SCALES.repeat(2)], NBITS, "uint4"),
    "GatherBlockQuantized": (MICROSOFT, [_uint8(90, 16), "i", np.ones((90, 1), np.float32)], {"bits": 4}, "uint4"),
    "QGemm": (MICROSOFT, ["q", ONE, ZERO_U, _int8(64, 48), SCALES, ZEROS], {}, "int8"),
    "DynamicQuantizeMatMul": (MICROSOFT, ["x", _int8(64, 48), SCALES], {}, "int8"),
    "MatMulIntegerToFloat": (MICROSOFT, ["q", _int8(64, 48), ONE, SCALES], {}, "int8"),
}  # fmt: skip
"""Operator -> domain, inputs (values by name, constants), attributes, and the type that is to be reported."""


@pytest.mark.parametrize("op_type", list(FORMS))
def test_integer_operators_hold_their_weights_in_integers(op_type):
    domain, given, attributes, form = FORMS[op_type]
    names, stored = [], []
    for index, each in enumerate(given):
        if isinstance(each, str):
            names.append(each)
        else:
            names.append(f"c{index}")
            stored.append(numpy_helper.from_array(np.asarray(each), f"c{index}"))
    node = helper.make_node(op_type, names, ["y"], name="one", domain=domain, **attributes)
    kinds = {"x": TensorProto.FLOAT, "q": TensorProto.UINT8, "i": TensorProto.INT64}
    inputs = [helper.make_tensor_value_info(name, kinds[name], None) for name in names if name in kinds]
    graph = helper.make_graph(
        [node], "g", inputs, [helper.make_tensor_value_info("y", TensorProto.FLOAT, None)], stored
    )
    opsets = [helper.make_opsetid("", 17), helper.make_opsetid(MICROSOFT, 1)]
    model = model_io.load(helper.make_model(graph, opset_imports=opsets, ir_version=9))
    (layer,) = weighted_layers(model)
    assert (layer.label, layer.form) == ("one", form)
    largest = max((each for each in given if not isinstance(each, str)), key=lambda each: np.asarray(each).size)
    assert quantized_state(model).quantized[form].bytes == largest.nbytes
    assert quantized_state(model).floats.layers == 0


def test_weights_behind_a_dequantizer_and_a_transpose():
    text = """g (float[n, 64] x, int8[48, 64] q, float[48] s) => (float[n, 48] y) {
        w = DequantizeLinear<axis = 0>(q, s) t = Transpose<perm = [1, 0]>(w) [one] y = MatMul(x, t) }"""
    (layer,) = weighted_layers(with_constants(text, q=_int8(48, 64), s=SCALES))
    assert (layer.label, layer.form, layer.weights[0].aliases) == ("one", "int8", ("w", "t"))


@pytest.mark.parametrize("recipe", ["int8-weights", "int4-weights", "cluster"])
def test_what_we_quantized_is_recognised(recipe):
    text = """g (float[n, 64] x, float[64, 256] a, float[256, 64] b) => (float[n, 64] y) {
        h = MatMul(x, a) r = Relu(h) y = MatMul(r, b) }"""
    model = with_constants(text, a=floats(64, 256), b=floats(256, 64, seed=1))
    assert quantized_state(model) is None
    state = quantized_state(oc.compress(model, recipe=recipe).model)
    assert sum(group.layers for group in state.quantized.values()) == 2
    assert state.floats.layers == 0


HALF = """g (float[n, 16, 8, 8] x, int8[32, 16, 3, 3] q, float[32] s, float[32, 400] w) => (float[n, 400] y) {
    a = DequantizeLinear<axis = 0>(q, s) [conv] c = Conv<pads = [1, 1, 1, 1]>(x, a) r = Relu(c)
    p = GlobalAveragePool(r) f = Flatten(p) [product] y = MatMul(f, w) }"""


def _half():
    scale = np.full(32, 0.001, np.float32)
    return with_constants(HALF, q=_int8(32, 16, 3, 3), s=scale, w=0.1 * floats(32, 400))


def test_the_float_half_of_a_half_quantized_model_is_quantized():
    report = oc.compress(_half(), recipe="int8-weights").report
    by_target = {c.target: c for c in report.changes if c.pass_name == "quantize-weights"}
    assert by_target["w"].action is Action.APPLIED
    assert (by_target["conv"].action, by_target["conv"].reason) == (Action.SKIPPED, "its weights are int8 already")
    assert report.output.bytes < 0.5 * report.input.bytes
    state = report.quantized_before
    assert (state.quantized["int8"].names, state.quantized["int8"].bytes) == (("conv",), 32 * 16 * 9)
    assert (state.floats.names, state.floats.bytes) == (("product",), 4 * 32 * 400)
    assert report.as_json()["quantized_before"]["floats"]["operators"] == {"MatMul": 1}
    (note,) = [note for note in report.notes if "quantized already" in note]
    assert note.endswith("in float remain 1 layer with 51,200 bytes (MatMul 1: product)")


@pytest.mark.parametrize("recipe", ["int8-weights", "int4-weights", "float16", "sparse"])
def test_a_quantized_model_says_why_nothing_was_done(recipe):
    text = """g (float[n, 64] x, int8[64, 48] q, float[48] s) => (float[n, 48] y) {
        w = DequantizeLinear<axis = 1>(q, s) [one] y = MatMul(x, w) }"""
    report = oc.compress(with_constants(text, q=_int8(64, 48), s=SCALES), recipe=recipe).report
    (note,) = [note for note in report.notes if "quantized already" in note]
    assert note == (
        "quantized already are int8: 1 layer with 3,072 bytes (MatMul 1: one); "
        "no layer with weights remains in float: this is why the recipe did nothing more"
    )
    lossy = [c for c in report.changes if c.target == "one"]
    assert lossy
    assert all(c.action is Action.SKIPPED for c in lossy)


def test_inspect_shows_what_is_quantized():
    found = oc.inspect(_half())
    assert found.quantized.quantized["int8"].names == ("conv",)
    assert found.as_json()["quantized"]["floats"]["bytes"] == 4 * 32 * 400
    weights = next(reach for reach in found.passes if reach.pass_name == "quantize-weights")
    assert [(b.reason, b.examples) for b in weights.blocked] == [("its weights are int8 already", ("conv",))]


def test_a_float_model_has_no_quantized_state():
    assert quantized_state(from_text("g (float[n] x) => (float[n] y) { y = Relu(x) }")) is None
    assert oc.inspect(with_constants("g (float[n, 64] x, float[64, 48] w) => (float[n, 48] y) { y = MatMul(x, w) }",
                                     w=floats(64, 48))).quantized is None  # fmt: skip


def test_activations_that_are_joined_with_a_constant_are_no_weights_of_what_follows():
    text = """g (float[1, 7, 64] x, float[1, 1, 64] token, float[64, 48] w) => (float[1, 8, 48] y) {
        j = Concat<axis = 1>(token, x) [one] y = MatMul(j, w) }"""
    layers = {
        layer.label: layer for layer in weighted_layers(with_constants(text, token=floats(1, 1, 64), w=floats(64, 48)))
    }
    assert [w.name for w in layers["one"].weights] == ["w"]
