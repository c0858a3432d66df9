"""Sources of a model's outputs: the floats behind integers and strings, the pieces of a final Concat.

    ... -> Conv -> ArgMax -> Cast -> y          y: labels, source the Conv's result
    boxes -> Concat -> Transpose -> y           y: numbers, pieces boxes and scores
    scores -/

An integer output shows damage only when a decision falls the other way, so the floats that it is decided by are
compared too. The walk depends on the structure near the output alone, so that it finds the same sources in the original
and in a compressed model; what it finds in one of them only is not compared.
"""

from __future__ import annotations

import enum
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass, field, replace

import onnx_ir as ir

from ..graph import query
from ..io import model_io
from ..shapes.expose import expose
from .cache_outputs import cache_outputs

_CARRIERS = frozenset(
    {
        *("Cast", "DequantizeLinear", "Flatten", "Identity", "QuantizeLinear", "Reshape", "Squeeze", "Transpose"),
        *("Unsqueeze",),
    }
)
"""Operators behind which the elements of input 0 are what they were."""
_ROUNDING = frozenset({"Ceil", "Clip", "Floor", "Round", "QuantizeLinear"})
"""Operators that keep the order of numbers: an integer output behind them counts or measures."""
_CHOOSING = frozenset({"ArgMax", "ArgMin", "NonMaxSuppression", "NonZero", "TopK", "Hardmax"})
"""Operators that decide for one of several."""
_COMPARING = frozenset({"Equal", "Greater", "GreaterOrEqual", "Less", "LessOrEqual"})
"""Operators that decide between yes and no."""
_CLASSIFIERS = frozenset({"LinearClassifier", "SVMClassifier", "TreeEnsembleClassifier"})
"""Operators of ai.onnx.ml with labels as output 0 and scores as output 1."""
_SCALING = frozenset({"Add", "Div", "Mul", "Sub"})
_AVERAGING = frozenset({"AveragePool", "GlobalAveragePool", "GlobalMaxPool", "MaxPool", "ReduceMax", "ReduceMean"})
"""Operators behind which scores are still scores: of a whole picture or utterance instead of its parts."""
_PRODUCTS = frozenset({"Conv", "ConvInteger", "ConvTranspose", "Einsum", "Gemm", "MatMul", "MatMulInteger"})
"""Operators that sum products with a weight; fused forms end in the name of one of them."""
_MOST_PIECES = 32
"""Pieces of one output that are judged apart."""
_MOST_DEPTH = 40
"""Operators between an output and its source."""


class Ending(enum.Enum):
    """The last operator that computes an output, apart from those that move or scale elements."""

    SIGMOID = "Sigmoid"
    SOFTMAX = "Softmax"
    PRODUCT = "product"
    CHOICE = "choice"
    COMPARISON = "comparison"
    STATE = "state"
    OTHER = "other"


@dataclass(frozen=True)
class Source:
    """The computation behind one output.

    Args:
        ending: its last operator.
        operator: the name of that operator.
        values: names of float values that decide an output which is no float.
        axis: of the classes in the first of `values`, where a choice is made along one.
        pieces: names and sources of the values that a final Concat joins, where it joins different ones.
        counts_rows: axis 0 is no batch: it is open, and the inputs' are not.
        sized_by: names of the amounts that an output's length follows from, see `shapes.sized_by`.
        has_scores: some of its numbers are behind a sigmoid or softmax, with no product after it.
    """

    ending: Ending
    operator: str
    values: tuple[str, ...] = ()
    axis: int | None = None
    pieces: tuple[tuple[str, Source], ...] = ()
    counts_rows: bool = False
    sized_by: tuple[str, ...] = ()
    has_scores: bool = False


@dataclass(frozen=True)
class ShownModel:
    """A model whose sources are outputs too.

    Args:
        model: the model itself where nothing has to be shown, else a copy with more outputs.
        names: source as found in the original -> output that shows it in this model.
    """

    model: ir.Model
    names: Mapping[str, str] = field(default_factory=dict)


def sources(model: ir.Model) -> dict[str, Source]:
    """Return the source of every output, by its name."""
    fixed = [i for i in model.graph.inputs if not i.is_initializer() and i.shape is not None and i.shape.rank()]
    is_fixed = bool(fixed) and all(isinstance(value.shape[0], int) for value in fixed if value.shape is not None)
    found = {output.name or "": (output, _source(output)) for output in model.graph.outputs}
    states = [name for name, (_, source) in found.items() if source.ending is Ending.STATE]
    for name in cache_outputs(model, states):
        found[name] = found[name][0], Source(Ending.STATE, "attention")
    return {
        name: replace(source, counts_rows=is_fixed and _is_open(output), has_scores=_has_scores(output))
        for name, (output, source) in found.items()
    }


def show(
    model: ir.Model, found: Mapping[str, Source], wanted: Mapping[str, Source], *, only: Collection[str] | None = None
) -> ShownModel:
    """Return a model that gives the sources which it has in common with the original.

    Args:
        model: the original or a compressed model.
        found: its sources.
        wanted: the original's sources.
        only: names in the original of the values that are needed, None for all.
    """
    pairs: dict[str, str] = {}
    for name, source in wanted.items():
        own = found.get(name)
        if own is not None and len(own.values) == len(source.values):
            pairs |= dict(zip(source.values, own.values, strict=True))
        if own is not None and len(own.pieces) == len(source.pieces):
            pairs |= {theirs: ours for (theirs, _), (ours, _) in zip(source.pieces, own.pieces, strict=True)}
    pairs = {theirs: ours for theirs, ours in pairs.items() if only is None or theirs in only}
    if not pairs:
        return ShownModel(model)
    outputs = {output.name or "": output.name or "" for output in model.graph.outputs}
    inner = [name for name in dict.fromkeys(pairs.values()) if name not in outputs]
    exposed = expose(model, inner, keep=[name for name in outputs if name])
    given: dict[str, str] = {**outputs, **exposed.outputs}
    return ShownModel(exposed.model, {theirs: given[ours] for theirs, ours in pairs.items() if ours in given})


def with_sources(model: ir.Model) -> ir.Model:
    """Return a copy of a model that gives the floats which decide its other outputs, too."""
    found = sources(model)
    shown = show(model, found, {name: replace(source, pieces=()) for name, source in found.items()}).model
    return model_io.clone(model) if shown is model else shown


def _has_scores(output: ir.Value) -> bool:
    """Return whether a sigmoid or softmax is reached from an output of floats before any product."""
    waiting, known = [output] if output.dtype is None or output.dtype.is_floating_point() else [], {output}
    while waiting:
        node = waiting.pop().producer()
        if node is None or _is_product(node.op_type):
            continue
        if any(node.op_type.endswith(name) for name in ("Sigmoid", "Softmax")):
            return True
        new = {value for value in node.inputs if value is not None} - known
        known |= new
        waiting += new
    return False


def _is_open(output: ir.Value) -> bool:
    """Return whether the length of an output's first axis is not declared, where it is declared to have one."""
    return output.shape is not None and output.shape.rank() > 0 and not isinstance(output.shape[0], int)


def _source(output: ir.Value) -> Source:
    is_float = output.dtype is None or output.dtype.is_floating_point()
    value, operator = _behind(output)
    node = value.producer()
    if node is None:
        return Source(Ending.OTHER, operator or "input")
    joined = list(dict.fromkeys(_pieces(value)))
    if is_float and len(joined) > 1:
        pieces = [(piece.name or "", _float_source(piece)) for piece in joined]
        return Source(_ending(value), "Concat", pieces=tuple(pieces) if len(pieces) <= _MOST_PIECES else ())
    if is_float:
        return _float_source(value)
    decided = list(dict.fromkeys(_deciding(output, _MOST_DEPTH)))
    ending, name, axis = _decision(output, _MOST_DEPTH)
    return Source(ending, name, tuple(decided[:_MOST_PIECES]), axis)


def _float_source(value: ir.Value) -> Source:
    node = _behind(value)[0].producer()
    return Source(_ending(value), "" if node is None else node.op_type)


def _behind(value: ir.Value) -> tuple[ir.Value, str]:
    """Return the value before all operators that only move elements, and the last operator."""
    node = value.producer()
    while node is not None and node.op_type in _CARRIERS and node.inputs and node.inputs[0] is not None:
        if query.constant_tensor(node.inputs[0]) is not None:
            break
        value = node.inputs[0]
        node = value.producer()
    return value, "" if node is None else node.op_type


def _ending(value: ir.Value) -> Ending:
    """Return the last operator that computes a float; of an If the one that all its branches end with."""
    for _ in range(_MOST_DEPTH):
        value, operator = _behind(value)
        node = value.producer()
        if node is None:
            return Ending.OTHER
        operator = operator.removeprefix("QLinear")
        if operator == "If":
            endings = {_ending(body.outputs[value.index() or 0]) for body in query.bodies(node)}
            return endings.pop() if len(endings) == 1 else Ending.OTHER
        if operator in ("Sigmoid", "HardSigmoid"):
            return Ending.SIGMOID
        if operator in ("LogSoftmax", "Softmax"):
            return Ending.SOFTMAX
        if _is_product(operator):
            return Ending.PRODUCT
        if operator in ("GRU", "LSTM", "RNN") and value is not node.outputs[0]:
            return Ending.STATE
        if operator == "Concat" and any(v is not None and v.is_graph_input() for v in node.inputs):
            return Ending.STATE
        computed = [v for v in node.inputs if v is not None and query.constant_tensor(v) is None]
        if (
            operator == "Mul" and len(computed) == 2
        ):  # an integer product, scaled by what its inputs were quantized with
            computed = [v for v in computed if "Integer" in _behind(v)[1]]
        if operator not in _SCALING | _AVERAGING or len(computed) != 1:
            return Ending.OTHER
        value = computed[0]
    return Ending.OTHER


def _is_product(operator: str) -> bool:
    """Return whether an operator, of a fused or integer form maybe, sums products."""
    return any(name in operator for name in _PRODUCTS)


def _pieces(value: ir.Value) -> Iterator[ir.Value]:
    """Yield the computed values that Concats join into a value, the value itself without one."""
    value, operator = _behind(value)
    node = value.producer()
    if operator == "Concat" and node is not None and not any(v is not None and v.is_graph_input() for v in node.inputs):
        for piece in node.inputs:
            if piece is not None and query.constant_tensor(piece) is None:
                yield from _pieces(piece)
    elif value.name and not value.is_graph_input():
        yield value


def _deciding(value: ir.Value, depth: int) -> Iterator[str]:
    """Yield the names of the nearest floats behind a value that is none."""
    node = value.producer()
    if node is None or depth == 0 or query.bodies(node):
        return
    if node.op_type in _CLASSIFIERS and len(node.outputs) > 1 and node.outputs[1].name:
        yield node.outputs[1].name
        return
    for read in _decisive_inputs(node, value):
        if read is None or query.constant_tensor(read) is not None:
            continue
        if _is_float(read, node):
            if read.name and read.producer() is not None:
                yield read.name
        else:
            yield from _deciding(read, depth - 1)


def _decisive_inputs(node: ir.Node, value: ir.Value) -> list[ir.Value | None]:
    """Return the inputs whose values decide an output."""
    if node.op_type in ("NonMaxSuppression",):
        return list(node.inputs[:2])
    if node.op_type in _CHOOSING or node.op_type in _ROUNDING or node.op_type in _CARRIERS:
        return list(node.inputs[:1])
    if node.op_type in ("Gather", "GatherElements", "GatherND"):
        table = node.inputs[0]
        is_table = table is None or query.constant_tensor(table) is not None
        return list(node.inputs[1:2] if is_table else node.inputs[:2])
    return [] if value is None else list(node.inputs)


def _is_float(value: ir.Value, reader: ir.Node) -> bool:
    if value.dtype is not None:
        return value.dtype.is_floating_point()
    node = value.producer()
    if node is not None and node.op_type in (*_COMPARING, "And", "Not", "Or", "Xor", "ArgMax", "ArgMin", "NonZero"):
        return False
    if node is not None and node.op_type == "Cast":
        return ir.DataType(query.attribute(node, "to", 1)).is_floating_point()
    if node is not None and node.op_type == "TopK":
        return value is node.outputs[0]
    return reader.op_type in (*_CHOOSING, *_COMPARING, *_ROUNDING, "Cast")


def _decision(value: ir.Value, depth: int) -> tuple[Ending, str, int | None]:
    """Return how an output that is no float is decided: the kind of operator, its name, the axis of a choice."""
    node = value.producer()
    while node is not None and depth:
        if node.op_type in _CHOOSING:
            axis = query.attribute(node, "axis", -1 if node.op_type in ("TopK", "Hardmax") else 0)
            is_along = node.op_type in ("ArgMax", "ArgMin", "TopK", "Hardmax")
            return Ending.CHOICE, node.op_type, int(axis) if is_along else None
        if node.op_type in _CLASSIFIERS:
            return Ending.CHOICE, node.op_type, -1
        if node.op_type in _COMPARING:
            return Ending.COMPARISON, node.op_type, None
        reads = [v for v in _decisive_inputs(node, value) if v is not None and query.constant_tensor(v) is None]
        if not reads:
            break
        value, depth = reads[0], depth - 1
        if _is_float(value, node) and node.op_type in (*_ROUNDING, "Cast"):
            return Ending.OTHER, node.op_type, None
        node = value.producer()
    return Ending.OTHER, "" if node is None else node.op_type, None
