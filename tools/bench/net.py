"""A small builder of networks with random weights."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

Declared = Mapping[str, tuple[int, Sequence[int | str | None] | None]]
"""Name -> (element type, shape) of inputs or outputs."""


class Net:
    """Nodes and weights of a graph that grows by one operator at a time; every method returns names of values."""

    def __init__(self, seed: int) -> None:
        """Start with nothing; the weights come from a generator with this seed."""
        self._random = np.random.default_rng(seed)
        self._nodes: list[onnx.NodeProto] = []
        self._weights: list[onnx.TensorProto] = []

    def op(self, kind: str, *inputs: str, into: str = "", domain: str = "", **attributes: Any) -> str:
        """Add a node with one output, called `into` where that is given."""
        return self.ops(kind, *inputs, into=(into or f"v{len(self._nodes)}",), domain=domain, **attributes)[0]

    def ops(self, kind: str, *inputs: str, into: Sequence[str], domain: str = "", **attributes: Any) -> Sequence[str]:
        """Add a node with several outputs."""
        name = f"{kind}{len(self._nodes)}"
        self._nodes.append(helper.make_node(kind, inputs, into, name=name, domain=domain, **attributes))
        return into

    def weight(self, *shape: int, gain: float = 1.0) -> str:
        """Add normal numbers of a spread that keeps the size of activations (fan in: all axes but the first)."""
        spread = gain / math.sqrt(max(1, math.prod(shape[1:])))
        return self.constant((spread * self._random.standard_normal(shape)).astype(np.float32))

    def constant(self, value: Any) -> str:
        """Add an array, or strings."""
        array, name = np.asarray(value), f"c{len(self._weights)}"
        if array.dtype.kind == "U":
            texts = [text.encode() for text in array.ravel().tolist()]
            self._weights.append(helper.make_tensor(name, TensorProto.STRING, array.shape, texts))
        else:
            self._weights.append(numpy_helper.from_array(array, name))
        return name

    def features(self, value: str, channels: int, *, width: int = 24, stride: int = 1, depth: int = 3) -> str:
        """Add 3x3 convolutions, each with a Relu."""
        for layer in range(depth):
            inputs = (value, self.weight(width, channels if layer == 0 else width, 3, 3, gain=1.4))
            value = self.op("Relu", self.op("Conv", *inputs, pads=[1] * 4, strides=[stride] * 2))
        return value

    def head(self, value: str, channels: int, out: int, *, gain: float = 1.0, bias: float = 0.0, into: str = "") -> str:
        """Add a 1x1 convolution with biases around `bias`."""
        shift = self.constant((bias + 0.3 * self._random.standard_normal(out)).astype(np.float32))
        return self.op("Conv", value, self.weight(out, channels, 1, 1, gain=gain), shift, into=into)

    def linear(self, value: str, size: int, out: int, *, gain: float = 1.0, into: str = "") -> str:
        """Add a Gemm with small biases."""
        shift = self.constant((0.1 * self._random.standard_normal(out)).astype(np.float32))
        return self.op("Gemm", value, self.weight(out, size, gain=gain), shift, into=into, transB=1)

    def shaped(self, value: str, *shape: int, into: str = "") -> str:
        """Add a Reshape."""
        return self.op("Reshape", value, self.constant(np.array(shape, np.int64)), into=into)

    def scaled(self, value: str, factor: float, offset: float = 0.0, *, into: str = "") -> str:
        """Add value * factor + offset."""
        product = self.op("Mul", value, self.constant(np.float32(factor)))
        return self.op("Add", product, self.constant(np.float32(offset)), into=into)

    def model(self, inputs: Declared, outputs: Declared | Sequence[onnx.ValueInfoProto]) -> onnx.ModelProto:
        """Return the model."""
        declared = [
            [helper.make_tensor_value_info(name, *each) for name, each in values.items()]
            if isinstance(values, Mapping)
            else list(values)
            for values in (inputs, outputs)
        ]
        graph = helper.make_graph(self._nodes, "net", *declared, self._weights)
        domains = sorted({node.domain for node in self._nodes} - {""})
        opsets = [helper.make_opsetid("", 17), *(helper.make_opsetid(domain, 2) for domain in domains)]
        model = helper.make_model(graph, opset_imports=opsets, ir_version=8)
        onnx.checker.check_model(model)
        return model
