"""The verdict on a changed model: the loss of every output by its kind, from the samples, and the worst of them.

original --sources, kinds--> plan --+
samples --> original and changed ---+--> meters --> losses --> worst --> drop with its 90% interval
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Protocol

import numpy as np
import onnx_ir as ir

from ..core import Feed
from ..errors import UsageError
from ..numerics.statistics.estimate import Estimate
from ..numerics.statistics.optimism import optimism
from ..runtime.loaded_model import LoadedModel
from ..runtime.session import Session
from ..shapes.fixed_values import FixedSession, FixedValues
from . import estimated_value_loss as value_loss
from . import output_kinds, pairing
from .loss_meters import Loss, LossMeter, meter
from .output_kinds import KindDecision, OutputKind
from .output_sources import Ending, Source, show, sources

_KIND_SAMPLES = 16
"""Samples on which it is decided what an output is."""
_FEW_LABELS = 4
"""Labels of a sample up to which their share is smoothed by the scores that decide them."""
_OVERFITTED = 1.5
"""Loss of held-out samples over that of seen ones from which on the seen ones are not judged by: a network of 64 images
that was cut to a third and trained on 48 of them gave 5.0. Chosen by judgement."""
_UNSURE = 0.45
"""Mean confidence below which samples may be of none of a model's classes: the loss was then 2.6 points too high."""
_MANY_CLASSES = 100
"""Classes from which on a low mean confidence says so. Chosen by judgement; not measured."""
_POINT = 0.01
"""Loss that is called one point."""
_NOT_COMPARABLE = Estimate.exact(1.0)


class Runs(Protocol):
    """Protocol of a session, or something that represents one."""

    def run(self, feed: Mapping[str, Any]) -> dict[str, Any]:
        """Return output name -> array."""
        ...


@dataclass(frozen=True)
class JudgedValue:
    """One value that is compared: an output, a piece of one, or a float behind one.

    Args:
        name: of the value in the original.
        decision: its kind.
        source: the computation behind it.
        axis: along which a choice is made; moved to the end before samples are taken apart.
    """

    name: str
    decision: KindDecision
    source: Source
    axis: int | None = None


@dataclass(frozen=True)
class OutputLoss:
    """The loss of one output: of its worst part.

    Args:
        name: the output's.
        kind: what its numbers mean.
        why: what showed that.
        loss: None where it is not scored.
    """

    name: str
    kind: OutputKind
    why: str
    loss: Loss | None


@dataclass(frozen=True)
class Verdict:
    """The losses of all outputs; `worst` is None where none can be measured."""

    outputs: tuple[OutputLoss, ...]

    @property
    def worst(self) -> OutputLoss | None:
        """The output that loses most."""
        scored = [output for output in self.outputs if output.loss is not None]
        return max(scored, key=lambda output: output.loss.drop.value if output.loss else 0.0, default=None)

    @property
    def divergence(self) -> float | None:
        """The mean over the outputs of a figure of low variance, for comparisons between candidates."""
        found = [output.loss.divergence for output in self.outputs if output.loss is not None]
        return sum(found) / len(found) if found else None


@dataclass
class OutputPlan:
    """Values of a model that are compared; kinds are decided on the first samples that the original runs.

    Args:
        sources: output -> the computation behind it, in the original.
        overrides: output -> kind, as the user says.
        states: outputs that are fed back, which are not scored.
        fixed: random numbers and amounts, which both models are given.
    """

    sources: Mapping[str, Source]
    overrides: Mapping[str, OutputKind] = field(default_factory=dict)
    states: frozenset[str] = frozenset()
    fixed: FixedValues | None = None
    _timed: FixedSession | None = None
    values: dict[str, tuple[JudgedValue, ...]] | None = None

    @classmethod
    def of(
        cls, model: ir.Model, *, overrides: Mapping[str, OutputKind] | None = None, states: Sequence[str] = ()
    ) -> OutputPlan:
        """Read the sources off the graph.

        Raises:
            UsageError: a kind is given for an output that there is not.
        """
        fixed = FixedValues.of(model)
        found = {name: replace(each, sized_by=fixed.amounts(name)) for name, each in sources(model).items()}
        for name in overrides or {}:
            if name not in found:
                raise UsageError(
                    f"--output-kind names {name!r}, which is no output", hint=f"Outputs: {', '.join(found)}"
                )
        return cls(found, dict(overrides or {}), frozenset(states), fixed or None)

    def session(self, loaded: LoadedModel) -> Runs:
        """Return what runs a model and gives the sources that it has in common with the original.

        Nothing is random in it, and its amounts are the original's.
        """
        shown = show(loaded.model, sources(loaded.model), self.sources)
        if self.fixed is not None:
            return _ShownSession(self.fixed.session(loaded, shown.model), shown.names)
        if shown.model is loaded.model:
            return loaded.fast
        return _ShownSession(loaded.showing(shown.model), shown.names)

    def timed(self, loaded: LoadedModel) -> Session | FixedSession:
        """Return what runs a model to be timed: with draws and amounts of the original, so that lengths are equal."""
        if self.fixed is None:
            return loaded.fast
        if loaded.model is not self.fixed.model:
            return self.fixed.session(loaded)
        if self._timed is None:
            self._timed = self.fixed.session(loaded)
        return self._timed

    def decide(self, runs: Sequence[Mapping[str, Any]], feeds: Sequence[Feed]) -> dict[str, tuple[JudgedValue, ...]]:
        """Decide what every output is.

        Args:
            runs: what the original gives for the first samples, sources included.
            feeds: their inputs.
        """
        if self.values is None:
            batches = [pairing.batch_size(feed) for feed in feeds]
            inputs = [one for feed, n in zip(feeds, batches, strict=True) for one in pairing.inputs_apart(feed, n)]
            self.values = {
                name: tuple(self._parts(name, source, runs, batches, inputs)) for name, source in self.sources.items()
            }
        return self.values

    def _parts(
        self,
        name: str,
        source: Source,
        runs: Sequence[Mapping[str, Any]],
        batches: Sequence[int],
        inputs: Sequence[Mapping[str, np.ndarray]],
    ) -> Iterator[JudgedValue]:
        values = pairing.samples_apart([run[name] for run in runs], batches)
        if name in self.overrides:
            kind = self.overrides[name]
            problem = output_kinds.misfit(kind, values)
            if problem:
                raise UsageError(f"{name!r} can't be {kind}: {problem}", where="--output-kind")
            found = replace(output_kinds.decide(source, values, inputs), kind=kind, why="--output-kind")
            yield JudgedValue(name, found, source)
            yield from self._amounts(source, runs)
            return
        if name in self.states:
            yield JudgedValue(name, KindDecision(OutputKind.STATE, None, "fed back as an input"), source)
            return
        pieces = [(p, inner) for p, inner in source.pieces if all(p in run for run in runs)]
        decision = output_kinds.decide(source, values, inputs)
        if pieces and decision.kind is OutputKind.DETECTION_ROWS:
            pieces = []
        for piece, ending in pieces:
            if all(pairing.is_float(run[piece]) for run in runs):
                inner = pairing.samples_apart([run[piece] for run in runs], batches)
                yield JudgedValue(piece, output_kinds.decide(ending, inner, inputs), ending)
        behind = [v for v in source.values if all(pairing.is_float(run.get(v)) for run in runs)]
        probes = [self._probe(v, source, runs, batches, inputs) for v in behind]
        yield JudgedValue(name, decision, source)
        yield from probes
        yield from self._amounts(source, runs)

    def _amounts(self, source: Source, runs: Sequence[Mapping[str, Any]]) -> Iterator[JudgedValue]:
        """Yield the amounts that size an output: both models are given those of the original, so each has its own."""
        for amount in source.sized_by:
            if all(isinstance(run.get(amount), np.ndarray) for run in runs):
                decision = KindDecision(OutputKind.DURATIONS, None, "amounts that an output's length follows from")
                yield JudgedValue(amount, decision, Source(Ending.OTHER, ""))

    def _probe(
        self,
        name: str,
        source: Source,
        runs: Sequence[Mapping[str, Any]],
        batches: Sequence[int],
        inputs: Sequence[Mapping[str, np.ndarray]],
    ) -> JudgedValue:
        """Return how a float behind an output is compared: as scores of the classes that it chooses from, or as is."""
        axis = source.axis if source.ending is Ending.CHOICE else None
        ending = Source(Ending.PRODUCT if axis is not None else source.ending, source.operator)
        moved = pairing.samples_apart([pairing.choices_last(run[name], axis) for run in runs], batches)
        found = output_kinds.decide(ending, moved, inputs, classes_last=axis is not None)
        if axis is not None and found.kind not in _SCORES:
            found = KindDecision(OutputKind.VECTOR, -1, found.why)
        return JudgedValue(name, found, source, axis=axis)


_SCORES = (OutputKind.CLASS_SCORES, OutputKind.POSITION_SCORES, OutputKind.TEXT_SCORES)


class VerdictMeter:
    """Takes the outputs of two models, sample after sample.

    Args:
        plan: of the original.
    """

    def __init__(self, plan: OutputPlan) -> None:
        self._plan = plan
        self._waiting: list[tuple[Feed, Mapping[str, Any], Mapping[str, Any], bool]] = []
        self._meters: dict[tuple[str, str], LossMeter] | None = None
        self._held_out: dict[tuple[str, str], LossMeter] = {}
        self._seen: dict[tuple[str, str], list[bool]] = {}
        self._broken: dict[tuple[str, str], str] = {}

    def add(self, feed: Feed, one: Mapping[str, Any], other: Mapping[str, Any], *, seen: bool = False) -> None:
        """Take the inputs and outputs of the next feed; `seen` by parameters that were fitted on it."""
        if self._meters is None:
            self._waiting.append((feed, one, other, seen))
            if self._plan.values is not None or len(self._waiting) >= _KIND_SAMPLES:
                self._begin()
        else:
            self._take(feed, one, other, seen)

    def verdict(self) -> Verdict:
        """Return the losses of all samples that were added."""
        self._begin()
        values = self._plan.values or {}
        return Verdict(tuple(self._output(name, parts) for name, parts in values.items()))

    def _begin(self) -> None:
        if self._meters is not None:
            return
        self._meters = {}
        if self._waiting:
            self._plan.decide([one for _, one, _, _ in self._waiting], [feed for feed, *_ in self._waiting])
        for each in self._waiting:
            self._take(*each)
        self._waiting = []

    def _take(self, feed: Feed, one: Mapping[str, Any], other: Mapping[str, Any], seen: bool) -> None:  # noqa: FBT001
        count = pairing.batch_size(feed)
        for output, parts in (self._plan.values or {}).items():
            for part in parts:
                if part.decision.kind is not OutputKind.STATE and part.name in one and part.name in other:
                    self._compare(output, part, feed, count, one[part.name], other[part.name], is_seen=seen)

    def _compare(
        self, output: str, part: JudgedValue, feed: Feed, count: int, one: Any, other: Any, *, is_seen: bool
    ) -> None:
        """Give each sample to its meters: that of all samples, and that of those held out."""
        key = (output, part.name)
        assert self._meters is not None
        apart = [pairing.apart(pairing.choices_last(each, part.axis), count) for each in (one, other)]
        pairs = list(zip(*apart, strict=len(apart[0]) == len(apart[1])))
        references = pairing.inputs_apart(feed, count)
        for index, (a, b) in enumerate(pairs):
            problem = pairing.incomparable(a, b, part.decision.kind)
            if problem:
                self._broken.setdefault(key, problem)
                continue
            kind = pairing.kind_of_pair(part.decision, a, b)
            slot = key if kind is part.decision.kind else (output, f"{part.name} as {kind}")
            if slot not in self._meters:
                self._meters[slot], self._held_out[slot] = (meter(replace(part.decision, kind=kind)) for _ in range(2))
            reference = None
            if kind is OutputKind.RESIDUAL:
                name = output_kinds.like_an_input([a], [references[index]]) if references else None
                reference = references[index][name] if name else pairing.same_shape_input(a, references[index])
            self._seen.setdefault(slot, []).append(is_seen)
            for found in (self._meters[slot], *([] if is_seen else [self._held_out[slot]])):
                found.add(pairing.as_array(a), pairing.as_array(b), reference)

    def _output(self, name: str, parts: tuple[JudgedValue, ...]) -> OutputLoss:
        head = next((part for part in parts if part.name == name), parts[0])
        if head.decision.kind is OutputKind.STATE:
            return OutputLoss(name, OutputKind.STATE, head.decision.why, None)
        losses: list[Loss] = []
        for part in parts:
            broken = self._broken.get((name, part.name))
            if broken is not None and part is head:
                return OutputLoss(name, head.decision.kind, broken, Loss(_NOT_COMPARABLE, math.inf))
            if broken is None:  # else a source that has another shape in the result: the output itself is compared
                keys = [k for k in self._meters or {} if k[0] == name and k[1].split(" as ")[0] == part.name]
                losses += map(self._loss, keys)
        losses = _smoothed(losses) if head.decision.kind is OutputKind.LABELS else losses
        if not losses:
            return OutputLoss(name, head.decision.kind, head.decision.why, None)
        worst = max(losses, key=lambda loss: loss.drop.value)
        drop = worst.drop
        for loss in losses:
            drop = drop.at_least(loss.drop)
        figures = {key: value for loss in losses for key, value in loss.figures.items()} | dict(worst.figures)
        return OutputLoss(
            name, head.decision.kind, head.decision.why, Loss(drop, max(loss.divergence for loss in losses), figures)
        )

    def _loss(self, slot: tuple[str, str]) -> Loss:
        """Return the loss of one meter.

        That on seen samples is corrected by the loss on those that were held out; where it is far less, parameters were
        fitted to the very samples, whose decisions say nothing then: those held out are judged by alone.
        """
        assert self._meters is not None
        found, seen = self._meters[slot], np.array(self._seen[slot])
        factor = optimism(found.errors(), seen) if seen.any() else 1.0
        if factor > _OVERFITTED:
            return self._held_out[slot].loss(np.ones(int((~seen).sum())))
        return found.loss(np.where(seen, factor, 1.0))


def _smoothed(losses: Sequence[Loss]) -> list[Loss]:
    """Return the losses of labels, the count of few ones replaced by what the errors of their scores let expect."""
    changes = next((loss.changes for loss in losses if loss.changes is not None), None)
    if changes is None:
        return list(losses)
    expected = changes.scaled(_POINT / value_loss.SHARE_POINT)
    is_few = [loss.changes is None and loss.figures.get("elements", math.inf) <= _FEW_LABELS for loss in losses]
    return [replace(loss, drop=expected) if few else loss for loss, few in zip(losses, is_few, strict=True)]


class _ShownSession:
    """A session whose shown sources have the names that they have in the original."""

    def __init__(self, session: Runs, names: Mapping[str, str]) -> None:
        self._session = session
        self._names = names

    def run(self, feed: Mapping[str, Any]) -> dict[str, Any]:
        """Return output name -> array, sources included."""
        found = self._session.run(feed)
        return {**found, **{name: found[own] for name, own in self._names.items() if own in found}}


def samples_needed(drop: float, interval: Sequence[float], limit: float, count: int) -> int | None:
    """Return how many samples would settle on which side of a limit the loss is, None where these do.

    The interval narrows with the root of the number of samples.
    """
    low, high = interval
    if not low <= limit <= high:
        return None
    half = high - drop if limit >= drop else drop - low
    distance = max(abs(limit - drop), 0.05 * limit, 1e-6)
    return math.ceil(count * max(1.0, half / distance) ** 2)


def unsure(confidence: float | None, classes: float | None) -> bool:
    """Return whether the samples seem to be of none of a classifier's classes, so that its loss is overstated."""
    return confidence is not None and classes is not None and confidence < _UNSURE and classes >= _MANY_CLASSES
