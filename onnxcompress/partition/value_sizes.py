"""The sizes of all values of a model on one feed: inferred where that is possible, seen in a run where not.

A run takes the model chunk by chunk, so that a model of any size needs the memory of a chunk.
"""

from __future__ import annotations

import contextlib
import tempfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import onnx_ir as ir

from ..base import size_limits
from ..core import Feed
from ..data import evaluation_set, synthetic
from ..data import feeds as feed_facts
from ..data import input_specs as specs
from ..data.evaluation_set import DataOptions
from ..data.input_specs import input_specs
from ..errors import ModelError
from ..graph import query
from ..graph.extract import extract
from ..io import model_io
from ..runtime import isolation
from ..runtime import session as runtime
from ..shapes import infer as shapes
from . import steps as split_steps
from . import value_types
from . import write as part_writer
from .value_types import ValueSize

_CHUNK_BYTES = 128 << 20
"""Weights of a chunk at most, where one step has no more; chosen by judgement, not measured."""
_CHUNK_STEPS = 500
"""Steps of a chunk at most: the runtime loads a graph in time that grows with them. Not measured."""


def fits_whole(model: ir.Model) -> bool:
    """Say whether a model is small enough to be run as a whole beside its parts."""
    return model_io.model_bytes(model) <= size_limits.RUN_BYTES


def choose_feed(model: ir.Model, data: Any, options: DataOptions, *, seed: int) -> Feed:
    """Return the largest feed of the data; without any, synthetic inputs, tried where the model is not too large.

    Raises:
        DataError: the data does not fit the model.
        ModelError: no synthetic inputs run.
    """
    if data is not None:
        return evaluation_set.read(data, input_specs(model), options, graph=model).largest()
    if fits_whole(model):
        with opened(model) as session:
            feeds = synthetic.runnable_feeds(model, session, seed=seed, count=1)
    else:
        feeds = synthetic.synthetic_feeds(model, seed=seed)
    return feed_facts.largest(feeds)


def facts_of(model: ir.Model, feed: Feed) -> dict[ir.Value, ValueSize]:
    """Return what is known of every value of the model, bodies included, on a feed.

    Raises:
        ModelError: shape inference leaves values open, and the model can't run the feed.
    """
    found = shapes.infer_at(model, feed_facts.dims(feed))
    facts: dict[ir.Value, ValueSize] = {}
    for body in query.graphs_outside_functions(model):
        values = [*body.inputs, *(output for node in body for output in node.outputs)]
        facts |= {value: fact for value in values if value.name and (fact := value_types.inferred(found, value))}
    _learn(model, feed, facts)
    return facts


def _learn(model: ir.Model, feed: Feed, facts: dict[ir.Value, ValueSize]) -> None:
    """Add what inference left open in the main graph."""
    found = split_steps.flow(model, facts)
    chunks = _chunks(found)
    unknown = [
        {output for node in found.nodes(*chunk) for output in node.outputs if output.name and output not in facts}
        for chunk in chunks
    ]
    while chunks and not unknown[-1]:
        chunks.pop()
        unknown.pop()
    last = found.last_wanted()
    kinds = {value: value.type for value in model.graph.inputs}
    arrays: dict[ir.Value, Any] = {v: feed[v.name] for v in model.graph.inputs if v.name in feed}
    for (start, end), wanted in zip(chunks, unknown, strict=True):
        nodes = found.nodes(start, end)
        needed = {value for node in found.steps[start:end] for value in found.needs[node].values}
        made = {output for node in nodes for output in node.outputs}
        later = {output for output in made if last.get(output, -1) >= end and output.name}
        outputs = [value for node in nodes for value in node.outputs if value in wanted or value in later]
        inputs = [value for value in needed if value not in made]

        def typed(value: ir.Value) -> tuple[ir.TypeProtocol | None, ir.Shape | None]:
            fact = facts.get(value)
            known = kinds.get(value) or (ir.TensorType(fact.dtype) if fact and fact.dtype else value.type)
            return known, None

        shown = _run(extract(model, nodes, inputs, outputs, typed=typed), {v: arrays[v] for v in inputs if v in arrays})
        for value, (array, kind) in zip(outputs, shown, strict=True):
            facts.setdefault(value, value_types.seen(array, kind))
            kinds[value] = _kind(kind)
            if value in later:
                arrays[value] = array
        arrays = {value: array for value, array in arrays.items() if last.get(value, -1) >= end}


def _chunks(found: split_steps.SplitSteps) -> list[tuple[int, int]]:
    """Return steps [i, j) of limited weight, one after the other."""
    chunks: list[tuple[int, int]] = []
    start, size = 0, 0
    for step, node in enumerate(found.steps):
        own = query.tensor_bytes(found.needs[node].constants)
        if step > start and (size + own > _CHUNK_BYTES or step - start == _CHUNK_STEPS):
            chunks.append((start, step))
            start, size = step, 0
        size += own
    return [*chunks, (start, len(found.steps))] if found.steps else []


@contextlib.contextmanager
def written(model: ir.Model) -> Iterator[Path]:
    """Write a model into a temporary folder, its weights in a file that the runtime can map.

    Raises:
        ModelError: there is no space for it.
    """
    with tempfile.TemporaryDirectory(prefix="onnxcompress-") as name:
        folder = Path(name)
        try:
            (files,), _ = part_writer.write_parts([model], part_writer.into(folder))
        except OSError as error:
            hint = "Free space, or set TMPDIR"
            raise ModelError(f"can't write a temporary file: {error.strerror}", where=name, hint=hint) from error
        yield folder / files.model


@contextlib.contextmanager
def opened(model: ir.Model) -> Iterator[runtime.Session]:
    """Open a model for runs with the runtime's optimizations off, from a temporary folder: its weights are mapped.

    Raises:
        ModelError: the runtime can't load it, or there is no space for it.
    """
    with written(model) as file:
        try:
            with isolation.roomy(len(model.graph)):
                session = runtime.open_part(file, optimize=False, threads=1, pack=True)
        except ModelError as error:
            raise ModelError(error.message) from error  # without the name of the temporary file
        yield session


def _run(piece: ir.Model, feed: Mapping[ir.Value, Any]) -> list[tuple[Any, str]]:
    """Return every output of a piece with its type."""
    with opened(piece) as session:
        values = session.run({value.name or "": array for value, array in feed.items()})
        return [(values[spec.name], spec.type) for spec in session.outputs]


def _kind(text: str) -> ir.TypeProtocol:
    """Return the type that the runtime calls so.

    Raises:
        ModelError: it is not a tensor, or a sequence of them.
    """
    is_sequence = text.startswith("seq(")
    dtype = specs.dtype_from_text(text[4:-1] if is_sequence else text)
    if dtype is None:
        raise ModelError(f"a value of the type {text}, which can't be measured by running the model")
    return ir.SequenceType(ir.TensorType(dtype)) if is_sequence else ir.TensorType(dtype)
