"""The loss of raw detections: how far the detections of two models agree after non-maximum suppression.

    original  --suppression--> boxes, scores, classes --+
    changed   --suppression--> boxes, scores, classes --+--> pairs --> part of the detections that is lost

A detection is a member of the result by a part that rises from 0 to 1 between two scores about the usual threshold, so
the loss is 1 - F1 as a mean over thresholds, and no single score at the threshold decides. A pair of equal classes that
overlaps less than wholly agrees in part. Anchors at which neither model detects anything weigh nothing. Each detection
weighs its score, the probability that it is right: one near the threshold is lost with little loss of accuracy. The
part that is lost without these weights is reported beside it.
"""

from __future__ import annotations

import numpy as np

from ..numerics.statistics.boxes import overlaps
from ..numerics.statistics.estimate import Estimate
from ..numerics.statistics.ratios import mean_interval
from .estimated_value_loss import DETECTION_POINT, ErrorMoments, Factors, share
from .raw_detections import SURE, DetectionColumns, Detections, detections

_WINDOW = (SURE - 0.1, SURE + 0.1)
"""Scores between which a detection becomes a member. Chosen by judgement: the usual threshold in the middle."""
_PAIR = 0.5
"""Overlap from which on two boxes are a pair, as in the first measure of most benchmarks."""
_OTHER_SCORE = 0.5
"""Difference of scores from which on two detections are no pair: halved scores pass the usual threshold but no other
that a user may have chosen. Chosen by judgement; an error of .05 costs .001."""
_POWER = 3
"""Power by which a pair's worth falls with what is missing of its overlap, and with the difference of its scores. For
eight int8 variants of two detectors whose F1 fell by .06 to .83 what is lost is .74 to 1.9 times that with 3, 1.03 to
2.3 times with 2, all weighing alike; boxes moved by a fifth of their width still lose .3."""
_BEST_ANCHORS = 100
"""Anchors of the best scores that are compared where nothing is detected, as many as benchmarks look at a picture."""
_POINT = 0.01
"""Loss that is called one point, and root mean square of errors of scores that is one where nothing is detected."""
_EVENT = 0.5
"""Part of one more detection lost that the upper end of the interval includes at least. Of two detectors with five int8
variants and noise, the interval of 4 samples (2 to 5 detections) ended below the loss of all in at most 5% of the draws
(without it in up to 29%), that of 8 or 16 in at most 10%."""
_FEWEST = 1.0
"""Detections, as a sum of memberships, below which there is none to judge by."""


class AgreementSums:
    """Agreement of the detections of two models, by samples.

    Args:
        columns: of the samples.
    """

    def __init__(self, columns: DetectionColumns) -> None:
        self._columns = columns
        self._found: list[tuple[float, ...]] = []
        self._number = 0.0
        self._boxes = ErrorMoments(1)
        self._others: ErrorMoments | None = None

    def add(self, one: np.ndarray, other: np.ndarray) -> None:
        """Take the outputs of both models for the next sample, two axes each."""
        tables = [self._columns.rows(each) for each in (one, other)]
        classes = [self._columns.classes(table) for table in tables]
        members = [
            detections(table, scores, self._columns, _WINDOW[0]) for table, scores in zip(tables, classes, strict=True)
        ]
        weighted = _lost(members[0], members[1], *(each.scores for each in members))
        plain = _lost(members[0], members[1], *(np.ones(len(each.scores)) for each in members))
        self._found.append((*weighted, *plain, _score_error(*classes)))
        self._number += float(_membership(members[0]).sum())
        self._boxes.add(*(self._columns.boxes(table) for table in tables))
        others = [self._columns.others(table) for table in tables]
        if others[0].size:
            self._others = self._others or ErrorMoments(1)
            self._others.add(*others)

    @property
    def errors(self) -> np.ndarray:
        """Sum of what is lost and of the error of scores, for each sample, float [samples]."""
        found = np.array(self._found)
        return np.asarray(found[:, 0] + found[:, 4])

    @property
    def number(self) -> float:
        """The number of the original's detections, by their membership."""
        return self._number

    @property
    def has_some(self) -> bool:
        """True where there are detections to judge by."""
        return self.number >= _FEWEST

    def lost(self, factors: Factors = 1.0, *, weighted: bool = True) -> Estimate:
        """Return the part of the detections that is lost, 0 to 1; 0 where there is none.

        Args:
            factors: of the samples' losses.
            weighted: each detection weighs its score; else all weigh alike.
        """
        parts, totals = np.array(self._found).T[:2] if weighted else np.array(self._found).T[2:4]
        if not totals.sum() > 0:
            return Estimate.exact(0.0)
        found = share(parts * factors, totals)
        unseen = found.value + _EVENT / (self.number + 1)
        return Estimate(found.value, max(found.low, 0.0), min(max(found.high, unseen), 1.0))

    def score_error(self, factors: Factors = 1.0) -> Estimate:
        """Return the root mean square error of the scores at the best anchors, a mean over the samples."""
        return mean_interval(np.array(self._found)[:, 4] * np.sqrt(factors))

    def number_error(self, factors: Factors = 1.0) -> Estimate:
        """Return the error of all boxes, and of the numbers beside scores, as of numbers without a meaning."""
        found = self._boxes.relative_error(factors)
        return found if self._others is None else found.at_least(self._others.relative_error(factors))

    def drop(self, factors: Factors = 1.0) -> Estimate:
        """Return the loss, .01 for one point.

        Boxes are compared as numbers too, a bound against what only looks like detections. Where nothing is detected,
        scores count by their errors.
        """
        found = self.lost(factors).scaled(_POINT / DETECTION_POINT).at_least(self.number_error(factors))
        return found if self.has_some else found.at_least(self.score_error(factors))


def _membership(found: Detections) -> np.ndarray:
    """Return the part by which each detection is a member of the result, for its score."""
    return np.clip((found.scores - _WINDOW[0]) / (_WINDOW[1] - _WINDOW[0]), 0.0, 1.0)


def _lost(one: Detections, other: Detections, weights: np.ndarray, others: np.ndarray) -> tuple[float, float]:
    """Return what is lost of the detections of two models, and what they are in all.

    Args:
        one: detections of the original.
        other: those of the result.
        weights: of the original's, float [n].
        others: of the result's, float [m].
    """
    members = [_membership(each) for each in (one, other)]
    total = float((members[0] * weights).sum() + (members[1] * others).sum())
    if not len(weights) or not len(others):
        return total, total
    moved = (1 - overlaps(one.boxes, other.boxes)) / (1 - _PAIR)
    changed = np.abs(one.scores[:, None] - other.scores[None]) / _OTHER_SCORE
    worth = np.maximum(1 - moved**_POWER, 0.0) * np.maximum(1 - changed**_POWER, 0.0)
    worth *= np.minimum(members[0][:, None], members[1][None]) * (weights[:, None] + others[None])
    worth *= one.labels[:, None] == other.labels[None]
    agreed = 0.0
    while worth.max() > 0:
        row, column = np.unravel_index(worth.argmax(), worth.shape)
        agreed += float(worth[row, column])
        worth[row, :], worth[:, column] = 0.0, 0.0
    return total - agreed, total


def _score_error(one: np.ndarray, other: np.ndarray) -> float:
    """Return the root mean square error of scores, float [anchors, classes], at the best anchors of either model."""
    best = np.maximum(one.max(1), other.max(1))
    shown = np.argsort(-best, kind="stable")[:_BEST_ANCHORS]
    worst = np.abs(one[shown].astype(np.float64) - other[shown]).max(1)
    return float(np.sqrt(np.square(worst).mean()))
