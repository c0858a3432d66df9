"""Runs a model on feeds value by value, while the nodes that have yet to run are being edited.

    feeds --nodes up to value 1--> frontier --nodes up to value 2--> frontier ...

The frontier is what later nodes read of what was computed so far, for all feeds. Each node runs once, where the
frontier fits in memory; where it doesn't, the values wanted next are computed from the last one that did.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import onnx_ir as ir

from ..graph import query
from ..graph.extract import extract
from ..io import model_io
from ..ops import table as ops
from ..runtime import session as runtime
from ..shapes import infer

MEMORY_BYTES = 96 << 20
"""Bytes of a frontier at most; while it is moved up, the next one is there too.

Chosen for memory on an audio model with 64 samples; twice as much took 0.1 to 0.3 less CPU time there.
"""

_TOO_MUCH = 1 << 62
"""Counted for what is no array: sequences can't be fed into a part of the model, so no frontier has them."""


class Frontier:
    """The values of a model's main graph on a set of feeds, asked for in the order of its nodes.

    Args:
        model: whose nodes may be edited where no value asked for so far depends on them.
        feeds: complete feeds, read more than once.
        threads: threads that one operator may use.
        memory_bytes: how much of computed values is kept.
    """

    def __init__(
        self, model: ir.Model, feeds: Iterable[Mapping[str, Any]], *, threads: int = 1, memory_bytes: int = MEMORY_BYTES
    ) -> None:
        self._model = model
        self._feeds = feeds
        self._threads = threads
        self._shapes = infer.infer(model)
        self._memory_bytes = memory_bytes
        self._kept: list[dict[str, Any]] | None = None
        """The frontier for each feed; None: the feeds are the frontier."""
        self._count = 0
        """Number of feeds; 0 until all were read once."""
        self._done: set[ir.Node] = set()
        """The nodes before the frontier."""

    def values(self, wanted: Sequence[ir.Value], later: Sequence[ir.Value]) -> Iterator[dict[str, np.ndarray]]:
        """Yield some values by name for each feed; when all have been taken, the frontier is moved up to them.

        Args:
            wanted: values of the main graph.
            later: the values that will be asked for after them.

        Raises:
            ModelError: the runtime fails.
        """
        done = self._done | cone(wanted)
        fixed = fixed_values(self._model)
        live = [v for v in between(done, cone([*wanted, *later]), [*wanted, *later]) if v not in fixed]
        names = list(dict.fromkeys(value.name or "" for value in (*wanted, *live)))
        inputs = {value.name for value in self._model.graph.inputs}
        outputs, session = names, None
        kept: list[dict[str, Any]] = []
        used = read = 0
        for source in self._feeds if self._kept is None else self._kept:
            read += 1
            if read == 1:
                outputs = [name for name in names if name not in source and name not in inputs]
                session = self._open(source, outputs) if outputs else None
            found: dict[str, Any] = {name: np.asarray(source[name]) for name in names if name in source}
            if session is not None:
                found |= session.run(fed(session, source), outputs)
            used += sum(array.nbytes if isinstance(array, np.ndarray) else _TOO_MUCH for array in found.values())
            if self._fits(used, read):
                kept.append(found)
            else:
                kept.clear()
            yield {value.name or "": found[value.name or ""] for value in wanted}
        self._count = read
        if len(kept) == read:
            self._kept, self._done = kept, done

    def _open(self, source: Mapping[str, Any], outputs: Sequence[str]) -> runtime.Session:
        return open_segment(self._model, self._shapes, source, outputs, threads=self._threads)

    def _fits(self, used: int, read: int) -> bool:
        """Say whether a frontier can be kept: not where it would grow too large on the feeds that are yet to come."""
        return used * max(1.0, self._count / read) <= self._memory_bytes


def open_segment(
    model: ir.Model,
    shapes: infer.Shapes,
    source: Mapping[str, Any],
    outputs: Sequence[str],
    *,
    threads: int = 1,
    is_heavy: bool = False,
) -> runtime.Session:
    """Load the nodes between what is known and the outputs, as a model of their own.

    Args:
        model: the whole; values of its main graph are known and asked for.
        shapes: of the model, as inferred; ranks alone are told to the runtime, which can't load some nodes without.
        source: name -> array of what is known on one feed. It has to be fed, with arrays of these types.
        outputs: names of values that are not known.
        threads: threads that one operator may use.
        is_heavy: as of `open_session`.

    Raises:
        ModelError: the runtime can't load them.
    """
    values = {v.name: v for v in (*model.graph.initializers.values(), *model.graph.inputs)}
    values |= {v.name: v for node in model.graph for v in node.outputs if v.name}
    leaves = {value for name, value in values.items() if name in source}
    nodes = cone([values[name] for name in outputs], leaves)
    order = query.topological(model.graph)
    read = dict.fromkeys(value for node in order if node in nodes for value in query.reads(node))

    def typed(value: ir.Value) -> tuple[ir.TypeProtocol | None, ir.Shape | None]:
        if value not in leaves:
            return value.type, None
        if value.is_graph_input():
            return value.type, value.shape
        rank = shapes.rank(value)
        dtype = ir.DataType.from_numpy(np.asarray(source[value.name or ""]).dtype)
        return ir.TensorType(dtype), None if rank is None else ir.Shape([None] * rank)

    segment = extract(
        model,
        [node for node in order if node in nodes],
        [value for value in read if value in leaves],
        [values[name] for name in outputs],
        typed=typed,
        name="segment",
    )
    return runtime.open_session(model_io.to_bytes(segment), optimize=True, threads=threads, is_heavy=is_heavy)


def fed(session: runtime.Session, source: Mapping[str, Any]) -> dict[str, Any]:
    """Return what a segment takes of what is known."""
    return {spec.name: source[spec.name] for spec in session.feedable if spec.name in source}


def cone(values: Iterable[ir.Value], leaves: Collection[ir.Value] = ()) -> set[ir.Node]:
    """Return the nodes that values depend on, back to leaves and what no node makes."""
    found: set[ir.Node] = set()
    pending = list(values)
    while pending:
        value = pending.pop()
        node = None if value in leaves else value.producer()
        if node is not None and node not in found:
            found.add(node)
            pending += query.reads(node)
    return found


def between(done: set[ir.Node], needed: set[ir.Node], asked: Sequence[ir.Value]) -> list[ir.Value]:
    """Return what needed nodes that are not done, or a later question, read of what is done or given."""
    read = [value for node in needed - done for value in query.reads(node)]
    return [v for v in dict.fromkeys([*asked, *read]) if v.producer() in done or v.is_graph_input()]


def fixed_values(model: ir.Model) -> set[ir.Value]:
    """Return the values that depend on constants only, and are the same whenever they are computed."""
    found: set[ir.Value] = set()
    for node in query.topological(model.graph):
        read = query.reads(node)
        if not ops.is_nondeterministic(node) and all(
            v in found or (v.is_initializer() and not v.is_graph_input()) for v in read
        ):
            found.update(node.outputs)
    return found
