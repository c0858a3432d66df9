"""Runs a model on feeds value by value, while the nodes that have yet to run are being edited.

    feeds --nodes up to value 1--> frontier --nodes up to value 2--> frontier ...

The frontier is what later nodes read of what was computed so far, for all feeds. Each node runs once, where the
frontier fits in memory; where it doesn't, the values wanted next are computed from the last one that did.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import onnx_ir as ir

from ..graph import query
from ..io import model_io
from ..runtime import session as runtime

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
        done = self._done | _cone(wanted)
        fixed = _fixed(self._model)
        live = [v for v in _between(done, _cone([*wanted, *later]), [*wanted, *later]) if v not in fixed]
        names = list(dict.fromkeys(value.name or "" for value in (*wanted, *live)))
        known = {value.name or "" for value in self._model.graph.inputs}
        outputs, session = names, None
        kept: list[dict[str, Any]] = []
        used = read = 0
        for source in self._feeds if self._kept is None else self._kept:
            read += 1
            if read == 1:
                known = known if self._kept is None else set(source)
                outputs = [name for name in names if name not in known]
                session = self._open(source, known, outputs) if outputs else None
            found: dict[str, Any] = {name: np.asarray(source[name]) for name in names if name in source}
            if session is not None:
                found |= session.run({spec.name: source[spec.name] for spec in session.inputs}, outputs)
            used += sum(array.nbytes if isinstance(array, np.ndarray) else _TOO_MUCH for array in found.values())
            if self._fits(used, read):
                kept.append(found)
            else:
                kept.clear()
            yield {value.name or "": found[value.name or ""] for value in wanted}
        self._count = read
        if len(kept) == read:
            self._kept, self._done = kept, done

    def _fits(self, used: int, read: int) -> bool:
        """Say whether a frontier can be kept: not where it would grow too large on the feeds that are yet to come."""
        return used * max(1.0, self._count / read) <= self._memory_bytes

    def _open(self, source: Mapping[str, Any], known: set[str], outputs: Sequence[str]) -> runtime.Session:
        """Load the nodes between what is known and the outputs, as a model of their own."""
        values = {v.name: v for v in self._model.graph.inputs}
        values |= {v.name: v for node in self._model.graph for v in node.outputs if v.name}
        leaves = {value for name, value in values.items() if name in known}
        nodes = _cone([values[name] for name in outputs], leaves)
        read = [value for node in nodes for value in query.reads(node)]
        given = [value for value in dict.fromkeys(read) if value in leaves and value.name in source]
        weights = [value for value in dict.fromkeys(read) if value.is_initializer() and value not in leaves]
        order = {node: place for place, node in enumerate(self._model.graph)}
        view = ir.GraphView(
            given,
            [values[name] for name in outputs],
            nodes=sorted(nodes, key=order.__getitem__),
            initializers=weights,
            opset_imports=dict(self._model.opset_imports),
            name="segment",
        )
        functions = [function.clone() for function in self._model.functions.values()]
        segment = ir.Model(view.clone(), ir_version=self._model.ir_version, functions=functions)
        for own, value in zip(segment.graph.inputs, given, strict=True):
            own.type = ir.TensorType(ir.DataType.from_numpy(np.asarray(source[value.name or ""]).dtype))
            own.shape = None
        for own in segment.graph.outputs:
            own.shape = None
        return runtime.open_session(model_io.to_bytes(segment), optimize=True, threads=self._threads)


def _cone(values: Sequence[ir.Value], leaves: set[ir.Value] | None = None) -> set[ir.Node]:
    """Return the nodes that values depend on, back to leaves and what no node makes."""
    found: set[ir.Node] = set()
    pending = list(values)
    while pending:
        value = pending.pop()
        node = None if leaves is not None and value in leaves else value.producer()
        if node is not None and node not in found:
            found.add(node)
            pending += query.reads(node)
    return found


def _between(done: set[ir.Node], needed: set[ir.Node], asked: Sequence[ir.Value]) -> list[ir.Value]:
    """Return what needed nodes that are not done, or a later question, read of what is done or given."""
    read = [value for node in needed - done for value in query.reads(node)]
    return [v for v in dict.fromkeys([*asked, *read]) if v.producer() in done or v.is_graph_input()]


def _fixed(model: ir.Model) -> set[ir.Value]:
    """Return the values that depend on constants only."""
    found: set[ir.Value] = set()
    for node in model.graph:
        if all(v.is_initializer() or v in found for v in query.reads(node)):
            found.update(node.outputs)
    return found
