"""Says whether rewritten models compute what a model computes, but for rounding: the test of lossless passes.

    model --expose, widen, seed--> form --run--> outputs and inputs of the last nonlinearities --> noise floor
    candidate ---the same--------> form --run--> .............................................. --> compared with it

Both run with the runtime's optimizations off: with them on, it would make some of our rewrites itself and hide the
difference. What is run in place of a model, its form, shows faults that the model hides: the inputs of last sigmoids,
softmaxes and decisions are outputs too, float16 is float32, and random numbers are drawn from the same seeds. A model
of float16 is then also run as it is, and compared with the coarser floor of its own arithmetic.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx

from ..core import Feed
from ..errors import ModelError
from ..graph import query
from ..io import model_io
from ..io.wire import MAX_MESSAGE_BYTES
from ..numerics.statistics.deviation import UNIT
from ..quality.equality import NoiseFloor, Runs
from ..runtime import isolation
from ..runtime.loaded_model import LoadedModel, open_bytes
from ..runtime.session import Session
from ..shapes.expose import expose
from . import shadow
from .hidden_values import counterparts, ends_bounded, last_activations, values_inside
from .noise_floor import noise_floor

_HALF_UNIT = 2.0**-11
"""Half the distance of 1 to the next float16."""

_QUIET = 2.0**-6
"""Factor of a feed that is added, in which channels are alive that are dead in the others, or not saturated.

In a voice detector two channels of a convolution were dead on all synthetic inputs of standard deviation 1 and alive
from a quarter of that down to nothing; speech is at 1e-3 there. Between 2^-2 and 2^-12 a swap of their biases was at
least 102 times the tolerance.
"""

_QUIET_ELEMENTS = 1 << 20
"""Larger feeds are run as they are: memory and time are wanted. Chosen by judgement; not measured."""

_INSIDE = " (inside)"
_SEED = 2
"""Of the directions in which float16 weights are moved."""

_LEAST_SECONDS = 10.0
"""Time that every run is given. Chosen by judgement; not measured."""
_MOST_TIMES = 20
"""Multiple of what the model before took, beyond `_LEAST_SECONDS`, from which on a candidate is stuck."""


def most_seconds(slowest_seconds: float) -> float:
    """Return how long a candidate may run where the model before took so long at most."""
    return _LEAST_SECONDS + _MOST_TIMES * slowest_seconds


@dataclass(frozen=True)
class _ProofForm:
    """Model that is run in place of another; `make` is None where that is the model itself."""

    loaded: LoadedModel
    make: Callable[[], bytes] | None
    """Serializes the form: it is not kept, for memory."""
    shown: Mapping[str, str]
    """Value inside, by its name in the original -> output that gives it."""
    rounded: Callable[[], onnx.ModelProto] | None = None
    """The same with its float16 weights moved by one unit of theirs, where a rewrite has to round what it makes."""

    def open(self, *, optimize: bool = False) -> Session:
        """Open a session, a new one where the form isn't the model itself."""
        if self.make is None:
            return self.loaded.fast if optimize else self.loaded.plain
        with isolation.roomy(query.node_count(self.loaded.model)):
            return open_bytes(self.make(), None, optimize=optimize, is_heavy=self.loaded.is_heavy)

    def message(self) -> onnx.ModelProto:
        """Return a copy that may be changed."""
        return onnx.load_model_from_string(self.loaded.data if self.make is None else self.make())


class EqualOutputs:
    """Compares candidates with one model on the same feeds.

    Args:
        before: the model.
        feeds: what all are run on.
        expected: its outputs with the runtime's optimizations off, feed by feed, where they are known already.
    """

    def __init__(
        self, before: LoadedModel, feeds: Sequence[Feed], expected: Sequence[Mapping[str, Any]] | None = None
    ) -> None:
        self._before = before
        self._expected = expected
        self._names = frozenset(value.name or "" for value in before.model.graph.outputs)
        is_huge = before.size_bytes > MAX_MESSAGE_BYTES  # there is one way to run it: from its file
        skeleton = onnx.ModelProto() if is_huge else model_io.skeleton(before.model)
        has_halves = shadow.has_halves(skeleton)
        self._stores_halves = has_halves and shadow.only_stores_halves(skeleton)
        self._has_halves = has_halves and not self._stores_halves
        self._skeleton = skeleton
        self._draws = shadow.draws(skeleton)
        self._last = () if is_huge else last_activations(before.model)
        self._inside = () if is_huge or not feeds else values_inside(before.model, feeds[0])
        self._feeds = [shadow.widened(feed) for feed in feeds] if self._has_halves else list(feeds)
        self._first = list(feeds)[:1]
        self._undrawn: str | None = None
        self._slowest_seconds = 0.0

    @property
    def most_seconds(self) -> float:
        """Seconds that a candidate may run: many times as long as the model."""
        _ = self._floor
        return most_seconds(self._slowest_seconds)

    def mismatch(self, candidate: LoadedModel) -> str | None:
        """Return one line on where a candidate computes something else, None where it doesn't.

        Raises:
            ModelError: the runtime can't run it.
        """
        limit, reference = self.most_seconds, self._reference
        pairs = counterparts(self._inside, self._last, candidate.model)
        form = self._formed(candidate, pairs)
        session = form.open()
        found = [session.run(feed, max_seconds=limit) for feed in self._feeds]
        del session
        fault = self._floor.mismatch([self._aligned(*each, form) for each in zip(reference, found, strict=True)])
        del found
        if fault is None and self._has_halves:
            fault = self._rounded.mismatch([candidate.plain.run(feed, max_seconds=limit) for feed in self._first])
        return fault

    def notes(self) -> tuple[str, ...]:
        """Return a line on each output that could not be proved, or not well."""
        unproved = self._floor.unproved() if "_floor" in vars(self) else {}
        lines = [
            f"output {name!r} was not proved equal: its shape, or what is infinite in it, changes with the rounding"
            if part == float("inf")
            else f"output {name!r} was proved equal to {part:.1%} of its size only: rounding alone moves it so far"
            for name, part in unproved.items()
            if not name.endswith(_INSIDE)
        ]
        return (*lines, *([self._undrawn] if self._undrawn else []))

    @functools.cached_property
    def _form(self) -> _ProofForm:
        return self._formed(self._before, counterparts(self._inside, self._last, self._before.model))

    @functools.cached_property
    def _reference(self) -> Runs:
        """The outputs of the form; a quiet feed that it runs is added to the feeds."""
        session = self._form.open()
        expected = self._expected or []
        known = expected if self._form.make is None else None
        found = list(known or [session.run(feed) for feed in self._feeds])
        quiet = _quiet(self._feeds[-1]) if self._feeds else None
        if quiet is not None:
            try:
                found.append(session.run(quiet))
                self._feeds.append(quiet)
            except ModelError:  # it need not run on any numbers
                pass
        self._slowest_seconds = session.slowest_seconds
        named = [self._named(each, self._form) for each in found]
        for outputs, kept in zip(named, expected, strict=False):
            outputs |= {name: value for name, value in kept.items() if _is_same(value, outputs.get(name))}
        return named

    @functools.cached_property
    def _floor(self) -> NoiseFloor:
        """The floor of the form."""
        return self._floor_of(self._form, self._feeds, self._reference, UNIT)

    @functools.cached_property
    def _rounded(self) -> NoiseFloor:
        """The floor of the model itself, where that is of float16."""
        form = _ProofForm(self._before, None, {})
        expected = [self._before.plain.run(feed) for feed in self._first]
        return self._floor_of(form, self._first, expected, _HALF_UNIT)

    def _floor_of(self, form: _ProofForm, feeds: Sequence[Feed], reference: Runs, unit: float) -> NoiseFloor:
        def run(model: onnx.ModelProto | None, feeds: Sequence[Mapping[str, Any]], *, optimize: bool) -> Runs:
            if model is None:
                session = form.open(optimize=optimize)
            else:
                with isolation.roomy(query.node_count(form.loaded.model)):
                    session = open_bytes(
                        model.SerializeToString(), None, optimize=optimize, is_heavy=form.loaded.is_heavy
                    )
            return [self._named(session.run(feed), form) for feed in feeds]

        def message() -> onnx.ModelProto:
            found = form.message()
            if self._stores_halves:  # their last place is not that of the arithmetic
                shadow.float32_shadow(found)
            return found

        bounded = [value.name or "" for value in self._before.model.graph.outputs if ends_bounded(value)]
        return noise_floor(reference, feeds, run, message, rounded=form.rounded, unit=unit, bounded=bounded)

    def _named(self, outputs: Mapping[str, Any], form: _ProofForm) -> dict[str, Any]:
        """Return the outputs of a form by the names that they have in the original."""
        shown = {f"{name}{_INSIDE}": outputs[given] for name, given in form.shown.items()}
        return {**{name: value for name, value in outputs.items() if name in self._names}, **shown}

    def _aligned(self, reference: Mapping[str, Any], outputs: Mapping[str, Any], form: _ProofForm) -> dict[str, Any]:
        """Return a candidate's outputs; what it has no counterpart of is taken from the reference."""
        found = self._named(outputs, form)
        inner = [name for name in reference if name not in self._names]
        lost = [name for name in inner if name not in found or np.shape(found[name]) != np.shape(reference[name])]
        found |= {name: reference[name] for name in lost}
        return {name: found[name] for name in (*(name for name in found if name in self._names), *inner)}

    def _formed(self, loaded: LoadedModel, values: Mapping[str, str]) -> _ProofForm:
        """Return the form of the model or of a candidate.

        Args:
            loaded: the model.
            values: value inside of the original -> its counterpart in this one.
        """
        shown, exposed = {}, None
        if values:
            exposure = expose(loaded.model, values.values(), keep=self._names)
            shown = {name: exposure.outputs[other] for name, other in values.items() if other in exposure.outputs}
            exposed = exposure.model if shown else None
        if not self._has_halves and not self._draws:
            make = None if exposed is None else functools.partial(model_io.to_bytes, exposed)
            return _ProofForm(loaded, make, shown)

        def seeded(*, moves_weights: bool = False) -> onnx.ModelProto:
            message = onnx.load_model_from_string(loaded.data if exposed is None else model_io.to_bytes(exposed))
            self._undrawn = shadow.seeded(message, self._draws) or self._undrawn
            if moves_weights:
                shadow.jittered(message, _SEED)
            if self._has_halves:
                shadow.float32_shadow(message)
            return message

        is_rounded = loaded is self._before and self._has_halves and shadow.computes_in_halves(self._skeleton)
        rounded = functools.partial(seeded, moves_weights=True) if is_rounded else None
        return _ProofForm(loaded, lambda: seeded().SerializeToString(), shown, rounded)


def _is_same(one: Any, other: Any) -> bool:
    """Say whether two are equal arrays, so that one of them need not be kept."""
    are_arrays = isinstance(one, np.ndarray) and isinstance(other, np.ndarray) and one.dtype == other.dtype
    return are_arrays and bool(np.array_equal(one, other))


def _quiet(feed: Feed) -> Feed | None:
    """Return the feed with small numbers, None where it has no floats or too many."""
    floats = {name: value for name, value in feed.items() if isinstance(value, np.ndarray) and value.dtype.kind == "f"}
    if not 0 < sum(value.size for value in floats.values()) <= _QUIET_ELEMENTS:
        return None
    return {**feed, **{name: value * value.dtype.type(_QUIET) for name, value in floats.items()}}
