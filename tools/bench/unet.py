"""A deep segmentation network with random float16 weights, for proofs on large images: made here, not fetched."""

from __future__ import annotations

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

LEVELS = 6
CONVOLUTIONS = 3
"""Of each block, each with a BatchNormalization and a Relu."""


class UNet:
    """Writes the graph: blocks on the way down and up, joined at each level, and a Sigmoid at the end.

    Args:
        size: height and width of the image.
        width: channels of the first level; they double at every second one.
        half_compute: whether the arithmetic is float16 too, and not only the weights.
    """

    def __init__(self, size: int = 1024, *, width: int = 16, half_compute: bool = False, seed: int = 0) -> None:
        self._size = size
        self._width = width
        self._half_compute = half_compute
        self._rng = np.random.default_rng(seed)
        self._nodes: list[onnx.NodeProto] = []
        self._weights: list[onnx.TensorProto] = []

    def model(self) -> onnx.ModelProto:
        """Return the model: image float32 [1, 3, size, size] -> mask float32 [1, 1, size, size]."""
        value, channels = "image", 3
        if self._half_compute:
            value = self._node("Cast", [value], to=TensorProto.FLOAT16)
        joined: list[tuple[str, int]] = []
        for level in range(LEVELS):
            value, channels = self._block(value, channels, self._width << (level // 2))
            if level < LEVELS - 1:
                joined.append((value, channels))
                value = self._node("MaxPool", [value], kernel_shape=[2, 2], strides=[2, 2])
        for level in reversed(range(LEVELS - 1)):
            other, others = joined[level]
            scales = f"scales_{level}"
            self._weights.append(numpy_helper.from_array(np.array([1, 1, 2, 2], np.float32), scales))
            value = self._node("Resize", [value, "", scales], mode="nearest")
            value = self._node("Concat", [value, other], axis=1)
            value, channels = self._block(value, channels + others, self._width << (level // 2))
        value = self._convolution(value, channels, 1, kernel=1)
        if self._half_compute:
            value = self._node("Cast", [value], to=TensorProto.FLOAT)
        self._nodes.append(helper.make_node("Sigmoid", [value], ["mask"], name="sigmoid"))
        shapes = [1, 3, self._size, self._size], [1, 1, self._size, self._size]
        graph = helper.make_graph(
            self._nodes,
            "unet",
            [helper.make_tensor_value_info("image", TensorProto.FLOAT, shapes[0])],
            [helper.make_tensor_value_info("mask", TensorProto.FLOAT, shapes[1])],
            self._weights,
        )
        return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)

    def _block(self, value: str, channels: int, width: int) -> tuple[str, int]:
        for _ in range(CONVOLUTIONS):
            value = self._convolution(value, channels, width, kernel=3)
            channels = width
            statistics = [
                self._weight(self._rng.uniform(0.5, 1.5, width)),
                self._weight(self._rng.normal(0, 0.3, width)),
                self._weight(self._rng.normal(0, 0.3, width)),
                self._weight(self._rng.uniform(0.5, 2, width)),
            ]
            value = self._node("Relu", [self._node("BatchNormalization", [value, *statistics])])
        return value, width

    def _convolution(self, value: str, channels: int, width: int, *, kernel: int) -> str:
        fan_in = channels * kernel * kernel
        weight = self._weight(self._rng.normal(0, np.sqrt(2 / fan_in), (width, channels, kernel, kernel)))
        bias = self._weight(self._rng.normal(0, 0.1, width))
        return self._node("Conv", [value, weight, bias], pads=[kernel // 2] * 4, kernel_shape=[kernel, kernel])

    def _weight(self, array: np.ndarray) -> str:
        name = f"weight_{len(self._weights)}"
        self._weights.append(numpy_helper.from_array(array.astype(np.float16), name))
        return name if self._half_compute else self._node("Cast", [name], to=TensorProto.FLOAT)

    def _node(self, op_type: str, inputs: list[str], **attributes: object) -> str:
        name = f"{op_type.lower()}_{len(self._nodes)}"
        self._nodes.append(helper.make_node(op_type, inputs, [name], name=name, **attributes))
        return name
