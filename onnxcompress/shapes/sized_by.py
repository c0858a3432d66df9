"""Finds the numbers that a model computes and that decide how long its outputs are.

    durations -> Ceil -> ReduceSum -> Cast -> Range -> ... -> y      y is sized by the amounts that Ceil rounds
    scores -> Greater -> NonZero -> Gather -> y                      y is sized by a decision, without an amount

The walk is backwards from each output, by shapes until a value becomes a size, and by values from there on.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass

import onnx_ir as ir

from ..graph import query

_SIZED_BY_VALUES = {
    "BlackmanWindow": (0,),
    "CenterCropPad": (1,),
    "Compress": (1,),
    "ConstantOfShape": (0,),
    "DFT": (1,),
    "Expand": (1,),
    "HammingWindow": (0,),
    "HannWindow": (0,),
    "NonMaxSuppression": (0, 1, 2, 3, 4),
    "NonZero": (0,),
    "OneHot": (1,),
    "Pad": (1,),
    "Range": (0, 1, 2),
    "Reshape": (1,),
    "Resize": (2, 3),
    "STFT": (1,),
    "Slice": (1, 2, 3, 4),
    "Split": (1,),
    "StringSplit": (0,),
    "Tile": (1,),
    "TopK": (1,),
    "Unique": (0,),
    "Upsample": (1,),
}
"""Operators -> inputs whose values decide the shape of the outputs; other inputs do so by their shapes."""
_SHAPED_BY = {
    "ConstantOfShape": (),
    "Expand": (0,),
    "Range": (),
    "ScatterElements": (0,),
    "ScatterND": (0,),
    "SequenceAt": (0,),
}
"""Operators -> inputs whose shapes decide that of the outputs, where not all do."""
_ROUNDING = frozenset({"Ceil", "Floor", "Round"})
"""Operators that make amounts of continuous numbers."""
_KEEPS_WHOLE = frozenset(
    {
        *("Abs", "Add", "Clip", "Concat", "CumSum", "Expand", "Flatten", "Gather", "GatherElements", "GatherND"),
        *("Identity", "Max", "Min", "Mod", "Mul", "Neg", "Range", "ReduceMax", "ReduceMin", "ReduceSum", "Reshape"),
        *("Slice", "Split", "Squeeze", "Sub", "Sum", "Tile", "Transpose", "Unsqueeze", "Where", "Div"),
        *("ScatterElements", "ScatterND"),
    }
)
"""Operators that make whole numbers of whole numbers (Div: of integers)."""
_DECIDING = frozenset(
    {
        *("And", "ArgMax", "ArgMin", "Equal", "Greater", "GreaterOrEqual", "Hardmax", "IsInf", "IsNaN", "Less"),
        *("LessOrEqual", "NonMaxSuppression", "NonZero", "Not", "Or", "TopK", "Unique", "Xor"),
    }
)
"""Operators that decide by the values of their inputs rather than measure."""
_CONSTANT = frozenset({"Constant", "ConstantOfShape", "EyeLike"})
_OF_SHAPES = frozenset({"Shape", "Size"})


@dataclass(frozen=True)
class Sizing:
    """Origin of an output's shape, beside the shapes of inputs.

    Args:
        amounts: rounded numbers of the main graph, by name, in order from the output.
        is_computed: whether it depends on any number that the model computes, amounts or decisions.
    """

    amounts: tuple[str, ...]
    is_computed: bool


def sizing(model: ir.Model) -> dict[str, Sizing]:
    """Return output -> what its shape depends on."""
    return {output.name or "": _sizing(model, output) for output in model.graph.outputs}


def _sizing(model: ir.Model, output: ir.Value) -> Sizing:
    amounts: dict[str, None] = {}
    is_computed = False
    for kind, value in _AmountSearch(output):
        is_computed = True
        node = value.producer()
        if kind == "amount" and node is not None and node.graph is model.graph and value.name:
            amounts[value.name] = None
    return Sizing(tuple(amounts), is_computed)


class _AmountSearch:
    """Walk back from an output; yields ("amount" | "decision", value)."""

    def __init__(self, output: ir.Value) -> None:
        self._by_shape: list[ir.Value] = [output]
        self._by_value: list[tuple[ir.Value, ir.Value | None]] = []
        self._seen_shapes: set[ir.Value] = set()
        self._seen_values: set[tuple[ir.Value, ir.Value | None]] = set()

    def __iter__(self) -> Iterator[tuple[str, ir.Value]]:
        while self._by_shape or self._by_value:
            if self._by_value:
                yield from self._value_step(*self._by_value.pop())
            else:
                self._shape_step(self._by_shape.pop())

    def _shape_step(self, value: ir.Value) -> None:
        node = value.producer()
        if node is None or value in self._seen_shapes:
            return
        self._seen_shapes.add(value)
        self._by_shape += _chosen(node, _SHAPED_BY.get(node.op_type))
        self._by_value += [(read, None) for read in _chosen(node, _SIZED_BY_VALUES.get(node.op_type, ()))]
        if node.op_type in ("If", "Loop"):  # the branch taken, the rounds made
            self._by_value += [(read, None) for read in node.inputs[:1] if read is not None]
        for body in query.bodies(node):
            self._by_shape += [each for each in body.outputs if each.producer() is not None]
            if node.op_type == "Loop":
                self._by_value.append((body.outputs[0], None))

    def _value_step(self, value: ir.Value, cast: ir.Value | None) -> Iterator[tuple[str, ir.Value]]:
        """Take one step back from a value that becomes a size; `cast` is what makes an integer of it."""
        node = value.producer()
        if node is None or (value, cast) in self._seen_values or query.constant_tensor(value) is not None:
            return
        self._seen_values.add((value, cast))
        if node.op_type in _OF_SHAPES:
            self._by_shape += _chosen(node, (0,))
        elif node.op_type in _ROUNDING:
            yield "amount", value
        elif node.op_type == "Cast":
            to = ir.DataType(query.attribute(node, "to", int(ir.DataType.FLOAT)))
            self._by_value += [(read, value if to.is_integer() else cast) for read in _chosen(node, (0,))]
        elif node.op_type in _KEEPS_WHOLE:
            self._by_value += [(read, cast) for read in _chosen(node, None)]
        elif node.op_type in _DECIDING:
            self._by_value += [(read, None) for read in _chosen(node, None)]
        elif node.op_type not in _CONSTANT:
            yield ("decision", value) if cast is None else ("amount", cast)


def _chosen(node: ir.Node, ports: Iterable[int] | None) -> list[ir.Value]:
    """Return the inputs at some ports (None: all) that are there."""
    found = node.inputs if ports is None else [node.inputs[port] for port in ports if port < len(node.inputs)]
    return [value for value in found if value is not None]
