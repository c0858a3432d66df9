"""Makes copies of a serialized model that show the same faults with other rounding, or with none of float16.

    float32_shadow   float16 tensors, types and Casts become float32: what float16 rounds away can be seen
    jittered         weights move by one unit in the last place, up or down
    seeded           operators that draw random numbers draw the same in two models

Works on messages, not on onnx_ir models: workers that run pieces of models import this.
"""

from __future__ import annotations

import zlib
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import onnx
from onnx import numpy_helper

_HALF, _SINGLE = onnx.TensorProto.FLOAT16, onnx.TensorProto.FLOAT
_TYPE_ATTRIBUTES = frozenset({"to", "dtype", "output_dtype", "output_datatype", "softmax_precision", "stash_type"})
"""Attributes that name the type of a result."""

_LEAST_ELEMENTS = 9
"""Smaller constants are sizes, limits, exponents or scales of a Resize rather than weights: they are not moved."""

DRAWING = frozenset(
    {"Bernoulli", "Dropout", "Multinomial", "RandomNormal", "RandomNormalLike", "RandomUniform", "RandomUniformLike"}
)
"""Operators of the standard domain that draw random numbers (Dropout: while it trains), and take a seed."""

_SEEDS = 1 << 23
"""Different seeds: whole numbers that a float32 attribute holds exactly."""

_DROPOUT_PORTS = 3
"""Inputs of a Dropout that can train."""


def has_halves(model: onnx.ModelProto) -> bool:
    """Say whether anything in a model is float16."""
    return (
        any(tensor.data_type == _HALF for tensor in _tensors(model))
        or any(attr.i == _HALF for node in _nodes(model) for attr in node.attribute if attr.name in _TYPE_ATTRIBUTES)
        or any(_is_half(value.type) for value in _values(model))
    )


def computes_in_halves(model: onnx.ModelProto) -> bool:
    """Say whether weights are float16 where they are used, so that a rewrite has to round what it makes of them."""
    for graph in _graphs(model):
        found = {tensor.name for tensor in getattr(graph, "initializer", ()) if tensor.data_type == _HALF}
        constants = (node for node in graph.node if node.op_type == "Constant")
        found |= {node.output[0] for node in constants if any(attr.t.data_type == _HALF for attr in node.attribute)}
        if any(found.intersection(node.input) for node in graph.node if node.op_type != "Cast"):
            return True
    return False


def only_stores_halves(model: onnx.ModelProto) -> bool:
    """Say whether all that is float16 are constants that are cast to another type before they are used.

    Nothing is rounded to float16 then when the model runs. The constants may be declared among the values in between.
    """
    graphs = list(_graphs(model))
    stored, tensors = set(), 0
    for graph in graphs:
        for tensor in getattr(graph, "initializer", ()):
            if tensor.data_type == _HALF:
                stored.add(tensor.name)
                tensors += 1
        for node in graph.node:
            if any(attr.i == _HALF for attr in node.attribute if attr.name in _TYPE_ATTRIBUTES):
                return False
            if node.op_type == "Constant" and any(attr.t.data_type == _HALF for attr in node.attribute):
                stored.add(node.output[0])
                tensors += 1
    interface = [value for graph in graphs for value in _interface(graph)]
    between = [value for graph in graphs for value in graph.value_info if value.name not in stored]
    if any(_is_half(value.type) for value in (*interface, *between)):
        return False
    used = {name for graph in graphs for node in graph.node if node.op_type != "Cast" for name in node.input}
    shown = {getattr(value, "name", value) for graph in graphs for value in graph.output}
    is_all = tensors == sum(tensor.data_type == _HALF for tensor in _tensors(model))
    return is_all and stored.isdisjoint(used | shown)


def float32_shadow(model: onnx.ModelProto) -> None:
    """Turn everything that is float16 in a model into float32, in place."""
    for tensor in _tensors(model):
        if tensor.data_type == _HALF:
            tensor.CopyFrom(numpy_helper.from_array(numpy_helper.to_array(tensor).astype(np.float32), tensor.name))
    for node in _nodes(model):
        for attr in node.attribute:
            if attr.name in _TYPE_ATTRIBUTES and attr.i == _HALF:
                attr.i = _SINGLE
    for value in _values(model):
        _widen(value.type)


def widened(feed: Mapping[str, Any]) -> dict[str, Any]:
    """Return a feed for a float32 shadow."""

    def wide(value: Any) -> Any:
        if isinstance(value, list | tuple):
            return [wide(each) for each in value]
        is_half = isinstance(value, np.ndarray | np.generic) and value.dtype == np.float16
        return value.astype(np.float32) if is_half else value

    return {name: wide(value) for name, value in feed.items()}


def moved(value: Any, rng: np.random.Generator) -> Any:
    """Return an array with each float one unit in the last place up or down, or as it is; other types as they are."""
    if isinstance(value, list | tuple):
        return [moved(each, rng) for each in value]
    if not isinstance(value, np.ndarray) or value.dtype.kind != "f":
        return value
    steps = rng.integers(-1, 2, value.shape, np.int8).astype(value.dtype)
    with np.errstate(over="ignore", invalid="ignore"):
        found = value * (1 + np.finfo(value.dtype).eps * steps)
    return np.where(np.isfinite(found), found, value)


def jittered(model: onnx.ModelProto, seed: int) -> bool:
    """Move all weights of a model by one unit in the last place of their type, in place; False where it has none."""
    rng = np.random.default_rng(seed)
    found = False
    for tensor in _tensors(model):
        if tensor.data_type not in (_HALF, _SINGLE, onnx.TensorProto.DOUBLE):
            continue
        if np.prod(tensor.dims) < _LEAST_ELEMENTS or tensor.data_location == onnx.TensorProto.EXTERNAL:
            continue
        tensor.CopyFrom(numpy_helper.from_array(moved(numpy_helper.to_array(tensor), rng), tensor.name))
        found = True
    return found


Draws = Sequence[tuple[str, tuple[Any, ...]]]
"""Operators that draw random numbers, in order: (name of the result, what is drawn)."""


def draws(model: onnx.ModelProto) -> Draws:
    """Return the operators of a model that draw random numbers."""
    return [(node.output[0], _drawn(node)) for node in _nodes(model) if _draws(node)]


def seeded(model: onnx.ModelProto, original: Draws) -> str | None:
    """Give each operator that draws random numbers the seed of its counterpart in the original, in place.

    The counterpart makes the result of the same name; where there is none, it is the first that draws the same and has
    not been found by name.

    Returns:
        What keeps the two models from drawing the same, None where nothing does.
    """
    nodes = [node for node in _nodes(model) if _draws(node)]
    names = {name for name, _ in original}
    made = {node.output[0] for node in nodes}
    left = [(name, drawn) for name, drawn in original if name not in made]
    unmatched = None
    for node in nodes:
        name = node.output[0]
        if name not in names:
            found = next((each for each in left if each[1] == _drawn(node)), None)
            if found is None:
                unmatched = f"{name!r} ({node.op_type}) draws random numbers that the original does not draw"
            else:
                left.remove(found)
                name = found[0]
        _set_seed(node, zlib.crc32(name.encode()) % _SEEDS)
    return unmatched


def _draws(node: onnx.NodeProto) -> bool:
    if node.domain not in ("", "ai.onnx") or node.op_type not in DRAWING:
        return False
    return node.op_type != "Dropout" or (len(node.input) >= _DROPOUT_PORTS and bool(node.input[2]))


def _drawn(node: onnx.NodeProto) -> tuple[Any, ...]:
    attributes = sorted(attr.SerializeToString() for attr in node.attribute if attr.name != "seed")
    return (node.op_type, *attributes)


def _set_seed(node: onnx.NodeProto, seed: int) -> None:
    kept = [attr for attr in node.attribute if attr.name != "seed"]
    del node.attribute[:]
    number = seed if node.op_type == "Dropout" else float(seed)
    node.attribute.extend([*kept, onnx.helper.make_attribute("seed", number)])


def _graphs(model: onnx.ModelProto) -> Iterator[onnx.GraphProto | onnx.FunctionProto]:
    pending: list[onnx.GraphProto | onnx.FunctionProto] = [model.graph, *model.functions]
    while pending:
        graph = pending.pop()
        yield graph
        for node in graph.node:
            for attr in node.attribute:
                pending += [attr.g] if attr.HasField("g") else attr.graphs


def _nodes(model: onnx.ModelProto) -> Iterator[onnx.NodeProto]:
    for graph in _graphs(model):
        yield from graph.node


def _tensors(model: onnx.ModelProto) -> Iterator[onnx.TensorProto]:
    for graph in _graphs(model):
        if isinstance(graph, onnx.GraphProto):
            yield from graph.initializer
        for node in graph.node:
            for attr in node.attribute:
                if attr.HasField("t"):
                    yield attr.t
                yield from attr.tensors


def _values(model: onnx.ModelProto) -> Iterator[onnx.ValueInfoProto]:
    for graph in _graphs(model):
        yield from graph.value_info
        yield from _interface(graph)


def _interface(graph: onnx.GraphProto | onnx.FunctionProto) -> Iterator[onnx.ValueInfoProto]:
    if isinstance(graph, onnx.GraphProto):
        yield from graph.input
        yield from graph.output


def _leaf_types(kind: onnx.TypeProto) -> Iterator[Any]:
    if kind.HasField("tensor_type"):
        yield kind.tensor_type
    elif kind.HasField("sequence_type"):
        yield from _leaf_types(kind.sequence_type.elem_type)
    elif kind.HasField("optional_type"):
        yield from _leaf_types(kind.optional_type.elem_type)
    elif kind.HasField("map_type"):
        yield from _leaf_types(kind.map_type.value_type)


def _is_half(kind: onnx.TypeProto) -> bool:
    return any(leaf.elem_type == _HALF for leaf in _leaf_types(kind))


def _widen(kind: onnx.TypeProto) -> None:
    for leaf in _leaf_types(kind):
        if leaf.elem_type == _HALF:
            leaf.elem_type = _SINGLE
