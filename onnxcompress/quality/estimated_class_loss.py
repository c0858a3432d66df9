"""Loss of outputs that score classes: one point is one point of accuracy, estimated without labels.

Rows are the decisions of a sample (one for a classifier, one a position for texts and pixels); the sample is the unit.
Other kinds of outputs are measured in `estimated_value_loss`; the formulas are in `numerics.statistics.drop_posterior`.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
from scipy.special import log_softmax, ndtr

from ..numerics.statistics.drop_posterior import drop_posterior
from ..numerics.statistics.estimate import Estimate
from ..numerics.statistics.ratios import mean_interval, worst_ratio
from ..numerics.statistics.row_matching import edit_distance
from .probability_rows import are_probabilities

_LEAST = 1e-12
"""Probabilities below this count as this."""
_MOST_ROWS = 4096
"""Rows of a sample that are compared: a regular choice of those of a large picture."""
_COMMON = 0.5
"""Part of the rows from which on their best class counts as common."""
_DESTROYED = 0.125
"""Half of the squared error of centred logits over their squares from which on they are destroyed: no loss of up to a
point had over .07."""
_POINT = 0.01
"""Loss of accuracy that is called one point."""

_PARTS = ("sample", "lost", "divergence", "confidence", "best", "new", "margin", "margin_error")
"""Fields of `DecisionRows` with an entry for each row."""


@dataclass(frozen=True)
class DecisionRows:
    """The decisions of all samples, one entry a row.

    Args:
        sample: index of the sample, int [rows].
        lost: probability of the original's best class less that of the changed model's, by the original, float [rows].
        divergence: KL(original || changed) in nats, float [rows].
        confidence: the original's probability of its best class, float [rows].
        best: the original's best class, int [rows].
        new: the changed model's best class, int [rows].
        margin: the original's difference of the logarithms of its two best classes, float [rows].
        margin_error: the change of that difference, float [rows].
        logit_error: half of the squared error of centred logits over their squares; None for probabilities.
        classes: mean number of classes of a row.
    """

    sample: np.ndarray
    lost: np.ndarray
    divergence: np.ndarray
    confidence: np.ndarray
    best: np.ndarray
    new: np.ndarray
    margin: np.ndarray
    margin_error: np.ndarray
    logit_error: float | None
    classes: float

    def chosen(self, rows: np.ndarray) -> DecisionRows:
        """Return some of the rows, samples numbered anew."""
        parts = {name: getattr(self, name)[rows] for name in _PARTS}
        parts["sample"] = np.unique(parts["sample"], return_inverse=True)[1]
        return replace(self, **parts)

    def scaled(self, factors: np.ndarray) -> DecisionRows:
        """Return the rows with their losses multiplied by a factor for each sample, float [samples]."""
        own = factors[self.sample]
        scaled = {"lost": self.lost * own, "divergence": self.divergence * own}
        return replace(self, **scaled, margin_error=self.margin_error * np.sqrt(own))

    def by_sample(self, values: np.ndarray) -> np.ndarray:
        """Return the sum of a sample's rows over the mean number of rows, float [samples]."""
        count = int(self.sample.max()) + 1
        return np.bincount(self.sample, values, minlength=count) / (len(values) / count)


class RowCollector:
    """Gathers the decisions of one sample after the other.

    Args:
        axis: of the scores in an output of one sample.
    """

    def __init__(self, axis: int) -> None:
        self._axis = axis
        self._parts: list[list[np.ndarray]] = [[] for _ in _PARTS]
        self._error = self._square = 0.0
        self._classes: list[int] = []
        self._are_chances = True

    def add(self, one: np.ndarray, other: np.ndarray) -> None:
        """Take the scores of both models for the next sample."""
        a, b = (_scores(array, self._axis) for array in (one, other))
        is_chance = are_probabilities(a)
        self._are_chances &= is_chance
        p, q = (_logarithms(scores, is_chance=is_chance) for scores in (a, b))
        rows, chances = np.arange(len(p)), np.exp(p)
        best, new = p.argmax(1), q.argmax(1)
        moved = (q - p) - (q - p).mean(1, keepdims=True)
        second = np.argpartition(-p, 1, axis=1)[:, :2].sum(1) - best if p.shape[1] > 1 else best
        margin = p[rows, best] - p[rows, second]
        self._error += float(np.square(moved).mean(1).sum())
        self._square += float(np.square(p - p.mean(1, keepdims=True)).mean(1).sum())
        values = (
            np.full(len(p), len(self._classes)),
            chances[rows, best] - chances[rows, new],
            np.maximum((chances * (p - q)).sum(1), 0.0),
            chances[rows, best],
            best,
            new,
            margin,
            q[rows, best] - q[rows, second] - margin,
        )
        self._classes.append(p.shape[1])
        for part, value in zip(self._parts, values, strict=True):
            part.append(value)

    def rows(self) -> DecisionRows:
        """Return the decisions of all samples."""
        error = None if self._are_chances or not self._square > 0 else 0.5 * self._error / self._square
        parts = {name: np.concatenate(part) for name, part in zip(_PARTS, self._parts, strict=True)}
        return DecisionRows(**parts, logit_error=error, classes=float(np.mean(self._classes)))


def yes_and_no(chance: np.ndarray) -> np.ndarray:
    """Return probabilities of a yes as those of no and yes, float [values, 2]."""
    return np.stack([1 - chance.ravel(), chance.ravel()], -1)


def class_loss(rows: DecisionRows) -> Estimate:
    """Return the loss of accuracy: of all decisions, or of those without a common class where one prevails."""
    found = _posterior(rows)
    counts = np.bincount(rows.best)
    common = counts.argmax()
    rare = (rows.best != common) | (rows.new != common)
    if counts[common] > _COMMON * len(rows.best) and rare.any():
        found = found.at_least(_posterior(rows.chosen(np.flatnonzero(rare))))
    if rows.logit_error is not None and rows.logit_error > _DESTROYED:
        found = found.at_least(Estimate.exact(_POINT * rows.logit_error / _DESTROYED * 1.001))
    return found


def text_loss(rows: DecisionRows, blank: int) -> Estimate:
    """Return the loss of symbols of a text: repeated classes are merged and blanks removed (CTC), then compared.

    Each edit counts with the mean probability that its changed rows lose: sum of edits x loss over sum of lengths.
    """
    count = int(rows.sample.max()) + 1
    costs, lengths = np.zeros((count, 1)), np.zeros((count, 1))
    for index in range(count):
        own = rows.sample == index
        best, new = rows.best[own], rows.new[own]
        text, other = _collapsed(best, blank), _collapsed(new, blank)
        lengths[index] = len(text)
        if text != other:
            costs[index] = edit_distance(text, other) * max(float(rows.lost[own][best != new].mean()), 0.0)
    if not lengths.sum() > 0:
        return class_loss(rows)
    seen = worst_ratio(costs, lengths)
    kept = np.flatnonzero((rows.best != blank) | (rows.new != blank))
    if not len(kept):
        return seen
    smooth = _posterior(rows.chosen(kept))
    return Estimate(seen.value, min(seen.low, smooth.low), max(seen.high, seen.value + smooth.high - smooth.value))


def expected_disagreement(rows: DecisionRows) -> Estimate:
    """Return the share of decisions that fall the other way, as expected for Gaussian errors of the power seen.

    A count of few decisions jumps with each of them.
    """
    spread = float(np.sqrt(np.mean(np.square(rows.margin_error))))
    if not spread > 0:
        return Estimate.exact(0.0)
    return mean_interval(rows.by_sample(ndtr(-rows.margin / spread)))


def mean_divergence(rows: DecisionRows) -> float:
    """Return the mean divergence of a row in nats."""
    return float(rows.divergence.mean())


def _posterior(rows: DecisionRows) -> Estimate:
    lost, divergence = rows.by_sample(rows.lost), rows.by_sample(rows.divergence)
    return drop_posterior(
        lost,
        divergence,
        rows=len(rows.lost) / len(lost),
        confidence=float(rows.confidence.mean()),
        chance=1 / rows.classes,
    )


def _scores(array: np.ndarray, axis: int) -> np.ndarray:
    rows = np.moveaxis(array, axis, -1).reshape(-1, array.shape[axis])
    step = max(1, -(-len(rows) // _MOST_ROWS))
    return np.nan_to_num(rows[::step].astype(np.float64), posinf=1e30, neginf=-1e30)


def _logarithms(scores: np.ndarray, *, is_chance: bool) -> np.ndarray:
    if not is_chance:
        return np.asarray(log_softmax(scores, axis=-1))
    clipped = np.maximum(scores, _LEAST)
    return np.asarray(np.log(clipped / clipped.sum(-1, keepdims=True)))


def _collapsed(symbols: np.ndarray, blank: int) -> list[int]:
    changes = np.r_[True, symbols[1:] != symbols[:-1]]
    return [int(symbol) for symbol in symbols[changes & (symbols != blank)]]
