"""Metrics of a task as values: statistics of each sample, which add up to the score of all.

(prediction, reference) --statistic--> one value a sample --score--> the figure that people know
                                       the same, of both models, resampled --> interval of the loss

The loss is what a limit is compared with: positive where the result is worse, 0.01 for one point.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np

from ...errors import DataError
from ...numerics.statistics.estimate import Estimate
from ...numerics.statistics.ratios import RESAMPLES, resampled

FEW_RESAMPLES = 60
"""Draws where each score takes long: chrF, and functions of the user's own. Chosen by judgement; not measured."""

Scale = Literal["share", "percent", "relative"]
"""Unit of the score: a share, whose differences are losses; percent, of which one is one point; or a positive number
of which one hundredth more is one point."""


@dataclass(frozen=True, kw_only=True)
class TaskMetric:
    """A figure of merit of a whole task.

    Args:
        name: as users type it.
        statistic: (prediction, reference) of one sample -> what `score` needs of it.
        score: the statistics of all samples -> the figure that people know; NaN where they hold nothing to score.
        is_error: lower is better.
        scale: unit of the score.
        needs_labels: references are labels; else a prediction is scored by itself, as the loss of a language model.
        resamples: draws of the bootstrap; fewer where a score takes long.
    """

    name: str
    statistic: Callable[[Any, Any], Any]
    score: Callable[[Sequence[Any]], float]
    is_error: bool = False
    scale: Scale = "share"
    needs_labels: bool = True
    resamples: int = RESAMPLES

    def statistics(self, predictions: Sequence[Any], references: Sequence[Any]) -> list[Any]:
        """Return what is known of each sample.

        Raises:
            DataError: a prediction and its reference don't fit each other.
        """
        found = []
        for index, (prediction, reference) in enumerate(zip(predictions, references, strict=True)):
            try:
                found.append(self.statistic(prediction, reference))
            except (ValueError, TypeError, IndexError, KeyError, AttributeError) as error:
                text = " ".join(str(error).split())
                raise DataError(f"metric {self.name!r} can't score sample {index}: {text}") from error
        return found

    def total(self, statistics: Sequence[Any]) -> float:
        """Return the score of all samples.

        Raises:
            DataError: there is nothing to score in them.
        """
        found = float(self.score(statistics))
        if not math.isfinite(found):
            hint = "Look for samples without labels, or for outputs that are not numbers"
            raise DataError(f"metric {self.name!r} is {found} on {len(statistics)} samples", hint=hint)
        return found

    def fall(self, before: float, after: float) -> float:
        """Return the loss between two scores: positive where the second is worse, 0.01 for one point."""
        worse = after - before if self.is_error else before - after
        if self.scale == "relative":
            return worse / before
        return worse / 100 if self.scale == "percent" else worse

    def loss(self, before: Sequence[Any], after: Sequence[Any]) -> Estimate:
        """Return the loss with its 90% interval, by resampling whole samples, the same ones of both.

        A single sample says nothing about the spread: its interval is the loss itself.

        Args:
            before: statistics of the original, sample by sample.
            after: those of the other, of the same samples.
        """
        value = self.fall(self.total(before), self.total(after))
        count = len(before)
        if count < 2:
            return Estimate.exact(value)
        draws = np.random.default_rng(0).integers(0, count, (self.resamples, count))
        losses = []
        for draw in draws.tolist():
            scores = [float(self.score([each[index] for index in draw])) for each in (before, after)]
            if all(map(math.isfinite, scores)) and (self.scale != "relative" or scores[0] > 0):
                losses.append(self.fall(*scores))
        if not losses:
            return Estimate.exact(value)
        return resampled(value, losses, count)


def summed(value: Callable[[np.ndarray], float]) -> Callable[[Sequence[Any]], float]:
    """Return a score that is a function of the sum of the samples' statistics, each float [k]."""
    return lambda statistics: value(np.sum(np.asarray(statistics, np.float64), axis=0))


def mean(statistics: Sequence[Any]) -> float:
    """Return the mean over the samples; those without a value (None) don't count, NaN where none has one."""
    found = [each for each in statistics if each is not None]
    return float(np.mean(found)) if found else math.nan
