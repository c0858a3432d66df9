"""Inventory of the layers that hold weights: what each stores, in which type, and how it is read.

    constant (Cast | DequantizeLinear | Mul | Reshape | Transpose | ...)* -> the node that computes with it

A layer is that node. Weights of 8 bits and fewer are recognised in the forms that quantizers write: QDQ, QLinear* and
*Integer operators, com.microsoft's MatMulNBits, QGemm and the like, and integers that a Cast and a Mul make floats of.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

import onnx_ir as ir

from ..graph import query
from . import table as ops

_LEAST_ELEMENTS = 256
"""Elements from which on a constant of two or more axes counts as a weight of any operator; scales, limits and biases
are smaller or have one axis. Chosen by judgement; not measured."""
_LEAST_NUMBERS = 16
"""Numbers from which on an attribute counts as weights (trees, linear models). Chosen by judgement; not measured."""
_EXAMPLES = 3
"""Layers that a summary names; chosen by judgement."""
_FLOAT_BITS = 16
"""Bits from which on floats count as not quantized."""


@dataclass(frozen=True, kw_only=True)
class HeldWeight:
    """A constant that a layer computes with.

    Args:
        name: the initializer's or Constant's; of an attribute its name.
        aliases: the names of what Casts, Transposes and the like make of it on its way to the layer.
        dtype: the type in the file.
        dims: the shape in the file.
        bytes: what it takes there.
        bits: bits of a number; fewer than those of `dtype` where several are packed in a byte.
        is_bias: it is added to what the layer has multiplied.
        is_input: callers may replace it: it is an input of the graph, and a default.
        is_attribute: it is an attribute of the node.
    """

    name: str
    dtype: ir.DataType
    dims: tuple[int, ...]
    bytes: int
    bits: int
    aliases: tuple[str, ...] = ()
    is_bias: bool = False
    is_input: bool = False
    is_attribute: bool = False

    @property
    def names(self) -> frozenset[str]:
        """All names by which a report may speak of it."""
        return frozenset() if self.is_attribute else frozenset((self.name, *self.aliases))

    @property
    def size(self) -> int:
        """The number of its elements in the file."""
        return math.prod(self.dims)

    @property
    def is_quantized(self) -> bool:
        """True where it holds numbers of 8 bits or fewer that represent floats."""
        return self.bits < _FLOAT_BITS


@dataclass(kw_only=True)
class WeightedLayer:
    """A node and the constants that it computes with.

    Args:
        node: of the model that was looked at.
        label: the name by which reports speak of it, as it was then.
        in_function: it is in a local function.
        weights: its constants, in the order in which they are found.
    """

    node: ir.Node
    label: str
    in_function: bool
    weights: list[HeldWeight] = field(default_factory=list)

    @property
    def main(self) -> list[HeldWeight]:
        """Its constants but for biases; these where it has nothing else."""
        return [w for w in self.weights if not w.is_bias] or self.weights

    @property
    def form(self) -> str:
        """The type that its weights are quantized to: "int8", "uint4"; "" where any of them is float."""
        found = self.main
        if not found or not all(weight.is_quantized for weight in found):
            return ""
        first = min(found, key=lambda weight: weight.bits)
        name = first.dtype.name.lower()
        return name if first.bits == first.dtype.bitwidth else f"{name.rstrip('0123456789')}{first.bits}"


def weighted_layers(model: ir.Model) -> list[WeightedLayer]:
    """Return every layer of the model, bodies and local functions included; no weight is read.

    Layers are nodes that read a constant through a weight port of the operator table, or any constant of two or more
    axes and 256 elements (normalisations and slopes: of any size), and nodes with many numbers in an attribute.
    """
    inside = {id(node) for graph in query.function_graphs(model) for node in graph}
    found: dict[ir.Node, WeightedLayer] = {}
    for value, tensor in _stored(model):
        for node, port, bits, aliases in _readers(value, tensor):
            if _counts(node, port, tensor, bits):
                layer = found.setdefault(node, _empty(node, inside))
                if all(weight.name != value.name for weight in layer.weights):
                    layer.weights.append(_held(value, tensor, node, port, bits, aliases))
    for node in query.nodes(model):
        attributes = list(_attributes(node))
        if attributes:
            layer = found.setdefault(node, _empty(node, inside))
            layer.weights += attributes
    order = {node: place for place, node in enumerate(query.nodes(model))}
    layers = (layer for layer in found.values() if any(not weight.is_bias for weight in layer.weights))
    return sorted(layers, key=lambda layer: order[layer.node])


def _empty(node: ir.Node, inside: set[int]) -> WeightedLayer:
    return WeightedLayer(node=node, label=query.label(node), in_function=id(node) in inside)


def _stored(model: ir.Model) -> Iterator[tuple[ir.Value, ir.TensorProtocol]]:
    """Yield initializers, also those that callers may replace, and outputs of Constant nodes: floats and few bits."""
    for body in query.graphs(model):
        for value in body.initializers.values():
            if value.const_value is not None and _is_numeric(value.const_value):
                yield value, value.const_value
        for node in body:
            tensor = query.constant_tensor(node.outputs[0]) if query.is_op(node, "Constant") else None
            if tensor is not None and _is_numeric(tensor):
                yield node.outputs[0], tensor


def _is_numeric(tensor: ir.TensorProtocol) -> bool:
    is_integer = tensor.dtype.is_integer() and tensor.dtype.bitwidth <= 8
    return tensor.size > 1 and (tensor.dtype.is_floating_point() or is_integer)


def _readers(value: ir.Value, tensor: ir.TensorProtocol) -> Iterator[tuple[ir.Node, int, int, tuple[str, ...]]]:
    """Yield (node, port, bits of a number, names of values in between) of the nodes that compute with a constant."""
    is_float = tensor.dtype.is_floating_point() and tensor.dtype.bitwidth >= _FLOAT_BITS
    pending: list[tuple[ir.Value, bool, tuple[str, ...]]] = [(value, is_float, ())]
    seen = {value}
    while pending:
        read, floats, via = pending.pop()
        for use in read.uses():
            node, port = use.node, use.idx
            passed = _passes(node, port, floats=floats)
            if passed is not None:
                following = [output for output in node.outputs if output.uses() and output not in seen]
                pending += [(output, passed, (*via, output.name or "")) for output in following]
                seen.update(following)
            elif is_float:
                if not _scales_integers(node, port):
                    yield node, port, tensor.dtype.bitwidth, via
            elif floats or port in ops.spec(node).integers or _looks_up(node, port):
                yield node, port, _bits(node, port, tensor), via


def _passes(node: ir.Node, port: int, *, floats: bool) -> bool | None:
    """Say whether what a node makes of a stored weight is floats (True), or still integers (False).

    None where the node computes with it.
    """
    if query.is_op(node, "DequantizeLinear") and port == 0:
        return True
    if query.is_op(node, "Cast") or (ops.moves_data(node, port) and _moves_weights(node)):
        return floats
    if floats:
        return True if query.is_op(node, "QuantizeLinear") and port == 0 else None
    if query.is_op(node, "Sub", "Add") or (query.is_op(node, "Mul") and not _looks_up(node, port)):
        return query.is_op(node, "Mul")
    if query.is_op(node, "Gather") and port == 1 and query.constant_tensor(node.inputs[0]) is not None:
        return True  # indices of a codebook
    return None


def _moves_weights(node: ir.Node) -> bool:
    """Say whether all that a node joins is stored, or made of what is: others join weights and activations."""
    if not query.is_op(node, "Concat"):
        return True
    makers = [value.producer() for value in node.inputs if value is not None and query.constant_tensor(value) is None]
    return all(query.is_op(maker, *ops.STORAGE, *ops.DATA_MOVEMENT) for maker in makers)


def _looks_up(node: ir.Node, port: int) -> bool:
    return query.is_op(node, "Gather") and port == 0


def _scales_integers(node: ir.Node, port: int) -> bool:
    """Say whether a constant only scales stored integers: a factor, a row of factors, or a codebook."""
    if query.is_op(node, "Mul"):
        return _are_integers(node.inputs[1 - port])
    if not _looks_up(node, port):
        return False
    if _are_integers(node.inputs[1]):
        return True
    consumer = query.sole_consumer(node.outputs[0])
    return consumer is not None and query.is_op(consumer, "Mul") and any(map(_are_integers, consumer.inputs))


def _are_integers(value: ir.Value | None) -> bool:
    """Say whether a value is made of stored integers of 8 bits or fewer by Casts, shifts, moves and look-ups."""
    while value is not None:
        tensor = query.constant_tensor(value)
        if tensor is not None:
            return tensor.dtype.is_integer() and tensor.dtype.bitwidth <= 8
        node = value.producer()
        if not query.is_op(node, "Cast", "Sub", "Add", "Gather", *ops.REARRANGES):
            return False
        assert node is not None
        value = node.inputs[0]
    return False


def _bits(node: ir.Node, port: int, tensor: ir.TensorProtocol) -> int:
    """Return the bits of one number: operators that pack several in a byte say so."""
    packed = tensor.dtype.bitwidth == 8 and port in ops.spec(node).integers
    return int(query.attribute(node, "bits", ops.spec(node).packed_bits or 8)) if packed else tensor.dtype.bitwidth


def _counts(node: ir.Node, port: int, tensor: ir.TensorProtocol, bits: int) -> bool:
    """Say whether a constant that a node reads is a weight, or a bias beside one."""
    row = ops.spec(node)
    if bits < _FLOAT_BITS:
        return True
    if query.is_op(node, "DequantizeLinear", "QuantizeLinear") or row.integers:
        return False  # scales
    if row.weight(port) is not None or _is_bias(node, port):
        return True
    if node.op_type in ops.PARAMETRIC:
        return True
    return len(query.dims(tensor)) > 1 and tensor.size >= _LEAST_ELEMENTS


def _is_bias(node: ir.Node, port: int) -> bool:
    row = ops.spec(node)
    return any(weight.bias == port for weight in row.weights) or bool(row.weights and row.weight(port) is None)


def _held(
    value: ir.Value, tensor: ir.TensorProtocol, node: ir.Node, port: int, bits: int, aliases: tuple[str, ...]
) -> HeldWeight:
    return HeldWeight(
        name=value.name or "?",
        dtype=tensor.dtype,
        dims=query.dims(tensor),
        bytes=tensor.nbytes,
        bits=bits,
        aliases=aliases,
        is_bias=bits >= _FLOAT_BITS and _is_bias(node, port),
        is_input=value.is_graph_input(),
    )


def _attributes(node: ir.Node) -> Iterator[HeldWeight]:
    """Yield lists of floats, and tensors of floats, that a node holds as attributes."""
    if query.is_op(node, "Constant"):
        return
    for name, attribute in node.attributes.items():
        if attribute.is_ref():
            continue
        if attribute.type == ir.AttributeType.FLOATS and len(attribute.value) >= _LEAST_NUMBERS:
            count = len(attribute.value)
            kind = ir.DataType.FLOAT
        elif attribute.type == ir.AttributeType.TENSOR and attribute.value.size >= _LEAST_NUMBERS:
            count, kind = attribute.value.size, attribute.value.dtype
        else:
            continue
        if kind.is_floating_point():
            size = count * kind.bitwidth // 8
            yield HeldWeight(name=name, dtype=kind, dims=(count,), bytes=size, bits=kind.bitwidth, is_attribute=True)


@dataclass(frozen=True, kw_only=True)
class LayerGroup:
    """Layers of one kind: how many, the bytes of their weights, operator -> how many of them, and the names of all."""

    layers: int
    bytes: int
    operators: Mapping[str, int]
    names: tuple[str, ...]

    def __str__(self) -> str:
        kinds = ", ".join(f"{name} {count}" for name, count in self.operators.items())
        shown = ", ".join(self.names[:_EXAMPLES]) + (", ..." if len(self.names) > _EXAMPLES else "")
        return f"{self.layers:,} layer{'s' * (self.layers != 1)} with {self.bytes:,} bytes ({kinds}: {shown})"


@dataclass(frozen=True, kw_only=True)
class QuantizedState:
    """Layers of a model that are stored in 8 bits or fewer, by type ("int8", "uint4"), and those in floats."""

    quantized: Mapping[str, LayerGroup]
    floats: LayerGroup

    def __str__(self) -> str:
        already = "; ".join(f"{form}: {group}" for form, group in self.quantized.items())
        remaining = f"in float remain {self.floats}" if self.floats.layers else "no layer with weights remains in float"
        return f"quantized already are {already}; {remaining}"

    def as_json(self) -> dict[str, Any]:
        """Return the report's `quantized_before` object."""
        return asdict(self)


def quantized_state(model: ir.Model) -> QuantizedState | None:
    """Return which layers of a model are quantized; None where none is."""
    layers = weighted_layers(model)
    by_form: dict[str, list[WeightedLayer]] = {}
    for layer in layers:
        by_form.setdefault(layer.form, []).append(layer)
    floats = by_form.pop("", [])
    if not by_form:
        return None
    return QuantizedState(
        quantized={form: _group(found) for form, found in sorted(by_form.items())}, floats=_group(floats)
    )


def _group(layers: Iterable[WeightedLayer]) -> LayerGroup:
    found = list(layers)
    operators: dict[str, int] = {}
    sizes: dict[tuple[str, str], int] = {}
    for layer in found:
        operators[layer.node.op_type] = operators.get(layer.node.op_type, 0) + 1
        for weight in layer.main:
            holder = layer.label if weight.is_attribute else ""
            sizes[holder, weight.name] = weight.bytes  # a shared one counts once
    return LayerGroup(
        layers=len(found),
        bytes=sum(sizes.values()),
        operators=dict(sorted(operators.items(), key=lambda each: (-each[1], each[0]))),
        names=tuple(layer.label for layer in found),
    )
