"""Losses of single nodes, and their derivatives compared with differences."""

import math

import numpy as np
import onnx
from onnx import helper, numpy_helper

from onnxcompress.distillation.gradients.reverse import reverse
from onnxcompress.runtime import session as runtime

STEP = 1e-2
"""Distance of the two losses of a difference; elements whose order matters differ by more."""


def spaced(*shape, seed=0, scale=1.0):
    """Return numbers in random order that differ by more than the step and are not near zero."""
    size = math.prod(shape)
    grid = (np.arange(size) - size / 2 + 0.5) * max(4 * STEP, 2 / size)
    return (scale * np.random.default_rng(seed).permutation(grid)).reshape(shape).astype(np.float32)


def normal(*shape, seed=0, scale=0.5):
    return (scale * np.random.default_rng(seed).standard_normal(shape)).astype(np.float32)


def scalar_loss(nodes, weights, outputs=("y",), constants=None, opset=18):
    """Return a model whose loss is a fixed random combination of outputs, at the shapes that a run shows."""
    initializers = [numpy_helper.from_array(np.asarray(array), name) for name, array in (constants or {}).items()]
    inputs = [
        helper.make_tensor_value_info(n, helper.np_dtype_to_tensor_dtype(a.dtype), a.shape) for n, a in weights.items()
    ]
    imports = [helper.make_opsetid("", opset), helper.make_opsetid("com.microsoft", 1)]

    def made(nodes, initializers, outputs):
        graph = helper.make_graph(list(nodes), "g", inputs, outputs, list(initializers))
        model = helper.make_model(graph, opset_imports=imports)
        model.ir_version = 9
        return model

    plain = made(
        nodes, initializers, [helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, None) for name in outputs]
    )
    plain = onnx.shape_inference.infer_shapes(plain)
    found = runtime.open_session(plain.SerializeToString(), optimize=False).run(weights)
    nodes, parts = list(nodes), []
    for number, name in enumerate(outputs):
        shares = np.random.default_rng(7 + number).standard_normal(found[name].shape).astype(np.float32)
        axes = np.arange(shares.ndim)
        initializers += [
            numpy_helper.from_array(shares, f"shares{number}"),
            numpy_helper.from_array(axes, f"axes{number}"),
        ]
        nodes.append(helper.make_node("Mul", [name, f"shares{number}"], [f"part{number}"]))
        nodes.append(helper.make_node("ReduceSum", [f"part{number}", f"axes{number}"], [f"sum{number}"], keepdims=0))
        parts.append(f"sum{number}")
    nodes.append(helper.make_node("Sum", parts, ["loss"]))
    return onnx.shape_inference.infer_shapes(
        made(nodes, initializers, [helper.make_tensor_value_info("loss", onnx.TensorProto.FLOAT, [])])
    )


def differences(proto, feed, name):
    session = runtime.open_session(proto.SerializeToString(), optimize=False)
    found = np.zeros(feed[name].size)
    for at in range(feed[name].size):
        losses = []
        for step in (STEP, -STEP):
            moved = feed[name].copy().reshape(-1)
            moved[at] += step
            losses.append(float(session.run({**feed, name: moved.reshape(feed[name].shape)})["loss"]))
        found[at] = (losses[0] - losses[1]) / (2 * STEP)
    return found.reshape(feed[name].shape)


def check(proto, feed, names=None, tolerance=2e-2):
    names = [name for name, array in feed.items() if array.dtype == np.float32] if names is None else names
    found = reverse(proto, [feed], names, "loss")
    assert found.blocked == []
    session = runtime.open_session(found.model.SerializeToString(), optimize=True)
    gradients = session.run(feed)
    assert set(found.outputs) == set(names)
    for name in names:
        expected = differences(proto, feed, name)
        scale = max(1e-3, float(np.abs(expected).max()))
        got = gradients[found.outputs[name]]
        assert got.shape == feed[name].shape
        np.testing.assert_allclose(got, expected, rtol=0, atol=tolerance * scale, err_msg=name)
    return found
