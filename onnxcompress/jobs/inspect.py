"""Inspection of a model: where bytes, parameters, MACs and time are, and which pass could save what.

Weights are not read, except by the trial of the passes; models over `INSPECT_BYTES` are neither tried nor run.
"""

from __future__ import annotations

import contextlib
import logging
from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import onnx_ir as ir

from ..base import size_limits
from ..channels import groups as channel_groups
from ..core import Context, Feed
from ..data import evaluation_set, synthetic
from ..data import feeds as feed_facts
from ..data.evaluation_set import DataOptions
from ..errors import ModelError
from ..graph import query
from ..io import model_io
from ..ops import table as ops
from ..ops.optional_inputs import optional_inputs
from ..ops.weight_layers import QuantizedState, quantized_state
from ..partition import value_sizes
from ..runtime import isolation
from ..runtime import session as runtime
from ..runtime.loaded_model import path_of
from ..runtime.profiles import profile
from ..shapes import count as counting
from ..shapes import resolve
from .inspect_passes import PassPotential, Still, channels_of, tried

if TYPE_CHECKING:
    from .options import ModelSource

log = logging.getLogger(__name__)

_TRIED_FEEDS = 4
"""Samples that passes are tried with: what they could reach does not hang on many. Chosen by judgement."""

_TOP = 10
"""Layers that are listed one by one; chosen by judgement."""
_EXAMPLES = 3
"""Nodes that a note names; chosen by judgement."""
_TIMED_RUNS = 5
"""Runs of a profile at most; chosen by judgement, not measured."""
_MANY_NODES = 5_000
"""Nodes above which one run is profiled: the runtime's record of each node takes memory. Chosen by judgement."""
_MOST_TIMED_SECONDS = 2.0
"""Of all timed runs where one takes long; chosen by judgement, not measured."""


@dataclass(frozen=True, kw_only=True)
class Share:
    """Share of a kind of operator, or of one node, in the whole.

    `ms` is its time per run, None where it was not measured under this name (the runtime fuses nodes).
    """

    name: str
    op_type: str
    nodes: int = 1
    bytes: int = 0
    parameters: int = 0
    macs: int = 0
    ms: float | None = None


@dataclass(frozen=True, kw_only=True)
class StoredBytes:
    """Constants of one type."""

    tensors: int
    elements: int
    bytes: int


@dataclass(frozen=True, kw_only=True)
class Inspection:
    """Result of `inspect`; what was not measured is None, and `notes` says why."""

    path: str | None
    bytes: int
    nodes: int
    parameters: int
    macs: int | None
    shapes_of_macs: Mapping[str, tuple[int, ...]]
    ir_version: int
    opsets: Mapping[str, int]
    producer: str
    functions: int
    subgraphs: int
    inputs: tuple[str, ...]
    optional_inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    dynamic: tuple[str, ...]
    node_records: int
    node_record_bytes: int
    weights_in_nodes: int
    weights_in_nodes_bytes: int
    weight_port_bytes: int
    dtypes: Mapping[str, StoredBytes]
    operators: tuple[Share, ...]
    layers: tuple[Share, ...]
    quantized: QuantizedState | None = None
    ms: float | None = None
    time_by_type: tuple[Share, ...] = ()
    slowest: tuple[Share, ...] = ()
    passes: tuple[PassPotential, ...] | None = None
    channels: channel_groups.Prunable | None = None
    notes: tuple[str, ...] = field(default=())

    def as_json(self) -> dict[str, Any]:
        """Return the inspection as JSON-serialisable values."""
        return {"schema": 1, **asdict(self)}


def inspect(
    source: ModelSource,
    *,
    data: Any = None,
    data_options: DataOptions = DataOptions(),  # noqa: B008 - frozen
    seed: int = 0,
    threads: int = 1,
) -> Inspection:
    """Look into a model without changing it.

    Args:
        source: a path, a ModelProto, an onnx_ir model or an onnx-graphsurgeon graph.
        data: samples in any form that `--data` takes; MACs and time are those of the largest. Without data a
            synthetic feed is used.
        data_options: how `data` is read.
        seed: of the synthetic feed.
        threads: of the runtime when time is measured.

    Raises:
        ModelError: the model can't be read.
        DataError: the data can't be read or does not fit.
    """
    model = model_io.load(source)
    size_bytes = model_io.model_bytes(model)
    notes: list[str] = []
    times = _Times()
    with _runnable(model, size_bytes, notes) as runnable:
        session = None if runnable is None else _session(runnable, threads, notes)
        judged = None
        if data is not None and session is not None:
            judged = evaluation_set.read(data, session.feedable, data_options, model=source, graph=model)
        feed, runs = (judged.largest(), True) if judged else _synthetic_feed(model, session, seed, notes)
        if runnable is not None and session is not None and runs:
            times = _timed(model, runnable, session, feed, threads, notes)
        del session, runnable
    found = replace(_counted(model, size_bytes, feed, notes), path=path_of(source), **vars(times))
    context = Context(feeds=judged.feeds[:_TRIED_FEEDS] if judged else (), seed=seed, is_plan=True)
    if size_bytes <= size_limits.INSPECT_BYTES:
        still = Still(model)
        del model  # a graph of many nodes takes memory, and the trials take as much again
        reached = tried(still, size_bytes, context, notes)
        found = replace(found, passes=reached, channels=channels_of(still, feed, context, notes))
    return replace(found, notes=tuple(notes))


def _counted(model: ir.Model, size_bytes: int, feed: Feed, notes: list[str]) -> Inspection:
    """Return what is counted on the graph; nothing is run."""
    shares = _Shares(model, feed)
    notes += shares.notes
    dropped = model_io.drop_node_records(model_io.clone(model))
    in_nodes = [t.nbytes for v, t in shares.tensors if v.producer() is not None]
    return Inspection(
        path=None,
        bytes=size_bytes,
        nodes=query.node_count(model),
        parameters=shares.parameters,
        macs=shares.macs,
        shapes_of_macs=feed_facts.dims(feed),
        ir_version=model.ir_version,
        opsets=dict(sorted(model.opset_imports.items())),
        producer=" ".join(part for part in (model.producer_name, model.producer_version) if part),
        functions=len(model.functions),
        subgraphs=sum(1 for _ in query.graphs(model)) - 1 - len(model.functions),
        inputs=tuple(_described(v) for v in model.graph.inputs if not v.is_initializer()),
        optional_inputs=tuple(_described(v) for v in optional_inputs(model))
        if query.has_optional_inputs(model)
        else (),
        outputs=tuple(_described(v) for v in model.graph.outputs),
        dynamic=tuple(_dynamic(model)),
        node_records=dropped.count,
        node_record_bytes=dropped.bytes,
        weights_in_nodes=len(in_nodes),
        weights_in_nodes_bytes=sum(in_nodes),
        weight_port_bytes=shares.weight_port_bytes,
        dtypes=shares.dtypes(),
        operators=shares.operators(),
        layers=shares.layers(),
        quantized=quantized_state(model),
    )


@dataclass(frozen=True, kw_only=True)
class _Times:
    """Times of an inspection: of the whole, by operator and of the slowest nodes; None where not measured."""

    ms: float | None = None
    time_by_type: tuple[Share, ...] = ()
    slowest: tuple[Share, ...] = ()


@contextlib.contextmanager
def _runnable(model: ir.Model, size_bytes: int, notes: list[str]) -> Iterator[bytes | Path | None]:
    """Yield what the runtime can load, None for a model that is too large; sessions are opened where they have room."""
    limit = size_limits.INSPECT_BYTES
    if size_bytes > limit:
        notes.append(f"{size_bytes:,} bytes: over {limit:,} the model is not run, and the passes are not tried on it")
        yield None
        return
    is_large = size_bytes > size_limits.APART_BYTES
    with isolation.roomy(query.node_count(model), is_large=is_large):
        if not is_large:
            yield model_io.to_bytes(model)
            return
        with value_sizes.written(model) as file:
            yield file


def _session(runnable: bytes | Path, threads: int, notes: list[str]) -> runtime.Session | None:
    try:
        return runtime.open_session(runnable, optimize=False, threads=threads)
    except ModelError as error:
        notes.append(f"not run: {error}")
        return None


def _synthetic_feed(model: ir.Model, session: runtime.Session | None, seed: int, notes: list[str]) -> tuple[Feed, bool]:
    """Return a feed for a model without data, and whether it runs: else it only has the right shapes."""
    if session is not None:
        try:
            return synthetic.runnable_feeds(model, session, seed=seed, count=1)[0], True
        except ModelError as error:
            notes.append(f"no feed was found that it runs: {error.message}")
    try:
        return synthetic.synthetic_feeds(model, seed=seed, sizes=(8,))[0], False
    except ModelError:  # a type, or a size, of which none can be made up
        return {}, False


def _described(value: ir.Value) -> str:
    dims = "" if value.shape is None else "[" + ", ".join(_dim(dim) for dim in value.shape) + "]"
    kind = _type_name(value.dtype) if value.dtype is not None else str(value.type or "unknown")
    return f"{value.name}: {kind}{dims}"


def _type_name(dtype: ir.DataType) -> str:
    name = dtype.name.lower()
    return {"float": "float32", "double": "float64"}.get(name, name)


def _dim(dim: int | ir.SymbolicDim) -> str:
    return str(dim) if isinstance(dim, int) else str(dim.value or "?")


def _dynamic(model: ir.Model) -> Iterator[str]:
    for value in model.graph.inputs:
        if value.is_initializer():
            continue
        if value.shape is None:
            yield f"{value.name}: rank not declared"
            continue
        yield from (f"{value.name}[{i}] {_dim(d)}" for i, d in enumerate(value.shape) if not isinstance(d, int))


class _Shares:
    """Attributes bytes, parameters and MACs to nodes."""

    def __init__(self, model: ir.Model, feed: Feed) -> None:
        self.notes: list[str] = []
        self.parameters = 0
        self.tensors: list[tuple[ir.Value, ir.TensorProtocol]] = []
        self._nodes = [node for node in query.nodes(model) if not query.is_op(node, "Constant")]
        self._bytes: Counter[ir.Node | None] = Counter()
        self._parameters: Counter[ir.Node | None] = Counter()
        self._macs: Counter[ir.Node | None] = Counter()
        for value, tensor, parameters in counting.constants(model):
            reader = _reader(value)
            self.tensors.append((value, tensor))
            self.parameters += parameters
            self._bytes[reader] += tensor.nbytes
            self._parameters[reader] += parameters
        ports = {v for _, _, v in ops.weight_reads(model)}
        self.weight_port_bytes = sum(
            t.nbytes for v, t in self.tensors if v in ports and t.dtype.is_floating_point() and t.dtype.bitwidth >= 16
        )
        unknown: list[str] = []
        for node, macs in ops.node_macs(model, resolve.shape_lookup(resolve.infer_dims(model, feed))):
            if macs is None:
                unknown.append(query.label(node))
            else:
                self._macs[node] += macs
        if unknown:
            examples = ", ".join(unknown[:_EXAMPLES])
            self.notes.append(f"the MACs of {len(unknown)} nodes are not known, for example {examples}")
        total = sum(self._macs.values())
        self.macs = total if total or not unknown else None

    def dtypes(self) -> dict[str, StoredBytes]:
        """Return what is stored in each type, the largest first."""
        found: defaultdict[str, list[ir.TensorProtocol]] = defaultdict(list)
        for _, tensor in self.tensors:
            found[_type_name(tensor.dtype)].append(tensor)
        stored = {
            name: StoredBytes(tensors=len(ts), elements=sum(t.size for t in ts), bytes=sum(t.nbytes for t in ts))
            for name, ts in found.items()
        }
        return dict(sorted(stored.items(), key=lambda item: (-item[1].bytes, item[0])))

    def operators(self) -> tuple[Share, ...]:
        """Return the kinds of operators, those with the most bytes first."""
        found: dict[str, Share] = {}
        for node in self._nodes:
            kind = node.op_type if node.domain in query.STANDARD_DOMAINS else f"{node.domain}:{node.op_type}"
            was, one = found.get(kind), self._share(node)
            found[kind] = (
                replace(one, name=kind)
                if was is None
                else Share(
                    name=kind,
                    op_type=node.op_type,
                    nodes=was.nodes + 1,
                    bytes=was.bytes + one.bytes,
                    parameters=was.parameters + one.parameters,
                    macs=was.macs + one.macs,
                )
            )
        return tuple(sorted(found.values(), key=lambda s: (-s.bytes, -s.macs, -s.nodes, s.name)))

    def layers(self) -> tuple[Share, ...]:
        """Return the nodes with the most bytes and those with the most MACs."""
        by_bytes = [n for n, count in self._bytes.most_common(_TOP + 1) if n is not None and count][:_TOP]
        by_macs = [n for n, count in self._macs.most_common(_TOP) if n is not None and count]
        top = [self._share(node) for node in dict.fromkeys([*by_bytes, *by_macs])]
        return tuple(sorted(top, key=lambda s: (-s.bytes, -s.macs)))

    def _share(self, node: ir.Node) -> Share:
        return Share(
            name=query.label(node),
            op_type=node.op_type,
            bytes=self._bytes[node],
            parameters=self._parameters[node],
            macs=self._macs[node],
        )


def _reader(value: ir.Value) -> ir.Node | None:
    """Return the first node that computes with a constant, whose weight it counts as; None where nobody reads it."""
    while True:
        node = next((use.node for use in value.uses()), None)
        if node is None or not query.is_op(node, *ops.STORAGE) or not node.outputs[0].uses():
            return node
        value = node.outputs[0]


def _timed(
    model: ir.Model, runnable: bytes | Path, session: runtime.Session, feed: Feed, threads: int, notes: list[str]
) -> _Times:
    """Return the times of the inspection: all, by operator and by node, of the graph as the runtime optimises it."""
    loops = any(query.is_op(node, "Loop", "Scan") for node in query.nodes(model))
    many = loops or query.node_count(model) > _MANY_NODES
    runs = 1 if many else round(_MOST_TIMED_SECONDS / max(session.slowest_seconds, 1e-3))
    try:
        rows = profile(runnable, feed, threads=threads, runs=max(1, min(_TIMED_RUNS, runs)))
    except ModelError as error:
        notes.append(f"time is not known: {error.message}")
        return _Times()
    types: defaultdict[str, list[float]] = defaultdict(list)
    for _, op_type, ms in rows:
        types[op_type].append(ms)
    by_type = [Share(name=op, op_type=op, nodes=len(found), ms=sum(found)) for op, found in types.items()]
    return _Times(
        ms=sum(ms for _, _, ms in rows),
        time_by_type=tuple(sorted(by_type, key=lambda s: -(s.ms or 0.0))),
        slowest=tuple(Share(name=name, op_type=op, ms=ms) for name, op, ms in rows[:_TOP]),
    )
