"""Write a placement: QuantizeLinear and DequantizeLinear around what is to run on integers."""

from __future__ import annotations

import dataclasses
from collections.abc import Collection, Mapping

import numpy as np
import onnx_ir as ir

from ...errors import ModelError
from ...graph import constants as float_constants
from ...graph import edit, query
from ...numerics.quantization.affine_activations import LEAST_SPAN, Affine, affine_for, quantize
from ...shapes.infer import Shapes
from ...targets.facts import BiasForm, StaticFacts
from .kernel_groups import KernelGroup, Saturation
from .placement import Placement, Quantizer
from .weight_rounding import Rounding, round_weight

Range = tuple[float, float]

_MOST_BIAS = 2.0**31 - 1
"""The largest magnitude of an int32 bias."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class WrittenLayer:
    """A quantized layer: the name of its integers, and the error of their rounding."""

    unit: KernelGroup
    integers: str
    rounding: Rounding


class QdqWriter:
    """Writes one placement into a model, which must not be edited otherwise meanwhile.

    Args:
        model: at the opset that the target needs.
        placement: made of this model.
        ranges: name of each of the placement's sources -> least and greatest value.
        facts: the target's.
        shapes: of the model.
        seven_bits: labels of layers whose weights are to be from -63 to 63.
    """

    def __init__(
        self,
        model: ir.Model,
        placement: Placement,
        ranges: Mapping[str, Range],
        facts: StaticFacts,
        shapes: Shapes,
        *,
        seven_bits: Collection[str] = (),
    ) -> None:
        self.seven_bits = seven_bits
        self.model, self.placement, self.ranges, self.facts, self.shapes = model, placement, ranges, facts, shapes
        self.names = edit.Names(model)
        self.order = {node: place for place, node in enumerate(query.nodes(model))}
        self.grid = facts.grid
        self.handed = {value for quantizer in placement.quantizers for value in quantizer.made}
        self.scale_of: dict[ir.Value, np.float32] = {}
        self.stored: dict[tuple[int, int], tuple[ir.Value, ir.Value]] = {}
        self.zeros: dict[tuple[int, str, tuple[int, ...], bytes], ir.Value] = {}
        self.weights: dict[tuple[int, bytes, int], ir.Value] = {}

    def write(self) -> list[WrittenLayer]:
        """Insert all quantizers and replace the weights; return what became of the layers."""
        reads = [(unit, unit.inputs) for unit in self.placement.units]
        for quantizer in self.placement.quantizers:
            affine = self.parameters(quantizer)
            for value in (quantizer.source, *quantizer.made):
                self.scale_of[value] = affine.scale
            for value, body in quantizer.read:
                self._quantize_read(value, body, quantizer, affine)
        for quantizer in self.placement.quantizers:
            affine = self.parameters(quantizer)
            for value in quantizer.made:
                self._quantize_made(value, quantizer, affine)
        written = []
        for unit, inputs in reads:
            if unit.saturation is not None:
                self._write_saturation(unit, unit.saturation)
            for port in unit.constants:
                self._quantize_constant(unit.node, port)
            if unit.weight is not None:
                written.append(self._quantize_weight(unit, unit.weight, inputs[0]))
        return written

    def parameters(self, quantizer: Quantizer) -> Affine:
        """Return scale and zero point of a group of activations."""
        if quantizer.saturation is not None:
            return Affine(self.grid, np.float32(quantizer.saturation.result_scale), self.grid.low)
        low, high = self.ranges[quantizer.source.name or ""]
        if quantizer.least is not None:
            low = max(low, quantizer.least)
        return affine_for(low, high, self.grid, least_span=max(LEAST_SPAN, self.facts.least_range))

    def _quantize_read(self, value: ir.Value, body: ir.Graph, quantizer: Quantizer, affine: Affine) -> None:
        """Quantize a float value for the units of one graph that read integers; others go on reading floats."""
        ports = [
            (unit.node, port)
            for unit in self.placement.units
            if unit.node.graph is body
            for port in unit.reads
            if unit.node.inputs[port] is value
        ]
        first = min((node for node, _ in ports), key=lambda node: self.order[node])
        stored = self._parameters(body, quantizer, value, affine)
        q = edit.insert_before(first, self.names, "QuantizeLinear", [value, *stored], hint=f"{value.name}_q")
        dq = edit.insert_before(first, self.names, "DequantizeLinear", [q.outputs[0], *stored], hint=f"{value.name}_dq")
        for node, port in ports:
            node.replace_input_with(port, dq.outputs[0])

    def _quantize_made(self, value: ir.Value, quantizer: Quantizer, affine: Affine) -> None:
        """Let everybody, graph outputs included, read what was rounded to integers."""
        maker = value.producer()
        if maker is None:
            raise ModelError(f"{value.name} is made by no node")
        stored = self._parameters(query.home(maker), quantizer, value, affine)
        hint = value.name
        q = edit.put_after(maker, self.names, "QuantizeLinear", [value, *stored], hint=f"{hint}_q")
        dq = edit.put_after(q, self.names, "DequantizeLinear", [q.outputs[0], *stored], hint=f"{hint}_dq")
        edit.move_readers(value, dq.outputs[0], keep={q})
        if value.name is None:
            value.name = self.names.fresh(f"{hint}_float")

    def _write_saturation(self, unit: KernelGroup, saturation: Saturation) -> None:
        """Let a quantizer saturate in place of a hard sigmoid, with another scale before than after it."""
        node, home = unit.node, query.home(unit.node)
        before = Affine(self.grid, np.float32(saturation.scale), saturation.zero_point + self.grid.low)
        after = Affine(self.grid, np.float32(saturation.result_scale), self.grid.low)
        stored = [
            (
                edit.add_initializer(home, self.names, f"{unit.label}_scale", np.asarray(affine.scale)),
                self._zero_point(home, np.asarray(affine.zero_point, self.grid.dtype)),
            )
            for affine in (before, after)
        ]
        x = node.inputs[0]
        q = edit.insert_before(node, self.names, "QuantizeLinear", [x, *stored[0]], hint=f"{unit.label}_q")
        dq_inputs = [q.outputs[0], *stored[1]]
        if saturation.multiplies_input:
            dq = edit.insert_before(node, self.names, "DequantizeLinear", dq_inputs, hint=f"{unit.label}_dq")
            edit.turn_into(node, "Mul", [x, dq.outputs[0]])
        else:
            edit.turn_into(node, "DequantizeLinear", dq_inputs)

    def _parameters(
        self, body: ir.Graph, quantizer: Quantizer, value: ir.Value, affine: Affine
    ) -> tuple[ir.Value, ir.Value]:
        """Store scale and zero point once for each graph."""
        key = id(quantizer), id(body)
        if key not in self.stored:
            self.stored[key] = (
                edit.add_initializer(body, self.names, f"{value.name}_scale", np.asarray(affine.scale)),
                self._zero_point(body, np.asarray(affine.zero_point, self.grid.dtype)),
            )
        return self.stored[key]

    def _quantize_constant(self, node: ir.Node, port: int) -> None:
        """Store a constant operand as integers of the activations' type."""
        value, tensor = _constant(node, port)
        array, home = tensor.numpy(), query.home(node)
        affine = affine_for(float(array.min(initial=0)), float(array.max(initial=0)), self.grid)
        integers = quantize(array.reshape(-1), affine).reshape(array.shape)
        stored = [
            edit.add_initializer(home, self.names, f"{value.name}_integers", integers),
            edit.add_initializer(home, self.names, f"{value.name}_scale", np.asarray(affine.scale)),
            self._zero_point(home, np.asarray(affine.zero_point, self.grid.dtype)),
        ]
        self._dequantize(node, port, stored)
        edit.remove_unread(value)

    def _quantize_weight(self, unit: KernelGroup, port: int, data: ir.Value) -> WrittenLayer:
        """Store a layer's weight as integers, and its bias in the form that the target wants."""
        node, home = unit.node, query.home(unit.node)
        value, tensor = _constant(node, port)
        rounding = round_weight(tensor, unit.axis, clip=False, bits=7 if unit.label in self.seven_bits else 8)
        bias = None if unit.bias is None else float_constants.tensor(unit.bias[0].inputs[unit.bias[1]])
        numbers = None if bias is None else bias.numpy()
        scale = _holding(rounding, numbers, self.scale_of[data])
        rounding = dataclasses.replace(rounding, scale=scale)
        key = id(value), scale.tobytes(), id(home)
        if key not in self.weights:
            integers = rounding.integers(transposed=False)
            self.weights[key] = edit.add_initializer(home, self.names, f"{value.name}_int8", integers)
            integers.name = self.weights[key].name
        stored = [self.weights[key], edit.add_initializer(home, self.names, f"{value.name}_scale", scale)]
        form = self._bias_form(unit)
        if unit.facts.zero_point or form == "int32":
            stored.append(self._zero_point(home, np.zeros(scale.shape, np.int8)))
        self._dequantize(node, port, stored, axis=unit.axis)
        edit.remove_unread(value)
        if unit.bias is not None and numbers is not None:
            self._write_bias(unit.bias, numbers, form, self.scale_of[data] * scale)
        return WrittenLayer(unit=unit, integers=self.weights[key].name or "", rounding=rounding)

    def _dequantize(self, node: ir.Node, port: int, stored: list[ir.Value], *, axis: int | None = None) -> None:
        """Let a node read a constant by a DequantizeLinear of its integers, scale and, where given, zero point."""
        attributes = {} if axis is None else {"axis": axis}
        value = node.inputs[port]
        hint = f"{'' if value is None else value.name}_dq"
        dq = edit.insert_before(node, self.names, "DequantizeLinear", stored, attributes=attributes, hint=hint)
        node.replace_input_with(port, dq.outputs[0])

    def _zero_point(self, home: ir.Graph, zero: np.ndarray) -> ir.Value:
        """Return a zero point, stored once for each type, shape and value."""
        key = id(home), zero.dtype.str, zero.shape, zero.tobytes()
        if key not in self.zeros:
            self.zeros[key] = edit.add_initializer(home, self.names, "zero_point", zero)
        return self.zeros[key]

    def _bias_form(self, unit: KernelGroup) -> BiasForm:
        """Return how the target wants a unit's bias."""
        if unit.bias is None:
            return "none"
        form = unit.facts.bias if unit.outputs[0] in self.handed else unit.facts.bias_float_output
        rank = self.shapes.rank(unit.node.outputs[0])
        if form == "spread" and (rank is None or rank < 3):  # a further axis would go through to the sum
            return "int32"
        return form

    def _write_bias(self, place: tuple[ir.Node, int], bias: np.ndarray, form: BiasForm, scale: np.ndarray) -> None:
        node, port = place
        value, home = _constant(node, port)[0], query.home(node)
        rank = self.shapes.rank(node.outputs[0])
        if form == "spread" and rank is not None:
            if bias.ndim < rank:
                wide = bias.reshape((1,) * (rank - bias.ndim) + bias.shape)
                node.replace_input_with(port, edit.add_initializer(home, self.names, f"{value.name}_spread", wide))
        elif form == "int32":
            scale = scale.astype(np.float32)
            integers = np.clip(np.rint(bias.reshape(-1).astype(np.float64) / scale), -_MOST_BIAS, _MOST_BIAS)
            stored = [
                edit.add_initializer(home, self.names, f"{value.name}_int32", integers.astype(np.int32)),
                edit.add_initializer(home, self.names, f"{value.name}_scale", scale),
            ]
            self._dequantize(node, port, stored, axis=0 if scale.ndim else None)
        edit.remove_unread(value)


def _constant(node: ir.Node, port: int) -> tuple[ir.Value, ir.TensorProtocol]:
    """Return a constant operand and its data.

    Raises:
        ModelError: it is no constant any more.
    """
    value = node.inputs[port]
    tensor = float_constants.tensor(value)
    if value is None or tensor is None:
        raise ModelError(f"input {port} of {query.label(node)} is no constant of floats")
    return value, tensor


def _holding(rounding: Rounding, bias: np.ndarray | None, input_scale: np.float32) -> np.ndarray:
    """Return the weight's scales, raised where the bias would not fit into int32 at the scale of input x weight.

    A channel whose weights are all zero needs no scale for them: it gets the least that holds its bias.
    """
    scale: np.ndarray = rounding.scale.copy()
    if bias is None:
        return scale
    if rounding.axis is not None and (scale == 1).any():
        weight = np.moveaxis(rounding.tensor.numpy(), rounding.axis, 0)
        scale[~weight.reshape(len(weight), -1).any(axis=1)] = 0
    magnitude = np.abs(bias.astype(np.float64)).reshape(-1)
    if not scale.ndim:
        magnitude = magnitude.max()
    least = np.maximum(magnitude / (_MOST_BIAS / 2) / float(input_scale), float(np.finfo(np.float32).tiny))
    held: np.ndarray = np.maximum(scale, least.astype(np.float32))
    return held
