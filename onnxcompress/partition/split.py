"""Cut a model into parts that run one after another: under a memory budget, in a number of parts, or at given values.

    model, feed --> sizes --> flow (steps in order) --> table (memory of every part) --> cuts --> folder of parts

The largest part is made as small as can be, then the bytes that are passed from part to part. The result is run
before it gets its name.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import onnx_ir as ir

from ..base import atomic_files
from ..base.quantities import parse_bytes
from ..data import feeds as feed_facts
from ..data import input_specs as specs
from ..data.evaluation_set import DataOptions
from ..errors import UsageError
from ..graph import query
from ..graph.extract import extract
from ..io import model_io
from ..numerics.optimization import partition_dp as numeric
from ..runtime import loaded_model
from ..shapes import infer as shapes
from . import check, value_sizes
from . import manifest as manifests
from . import steps as split_steps
from . import write as part_writer
from .manifest import Manifest, Part, StoredFile, Tensor
from .plan import Bounds, SplitPlan, Suggestions
from .write import PartFiles

if TYPE_CHECKING:
    import onnx
    import onnx_graphsurgeon as gs

    from ..core import Feed

_SMALL_BYTES = 4096
"""Constants up to this size may be of any type without a part counting as quantized."""


@dataclass(frozen=True, kw_only=True)
class SplitModel:
    """Result of `split`: the folder, its manifest, and notes."""

    folder: Path
    manifest: Manifest
    notes: tuple[str, ...] = ()


def split(
    model: str | os.PathLike[str] | onnx.ModelProto | ir.Model | gs.Graph,
    output: str | os.PathLike[str],
    *,
    max_memory: int | str | None = None,
    parts: int | None = None,
    at: Sequence[str] = (),
    data: Any = None,
    data_options: DataOptions = DataOptions(),  # noqa: B008 - frozen
    seed: int = 0,
    force: bool = False,
) -> SplitModel:
    """Cut a model and write the parts into a new folder, whole or not at all; one of the three says how.

    Args:
        model: is not changed.
        output: the folder.
        max_memory: most bytes that the weights and live values of a part may take, also as text ("64MB"). Parts are
            made of half of it where that can be, so that the next part can be loaded while one runs.
        parts: how many parts are made; fewer where the model has too few places to cut.
        at: values after which to cut; a part holds what the value needs and no part before has.
        data: feeds, of which the largest gives the sizes; without any, synthetic ones.
        data_options: how data is read.
        seed: of synthetic feeds.
        force: replace a folder that is not empty.

    Raises:
        UsageError: none or several of the three are given, or one can't be followed.
        LimitError: no cutting keeps `max_memory`; says what could be kept.
        ModelError: the model can't be read, cut or run, or the folder can't be written.
        DataError: the data does not fit.
    """
    if sum((max_memory is not None, parts is not None, bool(at))) != 1:
        raise UsageError("exactly one of a budget, a number of parts and names to cut at is needed")
    budget = parse_bytes(max_memory, where="--max-memory") if isinstance(max_memory, str) else max_memory
    if parts is not None and parts < 1:
        raise UsageError(f"{parts} parts can't be made", where="--parts")
    if budget is not None and budget < 1:
        raise UsageError(f"{budget} bytes are no budget", where="--max-memory")
    target = Path(output).absolute()
    atomic_files.check_folder(target, force=force)
    _check_not_inside(model, target)
    atomic_files.remove_stale(target)
    whole = model_io.load(model)
    feed = value_sizes.choose_feed(whole, data, data_options, seed=seed)
    plan = _plan(whole, feed)
    by_names = plan.at(at) if at else None
    bounds = by_names or (plan.into(parts) if parts is not None else plan.within(budget or 0))
    path = loaded_model.path_of(model)
    work = _Writing(bounds, feed, name=Path(path).name if path else "")
    pending = atomic_files.PendingFolder(target)
    try:
        manifest = work.write(pending)
        notes = [*bounds.notes, *check.proved(whole, pending.path, manifest, feed, is_synthetic=data is None)]
        pending.commit()
    finally:
        pending.discard()
    return SplitModel(folder=target, manifest=manifest, notes=tuple(notes))


def suggest(
    model: str | os.PathLike[str] | onnx.ModelProto | ir.Model | gs.Graph,
    *,
    data: Any = None,
    data_options: DataOptions = DataOptions(),  # noqa: B008 - frozen
    seed: int = 0,
    most: int = 12,
) -> Suggestions:
    """Return places to cut in two: of each stretch of equal work the one at which least is sent.

    Args:
        model: is not changed.
        data: feeds, of which the largest gives the sizes; without any, synthetic ones.
        data_options: how data is read.
        seed: of synthetic feeds.
        most: cuts returned at most.

    Raises:
        ModelError: the model can't be read or run.
        DataError: the data does not fit.
    """
    whole = model_io.load(model)
    feed = value_sizes.choose_feed(whole, data, data_options, seed=seed)
    return Suggestions(
        cuts=_plan(whole, feed).suggestions(most),
        input_bytes=sum(np.asarray(array).nbytes for array in feed.values()),
        sizes=_sizes(feed),
    )


def _sizes(feed: Feed) -> dict[str, list[int]]:
    return {name: [int(size) for size in dims] for name, dims in feed_facts.dims(feed).items()}


def _plan(model: ir.Model, feed: Feed) -> SplitPlan:
    facts = value_sizes.facts_of(model, feed)
    return SplitPlan(split_steps.flow(model, facts), facts)


class _Writing:
    """Turns bounds into models, files and the manifest."""

    def __init__(self, bounds: Bounds, feed: Feed, *, name: str) -> None:
        self._plan = bounds.plan
        self._flow = bounds.plan.flow
        self._model = bounds.plan.flow.model
        self._ranges = bounds.parts()
        self._feed = feed
        self._name = name
        self._shapes = shapes.infer(self._model)
        self._wanted = self._flow.last_wanted()
        self._made = self._flow.made()

    def write(self, pending: atomic_files.PendingFolder) -> Manifest:
        """Write all files into a folder and return its manifest, which is among them.

        Raises:
            ModelError: they can't be written.
        """
        models = [self._piece(start, end) for start, end in self._ranges]
        files, stored = part_writer.write_parts(models, pending.write)
        manifest = self._manifest(models, files, stored)
        content = manifests.to_bytes(manifest)
        pending.write(manifests.FILE_NAME, [content], len(content))
        return manifest

    def _piece(self, start: int, end: int) -> ir.Model:
        nodes = self._flow.nodes(start, end)
        needed = (self._flow.needs[step].values for step in self._flow.steps[start:end])
        read = dict.fromkeys(v for values in needed for v in sorted(values, key=self._order))
        inputs = [value for value in read if not start <= self._made.get(value, -1) < end]
        made = [output for node in self._flow.steps[start:end] for output in node.outputs]
        outputs = [value for value in made if self._wanted.get(value, -1) >= end]
        if end == self._plan.steps.count:  # outputs that no step makes: constants
            outputs += [v for v in self._model.graph.outputs if v.is_initializer() and v not in made]
        inputs += [value for value in outputs if value.is_graph_input() and value not in inputs]
        return extract(self._model, nodes, inputs, outputs, typed=self._typed, name=f"part of {self._name}")

    def _order(self, value: ir.Value) -> tuple[int, str]:
        """Return a key that sorts the values that one step reads, the same in every run."""
        return self._made.get(value, -1), value.name or ""

    def _typed(self, value: ir.Value) -> tuple[ir.TypeProtocol | None, ir.Shape | None]:
        if value.is_graph_input():
            return value.type, value.shape
        fact = self._plan.facts.get(value)
        if fact is None or fact.dtype is None:
            return value.type, None
        dims = self._shapes.shape(value)
        return ir.TensorType(fact.dtype), None if dims is None else ir.Shape(dims)

    def _manifest(
        self, models: Sequence[ir.Model], files: Sequence[PartFiles], stored: dict[str, StoredFile]
    ) -> Manifest:
        steps = self._plan.steps
        table = numeric.table(steps, np.array([0, *(end for _, end in self._ranges)], np.int64))
        parts = [self._part(index, models[index], files[index], table) for index in range(len(models))]
        outputs = {value.name: value for value in self._model.graph.outputs}
        names = dict.fromkeys(name for part in parts for name in part.outputs)
        inner = {value.name: value for value in self._made}
        return Manifest(
            model=self._name,
            sizes=_sizes(self._feed),
            peak_bytes=max(part.peak_bytes for part in parts),
            cut_bytes=round(float(table.crossing[1:-1].sum())),
            inputs=[self._tensor(v) for v in self._model.graph.inputs if not v.is_initializer()],
            outputs=[self._tensor(value) for value in outputs.values()],
            values=[self._tensor(inner[name]) for name in names if name not in outputs],
            parts=parts,
            files=stored,
            optional_inputs=[self._tensor(v) for v in self._model.graph.inputs if v.is_initializer()],
        )

    def _part(self, index: int, model: ir.Model, files: PartFiles, table: numeric.Table) -> Part:
        start, end = self._ranges[index]
        steps = self._plan.steps
        macs = self._plan.macs[start:end]
        used = [
            size for size, uses in zip(steps.weights, steps.uses, strict=True) if any(start <= u < end for u in uses)
        ]
        return Part(
            file=files.model,
            data=list(files.data),
            inputs=[value.name or "" for value in model.graph.inputs],
            outputs=[value.name or "" for value in model.graph.outputs],
            optional_inputs=[value.name or "" for value in model.graph.inputs if value.is_initializer()],
            nodes=len(model.graph),
            macs=None if None in macs else sum(m or 0 for m in macs),
            weight_bytes=round(table.weights[index, index + 1]),
            largest_bytes=round(max(used, default=0.0)),
            peak_bytes=round(table.peak[index, index + 1]),
            packs=any(_is_packed(node) for node in model.graph),
        )

    def _tensor(self, value: ir.Value) -> Tensor:
        kind, shape = self._typed(value)
        fact = self._plan.facts.get(value)
        return Tensor(
            name=value.name or "",
            type=specs.type_text(kind) or str(kind),
            shape=None if shape is None else [_size(d) for d in shape],
            bytes=None if fact is None else round(fact.bytes),
        )


def _size(dim: int | ir.SymbolicDim) -> int | str | None:
    """Return a size or symbol as the manifest has it; some models declare -1 where a size is not known."""
    if isinstance(dim, int):
        return dim if dim >= 0 else None
    return dim.value


def _is_packed(node: ir.Node) -> bool:
    """Say whether a node is slow, or takes more memory, where the runtime may not pack its weights.

    That is so for all but plain float matrices: operators of the runtime's own, quantized weights, bodies.
    """
    if node.domain not in query.STANDARD_DOMAINS or query.bodies(node):
        return True
    tensors = [tensor for value in node.inputs if (tensor := query.constant_tensor(value)) is not None]
    return any(tensor.nbytes > _SMALL_BYTES and tensor.dtype != ir.DataType.FLOAT for tensor in tensors)


def _check_not_inside(model: Any, target: Path) -> None:
    """Raise UsageError where replacing the folder would remove the model itself."""
    path = loaded_model.path_of(model)
    if path is not None and target.is_dir() and Path(path).resolve().is_relative_to(target.resolve()):
        raise UsageError("holds the model that is to be split", where=os.fspath(target), hint="Give another folder")
