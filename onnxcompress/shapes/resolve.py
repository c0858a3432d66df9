"""Shapes at the sizes of a feed: inferred where that is possible, seen in one run of the model where it is not.

    infer_dims    name -> dimensions, by inference alone
    resolve       the same for the values that are asked for, completed by a run
    facts_at      symbolic facts at the feed, completed by a run
    look_shapes   shapes of one run; the values themselves are not taken out, since together they may be gigabytes

`partition.value_sizes` alone runs models otherwise: piece by piece, for those that are too large to be run whole.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, TypeVar

import numpy as np
import onnx_ir as ir

from ..base import feed_facts, size_limits
from ..errors import ModelError
from ..graph import edit, query
from ..io import model_io
from ..ops import table as ops
from ..runtime import session as runtime
from ..runtime.run_timeout import run_seconds
from . import expose, infer, symbolic
from .facts import Facts
from .same_draws import draws, with_same_draws

log = logging.getLogger(__name__)

Dims = tuple[int, ...]
T = TypeVar("T")


def infer_dims(model: ir.Model, feed: Mapping[str, Any]) -> dict[str, Dims]:
    """Return the dimensions of every value by name at the shapes of a feed; what can't be inferred is left out.

    Names of different values in different bodies are left out too.
    """
    return infer.infer_at(model, feed_facts.dims(feed)).all_static()


def resolve(model: ir.Model, feed: Mapping[str, Any], names: Iterable[str]) -> dict[str, Dims]:
    """Return the dimensions of these values and of the inputs; what a run does not compute, or as empty, is left out.

    Models of any size are run, where inference leaves one of the values open.

    Raises:
        ModelError: the runtime can't run the model.
    """
    wanted = list(names)
    inferred = infer_dims(model, feed)
    found = feed_facts.dims({v.name or "": feed[v.name or ""] for v in model.graph.inputs if v.name in feed})
    found |= {name: inferred[name] for name in wanted if name in inferred}
    unknown = [name for name in wanted if name not in found]
    found |= {name: seen.dims for name, seen in _run_for_shapes(model, feed, unknown).items()}
    return {name: dims for name, dims in found.items() if 0 not in dims or name not in wanted}


@dataclass(frozen=True)
class SeenShape:
    """The dimensions and the element type that a value has in a run."""

    dims: Dims
    dtype: np.dtype[Any]


def look(model: ir.Model, feed: Mapping[str, Any], names: Iterable[str]) -> dict[str, np.ndarray]:
    """Return the values of one run, of a model up to `SHAPE_RUN_BYTES`; none where the model can't run the feed."""
    return _tried(model, feed, lambda: _run(model, feed, list(names)))


def look_shapes(
    model: ir.Model, feed: Mapping[str, Any], names: Iterable[str], *, max_seconds: float | None = None
) -> dict[str, SeenShape]:
    """Do as `look` does for the shapes alone."""
    return _tried(model, feed, lambda: _run_for_shapes(model, feed, list(names), max_seconds=max_seconds))


def _tried(model: ir.Model, feed: Mapping[str, Any], run: Callable[[], dict[str, T]]) -> dict[str, T]:
    if not feed or model_io.model_bytes(model) > size_limits.SHAPE_RUN_BYTES:
        return {}
    try:
        return run()
    except ModelError as error:
        log.info("shapes that can't be inferred stay unknown: %s", error)
        return {}


def _run(model: ir.Model, feed: Mapping[str, Any], names: list[str]) -> dict[str, np.ndarray]:
    """Return values by name: arrays only, and of those in bodies only what a run computes."""
    shown = expose.expose(model, names) if names else None
    if shown is None or not shown.outputs:
        return {}
    values = _outputs(shown.model, feed)
    arrays = {name: (values[output], output) for name, output in shown.outputs.items()}
    return {
        name: array
        for name, (array, output) in arrays.items()
        if isinstance(array, np.ndarray) and (array.size or output == name)
    }


def _run_for_shapes(
    model: ir.Model, feed: Mapping[str, Any], names: list[str], *, max_seconds: float | None = None
) -> dict[str, SeenShape]:
    """Return the shapes of what `_run` returns; a value is taken out only where its type is not inferred."""
    shown = expose.expose(model, names) if names else None
    if shown is None or not shown.outputs:
        return {}
    inferred, outputs = infer.infer(shown.model), shown.model.graph.outputs
    fresh = edit.Names(shown.model)
    measured: dict[str, tuple[str, np.dtype[Any]]] = {}
    for index, value in enumerate(list(outputs)):
        dtype = inferred.dtype(value)
        if dtype is None:  # it may be a sequence
            continue
        node = ir.node("Shape", [value])
        node.outputs[0].name = fresh.fresh(f"{value.name}_shape")
        shown.model.graph.append(node)
        outputs[index] = node.outputs[0]
        measured[value.name or ""] = node.outputs[0].name, dtype.numpy()
    values = _outputs(shown.model, feed, max_seconds=max_seconds)
    found: dict[str, SeenShape] = {}
    for name, output in shown.outputs.items():
        if output in measured:
            shape, numpy_type = measured[output]
            found[name] = SeenShape(tuple(int(size) for size in values[shape]), numpy_type)
        elif isinstance(values[output], np.ndarray):
            found[name] = SeenShape(values[output].shape, values[output].dtype)
    return {name: seen for name, seen in found.items() if 0 not in seen.dims or shown.outputs[name] == name}


def _outputs(model: ir.Model, feed: Mapping[str, Any], *, max_seconds: float | None = None) -> dict[str, Any]:
    """Return the outputs of one run, in which draws that have to agree do."""
    found = draws(model)
    stable = with_same_draws(model, {name: name for _, name in found}) if found else model
    session = runtime.open_session(model_io.to_bytes(stable), optimize=False)
    return session.run(feed, max_seconds=max_seconds)


def facts_at(model: ir.Model, feed: Mapping[str, Any], always: Facts) -> Facts:
    """Return facts at the sizes of a feed, with what a run shows of values whose shape not even they tell.

    Args:
        model: its values have unique names.
        feed: input name -> array; without any, the facts are those that hold always.
        always: facts that hold for every feed.
    """
    sizes = feed_facts.dims(feed)
    at = symbolic.interpret(model, infer.infer_at(model, sizes)) if sizes else always.fork()
    loops = {value: depth for value, depth in _computed(model.graph, 0) if depth < 2 and at.static(value) is None}
    if loops:
        limit = run_seconds(model_io.model_bytes(model), feed_facts.elements(feed))
        seen = look_shapes(model, feed, [str(value.name) for value in loops], max_seconds=limit)
        for value, depth in loops.items():
            shape = seen.get(str(value.name))
            if shape is not None and 0 not in shape.dims:
                at.learn(value, shape.dims[depth:], shape.dtype)
    return at


def _computed(body: ir.Graph, depth: int) -> Iterator[tuple[ir.Value, int]]:
    """Yield what nodes make, and in how many loops: in one, a run shows all iterations along a first axis."""
    for node in body:
        if not query.is_op(node, "Constant"):
            yield from ((value, depth) for value in node.outputs if value.name)
        for inner in query.bodies(node):
            yield from _computed(inner, depth if query.is_op(node, "If") else depth + 1)


def shape_lookup(known: Mapping[str, Dims]) -> ops.ShapeOf:
    """Return the function that `ops.total_macs` wants: constants know their own shape, others are looked up."""

    def shape_of(value: ir.Value) -> Dims | None:
        tensor = query.constant_tensor(value)
        return known.get(value.name or "") if tensor is None else query.dims(tensor)

    return shape_of
