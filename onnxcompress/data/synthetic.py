"""Seeded feeds for a model without data: shapes filled in, values that make sense, tried in the runtime.

    input_semantics.roles --> plans (sizes of dynamic dimensions, kind of values) --> feeds --> the ones that run

Declared shapes of outputs are never believed; those of inputs are, since the runtime enforces them.
"""

from __future__ import annotations

import itertools
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, cast

import numpy as np
import onnx_ir as ir

from ..base.feed_facts import CACHE_NAME
from ..core import Feed
from ..errors import ModelError, StuckError
from ..runtime.run_timeout import run_seconds
from ..runtime.session import Session
from ..shapes.size_relations import Expression, completed, relations
from .fill_inputs import SHAPES_OF_UNKNOWN_RANK, FreeInput, InputPlan, PlanKey, WholeNumbers, filled, free_inputs
from .input_semantics import named_sizes

_BATCH_SIZES = (2, 1, 3, 4)
"""Sizes that are tried for a batch, likeliest first. Chosen on the zoo models, as are the three below."""

_LENGTHS = (8, 16, 5, 32, 64, 576, 288, 128, 256, 1, 2, 3, 4, 512, 224, 1024, 4096, 16000)
"""Sizes that are tried for sequences and other dynamic dimensions, likeliest first."""

_HEIGHTS = (64, 32, 48, 224, 28, 128, 256, 299, 416, 640, 16, 8)
"""Pixels that are tried for the height of an image, likeliest first."""

_WIDTHS = (96, 64, 32, 224, 28, 128, 256, 299, 416, 640, 320, 16, 8)
"""Pixels that are tried for its width; the first differs from the height, so that a swap of the two is seen."""

_MOST_ATTEMPTS: Mapping[str, int] = {"guess": 300, "ones": 30, "zeros": 30}
"""Size combinations that are tried for each kind of whole numbers. Chosen on the zoo models."""

_CHOICES_BEFORE_HINTS = 20
"""Size combinations that are tried before the sizes that the model's own constants name. Chosen by judgement."""

_TIED_ATTEMPTS = 40
"""Size combinations that are tried with the relations that the graph tells, before any. Chosen by judgement."""

_PAST = 32
"""Length of the past of a synthetic step of one token. Chosen by judgement; not measured."""

_MANY_ELEMENTS = 10_000
"""One feed of so many floats is enough for each combination of sizes. Chosen by judgement; not measured."""

_MOST_REFUSED_ELEMENTS = 20_000_000
"""Elements of all feeds that a model refused, after which no more are tried. Chosen by judgement; not measured."""


@dataclass(frozen=True, kw_only=True)
class TriedInput:
    """A feed that the model ran, and what came out."""

    feed: Feed
    outputs: Mapping[str, Any]

    @property
    def is_finite(self) -> bool:
        """True where all outputs that are floats are finite."""
        floats = [v for v in self.outputs.values() if isinstance(v, np.ndarray) and v.dtype.kind == "f"]
        return all(bool(np.isfinite(value).all()) for value in floats)


def synthetic_feeds(model: ir.Model, *, seed: int, sizes: Sequence[int] = (8, 12)) -> list[Feed]:
    """Return one feed per entry of `sizes`, without running the model.

    Args:
        model: its graph inputs and what is done with them decide shapes and values.
        seed: the same seed gives the same feeds.
        sizes: for each feed the size of the first dynamic dimension that is not a batch; each further one gets
            one more. The batch is 2 in the first feed, 1 in the second, then 3 and 4.

    Returns:
        Feeds that hold every input without a default value.

    """
    inputs = free_inputs(model)
    ties = _ties(model, inputs)
    keys = [key for key in _dynamic_keys(inputs) if key not in ties]
    lengths = [key for key in keys if not _is_batch(key, inputs)]
    feeds = []
    for index, size in enumerate(sizes):
        chosen = {key: _BATCH_SIZES[index % len(_BATCH_SIZES)] for key in keys}
        chosen |= {key: size + offset for offset, key in enumerate(lengths)}
        feeds.append(filled(inputs, InputPlan(sizes=completed(chosen, ties), seed=seed + index)))
    return feeds


def runnable_feeds(
    model: ir.Model, session: Session, *, seed: int, count: int, max_seconds: float = 60.0
) -> list[Feed]:
    """Return feeds that the model runs: two sizes of each dynamic dimension, and both ways of a branch.

    Sizes and values are guessed, tried in the session and changed until they run; inputs that give finite
    outputs are preferred.

    Args:
        model: the model that `session` holds.
        session: runs the candidates.
        seed: the same seed gives the same feeds.
        count: feeds wanted. Where branches have to be reached one more is added for each; where each holds
            thousands of floats there are no more than sizes to try.
        max_seconds: time to search for the first that runs.

    Raises:
        ModelError: nothing that was tried runs, with the runtime's reason for the first.

    """
    return [tried.feed for tried in tried_feeds(model, session, seed=seed, count=count, max_seconds=max_seconds)]


def tried_feeds(
    model: ir.Model, session: Session, *, seed: int, count: int, max_seconds: float = 60.0
) -> list[TriedInput]:
    """Do as `runnable_feeds` does, and return the outputs too."""
    return _InputSearch(model, session, seed=seed, max_seconds=max_seconds).feeds(count)


class _InputSearch:
    """Finds plans whose feeds run."""

    def __init__(self, model: ir.Model, session: Session, *, seed: int, max_seconds: float) -> None:
        self._inputs = free_inputs(model)
        self._ties: Mapping[str, Expression] = _ties(model, self._inputs)
        self._keys = self._free_keys()
        self._named_sizes = named_sizes(model)
        self._session = session
        stored = (value.const_value for value in model.graph.initializers.values())
        self._weight_bytes = sum(tensor.nbytes for tensor in stored if tensor is not None)
        self._seed = seed
        self._deadline = time.monotonic() + max_seconds
        self._first_error: ModelError | None = None
        self._refused_elements = 0
        self._ran: dict[PlanKey, TriedInput] = {}

    def feeds(self, count: int) -> list[TriedInput]:
        base = self._first()
        plans = [base, *self._resized(base), *self._steps_with_cache(base)]
        branches = [plan for name in self._branching() if (plan := self._branched(base, name)) is not None]
        if self._holds_many(base):
            count = min(count, len(plans))
        numbered = (
            replace(plans[index % len(plans)], seed=self._seed + index) for index in range(max(count, len(plans)))
        )
        wanted = [*numbered, *(replace(plan, seed=self._seed + count + i) for i, plan in enumerate(branches))]
        return [tried for plan in wanted if (tried := self._try(plan)) is not None]

    def _first(self) -> InputPlan:
        """Return the first plan that runs, with other floats where they give finite outputs.

        Raises:
            ModelError: none does.

        """
        for plan in self._tied_then_free():
            tried = self._try(plan)
            if tried is None:
                if self._is_spent():
                    break
                continue
            if not tried.is_finite:
                positive = self._try(replace(plan, positive_floats=True))
                return replace(plan, positive_floats=positive is not None and positive.is_finite)
            return plan
        why = self._first_error.message if self._first_error else "no time was given"
        raise ModelError(
            f"no synthetic inputs that the model runs were found: {why}", hint="Give it real ones with --data"
        ) from self._first_error

    def _free_keys(self) -> list[str]:
        """Return the sizes to choose: those that follow from others are left to them."""
        return [key for key in _dynamic_keys(self._inputs) if key not in self._ties]

    def _tied_then_free(self) -> Iterator[InputPlan]:
        """Yield plans whose sizes are related as the graph says, then others: what it says may be wrong."""
        if self._ties:
            yield from itertools.islice(self._candidates(), _TIED_ATTEMPTS)
            self._ties = {}
            self._keys = self._free_keys()
        yield from self._candidates()

    def _steps_with_cache(self, base: InputPlan) -> list[InputPlan]:
        """Return plans of a first step, without a past, and of one token after a past, for a model with a cache."""
        caches = [item for item in self._inputs if CACHE_NAME.search(item.name)]
        lengths = [key for key in self._keys if not _is_batch(key, self._inputs)]
        pasts = [key for key in lengths if any(key in (item.dims or ()) for item in caches)]
        if not pasts:
            return []
        first = replace(base, sizes={**base.sizes, **dict.fromkeys(pasts, 0)})
        news = dict.fromkeys((key for key in lengths if key not in pasts), 1)
        one = replace(base, sizes={**base.sizes, **dict.fromkeys(pasts, _PAST), **news})
        return [plan for plan in (first, one) if self._runs(plan)]

    def _candidates(self) -> Iterator[InputPlan]:
        rank_unknown = any(item.dims is None for item in self._inputs)
        for numbers, most in _MOST_ATTEMPTS.items():
            sizes = itertools.islice(self._sizes(), most)
            shapes = SHAPES_OF_UNKNOWN_RANK if rank_unknown else SHAPES_OF_UNKNOWN_RANK[:1]
            for chosen, shape in itertools.product(sizes, shapes):
                yield InputPlan(
                    sizes=chosen, seed=self._seed, numbers=cast("WholeNumbers", numbers), unknown_rank=shape
                )

    def _sizes(self) -> Iterator[dict[str, int]]:
        """Yield the likeliest sizes, then those that the model's own constants name, then less likely ones."""
        choices = _size_choices(self._keys, self._inputs)
        first = list(itertools.islice(choices, _CHOICES_BEFORE_HINTS))
        yield from first
        for size in self._named_sizes:
            yield dict.fromkeys(self._keys, size)
            yield from ({**first[0], key: size} for key in self._keys if len(self._keys) > 1)
        yield from choices

    def _resized(self, base: InputPlan) -> list[InputPlan]:
        """Return plans with a second size for each dynamic dimension: one plan for all, or one each."""
        changes = [change for key in self._keys if (change := self._other_sizes(base, [key]))]
        changed = {key for change in changes for key in change}
        # An unnamed batch is one dimension to us in every input: such can only change together.
        for size in sorted(set(base.sizes.values())):
            tied = [key for key in self._keys if key not in changed and base.sizes[key] == size]
            if len(tied) > 1 and (change := self._other_sizes(base, tied)):
                changes.append(change)
        if not changes:
            return []
        together = replace(base, sizes={**base.sizes, **{k: n for change in changes for k, n in change.items()}})
        if len(changes) == 1 or self._runs(together):
            return [together]
        return [replace(base, sizes={**base.sizes, **change}) for change in changes]

    def _other_sizes(self, base: InputPlan, keys: Sequence[str]) -> dict[str, int]:
        """Return one other size for all of `keys` with which the model runs; empty where none is found."""
        for size in _second_sizes(keys[0], base.sizes[keys[0]], self._inputs):
            change = dict.fromkeys(keys, size)
            if self._runs(replace(base, sizes={**base.sizes, **change})):
                return change
        return {}

    def _branching(self) -> list[str]:
        return [item.name for item in self._inputs if item.role.branches]

    def _branched(self, base: InputPlan, name: str) -> InputPlan | None:
        """Return a plan in which the If nodes that depend on input `name` go the other way."""
        plan = replace(base, other_branch=name)
        if self._runs(plan):
            return plan
        for sizes in itertools.islice(_size_choices(self._keys, self._inputs), 60):
            if self._is_spent():
                break
            if self._runs(replace(plan, sizes=sizes)):
                return replace(plan, sizes=sizes)
        return None

    def _holds_many(self, plan: InputPlan) -> bool:
        """Say whether a feed is numbers by the thousand, floats all of them: another seed would show nothing new."""
        tried = self._try(plan)
        arrays = [] if tried is None else list(tried.feed.values())
        are_floats = all(isinstance(array, np.ndarray) and array.dtype.kind == "f" for array in arrays)
        return are_floats and sum(array.size for array in arrays) >= _MANY_ELEMENTS

    def _runs(self, plan: InputPlan) -> bool:
        return self._try(plan) is not None

    def _try(self, plan: InputPlan) -> TriedInput | None:
        """Return the plan's feed and what came out, None where it doesn't run."""
        plan = replace(plan, sizes=completed(plan.sizes, self._ties))
        if plan.key not in self._ran:
            elements = 0
            try:
                feed = filled(self._inputs, plan)
                elements = sum(np.size(array) for array in feed.values() if isinstance(array, np.ndarray))
                limit = run_seconds(self._weight_bytes, elements)
                self._ran[plan.key] = TriedInput(feed=feed, outputs=self._session.run(feed, max_seconds=limit))
            except StuckError as error:
                raise ModelError(f"{error.message} on synthetic inputs", hint="Give --data with real ones") from error
            except ModelError as error:
                self._first_error = self._first_error or error
                self._refused_elements += elements
                return None
        return self._ran[plan.key]

    def _is_spent(self) -> bool:
        """Say whether enough was tried that did not run."""
        return self._refused_elements > _MOST_REFUSED_ELEMENTS or time.monotonic() > self._deadline


def _ties(model: ir.Model, inputs: Sequence[FreeInput]) -> Mapping[str, Expression]:
    return relations(model, [(item.name, item.dims) for item in inputs if item.dims is not None])


def _dynamic_keys(inputs: Sequence[FreeInput]) -> list[str]:
    return list(dict.fromkeys(dim for item in inputs for dim in item.dims or () if isinstance(dim, str)))


def _is_batch(key: str, inputs: Sequence[FreeInput]) -> bool:
    if "batch" in key.lower():
        return True
    return any(item.dims and len(item.dims) > 1 and item.dims[0] == key for item in inputs)


def _ladder(key: str, inputs: Sequence[FreeInput]) -> tuple[int, ...]:
    """Return the sizes to try for a dynamic dimension, likeliest first."""
    if _is_batch(key, inputs):
        return _BATCH_SIZES
    for item in inputs:
        if item.dims is None or key not in item.dims:
            continue
        spatial = [axis for axis in _spatial_axes(item.dims) if isinstance(item.dims[axis], str)]
        if item.dims.index(key) in spatial:
            return _WIDTHS if item.dims.index(key) == spatial[-1] else _HEIGHTS
    # A dimension without a name beside another input is often that one's batch.
    return (*_BATCH_SIZES[:1], *_LENGTHS) if "#" in key and len(inputs) > 1 else _LENGTHS


def _spatial_axes(dims: Sequence[int | str]) -> tuple[int, ...]:
    """Return the axes of height and width of an image input, by its number of axes and its channels."""
    if len(dims) != 4:
        return ()
    channels_last = isinstance(dims[3], int) and dims[3] <= 4 and not isinstance(dims[1], int)
    return (1, 2) if channels_last else (2, 3)


def _size_choices(keys: Sequence[str], inputs: Sequence[FreeInput]) -> Iterator[dict[str, int]]:
    """Yield sizes for all dynamic dimensions: first every first choice, then ever less likely ones."""
    ladders = [_ladder(key, inputs) for key in keys]
    deepest = sum(len(ladder) - 1 for ladder in ladders)
    for depth in range(deepest + 1):
        for steps in _steps([len(ladder) for ladder in ladders], depth):
            yield {key: ladder[step] for key, ladder, step in zip(keys, ladders, steps, strict=True)}


def _steps(lengths: Sequence[int], depth: int) -> Iterator[tuple[int, ...]]:
    """Yield the ways to write `depth` as a sum of one number below each of `lengths`."""
    if not lengths:
        if depth == 0:
            yield ()
        return
    for step in range(min(depth, lengths[0] - 1) + 1):
        for rest in _steps(lengths[1:], depth - step):
            yield (step, *rest)


def _second_sizes(key: str, size: int, inputs: Sequence[FreeInput]) -> list[int]:
    """Return sizes to try in place of `size`: near ones and multiples first, they are likeliest to run."""
    if _is_batch(key, inputs):
        return [n for n in _BATCH_SIZES if n != size]
    near = [size + size // 2, size + 32, size * 2, size + 1, max(1, size // 2), size + 64]
    return list(dict.fromkeys(n for n in (*near, *_ladder(key, inputs)) if n != size))
