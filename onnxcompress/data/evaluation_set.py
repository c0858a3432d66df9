"""Samples by which original and result are judged: the user's, or synthetic ones."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

import numpy as np

from ..core import Feed
from ..errors import DataError
from ..recorder import catalogue
from . import feeds as feed_facts
from . import load as data_module
from . import states, step_kinds
from .feeds import Lazy

if TYPE_CHECKING:
    import onnx_ir as ir

    from ..runtime.tensor_spec import TensorSpec
    from .read_files import Layout

LEAST_TO_DIVIDE = 16
"""Samples; fewer are used whole, for passes and for judging. Chosen by judgement; not measured."""

_HELD_OUT_STEP = 4
"""One sample in so many is held out. Chosen by judgement; not measured."""

_MOST_HELD_OUT = 256
"""Samples: more cost time in every trial. Chosen by judgement; not measured."""

_ENOUGH = 64
"""Samples to judge by up to which seen ones are added: the loss of seven classifiers was told with half the error of 16
(90%: 2.0 points instead of 3.0)."""


_ROLLED = 32
"""Steps with a carried cache of which one is timed. Chosen by judgement; not measured."""


def held_out_step(count: int) -> int:
    """Return of how many samples one is held out, the last of them."""
    return max(_HELD_OUT_STEP, math.ceil(count / _MOST_HELD_OUT))


@dataclass(frozen=True, kw_only=True)
class DataOptions:
    """Options for reading data: see `data.load.load_data`."""

    layout: Layout | None = None
    size: int | None = None
    scale: Sequence[float] | None = None
    mean: Sequence[float] | None = None
    state: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True)
class Evaluation:
    """Feeds to judge a model by, and their labels where there are any.

    Labels are one row, or several, for each feed; an array of arrays where their shapes differ. `state` maps an input
    to the output whose value it gets from the run before. `caches` are further outputs that only go on to other runs;
    the feeds hold the values of theirs, as in a recording. `cache_inputs` hold a cache. The first `seen` feeds are
    those that passes work with, too.
    """

    feeds: Sequence[Feed]
    source: str
    labels: np.ndarray | None = None
    state: Mapping[str, str] = field(default_factory=dict)
    caches: tuple[str, ...] = ()
    cache_inputs: frozenset[str] = frozenset()
    skipped: Sequence[tuple[str, str]] = ()
    seen: int = 0

    def stateful(self, last: Mapping[str, Any]) -> Iterator[Feed]:
        """Yield the feeds with their state from `last`, where the caller leaves the outputs of each run."""
        for feed in self.feeds:
            yield feed | {name: last[output] for name, output in self.state.items() if output in last}

    @property
    def carried(self) -> tuple[str, ...]:
        """Outputs that go on to other runs and are no results."""
        return tuple(dict.fromkeys((*self.state.values(), *self.caches)))

    def largest(self) -> Feed:
        """Return the feed with the most elements, the first of several."""
        return feed_facts.largest(self.feeds)

    def timed(self, run: Callable[[Feed], Mapping[str, Any]] | None = None) -> tuple[Feed, ...]:
        """Return the feeds that are timed: the largest; with a cache the largest step, and the largest prompt.

        Args:
            run: runs the model: caches that are carried from feed to feed are those of the first runs then.
        """
        feeds = self.feeds
        if self.state and self.cache_inputs and run is not None:
            last: dict[str, Any] = {}
            feeds = []
            for feed in itertools.islice(self.stateful(last), _ROLLED):
                feeds.append(feed)
                last.update(run(feed))
        return step_kinds.timed(feeds, self.cache_inputs)

    def divided(self) -> tuple[Evaluation, Evaluation]:
        """Divide the samples in a part to work with and one to judge by, so that no choice can fool itself.

        Every fourth feed is held out, at most 256. Where fewer than 64 are, the part to judge by begins with seen ones
        that bring it to 64: their loss is corrected by that of the held-out ones. Too few feeds to divide, those that
        carry a state from one to the next, and those with differing numbers of labels, serve for both. With a cache
        the feeds of each kind of step (prompt, one token) are divided, and at least one of two is held out.
        """
        count = len(self.feeds)
        uneven = self.labels is not None and len(self.labels) % count != 0
        if count < LEAST_TO_DIVIDE or self.state or uneven:
            return self, self
        held = sorted(self._held(held_out_step(count)))
        apart = frozenset(held)
        rest = [index for index in range(count) if index not in apart]
        added = rest[: max(0, _ENOUGH - len(held))] if self.labels is None else []
        return self._part(rest), replace(self._part([*added, *held]), seen=len(added))

    def _held(self, step: int) -> Iterator[int]:
        """Yield the places of held-out feeds: one of `step` of each kind."""
        kinds: dict[Any, list[int]] = {}
        for index in range(len(self.feeds)):
            kinds.setdefault(step_kinds.kind(self.feeds[index]) if self.cache_inputs else None, []).append(index)
        for places in kinds.values():
            yield from places[step - 1 :: step] or (places[-1:] if len(places) > 1 else ())

    def without_seen(self) -> Evaluation:
        """Return the feeds that passes don't see; the loss on them alone is as true, and less sharp."""
        return replace(self, feeds=self.feeds[self.seen :], seen=0) if self.seen else self

    def _part(self, indices: Sequence[int]) -> Evaluation:
        labels = self.labels
        if labels is not None:
            rows = len(labels) // len(self.feeds)
            labels = labels.reshape(len(self.feeds), rows, *labels.shape[1:])[list(indices)]
            labels = labels.reshape(-1, *labels.shape[2:])
        return replace(self, feeds=Lazy(indices, self.feeds.__getitem__), labels=labels)

    def notes(self) -> list[str]:
        """Return a line for each sample that was left out."""
        return [f"{name} is skipped: {reason}" for name, reason in self.skipped]


def synthetic(feeds: Sequence[Feed], specs: Sequence[TensorSpec]) -> Evaluation:
    """Return synthetic feeds, to judge a model by."""
    caches = step_kinds.cache_inputs([spec.name for spec in specs], ())
    return Evaluation(feeds=feeds, source="synthetic", cache_inputs=caches)


def read(
    source: Any,
    specs: Sequence[TensorSpec],
    options: DataOptions,
    *,
    model: Any = None,
    graph: ir.Model | None = None,
    outputs: Sequence[str] | None = None,
) -> Evaluation:
    """Read samples and fit them to a model's inputs.

    Args:
        source: see `data.load.load_data`; also a recording, of which the samples of `model` are read.
        specs: the model's inputs.
        options: how they are read. Its samples hold the states that a recording knows: they are not carried.
        model: the model, where it is known: its path, its bytes, or as it was loaded.
        graph: the model, where it is loaded: it tells its outputs, and which caches grow.
        outputs: names of its outputs, where there is no graph.

    Raises:
        DataError: they can't be read, don't fit, or none is finite.
        UsageError: `state` names an input or output that there is not.
    """
    recorded = catalogue.find(source, model, specs)
    outputs = outputs if graph is None else [value.name or "" for value in graph.graph.outputs]
    state = states.expanded(options.state, [spec.name for spec in specs], outputs)
    if recorded is not None:
        state = {name: output for name, output in state.items() if name not in recorded.states}
    found = data_module.load_data(
        source if recorded is None else recorded.folder,
        specs,
        layout=options.layout,
        size=options.size,
        scale=options.scale,
        mean=options.mean,
        state=state,
        empty=states.growing_axes(state, specs, graph),
    )
    labels = None if found.labels is None else _joined(found.labels, found.source)
    return Evaluation(
        feeds=found.feeds,
        source=found.source,
        labels=labels,
        state=found.state,
        caches=() if recorded is None else recorded.caches,
        cache_inputs=step_kinds.cache_inputs(
            [spec.name for spec in specs], found.state if recorded is None else {*found.state, *recorded.states}
        ),
        skipped=tuple(found.skipped),
    )


def _joined(labels: Sequence[Any], source: str) -> np.ndarray:
    """Return the labels of all feeds in one array; where their sizes differ it holds one array per feed.

    Raises:
        DataError: they differ in the number of axes.
    """
    arrays = [np.atleast_1d(label) for label in labels]
    if len({array.ndim for array in arrays}) > 1:
        shapes = sorted({str(list(array.shape)) for array in arrays})
        raise DataError(f"labels of different shapes: {', '.join(shapes[:3])}", where=source)
    if len({array.shape[1:] for array in arrays}) == 1:
        return np.concatenate(arrays)
    found = np.empty(len(arrays), object)
    found[:] = arrays
    return found
