"""Targets of a student's layers: sampled rows of the teacher's outputs, the same rows for every layer."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
import onnx_ir as ir

from ..activations import observe
from ..core import Feed
from ..errors import DataError
from ..graph import query
from ..numerics.linear.moments import rows_wanted
from ..numerics.linear.patches import choose
from ..ops.linear import LinearLayer
from .sample_split import divided_for_refit

BATCH = 32
"""Most feeds that are joined, where the model takes several. Chosen by judgement, for memory; not measured."""


@dataclass(frozen=True, kw_only=True)
class LayerMatch:
    """Counterparts of a student's layers in the teacher.

    Args:
        values: output of a student's layer (before any activation) -> value of the teacher; others have the same name.
        channels: output of a student's layer -> channels of the teacher's value that it still has, int [n], in order.
    """

    values: Mapping[str, str] = field(default_factory=dict)
    channels: Mapping[str, np.ndarray] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True)
class RefitEffort:
    """Rows, memory and threads of a refit.

    Args:
        rows_per_column: rows to solve from, for every column of a layer's matrix.
        least_rows: fewest rows to solve from.
        target_bytes: most targets that are held at a time, beyond those of one layer; the teacher runs once for each
            such part.
        threads: threads of the runtime.
    """

    rows_per_column: int = 64
    least_rows: int = 16384
    target_bytes: int = 128 << 20
    threads: int = 1


class RefitSamples:
    """Feeds of two models, joined where both take several together: first those to solve from, then those held out.

    Args:
        student: one model.
        teacher: the other.
        feeds: complete feeds.
        held_out: feeds to choose and accept by; None to hold out every fifth of `feeds`.

    Raises:
        DataError: there are fewer than two feeds.
    """

    def __init__(
        self, student: ir.Model, teacher: ir.Model, feeds: Sequence[Feed], held_out: Sequence[Feed] | None
    ) -> None:
        if held_out is None:
            feeds, held_out = divided_for_refit(feeds)
        if not feeds or not held_out:
            raise DataError("a refit needs samples to solve from and others to choose by", hint="Give two at least")
        size = observe.joined_size(observe.batched(teacher, feeds, BATCH))
        self._train = observe.batched(student, feeds, size)
        size = observe.joined_size(self._train)
        self._held_out = observe.batched(student, held_out, size)
        self.train_count = sum(1 for _ in self._train)
        """Number of joined feeds to solve from."""
        self.count = self.train_count + sum(1 for _ in self._held_out)
        self.firsts = len(feeds) / min(size, len(feeds))
        """Size of the feeds to solve from, in first joined feeds."""

    def __iter__(self) -> Iterator[Feed]:
        yield from self._train
        yield from self._held_out


@dataclass(frozen=True, eq=False)
class LayerTarget:
    """A layer of the student and its target.

    Where its output is only added to a value, the target is the difference of the teacher's sum to that value: so the
    errors of a residual stream are compensated where something is added to it.

    Args:
        layer: the layer.
        plain: the teacher's value that the layer's output corresponds to.
        sum: the teacher's value of the sum, None where there is none.
        skip: the student's value that is added.
    """

    layer: LinearLayer
    plain: str
    sum: str | None = None
    skip: ir.Value | None = None

    @property
    def name(self) -> str:
        """Name of the layer's output, which identifies the layer."""
        return self.layer.y.name or ""

    @property
    def needs(self) -> list[ir.Value]:
        """The student's values that a fit reads."""
        return [self.layer.x] if self.skip is None else [self.layer.x, self.skip]


def targets_of(student: ir.Model, layers: Sequence[LinearLayer], pairs: Mapping[str, str]) -> list[LayerTarget]:
    """Return the targets of layers of the main graph.

    Args:
        student: their model, its nodes in topological order.
        layers: the layers, in order.
        pairs: value of the student -> value of the teacher; others have the same name.
    """
    position = {node: place for place, node in enumerate(student.graph)}
    found = []
    for layer in layers:
        name = layer.y.name or ""
        added = _added(layer, position)
        if added is None:
            found.append(LayerTarget(layer, pairs.get(name, name)))
        else:
            both, skip = added
            found.append(LayerTarget(layer, pairs.get(name, name), pairs.get(both, both), skip))
    return found


def _added(layer: LinearLayer, position: Mapping[ir.Node, int]) -> tuple[str, ir.Value] | None:
    """Return the sum that alone reads a layer's output, and its other operand, if that is refitted before it."""
    adder = query.sole_consumer(layer.y)
    if adder is None or not query.is_op(adder, "Add") or adder not in position:
        return None
    skip = next((v for v in adder.inputs if v is not None and v is not layer.y), None)
    if skip is None:
        return None
    maker = skip.producer()
    is_earlier = skip.is_graph_input() if maker is None else position.get(maker, -1) < position[layer.node]
    return (adder.outputs[0].name or "", skip) if is_earlier else None


@dataclass(frozen=True, kw_only=True)
class SampledRows:
    """Rows of one output.

    Args:
        shape: the output's shape in the student.
        at: int [n], the rows that were chosen.
        targets: float32 [groups, n, out].
    """

    shape: tuple[int, ...]
    at: np.ndarray
    targets: np.ndarray


TargetRows = list[SampledRows]
"""Targets of one layer, for each joined feed."""


class TeacherTargets:
    """The teacher's outputs for the layers of a student, asked for in order.

    Args:
        teacher: the original.
        samples: feeds of both.
        channels: output of a layer -> channels of the teacher's value that it still has.
        effort: rows, memory and threads.
        seed: seed of the choice of rows.
    """

    def __init__(
        self,
        teacher: ir.Model,
        samples: RefitSamples,
        channels: Mapping[str, np.ndarray],
        effort: RefitEffort,
        seed: int,
    ) -> None:
        self._teacher = teacher
        self._samples = samples
        self._channels = channels
        self._effort = effort
        self._seed = seed
        self._found: dict[str, TargetRows | str] = {}
        self._shapes: dict[str, _TargetShape | str] | None = None

    def of(self, upcoming: Sequence[LayerTarget]) -> TargetRows | str:
        """Return the target rows of the first of these layers, or why there are none.

        The others are those that will be asked for after it: as many of them as fit in memory are computed with it.

        Raises:
            ModelError: the runtime can't run the teacher.
        """
        if self._shapes is None:
            self._shapes = self._find_shapes(upcoming)
        name = upcoming[0].name
        if name not in self._found:
            self._find(upcoming)
        return self._found.pop(name)

    def uses_sum(self, target: LayerTarget) -> bool:
        """Say whether a target is the sum: not where the sum broadcasts the layer's output."""
        assert self._shapes is not None
        found = self._shapes[target.name]
        return isinstance(found, _TargetShape) and found.is_sum

    def _find_shapes(self, upcoming: Sequence[LayerTarget]) -> dict[str, _TargetShape | str]:
        """Return the shape of each target in the first joined feed, or why there is none."""
        wanted = [name for target in upcoming for name in (target.plain, target.sum) if name is not None]
        feed = next(iter(self._samples))
        shapes: dict[str, tuple[int, ...]] = {}
        refused: dict[str, str] = {}
        for names in observe.divided(self._teacher, [feed], list(dict.fromkeys(wanted)), self._effort.target_bytes):
            watch = observe.ActivationTap(self._teacher, names, threads=self._effort.threads, skip_refused=True)
            shapes.update((name, value.shape) for name, value in watch.run(feed).items())
            refused.update(watch.refused)
            del watch  # before the next is loaded
        found: dict[str, _TargetShape | str] = {}
        for target in upcoming:
            if target.plain not in shapes:
                why = refused.get(target.plain, "this run does not compute it")
                found[target.name] = f"no output {target.plain!r} of the teacher to learn from: {why}"
                continue
            shape = shapes[target.plain]
            kept = self._channels.get(target.name)
            channels = shape[target.layer.channel_axis] if kept is None else len(kept)
            groups, out, _ = target.layer.shape
            is_sum = target.sum is not None and shapes.get(target.sum) == shape
            fits = channels == groups * out
            found[target.name] = (
                _TargetShape(shape, is_sum) if fits else f"it gives {groups * out} channels, the teacher {channels}"
            )
        return found

    def _find(self, upcoming: Sequence[LayerTarget]) -> None:
        assert self._shapes is not None
        parts: dict[str, float] = {}
        chosen: list[tuple[LayerTarget, str]] = []
        kept_bytes = 0.0
        for target in upcoming:
            found = self._shapes[target.name]
            if isinstance(found, str):
                self._found[target.name] = found
                continue
            groups, out, columns = target.layer.shape
            rows = math.prod(found.shape) // found.shape[target.layer.channel_axis]
            effort = self._effort
            wanted = rows_wanted(columns, per_column=effort.rows_per_column, least=effort.least_rows)
            part = min(1.0, wanted / (rows * self._samples.firsts))
            own_bytes = 4 * (math.prod(found.shape) + part * rows * groups * out * self._samples.count)
            if chosen and kept_bytes + own_bytes > self._effort.target_bytes:
                break
            kept_bytes += own_bytes
            parts[target.name] = part
            chosen.append((target, target.sum if found.is_sum and target.sum is not None else target.plain))
        if chosen:
            self._found.update(self._run(chosen, parts))

    def _run(
        self, chosen: Sequence[tuple[LayerTarget, str]], parts: Mapping[str, float]
    ) -> dict[str, TargetRows | str]:
        found: dict[str, TargetRows | str] = {}
        rows_of: dict[str, TargetRows] = {target.name: [] for target, _ in chosen}
        sources = [source for _, source in chosen]
        for number, values in enumerate(
            observe.stream(self._teacher, self._samples, sources, threads=self._effort.threads)
        ):
            for target, source in chosen:
                if source not in values:
                    found[target.name] = f"a sample does not compute {source!r} of the teacher"
                    continue
                y, axis = values[source], target.layer.channel_axis
                count = math.prod(y.shape) // y.shape[axis]
                random = np.random.default_rng([self._seed, number, *target.name.encode()])
                at = choose(count, math.ceil(parts[target.name] * count), random)
                targets = target.layer.targets(y, at, keep=self._channels.get(target.name)).astype(np.float32)
                shape = list(y.shape)
                shape[axis] = targets.shape[0] * targets.shape[2]
                rows_of[target.name].append(SampledRows(shape=tuple(shape), at=at, targets=targets))
        return rows_of | found


@dataclass(frozen=True)
class _TargetShape:
    """Shape of a target in the first joined feed; `is_sum` where it is that of the sum."""

    shape: tuple[int, ...]
    is_sum: bool
