"""Gaps of the derivative cost the weights before them only; every opset has derivatives."""

import numpy as np
import onnx
import pytest
from onnx import helper, numpy_helper

from onnxcompress.distillation import loss_graph, trainable
from onnxcompress.distillation.gradients.reverse import NoDerivativeError, reverse
from onnxcompress.distillation.train import distill
from onnxcompress.graph import query
from onnxcompress.io import model_io
from onnxcompress.quality.divergence import DivergenceKind
from onnxcompress.runtime import session as runtime
from tests.helpers import run

from .differences import check, differences, normal, scalar_loss, spaced


def test_an_operator_without_a_derivative_costs_the_weights_before_it_only():
    feed = {"x": normal(2, 3), "a": normal(3, 3, seed=1), "b": normal(3, 3, seed=2), "c": normal(3, 3, seed=3)}
    nodes = [
        helper.make_node("MatMul", ["x", "a"], ["h"]),
        helper.make_node("Gelu", ["h"], ["g"], name="fused", domain="com.microsoft"),
        helper.make_node("MatMul", ["g", "b"], ["p"]),
        helper.make_node("MatMul", ["x", "c"], ["q"]),
        helper.make_node("Add", ["p", "q"], ["y"]),
    ]
    proto = scalar_loss(nodes, feed)
    found = reverse(proto, [feed], ["a", "b", "c"], "loss")
    assert set(found.outputs) == {"b", "c"}
    assert [(each.operator, each.label, each.weights) for each in found.blocked] == [("Gelu", "fused", {"a"})]
    assert "1 of 3 weights are not trained: Gelu 'fused' has no derivative" in found.gaps()
    session = runtime.open_session(found.model.SerializeToString(), optimize=True)
    np.testing.assert_allclose(session.run(feed)[found.outputs["b"]], differences(proto, feed, "b"), atol=2e-2)
    with pytest.raises(NoDerivativeError, match="Gelu 'fused': it is of the domain"):
        reverse(proto, [feed], ["a"], "loss")


def test_a_weight_without_a_derivative_costs_itself_only():
    feed = {"x": normal(2, 3), "a": normal(3, 3, seed=1), "low": np.asarray(-0.3, np.float32)}
    nodes = [helper.make_node("MatMul", ["x", "a"], ["h"]), helper.make_node("Clip", ["h", "low"], ["y"])]
    found = reverse(scalar_loss(nodes, feed), [feed], ["a", "low"], "loss")
    assert set(found.outputs) == {"a"}
    assert [(each.operator, each.weights) for each in found.blocked] == [("Clip", {"low"})]


def test_weights_that_change_nothing_are_left_out():
    feed = {"x": normal(2, 3), "a": normal(3, seed=1)}
    nodes = [
        helper.make_node("Mul", ["x", "a"], ["h"]),
        helper.make_node("Round", ["h"], ["r"]),
        helper.make_node("Add", ["x", "r"], ["y"]),
    ]
    proto = scalar_loss(nodes, feed)
    assert set(reverse(proto, [feed], ["x", "a"], "loss").outputs) == {"x"}
    with pytest.raises(NoDerivativeError, match="no weight changes the loss"):
        reverse(proto, [feed], ["a"], "loss")


def test_shapes_that_only_a_run_shows():
    feed = {"x": normal(1, 2, 6), "w": normal(2, 2, 3, seed=1)}
    nodes = [
        helper.make_node("NonZero", ["mask"], ["places"]),
        helper.make_node("Squeeze", ["places"], ["indices"]),
        helper.make_node("Gather", ["x", "indices"], ["part"], axis=2),
        helper.make_node("Conv", ["part", "w"], ["y"]),
    ]
    proto = scalar_loss(nodes, feed, constants={"mask": np.asarray([True, False, True, True, True, False])})
    check(proto, feed)


def network(opset):
    """Return a small convolutional network whose operators have the form of an opset."""
    held = {
        "w": normal(4, 1, 3, 3),
        "d": normal(4, 1, 3, 3, seed=1),
        "s": 1 + normal(4, seed=2, scale=0.1),
        "b": normal(4, seed=3),
    }
    held |= {
        "m": normal(4, seed=4),
        "v": np.float32([1, 2, 0.5, 1]),
        "u": normal(4, 2, 2, 2, seed=5),
        "p": 1 + normal(4, 1, 1, seed=6),
    }
    held |= {"g": normal(5, 4, seed=7), "h": normal(5, seed=8)}
    nodes = []

    def node(op_type, inputs, output, operands=(), **attributes):
        """Add a node; operands are inputs from an opset on, attributes before it."""
        inputs = list(inputs)
        for name, array, since, key in operands:
            if opset >= since:
                held[name] = array
                inputs.append(name)
            elif key:
                attributes[key] = array.tolist()
        nodes.append(helper.make_node(op_type, inputs, [output], **attributes))

    node("Pad", ["x"], "0", [("pads", np.asarray([0, 0, 1, 1, 0, 0, 1, 1]), 11, "pads")], mode="reflect")
    node("Conv", ["0", "w"], "1", auto_pad="SAME_UPPER", strides=[2, 2])
    node("BatchNormalization", ["1", "s", "b", "m", "v"], "2")
    node(
        "Clip",
        ["2"],
        "3",
        [("low", np.asarray(-2, np.float32), 11, "min"), ("high", np.asarray(2, np.float32), 11, "max")],
    )
    node("Conv", ["3", "d", "b"], "4", group=4, pads=[1, 1, 1, 1])
    node("PRelu", ["4", "p"], "5")
    node("MaxPool", ["5"], "6", kernel_shape=[3, 3], strides=[2, 2], pads=[1, 1, 1, 1])
    node("ConvTranspose", ["6", "u"], "7", group=2, strides=[2, 2])
    scales = np.float32([1, 1, 2, 2])
    if opset < 10:
        node("Upsample", ["7"], "8", [("scales", scales, 9, "scales")], mode="nearest")
    else:
        given = [("roi", np.zeros(0, np.float32), 11, "")] if opset >= 11 else []
        node("Resize", ["7"], "8", [*given, ("scales", scales, 10, "")], mode="nearest")
    bounds = [
        ("from", np.asarray([0, 0]), 10, "starts"),
        ("to", np.asarray([6, 6]), 10, "ends"),
        ("axes", np.asarray([2, 3]), 10, "axes"),
    ]
    node("Slice", ["8"], "9", bounds)
    node("ReduceMean", ["9"], "10", [("mean", np.asarray([2, 3]), 18, "axes")], keepdims=1)
    node("Squeeze", ["10"], "11", [("squeezed", np.asarray([2, 3]), 13, "axes")])
    node("Gemm", ["11", "g", "h"], "12", transB=1)
    node("Softmax", ["12"], "y", axis=1)
    graph = helper.make_graph(
        nodes,
        "g",
        [helper.make_tensor_value_info("x", onnx.TensorProto.FLOAT, ["n", 1, 8, 8])],
        [helper.make_tensor_value_info("y", onnx.TensorProto.FLOAT, ["n", 5])],
        [numpy_helper.from_array(np.asarray(array), name) for name, array in held.items()],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)])
    model.ir_version = 8
    onnx.checker.check_model(model)
    return model_io.load(model)


@pytest.mark.parametrize("opset", [7, 9, 10, 11, 12, 13, 15, 17, 18, 20, 21, 23, 24, 25, 26])
def test_every_opset_has_derivatives(opset):
    model = network(opset)
    feed = {"x": spaced(2, 1, 8, 8)}
    weights = trainable.weights(model)
    assert set(weights) == {"w", "s", "b", "d", "p", "u", "g", "h"}
    targets = {"y": np.full((2, 5), 0.2, np.float32)}
    proto = loss_graph.with_loss(model, {"y": DivergenceKind.PROBABILITIES}, feed, targets, weights)
    full = {**feed, **weights, loss_graph.target_name("y"): targets["y"]}
    found = reverse(proto, [full], list(weights), loss_graph.LOSS)
    assert found.gaps() == ""
    assert set(found.outputs) == set(weights)
    gradients = runtime.open_session(found.model.SerializeToString(), optimize=True).run(full)
    session = runtime.open_session(proto.SerializeToString(), optimize=False)
    for name in ("w", "d", "p", "u", "s"):
        gradient = gradients[found.outputs[name]].astype(np.float64)
        step = (gradient / np.abs(gradient).max() * 3e-3).astype(np.float32)
        losses = [
            float(np.sum(session.run({**full, name: weights[name] + sign * step})[loss_graph.LOSS])) for sign in (1, -1)
        ]
        assert losses[0] - losses[1] == pytest.approx(2 * float((gradient * step).sum()), rel=0.1), name
    assert query.opset(model) == opset


@pytest.mark.parametrize("opset", [9, 13])
def test_a_student_of_an_old_opset_learns_and_keeps_it(opset):
    teacher = network(opset)
    student = model_io.clone(teacher)
    weights = trainable.weights(student)
    trainable.write(student, {name: array + 0.2 * normal(*array.shape, seed=50) for name, array in weights.items()})
    feeds = [{"x": normal(1, 1, 8, 8, seed=i)} for i in range(96)]
    found = distill(student, teacher, feeds, steps=60, rate=1e-2)
    assert found.is_applied
    assert found.after < 0.5 * found.before
    assert query.opset(student) == opset
    assert all((query.constant(student.graph.initializers[name]) != array).any() for name, array in weights.items())
    assert run(student, feeds[0])["y"].shape == (1, 5)
