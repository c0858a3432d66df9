"""Loss of a result on samples, by kind of output: written apart from the project's own judge, which it is to check.

Each meter takes pairs of outputs (original, result), one pair a sample, and tells figures and `points`: the loss in the
unit of the report's `drop`, .01 for one point, with an interval by resampling the samples.

kind                                         figure                                          points
class-scores, position-scores, binary-score  disagreement: share of other answers            probability that is lost
text-scores                                  edits: distance of greedy texts, by length      those by lost probability
embedding                                    cosine_distance                                 centred distance / 3
numbers, vector, residual, mask, image-8bit  relative_rms: error over standard deviation     half of its square
labels, booleans, strings                    differing: share of elements                    a third of it
selection                                    differing: share of rows in only one            a fifth of it
detection-rows                               f1_loss: 1 - F1 of boxes at IoU .5              the same, another unit
raw-detections                               f1_loss: the same behind suppression            a fifth of it, by scores
signal                                       band_db: distance of levels in bands            a two-hundredth of it
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from wild.boxes import f1_counts, score_sums
from wild.kinds import class_axis
from wild.raw_boxes import detections
from wild.texts import collapse, edit_distance

_RESAMPLES = 400
_ENDS = (2.5, 97.5)
"""Percentiles of a 95% interval."""
_NO_EVENT = 3.0
"""Events that may have been expected where none was seen, with 95% confidence."""
_FLIP_COST = 0.3
"""Probability that an answer loses by a change, for changes that were not seen. Chosen by judgement."""
_COMMON = 0.6
"""Share of the rows of one best class from which on the others are looked at alone, too. Chosen by judgement."""
_MOST_VECTORS = 64
_MOST_COLUMNS = 1 << 12
_BANDS = 32
_FRAME = 512
_TINY = 1e-30

Pair = tuple[np.ndarray, np.ndarray]


class Meter:
    """Collects numbers of each sample; subclasses say which, and what they amount to."""

    figure = ""
    """Name of the figure that is shown."""
    same_unit = True
    """Whether `points` can be held against the report's drop for the same kind."""

    def __init__(self, kind: str) -> None:
        self.kind = kind
        self._parts: list[np.ndarray] = []

    def add(self, one: np.ndarray, other: np.ndarray) -> None:
        """Take the outputs of both models for the next sample."""
        self._parts.append(np.atleast_1d(self._numbers(one, other)))

    def _numbers(self, one: np.ndarray, other: np.ndarray) -> np.ndarray:
        """Return numbers of a sample that can be summed over samples, float64 [numbers]."""
        raise NotImplementedError

    def _figures(self, sums: np.ndarray) -> dict[str, float]:
        """Return the figures, `points` among them, of summed numbers."""
        raise NotImplementedError

    def _slack(self, sums: np.ndarray, samples: int) -> float:  # noqa: ARG002
        """Return what the loss may be beyond the interval, where too few events were seen to resample them."""
        return 0.0

    def result(self) -> dict[str, Any]:
        """Return kind, figures, points and their 95% interval."""
        parts = np.stack(self._parts)
        found = self._figures(parts.sum(0))
        drawn = np.random.default_rng(0).multinomial(
            len(parts), np.full(len(parts), 1 / len(parts)), _RESAMPLES if len(parts) > 1 else 1
        )
        draws = [self._figures(sums) for sums in drawn @ parts]
        interval = {}
        for name in ("points", self.figure):
            values = [draw[name] for draw in draws if math.isfinite(draw[name])] or [found[name]]
            low, high = (float(each) for each in np.percentile(values, _ENDS))
            interval[name] = [min(low, found[name]), max(high, found[name])]
        top = max((draw.get("points_of_rare", -math.inf) for draw in draws), default=-math.inf)
        interval["points"][1] = max(interval["points"][1], top) + self._slack(parts.sum(0), len(parts))
        return {
            "kind": self.kind,
            "figure": self.figure,
            "same_unit": self.same_unit,
            "samples": len(parts),
            "figures": found,
            "value": found[self.figure],
            "value_interval": interval[self.figure],
            "points": found["points"],
            "points_interval": interval["points"],
        }


class ClassMeter(Meter):
    """Answers that change, and the probability that the original gave to what is lost."""

    figure = "disagreement"

    def _numbers(self, one: np.ndarray, other: np.ndarray) -> np.ndarray:
        p, q = _probabilities(one, self.kind), _probabilities(other, self.kind)
        best, new = p.argmax(1), q.argmax(1)
        index = np.arange(len(p))
        return np.stack([best, new, p[index, best] - p[index, new]])

    def result(self) -> dict[str, Any]:
        """Return kind, figures, points and their interval; where one class is common, also of the others' rows."""
        answers = self._parts
        counts = np.bincount(np.concatenate([each[0] for each in answers]).astype(int))
        common = int(counts.argmax())
        is_common = counts[common] > _COMMON * counts.sum()
        self._parts = []
        for best, new, lost in answers:
            rare = ((best != common) | (new != common)) & is_common
            sums = [len(best), (best != new).sum(), lost.sum(), rare.sum(), lost[rare].sum()]
            self._parts.append(np.array(sums, np.float64))
        found = super().result()
        self._parts = answers
        return found

    def _figures(self, sums: np.ndarray) -> dict[str, float]:
        rows, flips, lost, rare, lost_rare = sums
        found = {"disagreement": flips / rows, "points": lost / rows, "rows": rows}
        if rare:
            found["points_of_rare"] = lost_rare / rare
        return {name: float(value) for name, value in found.items()}

    def _slack(self, sums: np.ndarray, samples: int) -> float:
        return _FLIP_COST * _NO_EVENT / max(samples, sums[0] / 10) if sums[1] < _NO_EVENT else 0.0


class TextMeter(Meter):
    """Texts by connectionist temporal classification, the likeliest class at each position."""

    figure = "edits"

    def _numbers(self, one: np.ndarray, other: np.ndarray) -> np.ndarray:
        p, q = _probabilities(one, self.kind), _probabilities(other, self.kind)
        best, new = p.argmax(1), q.argmax(1)
        counts = [int((best == blank).sum()) for blank in (0, p.shape[1] - 1)]
        blank = 0 if counts[0] >= counts[1] else p.shape[1] - 1
        texts = [collapse(each, blank) for each in (best, new)]
        flipped = np.flatnonzero(best != new)
        lost = (p[flipped, best[flipped]] - p[flipped, new[flipped]]).sum()
        return np.array([edit_distance(*texts), len(texts[0]), len(flipped), lost], np.float64)

    def _figures(self, sums: np.ndarray) -> dict[str, float]:
        edits, length, flips, lost = (float(each) for each in sums)
        rate = edits / max(length, 1.0)
        return {"edits": rate, "symbols": length, "points": rate * lost / flips if flips else 0.0}

    def _slack(self, sums: np.ndarray, samples: int) -> float:
        return _FLIP_COST * _NO_EVENT / max(samples, sums[1]) if sums[0] < _NO_EVENT else 0.0


class NumbersMeter(Meter):
    """Squared error over the variance of the original: of all numbers, and of the worst column."""

    figure = "relative_rms"

    def _numbers(self, one: np.ndarray, other: np.ndarray) -> np.ndarray:
        x, y = (_columns(each.astype(np.float64)) for each in (one, other))
        yes = (x > 0.5, y > 0.5)
        counts = [float((yes[0] != yes[1]).sum()), float((yes[0] | yes[1]).sum())]
        sums = np.stack([np.square(x - y).sum(0), np.square(x).sum(0), x.sum(0), np.full(x.shape[1], len(x))])
        return np.concatenate([counts, sums.ravel()])

    def _figures(self, sums: np.ndarray) -> dict[str, float]:
        error, square, total, count = sums[2:].reshape(4, -1)
        spread = square - total**2 / np.maximum(count, 1)
        constant = spread <= 1e-10 * square
        spread = np.where(constant, square, spread)
        whole = float(error.sum() / max(spread.sum(), _TINY)) if error.sum() else 0.0
        least = max(1e-12 * float(spread.max(initial=0.0)), _TINY)
        worst = float((error / np.maximum(spread, least)).max(initial=0.0))
        found = {"relative_rms": math.sqrt(whole), "points": 0.5 * whole, "worst_column": 0.5 * worst}
        found["snr_db"] = 10 * math.log10(float(square.sum()) / error.sum()) if error.sum() else math.inf
        if self.kind == "mask":
            differing, union = sums[:2]
            found["disagreement"] = float(differing / max(count.sum(), 1))
            found["one_minus_iou"] = float(differing / max(union, 1))
        return found

    def result(self) -> dict[str, Any]:
        """Return what all meters do; the worst column is within the interval."""
        width = max(len(part) for part in self._parts)
        if any(len(part) != width for part in self._parts):  # columns differ between samples: taken together
            merged = [(part[:2], part[2:].reshape(4, -1).sum(1)) for part in self._parts]
            self._parts = [np.concatenate(pair) for pair in merged]
        found = super().result()
        found["points_interval"][1] = max(found["points_interval"][1], found["figures"]["worst_column"])
        return found


class EmbeddingMeter(Meter):
    """Angles between vectors, as they are and after subtraction of the original's mean."""

    figure = "cosine_distance"

    def _numbers(self, one: np.ndarray, other: np.ndarray) -> np.ndarray:
        x, y = (each.reshape(-1, each.shape[-1]).astype(np.float64) for each in (one, other))
        step = max(1, -(-len(x) // _MOST_VECTORS))
        return np.stack([x[::step], y[::step]])

    def add(self, one: np.ndarray, other: np.ndarray) -> None:
        """Take vectors of the next sample."""
        self._parts.append(self._numbers(one, other))

    def result(self) -> dict[str, Any]:
        """Return what all meters do; the mean of all vectors is taken first."""
        pairs = self._parts
        vectors = np.concatenate([pair[0] for pair in pairs])
        centre = vectors.mean(0) if len(vectors) > 1 else np.zeros(vectors.shape[1])
        self._parts = [
            np.array([len(a), (1 - _cosine(a, b)).sum(), (1 - _cosine(a - centre, b - centre)).sum()]) for a, b in pairs
        ]
        found = super().result()
        self._parts = pairs
        return found

    def _figures(self, sums: np.ndarray) -> dict[str, float]:
        count, plain, centred = (float(each) for each in sums)
        return {"cosine_distance": plain / count, "centred": centred / count, "points": centred / count / 3}


class LabelMeter(Meter):
    """Share of elements, or of chosen rows, that differ."""

    figure = "differing"

    def _numbers(self, one: np.ndarray, other: np.ndarray) -> np.ndarray:
        if self.kind == "selection":
            rows = [{tuple(row) for row in each.reshape(-1, each.shape[-1]).tolist()} for each in (one, other)]
            return np.array([len(rows[0] ^ rows[1]), len(rows[0]) + len(rows[1])], np.float64)
        if one.shape != other.shape:
            size = max(one.size, other.size)
            return np.array([size, size], np.float64)
        return np.array([np.sum(one != other), one.size], np.float64)

    def _figures(self, sums: np.ndarray) -> dict[str, float]:
        differing = float(sums[0] / max(sums[1], 1))
        return {"differing": differing, "points": differing / (5 if self.kind == "selection" else 3)}

    def _slack(self, sums: np.ndarray, samples: int) -> float:
        return _NO_EVENT / 3 / max(samples, sums[1]) if sums[0] < _NO_EVENT else 0.0


class BoxMeter(Meter):
    """Boxes of both models that overlap by half and have the same class."""

    figure = "f1_loss"
    same_unit = False

    def _numbers(self, one: np.ndarray, other: np.ndarray) -> np.ndarray:
        return np.array(f1_counts(one, other), np.float64)

    def _figures(self, sums: np.ndarray) -> dict[str, float]:
        matched, first, second = (float(each) for each in sums)
        loss = 1 - 2 * matched / (first + second) if first + second else 0.0
        return {"f1_loss": loss, "boxes": first, "points": loss}


class RawBoxMeter(Meter):
    """Detections behind suppression: those that match, and the part of all scores that they have."""

    figure = "f1_loss"

    def _numbers(self, one: np.ndarray, other: np.ndarray) -> np.ndarray:
        tables = [detections(each) for each in (one, other)]
        return np.array([*f1_counts(*tables), *score_sums(*tables)], np.float64)

    def _figures(self, sums: np.ndarray) -> dict[str, float]:
        matched, first, second, agreed, scores = (float(each) for each in sums)
        plain = 1 - 2 * matched / (first + second) if first + second else 0.0
        weighted = 1 - agreed / scores if scores else 0.0
        return {"f1_loss": plain, "by_score": weighted, "boxes": first, "points": weighted / 5}

    def _slack(self, sums: np.ndarray, samples: int) -> float:  # noqa: ARG002
        return _NO_EVENT / max(float(sums[1]), 1.0) / 5 if sums[1] - sums[0] < _NO_EVENT else 0.0


class SignalMeter(Meter):
    """Mean levels in bands of equal width, which need no alignment in time."""

    figure = "band_db"
    same_unit = False

    def _numbers(self, one: np.ndarray, other: np.ndarray) -> np.ndarray:
        distance = float(np.sqrt(np.mean(np.square(_levels(one) - _levels(other)))))
        return np.array([1.0, distance, abs(one.size - other.size) / max(one.size, 1)])

    def _figures(self, sums: np.ndarray) -> dict[str, float]:
        distance = float(sums[1] / sums[0])
        return {"band_db": distance, "length_change": float(sums[2] / sums[0]), "points": distance / 200}


_METERS: dict[str, Callable[[str], Meter]] = {
    **dict.fromkeys(("class-scores", "position-scores", "binary-score"), ClassMeter),
    "text-scores": TextMeter,
    "embedding": EmbeddingMeter,
    **dict.fromkeys(("numbers", "vector", "residual", "mask", "image-8bit"), NumbersMeter),
    **dict.fromkeys(("labels", "booleans", "strings", "selection"), LabelMeter),
    "detection-rows": BoxMeter,
    "raw-detections": RawBoxMeter,
    "signal": SignalMeter,
}
KINDS = tuple(_METERS)


def meter(kind: str) -> Meter:
    """Return a meter of a kind.

    Raises:
        KeyError: there is no such kind.
    """
    return _METERS[kind](kind)


def measure(kind: str, pairs: Sequence[Pair]) -> dict[str, Any]:
    """Return what a meter tells of all pairs; all is lost where the result's numbers can't be compared."""
    found = meter(kind)
    broken = 0
    for one, other in pairs:
        fits = kind in ("labels", "strings", "booleans", "selection", "detection-rows", "signal")
        if (one.shape != other.shape and not fits) or _became_infinite(one, other):
            broken += 1
            continue
        found.add(one, other)
    if broken == len(pairs):
        whole = {"kind": kind, "figure": found.figure, "same_unit": True, "samples": broken, "figures": {}}
        return whole | {"value": 1.0, "value_interval": [1.0, 1.0], "points": 1.0, "points_interval": [1.0, 1.0]}
    told = found.result()
    if broken:
        part = broken / len(pairs)
        told["points"] = part + (1 - part) * told["points"]
        told["points_interval"] = [part + (1 - part) * end for end in told["points_interval"]]
    return told | {"broken": broken}


def _became_infinite(one: np.ndarray, other: np.ndarray) -> bool:
    if one.dtype.kind != "f" or other.dtype.kind != "f" or one.shape != other.shape:
        return False
    return bool((np.isfinite(one) & ~np.isfinite(other)).any())


def _columns(array: np.ndarray) -> np.ndarray:
    """Return float64 [numbers, columns]: channels of pictures, else the last axis; infinities count as 0 in both."""
    array = np.where(np.isfinite(array), array, 0.0)
    axis = 1 if array.ndim >= 4 else array.ndim - 1
    if array.ndim < 2 or not 0 < array.shape[axis] <= _MOST_COLUMNS:
        return array.reshape(-1, 1)
    return np.moveaxis(array, axis, -1).reshape(-1, array.shape[axis])


def _cosine(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    product = (x * y).sum(1)
    norms = np.linalg.norm(x, axis=1) * np.linalg.norm(y, axis=1)
    return np.where(norms > _TINY, product / np.maximum(norms, _TINY), (x == y).all(1))


def _levels(signal: np.ndarray) -> np.ndarray:
    """Return mean levels in dB in bands of equal width, float64 [_BANDS]."""
    values = signal.ravel().astype(np.float64)
    frames = np.pad(values, (0, -len(values) % _FRAME)).reshape(-1, _FRAME) * np.hanning(_FRAME)
    power = np.square(np.abs(np.fft.rfft(frames)))[:, 1:].mean(0).reshape(_BANDS, -1).mean(1)
    return 10 * np.log10(power + 1e-10 * power.max() + 1e-20)


def _probabilities(array: np.ndarray, kind: str) -> np.ndarray:
    """Return probabilities, float64 [rows, classes]."""
    values = array.astype(np.float64)
    if kind == "binary-score":
        yes = np.clip(values.reshape(-1, 1), 0, 1)
        return np.concatenate([1 - yes, yes], 1)
    axis = class_axis(array, kind)
    rows = np.moveaxis(values, axis, -1).reshape(-1, array.shape[axis])
    if (rows >= -1e-6).all() and np.allclose(rows.sum(1), 1, atol=1e-2):
        return rows
    rows = np.exp(rows - rows.max(1, keepdims=True))
    return rows / rows.sum(1, keepdims=True)
