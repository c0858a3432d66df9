"""The verdict on a changed model: the loss of every output by its kind, from the samples, and the worst of them.

original --sources, kinds--> plan --+
samples --> original and changed ---+--> meters --> losses --> worst --> drop with its 90% interval
"""

from __future__ import annotations

import copy
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from ..core import Feed
from ..numerics.statistics.estimate import Estimate
from ..numerics.statistics.optimism import optimism
from . import estimated_value_loss as value_loss
from . import output_kinds, pairing
from .judged_value import JudgedValue
from .loss_meters import Loss, LossMeter, meter
from .output_kinds import OutputKind
from .output_plan import OutputPlan

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


class VerdictMeter:
    """Takes the outputs of two models, sample after sample.

    Args:
        plan: of the original; what its outputs are has been decided before the first sample comes.
    """

    def __init__(self, plan: OutputPlan) -> None:
        self._plan = plan
        self._meters: dict[tuple[str, str], LossMeter] = {}
        self._held_out: dict[tuple[str, str], LossMeter] = {}
        self._seen: dict[tuple[str, str], list[bool]] = {}
        self._broken: dict[tuple[str, str], str] = {}

    def add(self, feed: Feed, one: Mapping[str, Any], other: Mapping[str, Any], *, seen: bool = False) -> None:
        """Take the inputs and outputs of the next feed; `seen` by parameters that were fitted on it."""
        count = pairing.batch_size(feed)
        for output, parts in (self._plan.values or {}).items():
            for part in parts:
                needed = [name for name, _ in part.table] or [part.name]
                is_there = all(name in run for name in needed for run in (one, other))
                if part.decision.kind is not OutputKind.STATE and is_there:
                    self._compare(output, part, feed, count, one, other, is_seen=seen)

    def verdict(self) -> Verdict:
        """Return the losses of all samples that were added."""
        values = self._plan.values or {}
        return Verdict(tuple(self._output(name, parts) for name, parts in values.items()))

    def _compare(
        self,
        output: str,
        part: JudgedValue,
        feed: Feed,
        count: int,
        one: Mapping[str, Any],
        other: Mapping[str, Any],
        *,
        is_seen: bool,
    ) -> None:
        """Give each sample to its meters: that of all samples, and that of those held out."""
        key = (output, part.name)
        apart = [part.samples(each, count) for each in (one, other)]
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
                self._meters[slot] = self._held_out[slot] = meter(replace(part.decision, kind=kind))
            if is_seen and self._meters[slot] is self._held_out[slot]:  # until now there was one for both
                self._meters[slot] = copy.deepcopy(self._held_out[slot])
            reference = None
            if kind is OutputKind.RESIDUAL:
                name = output_kinds.like_an_input([a], [references[index]]) if references else None
                reference = references[index][name] if name else pairing.same_shape_input(a, references[index])
            self._seen.setdefault(slot, []).append(is_seen)
            all_samples, held_out = self._meters[slot], self._held_out[slot]
            for found in (all_samples, *([] if is_seen or held_out is all_samples else [held_out])):
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
                keys = [k for k in self._meters if k[0] == name and k[1].split(" as ")[0] == part.name]
                losses += map(self._loss, keys)
        losses = _smoothed(losses) if head.decision.kind is OutputKind.LABELS else losses
        if not losses:
            return OutputLoss(name, head.decision.kind, head.decision.why, None)
        worst = max(losses, key=lambda loss: loss.drop.value)
        drop = worst.drop
        for loss in losses:
            drop = drop.at_least(loss.drop)
        figures = {key: value for loss in losses for key, value in loss.figures.items()} | dict(worst.figures)
        why = "; ".join(filter(None, (head.decision.why, worst.note)))
        return OutputLoss(name, head.decision.kind, why, Loss(drop, max(loss.divergence for loss in losses), figures))

    def _loss(self, slot: tuple[str, str]) -> Loss:
        """Return the loss of one meter.

        That on seen samples is corrected by the loss on those that were held out; where it is far less, parameters were
        fitted to the very samples, whose decisions say nothing then: those held out are judged by alone.
        """
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
