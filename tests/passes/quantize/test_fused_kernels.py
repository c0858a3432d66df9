"""What the runtime made of units that were meant to run on integers."""

from __future__ import annotations

from onnxcompress.passes.quantize.fused_kernels import read_back
from onnxcompress.runtime.session import OptimizedNode

UNITS = [("conv", ["conv", "relu"]), ("add", ["add"])]


def test_a_layer_whose_integers_a_kernel_reads_is_int8():
    found = read_back([OptimizedNode("QLinearConv", "conv", ("x", "w_int8"), ("y",))], {"conv": "w_int8"}, UNITS)
    assert found.of_layer == {"conv": "QLinearConv"}
    assert not found.fallen


def test_a_dequantized_weight_has_fallen_back():
    nodes = [
        OptimizedNode("DequantizeLinear", "dq", ("w_int8", "s"), ("w",)),
        OptimizedNode("Conv", "conv", ("x", "w"), ("y",)),
    ]
    found = read_back(nodes, {"conv": "w_int8"}, UNITS)
    assert "dequantizes its weight" in found.fallen["conv"]
    assert not found.of_layer


def test_a_weight_that_is_gone_is_not_believed_to_be_int8():
    assert "conv" in read_back([], {"conv": "w_int8"}, UNITS).fallen


def test_an_operator_between_that_reads_floats_has_fallen_back():
    nodes = [
        OptimizedNode("DequantizeLinear", "dq", ("x_q", "s"), ("x",)),
        OptimizedNode("Add", "add", ("x", "y"), ("z",)),
        OptimizedNode("Softmax", "not meant to", ("x",), ("p",)),
    ]
    assert dict(read_back(nodes, {}, UNITS).fallen) == {"add": "the runtime runs Add on floats"}
