"""Units, and which of them run on integers."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir
import pytest

from onnxcompress.graph import edit
from onnxcompress.passes.quantize.kernel_groups import units
from onnxcompress.passes.quantize.placement import plan
from onnxcompress.shapes import infer as shapes
from onnxcompress.targets import facts as targets
from tests.helpers import from_text

CPU = targets.static_facts("cpu")


def _net(
    body: str, *, inputs: str = "float[1,64,28,28] x", outputs: str = "float[1,64,28,28] y", **weights
) -> ir.Model:
    """Return a model; weights are given by their shape."""
    model = from_text(
        f"g ({inputs}{''.join(f', float{list(s)} {n}' for n, s in weights.items())}) => ({outputs}) {{{body}}}"
    )
    names = edit.Names(model)
    for value in list(model.graph.inputs):
        if value.name in weights:
            array = np.random.default_rng(0).standard_normal(weights[value.name]).astype(np.float32)
            value.replace_all_uses_with(edit.add_initializer(model.graph, names, f"{value.name}_w", array))
            model.graph.inputs.remove(value)
    for index, node in enumerate(model.graph):
        node.name = f"{node.op_type}{index}"
    return model


def _units(model):
    return units(model.graph, CPU, shapes.infer(model))


def _placed(model, **options):
    return plan(model, CPU, shapes.infer(model), refused=options.pop("refused", {}), **options)


def _labels(placement):
    return [unit.label for unit in placement.units]


K3 = "<pads=[1,1,1,1]>"


def test_a_convolution_takes_its_activation_function_along():
    found, _ = _units(_net(f"a = Conv{K3}(x, w) y = Relu(a)", w=(64, 64, 3, 3)))
    assert [[n.op_type for n in u.nodes] for u in found] == [["Conv", "Relu"]]
    assert found[0].least == 0.0


@pytest.mark.parametrize(
    ("body", "why"),
    [
        (f"a = Conv{K3}(x, w) b = Relu(a) y = Add(a, b)", "read by another node too"),
        (f"a = Conv{K3}(x, w) y = HardSwish(a)", "no saturation"),
        (f"low = Constant<value_float=-1.0>() a = Conv{K3}(x, w) y = Clip(a, low)", "a bound that is not 0"),
    ],
)
def test_what_a_convolution_does_not_absorb(body, why):
    found, _ = _units(_net(body, w=(64, 64, 3, 3)))
    assert [n.op_type for n in found[0].nodes] == ["Conv"], why


def test_a_product_takes_its_bias_along():
    model = _net("a = MatMul(x, w) y = Add(b, a)", inputs="float[4,16] x", outputs="float[4,8] y", w=(16, 8), b=(8,))
    found, _ = _units(model)
    assert [[n.op_type for n in u.nodes] for u in found] == [["MatMul", "Add"]]
    assert found[0].bias == (found[0].behind[0], 0)


def test_an_add_of_something_else_is_no_bias():
    model = _net("a = MatMul(x, w) y = Add(b, a)", inputs="float[4,16] x", outputs="float[4,8] y", w=(16, 8), b=(4, 8))
    found, _ = _units(model)
    assert [[n.op_type for n in u.nodes] for u in found] == [["MatMul"], ["Add"]]


@pytest.mark.parametrize(
    ("body", "weights", "why"),
    [
        ("y = Gemm<transA=1>(x, w)", {"w": (4, 8)}, "transA"),
        ("y = Gemm<beta=0.5>(x, w, b)", {"w": (16, 8), "b": (8,)}, "beta"),
        ("y = Gemm(x, w, b)", {"w": (16, 8), "b": (1,)}, "bias"),
        ("y = MatMul(w, x)", {"w": (8, 4)}, "left operand"),
        ("y = MatMul(x, w)", {"w": (2, 16, 8)}, "3 axes"),
        ("a = Relu(x) y = ConvTranspose(a, w)", {"w": (4, 8, 3)}, "no integer kernel"),
    ],
)
def test_layers_that_stay_on_floats_say_why(body, weights, why):
    model = _net(body, inputs="float[4,16] x", outputs="float y", **weights)
    found, refused = _units(model)
    assert not [u for u in found if u.weight is not None]
    assert why in next(iter(refused.values()))


def test_what_is_quantized_already_is_left_alone():
    scale = "s = Constant<value_float=0.1>() "
    model = _net(scale + f"q = QuantizeLinear(x, s) d = DequantizeLinear(q, s) y = Conv{K3}(d, w)", w=(64, 64, 3, 3))
    found, refused = _units(model)
    assert not found
    assert "already" in next(iter(refused.values()))


def test_a_residual_block_is_one_island():
    model = _net(
        f"a = Conv{K3}(x, w) b = Relu(a) c = Conv{K3}(b, v) d = Add(c, b) e = Relu(d) y = Conv{K3}(e, u)",
        w=(64, 64, 3, 3),
        v=(64, 64, 3, 3),
        u=(64, 64, 3, 3),
    )
    placement = _placed(model)
    assert _labels(placement) == ["Conv0", "Conv2", "Add3", "Conv5"]
    assert [q.source.name for q in placement.quantizers] == ["b", "c", "e", "y", "x"]


def test_a_convolution_too_small_for_a_round_trip_stays_on_floats():
    placement = _placed(_net("y = Conv(x, w)", w=(64, 1, 1, 1), inputs="float[1,1,28,28] x"))
    assert not placement.units
    assert "conversions cost" in next(iter(placement.reasons.values()))


def test_a_slow_kernel_joins_where_two_conversions_would_cost_more():
    layers = {"w": (64, 64, 3, 3), "v": (64, 1, 3, 3), "u": (64, 64, 3, 3)}
    model = _net(f"a = Conv{K3}(x, w) b = Conv<pads=[1,1,1,1], group=64>(a, v) y = Conv{K3}(b, u)", **layers)
    assert _labels(_placed(model)) == ["Conv0", "Conv1", "Conv2"]
    alone = _net("y = Conv<pads=[1,1,1,1], group=64>(x, v)", v=(64, 1, 3, 3))
    assert "faster on floats" in next(iter(_placed(alone).reasons.values()))


def test_moved_elements_share_a_quantizer():
    model = _net(
        f"a = Conv{K3}(x, w) b = MaxPool<kernel_shape=[2,2]>(a) y = Conv{K3}(b, v)", w=(64, 64, 3, 3), v=(64, 64, 3, 3)
    )
    shared = next(q for q in _placed(model).quantizers if q.source.name == "a")
    assert [v.name for v in shared.made] == ["a", "b"]


def test_a_last_product_hands_on_floats():
    model = _net("y = MatMul(x, w)", inputs="float[1,128,384] x", outputs="float[1,128,384] y", w=(384, 384))
    placement = _placed(model)
    assert _labels(placement) == ["MatMul0"]
    assert [q.source.name for q in placement.quantizers] == ["x"]


def test_refused_nodes_and_layers_taken_back_stay_on_floats():
    model = _net(f"a = Conv{K3}(x, w) b = Relu(a) y = Conv{K3}(b, v)", w=(64, 64, 3, 3), v=(64, 64, 3, 3))
    assert _labels(_placed(model, refused={"Relu1": "why not"})) == ["Conv2"]
    placement = _placed(model, only={"Conv0"})
    assert _labels(placement) == ["Conv0"]
    assert placement.reasons == {node: "taken back" for node in model.graph if node.name == "Conv2"}


def test_sizes_decide():
    body = "y = MatMul(x, w)"
    few = _net(body, inputs="float[1,4] x", outputs="float[1,8] y", w=(4, 8))
    many = _net(body, inputs="float[256,256] x", outputs="float[256,256] y", w=(256, 256))
    assert not _placed(few).units
    assert _placed(many).units
