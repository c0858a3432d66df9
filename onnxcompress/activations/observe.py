"""Inner values of a model while it runs on feeds: one feed's values in memory at a time.

    model --expose--> copy with outputs more --run on each feed--> name -> array --update--> collectors

A value inside an If body is absent where its branch is not taken. A value inside a Loop or Scan body has all rounds
stacked along a new first axis. Inputs of the model are what the feeds hold.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np
import onnx_ir as ir

from ..core import Progress
from ..data import feeds as feed_facts
from ..errors import ModelError
from ..graph import query
from ..io import model_io
from ..runtime import session as runtime
from ..shapes import expose, resolve
from .chained_tap import ChainedTap

if TYPE_CHECKING:
    from ..core import Feed

MEMORY_BYTES = 128 << 20
"""Values of one feed that are taken out in one run, at most, where they can be taken out in turns.

The runtime holds them beside its other activations, so that a run takes up to twice as much. Chosen so that this
stays within half of the 600 MB that a command may take beyond its model.
"""

JOINED_BYTES = 32 << 20
"""Bytes of a model's largest value in a run on joined samples, at most, where two samples don't take more.

A run holds several values of that size, and one that shows them a copy of each. Chosen on an audio model of 14 MB a
value and sample, where commands that joined 32 and 64 samples took 1.3 and 2.3 GB.
"""

_LOOKED_AT = 16
"""Feeds whose sizes are looked at before the first run."""

MOST_BYTES = 24 << 30
"""Values of all feeds together that statistics are made of, at most. Chosen by judgement; not
measured."""
_LEAST_FEEDS = 8
"""Feeds that statistics are made of however large their values are. Chosen by judgement; not measured."""


class Collector(Protocol):
    """Gathers what is to be known of one value. Collectors of one kind can be merged: see `numerics.ranges`."""

    def update(self, array: np.ndarray) -> None:
        """Take in the value of one run."""
        ...


class ActivationTap:
    """A model opened in the runtime so that a run gives some of its inner values.

    Args:
        model: is not changed, and need not stay as it is.
        names: the values wanted, of any graph of the model; inputs too.
        state: input -> output whose value it gets from the run before.
        threads: threads that one operator may use.
        skip_refused: leave out what can't be observed, and say so in `refused`, instead of raising.

    Raises:
        ModelError: a value can't be observed, or the model can't be loaded.
    """

    def __init__(
        self,
        model: ir.Model,
        names: Iterable[str],
        *,
        state: Mapping[str, str] | None = None,
        threads: int = 1,
        skip_refused: bool = False,
    ) -> None:
        wanted = dict.fromkeys(names)
        inputs = {value.name for value in model.graph.inputs}
        self._from_feed = [name for name in wanted if name in inputs]
        self._state = dict(state or {})
        carried = dict.fromkeys(self._state.values())
        shown = expose.expose(model, [name for name in wanted if name not in inputs], keep=carried)
        self.refused = dict(shown.refused)
        """Value -> why it can't be observed."""
        if self.refused and not skip_refused:
            name, reason = next(iter(self.refused.items()))
            raise ModelError(f"can't be observed: {reason}", where=name)
        self._outputs = dict(shown.outputs)
        self._fetched = list(dict.fromkeys([*self._outputs.values(), *carried]))
        self._session = None
        if self._fetched:
            self._session = runtime.open_session(model_io.to_bytes(shown.model), optimize=True, threads=threads)
        self._last: dict[str, Any] = {}

    def run(self, feed: Mapping[str, Any], *, max_seconds: float | None = None) -> dict[str, np.ndarray]:
        """Return the values of one run by name; those that it does not compute, or as empty, are absent.

        Raises:
            ModelError: the runtime fails.
            StuckError: the run takes longer than `max_seconds`.
        """
        feed = {**feed, **{name: self._last[output] for name, output in self._state.items() if output in self._last}}
        found: dict[str, Any] = {name: feed[name] for name in self._from_feed if name in feed}
        if self._session is not None:
            values = self._session.run(feed, self._fetched, max_seconds=max_seconds)
            self._last = {output: values[output] for output in self._state.values()}
            found.update((name, values[output]) for name, output in self._outputs.items())
        return {name: value for name, value in found.items() if isinstance(value, np.ndarray) and value.size}


def stream(
    model: ir.Model,
    feeds: Iterable[Feed],
    names: Iterable[str],
    *,
    state: Mapping[str, str] | None = None,
    threads: int = 1,
    progress: Progress = lambda _, items: iter(items),
) -> Iterator[dict[str, np.ndarray]]:
    """Run the model on each feed and yield the values `names`, those of one feed at a time.

    The runtime's optimizations are on; what is observed is computed as in the graph. Only what the values
    need is run.

    Args:
        model: the model; it may be changed once the first values are there.
        feeds: complete feeds; a one-time iterator will do.
        names: values of any graph of the model, inputs included.
        state: input -> output whose value it gets from the run before; first the feed's.
        threads: threads that one operator may use.
        progress: wraps the loop where the number of feeds is known.

    Raises:
        ModelError: a value can't be observed, or the runtime fails.
    """
    watch = ActivationTap(model, names, state=state, threads=threads)
    for feed in progress("Observing", feeds) if isinstance(feeds, Sequence) else feeds:
        yield watch.run(feed)


def observe(
    model: ir.Model,
    feeds: Iterable[Feed],
    collectors: Mapping[str, Collector],
    *,
    state: Mapping[str, str] | None = None,
    threads: int = 1,
    memory_bytes: int = MEMORY_BYTES,
    progress: Progress = lambda _, items: iter(items),
) -> dict[str, str]:
    """Run the model on each feed and let each value's collector take it in; return what can't be observed, and why.

    Values that take more than `memory_bytes` together are observed part by part; see `ChainedTap`.

    Raises:
        ModelError: the runtime fails.
    """
    first: Iterator[Feed] = itertools.islice(feeds, _LOOKED_AT)
    if iter(feeds) is feeds:
        read = list(first)
        first, feeds = iter(read), itertools.chain(read, feeds)
        del read
    largest = max(first, key=feed_facts.elements, default=None)  # one at a time: joined feeds are copies
    parts = divided(model, [] if largest is None else [largest], list(collectors), memory_bytes)

    def take(name: str, array: np.ndarray) -> None:
        collectors[name].update(array)

    if len(parts) > 1:
        chain = ChainedTap(model, parts, state=state, threads=threads)
        for feed in progress("Observing", feeds) if isinstance(feeds, Sequence) else feeds:
            chain.run(feed, take)
        return chain.refused
    watch = ActivationTap(model, parts[0], state=state, threads=threads, skip_refused=True)
    for feed in progress("Observing", feeds) if isinstance(feeds, Sequence) else feeds:
        for name, array in watch.run(feed).items():
            take(name, array)
    return watch.refused


def batched(model: ir.Model, feeds: Iterable[Feed], size: int) -> Iterable[Feed]:
    """Return the feeds joined along axis 0, up to `size` together, or as they are where that is not the same.

    Neighbours of equal shapes are joined where every input's first dimension is dynamic, and a trial with the first
    two shows that the model treats them one by one. Fewer are joined, but two at least, where the largest value of the
    model would take more than `JOINED_BYTES`. Feeds that carry a state must not be joined.

    Args:
        model: the model; not run with the result, only tried.
        feeds: complete feeds.
        size: feeds to join at most.

    Returns:
        joined feeds, which can be read again if `feeds` can.

    Raises:
        ModelError: the runtime can't run the first feed.
    """
    first = list(itertools.islice(feeds, 2))
    if iter(feeds) is feeds:
        feeds = itertools.chain(first, feeds)
    if size < 2 or len(first) < 2 or _kind(first[0]) != _kind(first[1]) or not _takes_batches(model):
        return feeds
    size = min(size, max(2, JOINED_BYTES // _largest_bytes(model, first[0])))
    session = runtime.open_session(model_io.to_bytes(model), optimize=True)
    apart = [session.run(feed) for feed in first]
    try:
        together = session.run(_joined(first))
    except ModelError:
        return feeds
    same = all(_is_join(together[name], [outputs[name] for outputs in apart]) for name in together)
    return _Batches(feeds, size) if same else feeds


def joined_size(feeds: Iterable[Feed]) -> int:
    """Return how many feeds `batched` joins at most: one in feeds that it has left as they are."""
    return feeds.size if isinstance(feeds, _Batches) else 1


def divided(model: ir.Model, feeds: Sequence[Feed], names: Sequence[str], memory_bytes: int) -> list[list[str]]:
    """Divide values into groups whose arrays take at most `memory_bytes` at the largest feed, in the graph's order."""
    sizes = value_bytes(model, feeds, names)
    order = {output.name: place for place, node in enumerate(query.nodes(model)) for output in node.outputs}
    groups: list[list[str]] = [[]]
    filled = 0
    for name in sorted(names, key=lambda name: order.get(name, -1)):
        size = sizes[name]
        if groups[-1] and filled + size > memory_bytes:
            groups.append([])
            filled = 0
        groups[-1].append(name)
        filled += size
    return groups


def value_bytes(model: ir.Model, feeds: Sequence[Feed], names: Sequence[str]) -> dict[str, int]:
    """Return the bytes of values, as float32, at the largest feed; without feeds 0.

    A value whose shape can't be inferred counts as much as the largest that can.
    """
    sizes: dict[str, int] = {}
    if feeds:
        largest = feed_facts.largest(feeds)
        sizes = {name: 4 * math.prod(dims) for name, dims in resolve.infer_dims(model, largest).items()}
    unknown = max((sizes[name] for name in names if name in sizes), default=0)
    return {name: sizes.get(name, unknown) for name in names}


def enough_feeds(
    model: ir.Model, feeds: Sequence[Feed], names: Sequence[str], *, most_bytes: int = MOST_BYTES
) -> Sequence[Feed]:
    """Return feeds, evenly spread, whose values together take at most `most_bytes`, but eight at least.

    Args:
        model: the model; not run.
        feeds: complete feeds, each of them independent of the others.
        names: values that are to be observed.
        most_bytes: bytes of these values, as float32 at the largest feed, over all feeds.
    """
    each = sum(value_bytes(model, feeds[:_LOOKED_AT], names).values())
    count = max(_LEAST_FEEDS, most_bytes // max(1, each))
    if count >= len(feeds):
        return feeds
    return feed_facts.Lazy([len(feeds) * index // count for index in range(count)], feeds.__getitem__)


class _Batches:
    """Feeds joined each time they are read."""

    def __init__(self, feeds: Iterable[Feed], size: int) -> None:
        self._feeds = feeds
        self.size = size

    def __iter__(self) -> Iterator[Feed]:
        waiting: list[Feed] = []
        for feed in self._feeds:
            if waiting and (len(waiting) == self.size or _kind(feed) != _kind(waiting[0])):
                yield _joined(waiting)
                waiting = []
            waiting.append(feed)
        if waiting:
            yield _joined(waiting)


def _largest_bytes(model: ir.Model, feed: Feed) -> int:
    """Return the bytes of the largest value of a run, as float32, among those whose shape can be inferred."""
    return max((4 * math.prod(dims) for dims in resolve.infer_dims(model, feed).values()), default=0) or 1


def _takes_batches(model: ir.Model) -> bool:
    """Say whether every input that a feed must hold has a first dimension that is open."""
    inputs = [value for value in model.graph.inputs if not value.is_initializer()]
    return bool(inputs) and all(
        isinstance(value.type, ir.TensorType)
        and value.shape is not None
        and value.shape.rank() > 0
        and not isinstance(value.shape[0], int)
        for value in inputs
    )


def _kind(feed: Feed) -> dict[str, tuple[Any, ...]]:
    return {name: (np.asarray(feed[name]).dtype, dims) for name, dims in feed_facts.dims(feed).items()}


def _joined(feeds: Sequence[Feed]) -> Feed:
    if len(feeds) == 1:
        return feeds[0]
    return {name: np.concatenate([feed[name] for feed in feeds]) for name in feeds[0]}


def _is_join(together: Any, apart: Sequence[Any]) -> bool:
    """Say whether an output of joined feeds is what the outputs of each, joined, are."""
    if not all(isinstance(array, np.ndarray) and array.ndim for array in (together, *apart)):
        return False
    expected = np.concatenate(apart)
    if together.shape != expected.shape:
        return False
    if expected.dtype.kind not in "fc":
        return bool((together == expected).all())
    scale = float(np.abs(expected).max(initial=0.0, where=np.isfinite(expected)))
    return bool(np.allclose(together, expected, rtol=1e-3, atol=1e-3 * scale, equal_nan=True))
