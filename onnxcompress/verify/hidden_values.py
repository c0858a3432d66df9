"""Finds the values of a model in which a difference shows that the outputs may hide.

    ... --> z --Softmax--> p --Transpose--> y           y tells little of z where p is nearly 0 or 1
    ... --> z --ArgMax--> y                             y tells nothing unless a difference is large
    ... --> z --Relu--> ... --> y                       y tells nothing of channels that are dead on the feeds
    ... --> z --Conv--> ... --> y                       y tells less than z of what was wrong before it

Values keep their names under rewriting, so a rewritten model has most of them; what comes last is also found by its
place.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import onnx_ir as ir

from ..core import Feed
from ..data import feeds as feed_facts
from ..graph import edit, query
from ..io import model_io
from ..ops import table
from ..runtime.loaded_model import LoadedModel
from ..shapes.infer import infer_at

BOUNDED = ("HardSigmoid", "Sigmoid", "Softmax", "Tanh")
"""Operators whose results are at most 1, and all but constant where their input is large."""

_DECISIONS = ("ArgMax", "ArgMin", "Greater", "GreaterOrEqual", "Less", "LessOrEqual", "Round", "Floor", "Sign")
"""Operators whose results are steps of a floating-point input."""

_ACTIVATIONS = frozenset({"Clip", "Elu", "Gelu", "HardSwish", "LeakyRelu", "PRelu", "Relu", "Selu", *BOUNDED})
_LAYERS = frozenset(
    {*("BatchNormalization", "Conv", "ConvTranspose", "Gemm", "GroupNormalization", "InstanceNormalization")}
    | {*("LayerNormalization", "MatMul")}
)

_MOST_LAST = 64
"""Inputs of last nonlinearities that are looked at. Chosen by judgement; not measured."""

_MOST_ELEMENTS = 4 << 20
"""Elements of all values inside that are looked at, the smallest first: 16 MB for each run on the first feed."""


@dataclass(frozen=True)
class LastActivation:
    """The input of a last nonlinearity: (output it leads to, operator, how many of its kind came before)."""

    key: tuple[str, str, int]
    value: str


def values_inside(model: ir.Model, feed: Feed) -> Sequence[str]:
    """Return the names of results of layers and inputs of activations in the main graph, as many as are looked at.

    Args:
        model: the model.
        feed: what it is run on where its shapes can't be told otherwise.

    Raises:
        ModelError: it does not run.
    """
    found: dict[str, ir.Value] = {}
    for node in model.graph:
        if node.domain in query.STANDARD_DOMAINS and node.op_type in _ACTIVATIONS | _LAYERS:
            value = node.inputs[0] if node.op_type in _ACTIVATIONS else node.outputs[0]
            if value is not None and value.name and value.producer() is not None and not value.is_graph_output():
                found[value.name] = value
    elements = _elements(model, found, feed)
    small = sorted(elements, key=elements.__getitem__)
    total = itertools.accumulate(elements[name] for name in small)
    return [name for name, used in zip(small, total, strict=True) if used <= _MOST_ELEMENTS]


def _elements(model: ir.Model, values: Mapping[str, ir.Value], feed: Feed) -> Mapping[str, int]:
    """Return how many elements values have on a feed; the model is run where some can't be inferred."""
    shapes = infer_at(model, feed_facts.dims(feed)) if values else None
    known = {name: shapes.static(value) for name, value in values.items()} if shapes else {}
    if None in known.values():
        copy = model_io.clone(model)
        outputs = {value.name: value for node in copy.graph for value in node.outputs}
        made = {name: ir.node("Shape", [outputs[name]]) for name in values}
        for name, node in made.items():
            maker = outputs[name].producer()
            assert maker is not None
            copy.graph.insert_after(maker, node)  # at the end, it would keep the value alive until then
        names = edit.Names(copy)
        for name, node in made.items():
            node.outputs[0].name = names.fresh(f"{name}_shape")
            copy.graph.outputs.append(node.outputs[0])
        shown = LoadedModel(copy).plain.run(feed, [str(node.outputs[0].name) for node in made.values()])
        known = dict(zip(made, (tuple(int(dim) for dim in dims) for dims in shown.values()), strict=True))
    return {name: math.prod(dims) for name, dims in known.items() if dims is not None}


def last_activations(model: ir.Model) -> Sequence[LastActivation]:
    """Return the inputs of the nonlinearities behind which outputs are only moved, joined, cut or cast."""
    found: dict[str, LastActivation] = {}
    for output in model.graph.outputs:
        count: dict[str, int] = {}
        for node in _behind(output):
            source = node.inputs[0]
            if source is None or not source.name or query.constant_tensor(source) is not None:
                continue
            index = count[node.op_type] = count.get(node.op_type, -1) + 1
            found.setdefault(source.name, LastActivation((output.name or "", node.op_type, index), source.name))
    return list(found.values())[:_MOST_LAST]


def ends_bounded(value: ir.Value) -> bool:
    """Say whether an element of a value, at least, comes from an operator in `BOUNDED`, moved at most."""
    return any(node.op_type in BOUNDED for node in _behind(value))


def counterparts(inside: Sequence[str], last: Sequence[LastActivation], after: ir.Model) -> Mapping[str, str]:
    """Return value of the original -> the same in a rewritten model: by its name, else by the place of its operator.

    Args:
        inside: values of the original that are looked for by name.
        last: those that are looked for by place too.
        after: the rewritten model.
    """
    names = {value.name for graph in query.graphs_outside_functions(after) for node in graph for value in node.outputs}
    found = {name: name for name in (*inside, *(each.value for each in last)) if name in names}
    places = {each.key: each.value for each in last_activations(after)}
    for each in last:
        other = places.get(each.key)
        if each.value not in found and other is not None and other not in found:
            found[each.value] = other
    return found


def _behind(output: ir.Value) -> Iterator[ir.Node]:
    """Yield the last nonlinearities that an output comes from, in the order of what is joined."""
    pending: list[ir.Value] = [output]
    seen: set[ir.Node] = set()
    while pending:
        value = pending.pop()
        node = value.producer()
        if node is None or node in seen:
            continue
        seen.add(node)
        if node.domain not in query.STANDARD_DOMAINS:
            continue
        if node.op_type in BOUNDED or node.op_type in _DECISIONS:
            yield node
        elif node.op_type == "If":
            pending += [body.outputs[value.index() or 0] for body in reversed(query.bodies(node))]
        elif node.op_type == "Cast" or table.moves_data(node, 0):
            ports = len(node.inputs) if node.op_type == "Concat" else 1
            pending += [each for each in reversed(node.inputs[:ports]) if each is not None]
