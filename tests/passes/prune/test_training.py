"""Cut models are trained whatever their opset; an operator without a derivative is named and costs training alone."""

import numpy as np
import onnx
import pytest
from onnx import helper, numpy_helper

import onnxcompress as oc
from onnxcompress.core import Action
from onnxcompress.io import model_io


def network(opset, middle):
    """Return a convolutional network with a pool, and a node of the given kind before its last layer."""
    random = np.random.default_rng(0)
    shapes = {"a": (16, 1, 3, 3), "b": (24, 16, 3, 3), "c": (5, 24), "d": (5,)}
    held = {
        name: (random.standard_normal(shape) / np.sqrt(np.prod(shape[1:]))).astype(np.float32)
        for name, shape in shapes.items()
    }
    nodes = [
        helper.make_node("Conv", ["x", "a"], ["1"], pads=[1, 1, 1, 1]),
        helper.make_node("Relu", ["1"], ["2"]),
        helper.make_node("MaxPool", ["2"], ["3"], kernel_shape=[3, 3], strides=[2, 2], pads=[1, 1, 1, 1]),
        helper.make_node("Conv", ["3", "b"], ["4"], name="second"),
        middle,
        helper.make_node("GlobalAveragePool", ["5"], ["6"]),
        helper.make_node("Flatten", ["6"], ["7"]),
        helper.make_node("Gemm", ["7", "c", "d"], ["y"], transB=1),
    ]
    graph = helper.make_graph(
        nodes,
        "g",
        [helper.make_tensor_value_info("x", onnx.TensorProto.FLOAT, ["n", 1, 12, 12])],
        [helper.make_tensor_value_info("y", onnx.TensorProto.FLOAT, ["n", 5])],
        [numpy_helper.from_array(array, name) for name, array in held.items()],
    )
    imports = [helper.make_opsetid("", opset), helper.make_opsetid("com.microsoft", 1)]
    return model_io.load(helper.make_model(graph, opset_imports=imports, ir_version=8))


def pruned(model):
    data = {"x": np.random.default_rng(1).standard_normal((128, 1, 12, 12)).astype(np.float32)}
    settings = ["prune-channels.keep_macs=0.7", "prune-channels.distill_steps=60", "prune-channels.rounds=1"]
    result = oc.compress(model, recipe="prune", data=data, settings=settings, max_drop=1.0)
    found = [change for change in result.changes if change.pass_name == "prune-channels" and change.details.get("kept")]
    assert [change.action for change in found] == [Action.APPLIED]
    assert result.report.output.macs <= 0.71 * result.report.input.macs
    return found[0]


@pytest.mark.parametrize("opset", [9, 11, 13, 18])
def test_a_network_with_a_pool_is_pruned_and_trained_at_every_opset(opset):
    change = pruned(network(opset, helper.make_node("Relu", ["4"], ["5"])))
    assert "loss on held-out samples" in change.details["distillation"]
    assert "not distilled" not in change.reason


def test_an_operator_without_a_derivative_is_named_in_the_report():
    change = pruned(network(13, helper.make_node("QuickGelu", ["4"], ["5"], name="quick", domain="com.microsoft")))
    assert "4 of 6 weights are not trained: QuickGelu 'quick' has no derivative" in change.details["distillation"]
    assert "QuickGelu 'quick'" in change.reason
