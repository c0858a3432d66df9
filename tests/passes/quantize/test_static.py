"""Static quantization: what is written, what the runtime makes of it, and how far the numbers are from floats."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx_ir as ir
import pytest

import onnxcompress as oc
from onnxcompress.base.gate import Gate
from onnxcompress.core import Action, Context, Need
from onnxcompress.graph import edit, query
from onnxcompress.io import model_io
from onnxcompress.passes.quantize.static import QuantizeStatic
from onnxcompress.runtime import session as runtime
from tests.helpers import floats, from_text, op_types, run

MODELS = Path(__file__).parents[3] / "models"
MAP = "float[1,32,20,20]"
K3 = "<pads=[1,1,1,1]>"


def _with(model: ir.Model, **arrays: np.ndarray) -> ir.Model:
    """Give graph inputs a constant value and nodes a name."""
    for value in list(model.graph.inputs):
        if value.name in arrays:
            name, array = value.name, arrays[value.name]
            value.name = None
            made = edit.add_initializer(model.graph, edit.Names(model), name, array)
            value.replace_all_uses_with(made)
            model.graph.inputs.remove(value)
    for index, node in enumerate(query.nodes(model)):
        node.name = f"{node.op_type}{index}"
    return model


def _conv_net(middle: str, outputs: str = f"{MAP} y", **weights: np.ndarray) -> ir.Model:
    weights = {"w": floats(32, 32, 3, 3) / 16, "b": floats(32), "v": floats(32, 32, 3, 3, seed=1) / 16, **weights}
    declared = ", ".join(f"float{list(a.shape)} {name}" for name, a in weights.items())
    text = f"g ({MAP} x, {declared}) => ({outputs}) {{a = Conv{K3}(x, w, b) {middle} y = Conv{K3}(z, v)}}"
    return _with(from_text(text), **weights)


FEEDS = [{"x": floats(1, 32, 20, 20, seed=s)} for s in range(4)]


def _quantized(model: ir.Model, feeds=FEEDS, **options) -> tuple[ir.Model, list]:
    copy = model_io.clone(model)
    return copy, QuantizeStatic().run(copy, Context(feeds=feeds, **options))


def _kernels(model: ir.Model) -> set[str]:
    return set(runtime.optimized_nodes(model_io.to_bytes(model)))


def _sqnr_db(model: ir.Model, other: ir.Model, feed=FEEDS[0], *, optimize=True) -> float:
    a, b = run(model, feed, optimize=optimize), run(other, feed, optimize=optimize)
    return min(10 * np.log10(np.square(a[k]).sum() / max(1e-30, np.square(a[k] - b[k]).sum())) for k in a)


@pytest.mark.parametrize(
    ("middle", "kernels"),
    [
        ("z = Relu(a)", {"QLinearConv"}),
        (
            "six = Constant<value_float=6.0>() zero = Constant<value_float=0.0>() z = Clip(a, zero, six)",
            {"QLinearConv"},
        ),
        ("s = Sigmoid(a) z = Mul(a, s)", {"QLinearConv", "QLinearSigmoid", "QLinearMul"}),
        ("r = Relu(a) z = MaxPool<kernel_shape=[3,3], pads=[1,1,1,1]>(r)", {"QLinearConv"}),
        (f"r = Relu(a) c = Conv{K3}(r, w) s = Add(c, r) z = Relu(s)", {"QLinearConv", "QLinearAdd"}),
        ("k = Constant<value_float=1.5>() m = Mul(a, k) z = Add(m, a)", {"QLinearMul", "QLinearAdd"}),
        ("p = GlobalAveragePool(a) g = Sigmoid(p) z = Mul(a, g)", {"QLinearGlobalAveragePool"}),
    ],
)
def test_islands_are_all_integers_and_near_the_floats(middle, kernels):
    model = _conv_net(middle)
    quantized, changes = _quantized(model)
    found = _kernels(quantized)
    assert kernels <= found
    assert not found & {"Conv", "FusedConv", "Relu", "Clip", "Add", "Mul", "Sigmoid"}
    text = runtime.optimized_nodes(model_io.to_bytes(quantized))
    assert (text.count("QuantizeLinear"), text.count("DequantizeLinear")) == (1, 1)
    reasons = {c.reason.partition(", weights in 7 bits")[0] for c in changes if c.target.startswith("Conv")}
    assert reasons == {"int8: QLinearConv"}
    assert _sqnr_db(model, quantized) > 28
    assert _sqnr_db(model, quantized, optimize=False) > 28


@pytest.mark.parametrize(
    ("middle", "conversions"),
    [
        ("h = HardSwish(a) z = Identity(h)", 2),
        ("g = HardSigmoid<alpha=0.16666667>(a) z = Mul(a, g)", 2),
        ("p = GlobalAveragePool(a) c = Conv(p, u) g = HardSigmoid(c) z = Mul(a, g)", 1),
    ],
)
def test_a_quantizer_saturates_in_place_of_a_hard_sigmoid(middle, conversions):
    model = _conv_net(middle, u=floats(32, 32, 1, 1, seed=3) / 4)
    quantized, _ = _quantized(model)
    found = runtime.optimized_nodes(model_io.to_bytes(quantized))
    assert not {"HardSigmoid", "HardSwish", "Mul", "Conv"} & set(found)
    assert (found.count("QuantizeLinear"), found.count("DequantizeLinear")) == (conversions, conversions)
    assert _sqnr_db(model, quantized) > 28
    assert _sqnr_db(model, quantized, optimize=False) > 28


def test_a_hard_sigmoid_without_a_zero_point_stays_on_floats():
    model = _conv_net("g = HardSigmoid<beta=0.3>(a) z = Mul(a, g)")
    quantized, _ = _quantized(model)
    assert "HardSigmoid" in _kernels(quantized)
    assert _sqnr_db(model, quantized) > 28


def test_a_value_that_floats_read_too_is_dequantized_for_all():
    model = _conv_net("r = Relu(a) e = Erf(r) z = Relu(r)", outputs=f"{MAP} y, {MAP} e, {MAP} r")
    quantized, _ = _quantized(model)
    assert [o.name for o in quantized.graph.outputs] == ["y", "e", "r"]
    assert "QLinearConv" in _kernels(quantized)
    assert not _kernels(quantized) & {"Conv", "FusedConv"}
    assert _sqnr_db(model, quantized) > 28


def test_products_with_a_bias_hand_on_floats_without_rounding_them():
    text = """g (float[2,64,128] x, float[128,256] w, float[256] b, float[256,128] v) => (float[2,64,128] y) {
        m = MatMul(x, w) a = Add(m, b) e = Erf(a) y = MatMul(e, v) }"""
    model = _with(from_text(text), w=floats(128, 256) / 8, b=floats(256), v=floats(256, 128, seed=2) / 8)
    feeds = [{"x": floats(2, 64, 128, seed=s)} for s in range(3)]
    quantized, changes = _quantized(model, feeds)
    found = runtime.optimized_nodes(model_io.to_bytes(quantized))
    assert found.count("MatMulIntegerToFloat") == 2
    assert "Gemm" not in found
    assert [c.action for c in changes] == [Action.APPLIED] * 2
    assert _sqnr_db(model, quantized, feeds[0]) > 30


def test_a_matrix_product_of_two_axes_becomes_an_integer_one():
    text = "g (float[64,128] x, float[96,128] w, float[96] b) => (float[64,96] y) { y = Gemm<transB=1>(x, w, b) }"
    model = _with(from_text(text), w=floats(96, 128) / 8, b=floats(96))
    feeds = [{"x": floats(64, 128, seed=s)} for s in range(3)]
    quantized, _ = _quantized(model, feeds)
    assert "QGemm" in _kernels(quantized)
    assert _sqnr_db(model, quantized, feeds[0]) > 32


def test_bodies_of_branches_are_quantized_where_a_sample_takes_them():
    branches = [
        f"{o} () => ({MAP} {o}) {{ {o}a = Conv{K3}(x, w) {o}r = Relu({o}a) {o} = Conv{K3}({o}r, v) }}" for o in "pq"
    ]
    text = f"""g (bool c, {MAP} x, float[32,32,3,3] w, float[32,32,3,3] v) => ({MAP} y) {{
        y = If (c) <then_branch = {branches[0]}, else_branch = {branches[1]}> }}"""
    model = _with(from_text(text), w=floats(32, 32, 3, 3) / 16, v=floats(32, 32, 3, 3, seed=1) / 16)
    feeds = [{**feed, "c": np.asarray(True)} for feed in FEEDS]
    quantized, changes = _quantized(model, feeds)
    assert "QLinearConv" in _kernels(quantized)
    assert sum(c.action is Action.APPLIED for c in changes) == 2
    assert "no sample computes it" in next(c.reason for c in changes if c.action is Action.SKIPPED)
    assert _sqnr_db(model, quantized, feeds[0]) > 28
    other = {**feeds[0], "c": np.asarray(False)}
    assert _sqnr_db(model, quantized, other) > 100


def test_a_shared_weight_is_stored_once():
    model = _conv_net(f"r = Relu(a) t = Conv{K3}(r, v) z = Relu(t)")
    quantized, _ = _quantized(model)
    assert op_types(quantized).count("Conv") == 3
    assert (
        sum(v.dtype == ir.DataType.INT8 and len(v.shape or ()) == 4 for v in quantized.graph.initializers.values()) == 2
    )


def test_a_bias_that_int32_can_not_hold_raises_the_scale():
    w = floats(32, 32, 3, 3) / 16
    w[3] *= 1e-12
    w[5] = 0
    model = _conv_net("z = Relu(a)", w=w, b=np.full(32, 3.0, np.float32))
    quantized, _ = _quantized(model)
    assert _sqnr_db(model, quantized) > 28
    scale = next(query.constant(v) for n, v in quantized.graph.initializers.items() if n == "w_scale")
    assert scale is not None
    step = scale * 8 / 255
    assert (3.0 / step < 2**31).all()
    assert scale[5] < 1e-6


def test_a_second_run_and_a_closed_gate_change_nothing():
    model = _conv_net("z = Relu(a)")
    quantized, _ = _quantized(model)
    before = model_io.to_bytes(quantized)
    again = QuantizeStatic().run(quantized, Context(feeds=FEEDS))
    assert model_io.to_bytes(quantized) == before
    assert not [c for c in again if c.action is Action.APPLIED]
    untouched, changes = _quantized(model, gate=Gate(limit=0))
    assert model_io.to_bytes(untouched) == model_io.to_bytes(model)
    assert all(c.action is Action.SKIPPED for c in changes)


def test_a_layer_that_is_taken_back_or_left_out_stays_on_floats():
    model = _conv_net("z = Relu(a)")
    denied = Gate(denied=frozenset({("quantize-static", "Conv0")}))
    quantized, changes = _quantized(model, gate=denied)
    assert denied.admitted == [("quantize-static", "Conv2")]
    assert {c.target: c.action for c in changes} == {"Conv2": Action.APPLIED, "Conv0": Action.SKIPPED}
    assert {"QLinearConv", "Conv"} <= _kernels(quantized)
    _, changes = _quantized(model, selects=lambda node: node.name != "Conv0")
    assert next(c.reason for c in changes if c.target == "Conv0") == "float: left out by --only/--skip"


@pytest.mark.parametrize(("bad", "why"), [(np.nan, "NaN"), (0.0, "always zero")])
def test_values_without_a_range_stay_on_floats(bad, why):
    feeds = [{"x": np.full((1, 32, 20, 20), bad, np.float32)}]
    _, changes = _quantized(_conv_net("z = Relu(a)"), feeds)
    assert why in next(c.reason for c in changes if c.target == "Conv0")


def test_an_old_opset_is_raised_only_as_far_as_needed():
    model = _conv_net("z = Relu(a)")
    old = model_io.clone(model)
    old.opset_imports[""] = 12
    changes = QuantizeStatic().run(old, Context(feeds=FEEDS))
    assert query.opset(old) == 13
    assert changes[0].target == "opset 13"
    assert _sqnr_db(model, old) > 28


def test_the_opset_stays_where_nothing_is_quantized():
    text = "g (float[1,1,4,4] x, float[1,1,1,1] w) => (float[1,1,4,4] y) { y = Conv(x, w) }"
    model = _with(from_text(text, opset=12), w=np.ones((1, 1, 1, 1), np.float32))
    before = model_io.to_bytes(model)
    changes = QuantizeStatic().run(model, Context(feeds=[{"x": floats(1, 1, 4, 4)}]))
    assert model_io.to_bytes(model) == before
    assert [c.action for c in changes] == [Action.SKIPPED]


ATTENTION = """g (float[1,256,256] x, float[256,256] w) => (float[1,256,256] y) {
    q = MatMul(x, w) k = Transpose<perm=[0,2,1]>(x) s = MatMul(q, k) y = Erf(s) }"""


def test_products_of_activations_come_last_and_can_be_taken_back():
    model = _with(from_text(ATTENTION), w=floats(256, 256) / 16)
    feeds = [{"x": floats(1, 256, 256, seed=s)} for s in range(2)]
    gate = Gate()
    quantized, changes = _quantized(model, feeds, gate=gate)
    assert [target for _, target in gate.admitted] == ["MatMul0", "MatMul2"]
    assert next(c.reason for c in changes if c.target == "MatMul2") == "int8: a product of activations"
    assert runtime.optimized_nodes(model_io.to_bytes(quantized)).count("MatMulIntegerToFloat") == 1
    quantized, _ = _quantized(model, feeds, gate=Gate(limit=1))
    assert "FusedMatMul" in _kernels(quantized)
    assert "MatMulIntegerToFloat" in _kernels(quantized)


def test_what_a_loop_carries_stays_on_floats():
    text = """g (float[1,256,256] x) => (float[1,256,256] y) {
        n = Constant<value_int=2>() t = Constant<value=bool {1}>()
        y = Loop(n, t, x) <body = b (int64 i, bool c, float[1,256,256] h) => (bool d, float[1,256,256] o) {
            d = Identity(c) m = MatMul(h, h) o = Tanh(m) }> }"""
    model = _with(from_text(text))
    gate = Gate()
    _quantized(model, [{"x": floats(1, 256, 256)}], gate=gate)
    assert gate.admitted == []


def test_noise_that_counts_more_leaves_more_on_floats():
    model = _conv_net("h = HardSwish(a) z = Identity(h)")
    found = []
    for noise in (0.0, 1e3, 1e9):
        copy = model_io.clone(model)
        QuantizeStatic(noise_ps=noise).run(copy, Context(feeds=FEEDS))
        found.append(runtime.optimized_nodes(model_io.to_bytes(copy)))
    assert "QLinearMul" in found[0]
    assert "QLinearMul" not in found[1]
    assert "QLinearConv" in found[1]
    assert not {"QLinearConv", "QuantizeLinear"} & set(found[2])


def test_layers_that_would_saturate_16_bit_sums_get_weights_of_seven_bits():
    even = (1 + 0.01 * floats(32, 32, 3, 3)) / 300  # products of one sign: neighbours add up beyond int16
    peaked = floats(32, 32, 3, 3, seed=1) / 16
    peaked[:, 0, 0, 0] = 2  # all others are small integers
    model = _conv_net("z = Relu(a)", w=even.astype(np.float32), b=np.zeros(32, np.float32), v=peaked)
    feeds = [{"x": np.abs(feed["x"]) + 3} for feed in FEEDS]
    most = {}
    for kind in ("narrow", "wide"):
        copy = model_io.clone(model)
        changes = QuantizeStatic(accumulator=kind).run(copy, Context(feeds=feeds))
        integers = {n: v.const_value.numpy() for n, v in copy.graph.initializers.items() if n.endswith("_int8")}
        most[kind] = {name: int(np.abs(array.astype(int)).max()) for name, array in integers.items()}
        seven = "int8: QLinearConv, weights in 7 bits against saturation"
        assert {c.target: c.reason for c in changes if c.target != "graph"} == {
            "Conv0": seven if kind == "narrow" else "int8: QLinearConv",
            "Conv2": "int8: QLinearConv",
        }
    assert (most["narrow"]["w_int8"], most["narrow"]["v_int8"]) == (63, 127)
    assert most["wide"]["w_int8"] == 127


def test_guarded_ranges_give_up_rare_extremes_for_the_rest():
    model = _conv_net("z = Relu(a)")
    spiked = FEEDS[0]["x"].copy()
    spiked[0, 0, 0, 0] = 300.0
    feeds = [*FEEDS, {"x": spiked}]
    found = {}
    for kind in ("extremes", "guarded"):
        copy = model_io.clone(model)
        QuantizeStatic(ranges=kind).run(copy, Context(feeds=feeds))
        found[kind] = _sqnr_db(model, copy, FEEDS[1])
    assert found["guarded"] > found["extremes"] + 0.5


def test_other_targets_get_their_own_types():
    model = _conv_net("z = Relu(a)")
    quantized, changes = _quantized(model, target="tensorrt")
    zeros = {str(v.dtype) for n, v in quantized.graph.initializers.items() if n.startswith("zero_point")}
    assert zeros == {"INT8"}
    assert "documentation" in changes[0].reason
    assert _sqnr_db(model, quantized, optimize=False) > 24
    quantized, _ = _quantized(model, target="qnn")
    assert "INT32" in {str(v.dtype) for v in quantized.graph.initializers.values()}
    scales = [v for n, v in quantized.graph.initializers.items() if n == "w_scale"]
    assert len(scales[0].shape or ()) == 0


def test_data_is_needed():
    assert QuantizeStatic.needs == frozenset({Need.DATA})


@pytest.mark.parametrize(
    ("name", "kernel", "kept", "layers"),
    [
        ("resnet14", "QLinearConv", 0.29, 15),
        ("mbv2", "QLinearConv", 0.40, 21),
        ("vit", "MatMulIntegerToFloat", 0.40, 16),
    ],
)
def test_real_models_run_on_integers_and_keep_their_answers(name, kernel, kept, layers):
    with np.load(MODELS / "fmnist_calib.npz") as file:
        data = {key: file[key] for key in file.files}
    images = next(a for a in data.values() if a.ndim >= 3)[:96].astype(np.float32)
    images = ((images / 255 - 0.2860) / 0.3530 if images.max() > 10 else images).reshape(-1, 1, 28, 28)
    model = oc.compress(MODELS / f"{name}.onnx", recipe="fold").model
    key = model.graph.inputs[0].name or ""
    quantized, changes = _quantized(model, [{key: image[None]} for image in images[:32]])
    assert runtime.optimized_nodes(model_io.to_bytes(quantized)).count(kernel) >= layers - 2
    assert sum(c.reason.startswith("int8") for c in changes) >= layers
    feed = {key: images[32:]}
    plain, small = (next(iter(run(m, feed, optimize=True).values())) for m in (model, quantized))
    assert (plain.argmax(1) == small.argmax(1)).mean() > 0.95
    assert len(model_io.to_bytes(quantized)) < kept * len(model_io.to_bytes(model))


def test_a_layer_without_a_name_is_told_by_that_of_its_output_before():
    """Its output is the graph's, so that the layer itself gets another one when quantizers are written."""
    model = _conv_net("z = Relu(a)")
    for node in model.graph:
        node.name = None
    changes = QuantizeStatic().run(model, Context(feeds=FEEDS))
    assert {"Conv:a", "Conv:y"} <= {change.target for change in changes if change.action is Action.APPLIED}
