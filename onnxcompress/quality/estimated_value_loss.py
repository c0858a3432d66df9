"""Loss of outputs that score no classes, in points: 0.01 is what counts as one point of loss for the kind.

kind                        figure                                                        one point
numbers, residual, mask     half of the squared error over the variance, worst columns    .01
image-8bit                  mean absolute error over the standard deviation; the same     .03; .01
embedding                   1 - cosine of vectors centred over the samples                .03
labels, booleans, strings   share of elements that differ                                 .03
vector                      the same as numbers; largest entries that change              .01; .03
detection-rows              distance of matched rows, weighted by score                   .05
raw-detections              part of the detections lost, after suppression                .05
selection                   share of chosen rows that only one model chooses              .05
signal                      distance of levels in bands over frames, dB                   1
signal of another length    the same along the best alignment, dB; length                 2; .10
durations                   sum of differences over the sum                               .10
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from ..numerics.statistics.estimate import Estimate
from ..numerics.statistics.ratios import mean_interval, worst_ratio
from ..numerics.statistics.row_matching import box_scale, category_scale, matching_cost
from ..numerics.statistics.spectral_distance import distance_db, warped_distance
from .output_kinds import sorted_column

Pairs = Sequence[tuple[np.ndarray, np.ndarray]]
"""Outputs of the original and the changed model, one pair a sample, without the batch axis."""

Factors = np.ndarray | float
"""By which the loss of each sample is multiplied, float [samples]; see `numerics.statistics.optimism`."""

SHARE_POINT = 0.03
"""Share of differing elements that is one point. Chosen by judgement; not measured."""
EMBEDDING_POINT = 0.03
"""1 - cosine of centred vectors that is one point: .049 cost a sentence encoder nothing visible, .186 three points."""
IMAGE_POINT = 0.03
"""Mean absolute error over the standard deviation that is one point of an 8-bit image. Chosen by judgement."""
DETECTION_POINT = 0.05
"""Distance of matched rows that is one point: a detector had .004 to .029 for F1 losses to 2.6 points, .25 from 8."""
_POINT = 0.01
"""Loss that is called one point, for every kind."""
MASK_SPREAD = 0.01
"""Least standard deviation of probabilities: a mask that is near 0 on all samples is judged by its noes. Chosen by
judgement: a class that one pixel in 10,000 has varies as much."""
_JUMP = 5.0
"""Ratio of neighbouring sorted standard deviations from which on columns belong to different groups."""
DEAD = 1e-10
"""Part of a column's mean square up to which its variance makes it constant."""
_HUGE = 1e140
"""Larger numbers count as this, so that sums of squares don't overflow."""
_LEAST_BOXES = 8
"""Rows from which on columns in order are no chance: 16 comparisons hold by chance in 1 of 65,000."""
_LEAST_SIZE = 1e-3
"""Least scale of an edge, of the standard deviation of its column, for boxes without an area."""
_FAINT = 0.01
"""Part of the largest score up to which a row says nothing. Chosen by judgement."""
_SAME = 1e-6
"""Part of the largest number up to which vectors without a direction of their own are the same."""
_LEAST_VALUES = 4
"""Values of a column from which on it has a variance of its own."""
TINY = 1e-30
"""Least denominator, against division by zero."""
_MOST_COLUMNS = 1 << 14
"""Columns whose variances are kept apart: a bound of memory. Chosen by judgement; not measured."""
SIGNAL_POINT = 1.0
"""Distance of levels in dB that is one point: the mean distortion up to which coded speech counts as transparent
(Paliwal and Atal 1993). A voice (VITS) with weights of 8, 6, 5, 4 and 3 bits has .53, 1.1, 1.8, 3.5 and 7.4 dB, and
two draws of its noise with the same durations are 1.5 dB apart."""
WARPED_POINT = 2.0
"""The same where lengths differ: two free draws of that voice are 1.9 dB apart after alignment, another sentence 8."""
DURATION_POINT = 0.1
"""Part of its size by which a duration differs, on average, that is one point: half of what a listener just notices of
a speech sound (some 20%, Klatt 1976). That voice has .011, .042, .094, .20 and .38, two draws .35."""
_FEW_CHANNELS = 2
"""Channels of sound; more are features of frames."""


class ErrorMoments:
    """Squared errors over variances, by columns and samples.

    Args:
        axis: whose entries are columns of their own; None: all values are one column.
        least_spread: standard deviation that every column has at least.
    """

    def __init__(self, axis: int | None, *, least_spread: float = 0.0) -> None:
        self._axis = axis
        self._least_variance = least_spread**2
        self._found: list[list[np.ndarray]] = [[], [], []]
        self._counts: list[int] = []

    def add(self, one: np.ndarray, other: np.ndarray) -> None:
        """Take the outputs of both models for the next sample; values that are not finite are left out."""
        x, y = (self._columns(each).astype(np.float64) for each in (one, other))
        broken = ~(np.isfinite(x) & np.isfinite(y))
        for each in (x, y):  # in place: outputs may take much memory
            each[broken] = 0.0
            np.clip(each, -_HUGE, _HUGE, out=each)
        difference = np.subtract(x, y, out=y)
        errors = np.square(difference, out=difference).sum(0)
        sums = x.sum(0)
        for part, value in zip(self._found, (errors, np.square(x, out=x).sum(0), sums), strict=True):
            part.append(value)
        self._counts.append(len(x))

    @property
    def errors(self) -> np.ndarray:
        """The squared error of each sample, float [samples]."""
        return np.array([float(error.sum()) for error in self._found[0]])

    def relative_error(self, factors: Factors = 1.0) -> Estimate:
        """Return half of the squared error over the variance of the original, of the group of columns that is worst.

        Columns form groups where their sorted standard deviations jump by more than five times, so that boxes in pixels
        don't hide scores between 0 and 1. The error of a column that is constant is taken over its square, of
        one that is 0 throughout over the least variance of a column that is not.
        """
        widths = np.array([len(each) for each in self._found[0]])
        counts = np.array(self._counts, np.float64)
        if counts.sum() < _LEAST_VALUES or len(set(widths)) > 1:  # one column
            errors, squares, sums = (np.array([[each.sum()] for each in part]) for part in self._found)
            counts = counts * widths
        else:
            errors, squares, sums = (np.stack(part) for part in self._found)
        errors = errors * np.reshape(factors, (-1, 1))
        number = max(counts.sum(), 1.0)
        mean, power = sums.sum(0) / number, squares.sum(0) / number
        spread = np.maximum(squares - 2 * mean * sums + counts[:, None] * mean**2, 0.0)
        is_dead = spread.sum(0) / number <= DEAD * power
        spread = np.where(is_dead, squares, spread) + TINY * np.maximum(counts, 1.0)[:, None]
        live = np.flatnonzero(power > 0)
        if len(live):
            spread[:, power == 0] = spread[:, [live[spread.sum(0)[live].argmin()]]]
        spread += counts[:, None] * np.maximum(self._least_variance - spread.sum(0) / number, 0.0)
        groups = _groups(np.sqrt(spread.sum(0) / number))
        return worst_ratio(
            np.stack([0.5 * errors[:, group].sum(1) for group in groups], 1),
            np.stack([spread[:, group].sum(1) for group in groups], 1),
        )

    def _columns(self, array: np.ndarray) -> np.ndarray:
        if self._axis is None or array.ndim <= self._axis or not 0 < array.shape[self._axis] <= _MOST_COLUMNS:
            return array.reshape(-1, 1)
        return np.moveaxis(array, self._axis, -1).reshape(-1, array.shape[self._axis])


def share(parts: np.ndarray, totals: np.ndarray) -> Estimate:
    """Return the sum of the parts over the sum of the totals, both float [samples]."""
    return worst_ratio(parts[:, None], totals[:, None].astype(np.float64))


def embedding_error(pairs: Pairs, factors: Factors = 1.0) -> Estimate:
    """Return 1 - the mean cosine of vectors (the last axis) after subtraction of the original's mean vector."""
    width = pairs[0][0].shape[-1]
    rows = [tuple(each.reshape(-1, width).astype(np.float64) for each in pair) for pair in pairs]
    vectors = np.concatenate([a for a, _ in rows])
    centre = vectors.mean(0) if len(vectors) > 1 else np.zeros(width)
    found = []
    for a, b in rows:
        x, y = a - centre, b - centre
        size = np.linalg.norm(x, axis=1) * np.linalg.norm(y, axis=1)
        same = (np.abs(x - y).max(1) <= _SAME * np.abs(a).max(initial=TINY)).astype(np.float64)
        found.append(float(np.mean(1 - np.where(size > TINY, (x * y).sum(1) / np.maximum(size, TINY), same))))
    return mean_interval(np.maximum(np.array(found), 0.0) * factors)


def differing_share(pairs: Pairs, factors: Factors = 1.0) -> Estimate:
    """Return the share of elements that differ; all of a sample whose shape does."""
    shares = [float(np.mean(a != b)) if a.size and a.shape == b.shape else float(a.shape != b.shape) for a, b in pairs]
    return mean_interval(np.array(shares) * factors)


def detection_error(pairs: Pairs, factors: Factors = 1.0) -> Estimate:
    """Return the distance of matched rows, weighted by the score that they are sorted by; see `detection_costs`."""
    costs = detection_costs(pairs)
    parts, totals = costs.T
    return share(parts * factors, totals) if totals.sum() > 0 else Estimate.exact(0.0)


def detection_costs(pairs: Pairs) -> np.ndarray:
    """Return the cost of the differences of each sample's rows and what its rows weigh, float [samples, 2].

    Rows of the original are matched with those of the result and the other way round, so that rows that only the
    result has count too. Sums over samples pool them as an F1 score does: pictures of nothing weigh nothing. A column
    of whole numbers is a category: rows of two categories are no pair. Four columns that are the edges of a box are
    compared by its width and height, other columns by their standard deviation.
    """
    width = next((a.shape[-1] for a, _ in pairs if a.ndim), 1)
    tables = [tuple(each.astype(np.float64).reshape(-1, width) for each in pair) for pair in pairs]
    column = sorted_column([a for a, _ in tables if len(a) > 1])
    weights = [tuple(_row_weights(each, column) for each in pair) for pair in tables]
    least = _FAINT * max((float(w.max(initial=0.0)) for w, _ in weights), default=0.0)
    weights = [tuple(np.where(w >= least, w, 0.0) for w in pair) for pair in weights]
    shown = np.concatenate([a[w > 0] for (a, _), (w, _) in zip(tables, weights, strict=True)])
    scale, box = _row_scale(shown), _box_columns(shown)
    costs = [
        np.add(
            matching_cost(a, b, one, _own_scales(a, scale, box)), matching_cost(b, a, other, _own_scales(b, scale, box))
        )
        for (a, b), (one, other) in zip(tables, weights, strict=True)
    ]
    return np.array(costs).reshape(-1, 2)


def _row_weights(rows: np.ndarray, column: int | None) -> np.ndarray:
    """Return the weight of each row: its score, or 1 where none is known."""
    return np.ones(len(rows)) if column is None else np.maximum(rows[:, column], 0.0)


def _row_scale(rows: np.ndarray) -> np.ndarray:
    """Return by what the columns of float [rows, columns] are divided before rows are compared."""
    if not len(rows):
        return np.ones(rows.shape[1])
    scale = np.maximum(rows.std(0), np.maximum(DEAD * np.abs(rows).max(0), TINY))
    categories = np.flatnonzero((rows == np.round(rows)).all(0) & (np.ptp(rows, axis=0) > 0))
    if len(categories) == 1 < rows.shape[1]:
        scale[categories] = category_scale(rows.shape[1])
    return np.asarray(scale)


def _box_columns(rows: np.ndarray) -> int | None:
    """Return the first of four columns that hold left, top, right and bottom (or top first), None without such."""
    for first in range(rows.shape[1] - 3):
        low, high = rows[:, first : first + 2], rows[:, first + 2 : first + 4]
        if len(rows) >= _LEAST_BOXES and (high >= low).all() and (np.ptp(high, axis=0) > 0).all():
            return first
    return None


def _own_scales(rows: np.ndarray, scale: np.ndarray, box: int | None) -> np.ndarray:
    """Return by what the columns of each row are divided: the edges of a box by a part of its own size."""
    if box is None or not len(rows):
        return scale
    found = np.tile(scale, (len(rows), 1))
    size = (rows[:, box + 2 : box + 4] - rows[:, box : box + 2]) * box_scale(rows.shape[1])
    found[:, box : box + 4] = np.maximum(np.tile(size, 2), _LEAST_SIZE * scale[box : box + 4])
    return found


def selection_error(pairs: Pairs, factors: Factors = 1.0) -> Estimate:
    """Return the share of rows that only one of the models gives: 1 - F1."""
    found = []
    for a, b in pairs:
        one, other = ({tuple(row) for row in np.atleast_2d(each).tolist()} if each.size else set() for each in (a, b))
        total = len(one) + len(other)
        found.append(1 - 2 * len(one & other) / total if total else 0.0)
    return mean_interval(np.array(found) * factors)


def signal_distance(one: np.ndarray, other: np.ndarray) -> tuple[float, float]:
    """Return the distance of two signals: as measured, and in points.

    Sound (up to two channels along the last axis) is compared by levels in dB. Frames of features, of which there are
    more or fewer, are aligned: half of the squared error over the variance is a point of .01 then, as of numbers.
    """
    if one.ndim != other.ndim or one.ndim == 0:
        return np.inf, np.inf
    axis = next((n for n, sizes in enumerate(zip(one.shape, other.shape, strict=True)) if len(set(sizes)) > 1), -1)
    longer = abs(one.shape[axis] - other.shape[axis]) / max(one.shape[axis], 1)
    if not min(one.size, other.size):
        return (0.0, 0.0) if one.size == other.size else (np.inf, np.inf)
    rows = [np.moveaxis(each, axis, -1).reshape(-1, each.shape[axis]).astype(np.float64) for each in (one, other)]
    if len(rows[0]) != len(rows[1]):
        return np.inf, np.inf
    if len(rows[0]) <= _FEW_CHANNELS:
        decibels = distance_db(*rows)
        if longer == 0:
            return decibels, decibels / SIGNAL_POINT
        return decibels, max(decibels / WARPED_POINT, longer / DURATION_POINT)
    spread = np.maximum(rows[0].std(1, keepdims=True), np.maximum(DEAD * np.abs(rows[0]).max(), TINY))
    error = 0.5 * warped_distance((rows[0] / spread).T, (rows[1] / spread).T) ** 2
    return error, max(error / _POINT, longer / DURATION_POINT)


def duration_error(pairs: Pairs, factors: Factors = 1.0) -> Estimate:
    """Return the sum of what durations differ by, over their sum; all of a sample whose shape differs."""
    parts, totals = [], []
    for a, b in pairs:
        x, total = a.astype(np.float64), float(np.abs(a.astype(np.float64)).sum())
        parts.append(float(np.abs(x - b).sum()) if a.shape == b.shape else max(total, 1.0))
        totals.append(total)
    return share(np.array(parts) * factors, np.maximum(np.array(totals), TINY))


def _groups(deviation: np.ndarray) -> list[np.ndarray]:
    order = np.argsort(deviation, kind="stable")
    ratios = deviation[order][1:] / np.maximum(deviation[order][:-1], TINY)
    return np.split(order, np.flatnonzero(ratios > _JUMP) + 1)
