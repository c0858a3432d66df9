"""Small models around one operator: as floats, and with its operands dequantized and its result quantized."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

Form = Literal["compute", "pointwise", "moves"]

_TYPES = {"uint8": (np.uint8, TensorProto.UINT8), "int8": (np.int8, TensorProto.INT8)}
_SCALE = 0.02
_MAP_RANK = 4


@dataclass(frozen=True, kw_only=True)
class Case:
    """One operator at one size.

    Args:
        key: what the profile calls it: the operator, with a variant after a dot where kernels differ.
        op_type: the operator.
        inputs: shapes of the inputs that are activations.
        weight: the shape of a constant weight in the port after them.
        weight_axis: its output channels.
        bias: the shape of a bias behind the weight, by a port or, for `add_bias`, by an Add.
        add_bias: the bias is a node of its own.
        constants: further constant inputs, integers or None.
        leading: a boolean condition stands before the activations.
        attributes: of the node.
        outputs: how many the node has.
        macs: multiply-accumulates, for times by those and not by elements.
    """

    key: str
    op_type: str
    inputs: tuple[tuple[int, ...], ...]
    weight: tuple[int, ...] | None = None
    weight_axis: int = 0
    bias: tuple[int, ...] | None = None
    add_bias: bool = False
    constants: tuple[Any, ...] = ()
    leading: bool = False
    attributes: Mapping[str, Any] = field(default_factory=dict)
    outputs: int = 1
    macs: int = 0


@dataclass(frozen=True, kw_only=True)
class Around:
    """What stands around the operator.

    Args:
        activation: the type of activations.
        weight: the type of weights.
        scales: whether inputs and output have the same scale.
        output: whether the output is quantized.
        bias: how a bias is stored.
        after: an activation function between the operator and its quantizer.
        constant: the last activation is a constant of this kind.
        channels: a scale for each output channel of the weight.
        zero_point: the weight's zero point, 0, is given.
    """

    activation: Literal["uint8", "int8"] = "uint8"
    weight: Literal["uint8", "int8"] = "int8"
    scales: Literal["equal", "different"] = "different"
    output: bool = True
    bias: Literal["float", "int32"] = "float"
    after: str = ""
    constant: Literal["", "float", "integer"] = ""
    channels: bool = True
    zero_point: bool = True


class Builder:
    """Collects nodes and constants of one model."""

    def __init__(self) -> None:
        self.nodes: list[onnx.NodeProto] = []
        self.constants: list[onnx.TensorProto] = []
        self.inputs: list[onnx.ValueInfoProto] = []

    def constant(self, array: np.ndarray | np.generic) -> str:
        """Store a constant and return its name."""
        name = f"c{len(self.constants)}"
        self.constants.append(numpy_helper.from_array(np.asarray(array), name))
        return name

    def op(self, op_type: str, *inputs: str, outputs: int = 1, **attributes: Any) -> list[str]:
        """Add a node and return the names of its outputs."""
        number = len(self.nodes)
        names = [f"v{number}_{i}" for i in range(outputs)]
        self.nodes.append(helper.make_node(op_type, inputs, names, name=f"n{number}", **attributes))
        return names

    def input(self, kind: int, shape: Sequence[int]) -> str:
        """Declare an input and return its name."""
        name = f"x{len(self.inputs)}"
        self.inputs.append(helper.make_tensor_value_info(name, kind, shape))
        return name

    def quantize(self, value: str, scale: float, zero: int, kind: str) -> str:
        """Add a QuantizeLinear."""
        return self.op("QuantizeLinear", value, self.constant(np.float32(scale)), self.constant(_TYPES[kind][0](zero)))[
            0
        ]

    def dequantize(self, value: str, scale: float, zero: int, kind: str) -> str:
        """Add a DequantizeLinear."""
        stored = self.constant(np.float32(scale)), self.constant(_TYPES[kind][0](zero))
        return self.op("DequantizeLinear", value, *stored)[0]

    def model(self, outputs: Mapping[str, int], opset: int = 17) -> bytes:
        """Return the model with these outputs, name -> type."""
        infos = [helper.make_tensor_value_info(name, kind, None) for name, kind in outputs.items()]
        made = helper.make_graph(self.nodes, "probe", self.inputs, infos, self.constants)
        return helper.make_model(made, opset_imports=[helper.make_opsetid("", opset)], ir_version=8).SerializeToString()


def float_model(case: Case, *, between: bool = False) -> bytes:
    """Return the operator alone, all in floats; `between` two Transposes it may do without a copy."""
    b = Builder()
    ports = _leading(b, case)
    for shape in case.inputs:
        value = b.input(TensorProto.FLOAT, shape[::-1] if between else shape)
        ports.append(b.op("Transpose", value)[0] if between else value)
    if case.weight:
        ports.append(b.constant(_weight(case)))
    bias = None if case.bias is None else b.constant(_noise(case.bias))
    result = _node(b, case, ports, bias)
    if between:
        result = [b.op("Transpose", value)[0] for value in result]
    return b.model(dict.fromkeys(result, TensorProto.FLOAT))


def quantized_model(case: Case, around: Around, *, behind_conv: bool = False, between: bool = False) -> bytes:
    """Return the operator with integers as the model's inputs and, unless `around` says no, as its outputs.

    Its feature maps may come from convolutions; it may stand between two Transposes.
    """
    b = Builder()
    kind = around.activation
    zero = 128 if kind == "uint8" else 0
    ports, scales = _leading(b, case), []
    for index, shape in enumerate(case.inputs):
        scale = _SCALE * (1 if around.scales == "equal" else 1 + index / 4)
        scales.append(scale)
        if around.constant and index == len(case.inputs) - 1:
            ports.append(_constant_operand(b, shape, scale, around))
        else:
            value = b.dequantize(b.input(_TYPES[kind][1], shape[::-1] if between else shape), scale, zero, kind)
            if between:
                value = b.dequantize(b.quantize(b.op("Transpose", value)[0], scale, zero, kind), scale, zero, kind)
            if behind_conv and len(shape) == _MAP_RANK:
                integers, factors, points = _rounded(_noise((shape[1], shape[1], 1, 1)), 0, around)
                stored = (b.constant(integers), b.constant(factors), b.constant(points))
                value = b.op("Conv", value, b.op("DequantizeLinear", *stored, axis=0)[0])[0]
                value = b.dequantize(b.quantize(value, scale, zero, kind), scale, zero, kind)
            ports.append(value)
    weight_scale = np.float32(0)
    if case.weight:
        values = _weight(case)
        integers, weight_scale, points = _rounded(values, case.weight_axis, around)
        attributes = {"axis": case.weight_axis} if around.channels else {}
        stored = [b.constant(integers), b.constant(weight_scale)]
        if around.zero_point:
            stored.append(b.constant(points))
        ports += b.op("DequantizeLinear", *stored, **attributes)
    bias = None
    if case.bias is not None and around.bias == "float":
        bias = b.constant(_noise(case.bias))
    elif case.bias is not None:
        scale = np.float32(scales[0]) * weight_scale
        integers = np.zeros(case.bias, np.int32)
        attributes = {"axis": 0} if around.channels else {}
        bias = b.op("DequantizeLinear", b.constant(integers), b.constant(scale), **attributes)[0]
    result = _node(b, case, ports, bias)
    if around.after:
        limits = [b.constant(np.float32(0)), b.constant(np.float32(6))] if around.after == "Clip" else []
        result = [b.op(around.after, value, *limits)[0] for value in result]
    if not around.output:
        return b.model(dict.fromkeys(result, TensorProto.FLOAT))
    scale = _SCALE * (1 if around.scales == "equal" else 1.1)
    zero = (0 if kind == "uint8" else -128) if around.after else zero
    if between:
        quantized = [b.dequantize(b.quantize(value, scale, zero, kind), scale, zero, kind) for value in result]
        result = [b.op("Transpose", value)[0] for value in quantized]
    return b.model({b.quantize(value, scale, zero, kind): _TYPES[kind][1] for value in result})


def activation_type(kind: str) -> int:
    """Return the onnx type of integers."""
    return int(_TYPES[kind][1])


def feed(model: bytes) -> dict[str, np.ndarray]:
    """Return random inputs for a model of this module."""
    rng = np.random.default_rng(0)
    made: dict[str, np.ndarray] = {}
    for info in onnx.load_from_string(model).graph.input:
        shape = [d.dim_value for d in info.type.tensor_type.shape.dim]
        kind = helper.tensor_dtype_to_np_dtype(info.type.tensor_type.elem_type)
        if kind == np.float32:
            made[info.name] = rng.standard_normal(shape).astype(np.float32)
        elif kind == np.bool_:
            made[info.name] = rng.random(shape) < 0.5
        else:
            made[info.name] = rng.integers(np.iinfo(kind).min, np.iinfo(kind).max, shape, kind)
    return made


def _leading(b: Builder, case: Case) -> list[str]:
    return [b.input(TensorProto.BOOL, case.inputs[0])] if case.leading else []


def _node(b: Builder, case: Case, ports: list[str], bias: str | None) -> list[str]:
    further = ["" if c is None else b.constant(np.asarray(c)) for c in case.constants]
    if bias is not None and not case.add_bias:
        further = [bias, *further]
    made = b.op(case.op_type, *ports, *further, outputs=case.outputs, **case.attributes)
    return b.op("Add", made[0], bias) if bias is not None and case.add_bias else made


def _weight(case: Case) -> np.ndarray:
    assert case.weight is not None
    return np.random.default_rng(1).standard_normal(case.weight).astype(np.float32) / 8


def _noise(shape: tuple[int, ...]) -> np.ndarray:
    return np.random.default_rng(2).standard_normal(shape).astype(np.float32)


def _constant_operand(b: Builder, shape: tuple[int, ...], scale: float, around: Around) -> str:
    if around.constant == "float":
        return b.constant(_noise(shape))
    kind = around.activation
    middle = 128 if kind == "uint8" else 0
    return b.dequantize(b.constant(np.full(shape, middle + 7, _TYPES[kind][0])), scale, middle, kind)


def _rounded(values: np.ndarray, axis: int, around: Around) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    axes = tuple(a for a in range(values.ndim) if a != axis) if around.channels else None
    kind = _TYPES[around.weight][0]
    middle = 128 if kind is np.uint8 else 0
    top = np.abs(values).max(axis=axes, keepdims=True)
    integers = (np.rint(values / top * 127) + middle).astype(kind)
    scale = (top / 127).astype(np.float32)
    scale = scale.reshape(-1) if around.channels else scale.reshape(())
    return integers, scale, np.full(scale.shape, middle, kind)
