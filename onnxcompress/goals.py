"""What layers of a student are to give: some rows of the teacher's outputs, the same rows for every question."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import onnx_ir as ir

from . import observe
from .core import Feed
from .errors import DataError
from .layers import LinearLayer
from .numerics.moments import rows_wanted
from .numerics.patches import choose

BATCH = 32
"""Feeds that are joined at most, where the model takes them together."""

TARGET_BYTES = 256 << 20
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

    def __iter__(self) -> Iterator[Feed]:
        yield from self._train
        yield from self._held_out


@dataclass(frozen=True, kw_only=True)
class Chosen:
    """Rows of one output.

    Args:
        count: how many rows the output has.
        at: int [n], those that were chosen.
        targets: float32 [groups, n, out].
    """

    count: int
    at: np.ndarray
    targets: np.ndarray


Goal = list[Chosen]
"""What one layer is to give, for each joined feed."""


class Goals:
    """The teacher's outputs for the layers of a student, asked for in order.

    Args:
        teacher: the model that knows.
        samples: what both are run on.
        pairs: output of a layer -> value of the teacher; others have the same name.
        keep: output of a layer -> channels of the teacher's value that it still has.
        rows_per_column: rows to solve from, for every column of a layer's matrix.
        seed: of the choice of rows.
        threads: threads of the runtime.
    """

    def __init__(
        self,
        teacher: ir.Model,
        samples: Samples,
        pairs: Mapping[str, str],
        keep: Mapping[str, np.ndarray],
        *,
        rows_per_column: int,
        seed: int,
        threads: int,
    ) -> None:
        self._teacher = teacher
        self._samples = samples
        self._pairs = pairs
        self._keep = keep
        self._rows_per_column = rows_per_column
        self._seed = seed
        self._threads = threads
        self._found: dict[str, Goal | str] = {}
        self._looked_at: dict[str, tuple[int, ...] | str] | None = None

    def of(self, layers: Sequence[LinearLayer]) -> Goal | str:
        """Return what the first of these layers is to give, or why that is not known.

        The others are those that will be asked for after it: as many of them as fit in memory are found out with it.

        Raises:
            ModelError: the runtime can't run the teacher.
        """
        if self._looked_at is None:
            self._looked_at = self._look_at(layers)
        name = layers[0].y.name or ""
        if name not in self._found:
            self._find(layers)
        return self._found.pop(name)

    def _look_at(self, layers: Sequence[LinearLayer]) -> dict[str, tuple[int, ...] | str]:
        """Return the shape of each layer's goal in the first joined feed, or why there is none."""
        wanted = {layer.y.name or "": self._source(layer) for layer in layers}
        watch = observe.Watch(self._teacher, wanted.values(), threads=self._threads, skip_refused=True)
        values = watch.run(next(iter(self._samples)))
        found: dict[str, tuple[int, ...] | str] = {}
        for layer in layers:
            own, source = layer.y.name or "", self._source(layer)
            if source not in values:
                why = watch.refused.get(source, "this run does not compute it")
                found[own] = f"no output {source!r} of the teacher to learn from: {why}"
                continue
            shape = values[source].shape
            kept = self._keep.get(own)
            channels = shape[layer.channel_axis] if kept is None else len(kept)
            groups, out, _ = layer.shape
            fits = channels == groups * out
            found[own] = shape if fits else f"it gives {groups * out} channels, the teacher {channels}"
        return found

    def _find(self, layers: Sequence[LinearLayer]) -> None:
        assert self._looked_at is not None
        parts: dict[str, float] = {}
        chosen: list[LinearLayer] = []
        kept_bytes = 0.0
        for layer in layers:
            name = layer.y.name or ""
            shape = self._looked_at[name]
            if isinstance(shape, str):
                self._found[name] = shape
                continue
            groups, out, columns = layer.shape
            rows = math.prod(shape) // shape[layer.channel_axis]
            wanted = rows_wanted(columns, per_column=self._rows_per_column)
            part = min(1.0, wanted / (rows * self._samples.train_count))
            own_bytes = 4 * (math.prod(shape) + part * rows * groups * out * self._samples.count)
            if chosen and kept_bytes + own_bytes > TARGET_BYTES:
                break
            kept_bytes += own_bytes
            parts[name] = part
            chosen.append(layer)
        if chosen:
            self._found.update(self._run(chosen, parts))

    def _run(self, layers: Sequence[LinearLayer], parts: Mapping[str, float]) -> dict[str, Goal | str]:
        found: dict[str, Goal | str] = {}
        goals: dict[str, Goal] = {layer.y.name or "": [] for layer in layers}
        sources = [self._source(layer) for layer in layers]
        stream = observe.stream(self._teacher, self._samples, sources, threads=self._threads)
        for number, values in enumerate(stream):
            for layer, source in zip(layers, sources, strict=True):
                name = layer.y.name or ""
                if source not in values:
                    found[name] = f"a sample does not compute {source!r} of the teacher"
                    continue
                y = values[source]
                count = math.prod(y.shape) // y.shape[layer.channel_axis]
                random = np.random.default_rng([self._seed, number, *(name or "").encode()])
                at = choose(count, math.ceil(parts[name] * count), random)
                targets = layer.targets(y, at, keep=self._keep.get(name)).astype(np.float32)
                goals[name].append(Chosen(count=count, at=at, targets=targets))
        return goals | found

    def _source(self, layer: LinearLayer) -> str:
        return self._pairs.get(layer.y.name or "", layer.y.name or "")
