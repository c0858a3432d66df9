"""Proves a model too large to run as a whole: only what changed is run, and only with its own weights.

Values keep their names under rewriting, so the graph before and after share many. Where a shared value is made in
another way than before, the smallest piece of each graph that makes it is cut out: back to shared floating-point
values, the graph's inputs and constants. If every such piece gives the same output for the same inputs, the models
are equal, by induction along the graph.

    before:  x ... h --Relu--MatMul--Add--> y ...          h, y are shared and float
    after :  x ... h --Relu--Gemm---------> y ...          y is made differently: run both pieces on random h

Inputs of a piece are drawn at random, each by itself. Where two of them depend on each other (y1 = y2 in a graph
where equal nodes were merged) that asks too much; a piece that fails is grown to the values before, and judged then.
The pieces run in worker processes, whose time and memory are reported.
"""

from __future__ import annotations

import concurrent.futures
import shutil
import tempfile
from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import onnx_ir as ir

from ..base import host
from ..core import Feed
from ..graph import query
from ..io import model_io
from ..io.sources import OpenFile
from ..io.tensors import StoredTensor
from ..runtime.processes import Isolated, RemoteObject
from .hidden_values import ends_bounded
from .region_model import FLOATS, Side, kind_of
from .region_worker import Job, Jobs, RegionVerdict, StoredValue
from .slices import Making, ValuePart, parts
from .small_ensembles import shrink_shared
from .whole import Structure

_BATCH_BYTES = 256 << 20
"""Weights that one worker process is given before the next one starts."""

_PART_BYTES = 48 << 20
"""Weights that are read at a time, in either way, where a region has more than `_BATCH_BYTES` of them."""

_MOST_GROWTHS = 4
"""Times that a region which can't be proved is made larger before it is refused; not measured."""
_STORED_BYTES = 1 << 20
"""Weights from this size on are fed from their file and not copied into the piece; chosen by judgement."""
_TIMEOUT_SECONDS = 600.0
"""Time for one batch of pieces in a worker: far beyond any seen; chosen by judgement."""


@dataclass(frozen=True)
class RegionResult:
    """Result and cost of the runs of all pieces; `least_sqnr_db` is None where all outputs were equal."""

    regions: int
    least_sqnr_db: float | None
    seconds: float
    peak_memory_bytes: int


@dataclass(frozen=True)
class _Region:
    """Two pieces that should make the same value, as (nodes, leaves) of the graph before and after."""

    output: str
    before: tuple[list[ir.Node], list[str]]
    after: tuple[list[ir.Node], list[str]]

    @property
    def original(self) -> tuple[str, ...]:
        """Key of the piece before: equal for no other piece."""
        return (self.output, *sorted(self.before[1]))


@dataclass(frozen=True)
class _Piece:
    """A region, or a part of one that has very large weights, that is run at once."""

    region: _Region
    size_bytes: int
    part: ValuePart | None = None


class RegionProof:
    """Judges a candidate by the pieces in which it differs from the model before; see the module's head."""

    def __init__(self, before: ir.Model, feed: Feed, *, lossless: bool, seed: int = 0) -> None:
        self._structure = Structure(before)
        self._before = Side(before, feed)
        self._feed = feed
        self._lossless = lossless
        self._seed = seed
        self._kinds: set[tuple[Any, ...]] = set()
        self._runner = _Runner()
        self._blind: dict[tuple[str, ...], str] = {}
        """Reasons why pieces of the original, by output and leaves, can't be run: they are not tried again."""
        self.measured = RegionResult(0, None, 0.0, 0)
        """Figures of the last candidate that was judged."""
        self.is_blind = False
        """True where the last problem is that a piece of the original does not run: nothing is proved wrong then."""

    def problem(self, candidate: ir.Model) -> str | None:
        """Return one line that says what is wrong with the candidate, None where it is as good as before."""
        if fault := self._structure.problem(candidate):
            return fault
        after = Side(candidate, self._feed)
        self._kinds.clear()
        shared = _shared(self._before, after)
        pending = [_cut(self._before, after, name, shared) for name in _changed(self._before, after, shared)]
        tally = _RegionTally()
        for _ in range(_MOST_GROWTHS):
            pending, shared, blind = self._beyond_blind(pending, after, shared)
            self.is_blind = blind is not None
            if blind:
                return blind
            failed = self._judge(pending, after, tally)
            if not failed:
                self.measured = tally.total()
                return None
            pending = []
            for region, fault in failed:
                grown = self._grow(region, after, shared)
                if grown is None:
                    self.is_blind = region.original in self._blind
                    return fault
                pending.append(grown)
                shared -= {*region.before[1], *region.after[1]}
        self.is_blind = failed[0][0].original in self._blind
        return failed[0][1]

    def excess(self, candidate: ir.Model) -> str | None:  # noqa: ARG002 - the protocol's signature
        """Return None: what a limit is about, the outputs of the whole model, is not known here."""
        return None

    def _beyond_blind(
        self, pending: list[_Region], after: Side, shared: frozenset[str]
    ) -> tuple[list[_Region], frozenset[str], str | None]:
        """Grow regions whose original is known not to run; a text where that does not help, before anything is run."""
        for _ in range(_MOST_GROWTHS):
            blind = [region for region in pending if region.original in self._blind]
            if not blind:
                break
            pending = [region for region in pending if region.original not in self._blind]
            for region in blind:
                grown = self._grow(region, after, shared)
                if grown is None:
                    return pending, shared, self._blind[region.original]
                pending.append(grown)
                shared -= {*region.before[1], *region.after[1]}
        return pending, shared, None

    def _grow(self, region: _Region, after: Side, shared: frozenset[str]) -> _Region | None:
        """Cut the region further back; None where it already starts at the graph's inputs."""
        leaves = {*region.before[1], *region.after[1]} - self._before.inputs
        return _cut(self._before, after, region.output, shared - leaves) if leaves else None

    def _judge(self, regions: Sequence[_Region], after: Side, tally: _RegionTally) -> list[tuple[_Region, str]]:
        """Run regions in workers, a batch of limited size each, and return those that fail with the reason."""
        failed = [(region, self._blind[region.original]) for region in regions if region.original in self._blind]
        regions = [region for region in regions if region.original not in self._blind]
        with concurrent.futures.ThreadPoolExecutor(max_workers=1) as pool:
            running: deque[tuple[list[_Piece], concurrent.futures.Future[Isolated[list[RegionVerdict]]]]] = deque()

            def collect() -> None:
                batch, future = running.popleft()
                answer = future.result()
                tally.add(answer)
                for region, verdict in zip((unit.region for unit in batch), answer.value, strict=True):
                    if verdict.problem:
                        failed.append((region, f"{region.output!r}: {verdict.problem}"))
                    if verdict.is_blind:
                        self._blind[region.original] = failed[-1][1]

            for batch in _batches(self._units(regions, after)):  # one batch is written while the one before runs
                folder = Path(tempfile.mkdtemp(prefix="onnxcompress-"))
                try:
                    jobs = [self._job(unit, after, folder, i) for i, unit in enumerate(batch)]
                except BaseException:
                    shutil.rmtree(folder, ignore_errors=True)
                    raise
                running.append((batch, pool.submit(self._runner.run, jobs, folder)))
                if len(running) > 1:
                    collect()
            while running:
                collect()
        return failed

    def _units(self, regions: Sequence[_Region], after: Side) -> Iterator[_Piece]:
        """Yield regions whole, and those with very large weights in parts where that can be."""
        for region in regions:
            nodes = (*region.before[0], *region.after[0])
            size_bytes = query.tensor_bytes([value for node in nodes for value in query.reads(node)])
            found: list[ValuePart] = []
            if size_bytes > _BATCH_BYTES:
                ways = [
                    Making(side_nodes, side.values[region.output], side.dims)
                    for side, (side_nodes, _) in ((self._before, region.before), (after, region.after))
                ]
                found = parts(ways[0], ways[1], most_bytes=_PART_BYTES)
            yield from (_Piece(region, size_bytes // len(found), part) for part in found)
            if not found:
                yield _Piece(region, size_bytes)

    def _job(self, unit: _Piece, after: Side, folder: Path, index: int) -> Job:
        region = unit.region
        names = dict.fromkeys((*region.before[1], *region.after[1]))
        leaves = tuple(self._before.leaf(name, self._feed, unit.part) for name in names)
        paths = folder / f"{index}-before.onnx", folder / f"{index}-after.onnx"
        stored: dict[str, StoredValue] = {}
        models = self._before.piece(region.output, *region.before), after.piece(region.output, *region.after)
        shrink_shared(*models)
        for path, model in zip(paths, models, strict=True):
            if unit.part is not None:
                unit.part.narrow(model)
            stored |= {weight.name: weight for weight in _feed_stored(model)}
            model_io.save_scratch(model, path)
        kind = tuple(kind_of(node) for node in region.after[0])
        is_new = kind not in self._kinds
        self._kinds.add(kind)
        is_bounded = ends_bounded(self._before.values[region.output])
        return Job(
            *paths, leaves, tuple(stored.values()), region.output, self._lossless, is_bounded, is_new, self._seed
        )


class _Runner:
    """Runs jobs in a worker process, the same one for job after job until its weights would add up to too many."""

    def __init__(self) -> None:
        self._worker: RemoteObject | None = None
        self._used_bytes = 0

    def run(self, jobs: Sequence[Job], folder: Path) -> Isolated[list[RegionVerdict]]:
        """Run jobs and remove their files.

        Raises:
            ModelError: the process crashed or hung.
        """
        try:
            size_bytes = sum(path.stat().st_size for path in folder.iterdir())
            size_bytes += sum(stored.size_bytes for job in jobs for stored in job.stored)
            if self._worker is None or self._used_bytes + size_bytes > _BATCH_BYTES:
                self._worker = None  # one process at a time
                spare_bytes = host.spare_memory_bytes()
                self._worker = RemoteObject(Jobs, timeout_seconds=_TIMEOUT_SECONDS, memory_bytes=spare_bytes)
                self._used_bytes = 0
            self._used_bytes += size_bytes
            answer: Isolated[list[RegionVerdict]] = self._worker.call("run", jobs, timeout_seconds=_TIMEOUT_SECONDS)
            return answer
        except BaseException:
            self._worker = None
            raise
        finally:
            shutil.rmtree(folder, ignore_errors=True)


class _RegionTally:
    """Adds up what the workers report."""

    def __init__(self) -> None:
        self._regions = 0
        self._least: float | None = None
        self._seconds = 0.0
        self._peak = 0

    def add(self, answer: Isolated[list[RegionVerdict]]) -> None:
        self._regions += len(answer.value)
        self._seconds += answer.seconds
        self._peak = max(self._peak, answer.peak_memory_bytes)
        found = [v.sqnr_db for v in answer.value if v.sqnr_db is not None and v.problem is None]
        self._least = min([*found, *([] if self._least is None else [self._least])], default=None)

    def total(self) -> RegionResult:
        return RegionResult(self._regions, self._least, self._seconds, self._peak)


def _feed_stored(piece: ir.Model) -> list[StoredValue]:
    """Turn the large weights of a piece that lie in a file as plain numbers into inputs, and return where they are.

    A name says which bytes it holds, so that both pieces of a region can share a feed.
    """
    found = []
    for name, value in list(piece.graph.initializers.items()):
        tensor = value.const_value
        if tensor is None or tensor.nbytes < _STORED_BYTES or tensor.dtype not in FLOATS or value.is_graph_output():
            continue
        place = tensor.stored if isinstance(tensor, StoredTensor) else None
        path = None if place is None or not isinstance(place.source, OpenFile) else place.source.reachable_path()
        if place is None or path is None:
            continue
        del piece.graph.initializers[name]
        value.const_value = None
        value.name = f"{name}@{path}:{place.offset}"
        value.shape, value.type = ir.Shape(place.shape), ir.TensorType(place.dtype)
        piece.graph.inputs.append(value)
        found.append(StoredValue(value.name, path, place.offset, place.dtype.numpy().name, place.shape))
    return found


def _shared(before: Side, after: Side) -> frozenset[str]:
    """Return the values at which both graphs may be cut: made by a node in both, float, of one known shape."""
    return frozenset(
        name
        for name in after.made
        if name in before.made
        and before.is_float(name)
        and after.is_float(name)
        and before.shapes.static(before.made[name]) == after.shapes.static(after.made[name])
    )


def _changed(before: Side, after: Side, shared: frozenset[str]) -> list[str]:
    """Return the values that have to be checked, in the order of the graph after.

    Whole numbers, and what has no known shape, are not among them unless they are outputs: there is no cut at them, so
    what became of them shows in the first values behind them at which there is one.
    """
    found: dict[str, None] = {}
    other: set[str] = set()  # made in another way, or from such, without a cut in between
    for name in (*after.made, *sorted(after.outputs)):
        if name in after.made and name in before.made and before.key(name) == after.key(name):
            node = after.made[name].producer()
            if node is None or not other.intersection(str(value.name) for value in query.reads(node)):
                continue
        if name not in shared:
            other.add(name)
        if name in before.made and (name in after.outputs or before.is_float(name)):
            found[name] = None
    return list(found)


def _cut(before: Side, after: Side, output: str, cuts: frozenset[str]) -> _Region:
    return _Region(output, before.cone(output, cuts), after.cone(output, cuts))


def _batches(units: Iterable[_Piece]) -> Iterator[list[_Piece]]:
    """Group what is run so that the weights of each group stay below `_BATCH_BYTES`, or of a single one."""
    batch: list[_Piece] = []
    size_bytes = 0
    for unit in units:
        if batch and size_bytes + unit.size_bytes > _BATCH_BYTES:
            yield batch
            batch, size_bytes = [], 0
        batch.append(unit)
        size_bytes += unit.size_bytes
    if batch:
        yield batch
