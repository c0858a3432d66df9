"""What layers of a student are to give: some rows of the teacher's outputs, the same rows for every question."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import onnx_ir as ir

from ..activations import observe
from ..core import Feed
from ..errors import DataError
from ..graph import query
from ..numerics.linear.moments import rows_wanted
from ..numerics.linear.patches import choose
from ..ops.linear import LinearLayer

BATCH = 32
"""Feeds that are joined at most, where the model takes them together."""

TARGET_BYTES = 128 << 20
"""Targets that are kept at a time, beyond those of one layer; the teacher runs once for each such part."""

_HELD_OUT = 5
"""Every how manieth feed is held out, where none are given for that."""


class Samples:
    """Feeds of two models, joined where both take several together: first those to solve from, then those held out.

    Args:
        student: one model.
        teacher: the other.
        feeds: complete feeds.
        held_out: feeds to choose and accept by; None to hold back every fifth of `feeds`.

    Raises:
        DataError: there are fewer than two feeds.
    """

    def __init__(
        self, student: ir.Model, teacher: ir.Model, feeds: Sequence[Feed], held_out: Sequence[Feed] | None
    ) -> None:
        if held_out is None:
            every = min(_HELD_OUT, max(2, len(feeds)))
            held_out = [feed for number, feed in enumerate(feeds) if number % every == every - 1]
            feeds = [feed for number, feed in enumerate(feeds) if number % every != every - 1]
        if not feeds or not held_out:
            raise DataError("a refit needs samples to solve from and others to choose by", hint="Give two at least")
        one, two = observe.batched(student, feeds, BATCH), observe.batched(teacher, feeds, BATCH)
        joins = one is not feeds and two is not feeds
        self._train = one if joins else feeds
        self._held_out = observe.batched(student, held_out, BATCH) if joins else held_out
        self.train_count = sum(1 for _ in self._train)
        """How many of the joined feeds are to solve from."""
        self.count = self.train_count + sum(1 for _ in self._held_out)
        self.firsts = len(feeds) / min(BATCH, len(feeds)) if joins else len(feeds)
        """How often the first joined feed goes into those to solve from, by the samples it joins."""

    def __iter__(self) -> Iterator[Feed]:
        yield from self._train
        yield from self._held_out


@dataclass(frozen=True, eq=False)
class LayerTarget:
    """A layer of the student and what it is to give.

    Where its output only goes into a sum with what is there already, the layer is to give what the teacher's sum still
    lacks: so the errors of a residual stream are made up for where something is added to it.

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
        """The name of the layer's output, which says which layer is meant."""
        return self.layer.y.name or ""

    @property
    def needs(self) -> list[ir.Value]:
        """The student's values that a fit reads."""
        return [self.layer.x] if self.skip is None else [self.layer.x, self.skip]


def aims(student: ir.Model, layers: Sequence[LinearLayer], pairs: Mapping[str, str]) -> list[LayerTarget]:
    """Return what layers of the main graph are to give.

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
    """Return the sum that alone reads a layer's output, and what else goes into it, if that is refitted before it."""
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


Goal = list[SampledRows]
"""What one layer is to give, for each joined feed."""


class TeacherTargets:
    """The teacher's outputs for the layers of a student, asked for in order.

    Args:
        teacher: the model that knows.
        samples: what both are run on.
        keep: output of a layer -> channels of the teacher's value that it still has.
        rows_per_column: rows to solve from, for every column of a layer's matrix.
        seed: of the choice of rows.
        threads: threads of the runtime.
    """

    def __init__(
        self,
        teacher: ir.Model,
        samples: Samples,
        keep: Mapping[str, np.ndarray],
        *,
        rows_per_column: int,
        seed: int,
        threads: int,
    ) -> None:
        self._teacher = teacher
        self._samples = samples
        self._keep = keep
        self._rows_per_column = rows_per_column
        self._seed = seed
        self._threads = threads
        self._found: dict[str, Goal | str] = {}
        self._looked_at: dict[str, _Look | str] | None = None

    def of(self, upcoming: Sequence[LayerTarget]) -> Goal | str:
        """Return what the first of these layers is to give, or why that is not known.

        The others are those that will be asked for after it: as many of them as fit in memory are found out with it.

        Raises:
            ModelError: the runtime can't run the teacher.
        """
        if self._looked_at is None:
            self._looked_at = self._look_at(upcoming)
        name = upcoming[0].name
        if name not in self._found:
            self._find(upcoming)
        return self._found.pop(name)

    def uses_sum(self, aim: LayerTarget) -> bool:
        """Say whether the goal of an aim is the sum: not where the sum spreads the layer's output over more."""
        assert self._looked_at is not None
        look = self._looked_at[aim.name]
        return isinstance(look, _Look) and look.is_sum

    def _look_at(self, upcoming: Sequence[LayerTarget]) -> dict[str, _Look | str]:
        """Return each layer's goal in the first joined feed, or why there is none."""
        wanted = [name for aim in upcoming for name in (aim.plain, aim.sum) if name is not None]
        watch = observe.ActivationTap(self._teacher, wanted, threads=self._threads, skip_refused=True)
        values = watch.run(next(iter(self._samples)))
        found: dict[str, _Look | str] = {}
        for aim in upcoming:
            if aim.plain not in values:
                why = watch.refused.get(aim.plain, "this run does not compute it")
                found[aim.name] = f"no output {aim.plain!r} of the teacher to learn from: {why}"
                continue
            shape = values[aim.plain].shape
            kept = self._keep.get(aim.name)
            channels = shape[aim.layer.channel_axis] if kept is None else len(kept)
            groups, out, _ = aim.layer.shape
            is_sum = aim.sum is not None and aim.sum in values and values[aim.sum].shape == shape
            fits = channels == groups * out
            found[aim.name] = (
                _Look(shape, is_sum) if fits else f"it gives {groups * out} channels, the teacher {channels}"
            )
        return found

    def _find(self, upcoming: Sequence[LayerTarget]) -> None:
        assert self._looked_at is not None
        parts: dict[str, float] = {}
        chosen: list[tuple[LayerTarget, str]] = []
        kept_bytes = 0.0
        for aim in upcoming:
            look = self._looked_at[aim.name]
            if isinstance(look, str):
                self._found[aim.name] = look
                continue
            groups, out, columns = aim.layer.shape
            rows = math.prod(look.shape) // look.shape[aim.layer.channel_axis]
            wanted = rows_wanted(columns, per_column=self._rows_per_column)
            part = min(1.0, wanted / (rows * self._samples.firsts))
            own_bytes = 4 * (math.prod(look.shape) + part * rows * groups * out * self._samples.count)
            if chosen and kept_bytes + own_bytes > TARGET_BYTES:
                break
            kept_bytes += own_bytes
            parts[aim.name] = part
            chosen.append((aim, aim.sum if look.is_sum and aim.sum is not None else aim.plain))
        if chosen:
            self._found.update(self._run(chosen, parts))

    def _run(self, chosen: Sequence[tuple[LayerTarget, str]], parts: Mapping[str, float]) -> dict[str, Goal | str]:
        found: dict[str, Goal | str] = {}
        goals: dict[str, Goal] = {aim.name: [] for aim, _ in chosen}
        sources = [source for _, source in chosen]
        for number, values in enumerate(observe.stream(self._teacher, self._samples, sources, threads=self._threads)):
            for aim, source in chosen:
                if source not in values:
                    found[aim.name] = f"a sample does not compute {source!r} of the teacher"
                    continue
                y, axis = values[source], aim.layer.channel_axis
                count = math.prod(y.shape) // y.shape[axis]
                random = np.random.default_rng([self._seed, number, *aim.name.encode()])
                at = choose(count, math.ceil(parts[aim.name] * count), random)
                targets = aim.layer.targets(y, at, keep=self._keep.get(aim.name)).astype(np.float32)
                shape = list(y.shape)
                shape[axis] = targets.shape[0] * targets.shape[2]
                goals[aim.name].append(SampledRows(shape=tuple(shape), at=at, targets=targets))
        return goals | found


@dataclass(frozen=True)
class _Look:
    """The shape of a goal in the first joined feed, and whether it is that of the sum."""

    shape: tuple[int, ...]
    is_sum: bool
