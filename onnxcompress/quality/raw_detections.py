"""Raw detections: a box and scores for each anchor of a picture, before thresholds and non-maximum suppression.

    [anchors, 4 + classes], [anchors, 4 + objectness + classes], or channels first; pixels or parts of the picture

They are told by what they are: boxes of positive size whose centres cover the picture and stay near their anchors in
all samples, and scores from 0 to 1 behind a sigmoid or softmax that are near 0 at nearly all anchors.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np

from ..numerics.statistics.boxes import suppressed
from .output_sources import Ending, Source
from .probability_rows import are_fractions, are_probabilities

SURE = 0.25
"""Score from which on a detection counts, as detectors' own demonstrations have it."""
_LEAST_ANCHORS = 64
"""Anchors from which on their centres cover a picture. Chosen by judgement: 4 in each of the cells below."""
_BOX = 4
"""Columns of a box."""
_SCORES = (Ending.SIGMOID, Ending.SOFTMAX)
"""Operators that give scores."""
_POSITIVE = 0.95
"""Part of the boxes whose sizes are positive, at least. Chosen by judgement: padding and clipped boxes have none."""
_MOST_SURE = 0.2
"""Part of the anchors that may be sure; the rest is background. Two detectors (80 and 18 classes) have .002 to .01."""
_BACKGROUND = 0.1
"""Median over the anchors of the best score, at most. The same two have 1e-5 to 1e-3."""
_CELLS = 4
"""Cells to either side of a picture in each of which there are anchors."""
_CELL_PART = 0.25
"""Part of its even share of the anchors that each cell has at least. Chosen by judgement."""
_EDGE = 0.02
"""Part of the centres beyond either end of the cells."""
_PLACED = 0.8
"""Part of the variance of the centres that lies between anchors, at least, and not between samples. Two detectors have
.98 to .99; numbers that the samples decide have about 1 / samples."""
_SAID_TWICE = 0.8
"""Part of the anchors that a first score is sure of, from which on the classes are sure of them too: so it is an
objectness, for classes that exclude each other are not. Chosen by judgement."""
_LEAST_SURE = 12
"""Anchors that show it, at least: two objects of several classes at one place have some four. Chosen by judgement."""
_MOST_BOXES = 1000
"""Boxes of the highest scores that enter the suppression, a bound of time."""
_SUPPRESSED = 0.5
"""Overlap from which on the lower one of two boxes of a class is suppressed."""


@dataclass(frozen=True)
class DetectionColumns:
    """Columns of raw detections: first the box, then the scores, then anything else.

    Args:
        axis: of the columns in a sample; the other one counts anchors.
        centred: boxes have a centre and a size; else two corners.
        objectness: the first score is multiplied with those of the classes.
        scores: the number of scores, objectness included.
        background: the class that is none, of softmax scores; None without one.
    """

    axis: int
    centred: bool
    objectness: bool
    scores: int
    background: int | None = None

    @property
    def why(self) -> str:
        """Evidence, in words."""
        form = "centre and size" if self.centred else "corners"
        beside = "objectness and " if self.objectness else ""
        number = self.scores - self.objectness - (self.background is not None)
        return f"boxes ({form}) about anchors that cover a picture, with {beside}scores of {number} classes"

    def rows(self, array: np.ndarray) -> np.ndarray:
        """Return the columns of a sample last, float [anchors, columns]."""
        return array.T if self.axis == 0 else array

    def boxes(self, rows: np.ndarray) -> np.ndarray:
        """Return the corners of boxes, float64 [anchors, 4]."""
        found = rows[:, :_BOX].astype(np.float64)
        if not self.centred:
            return found
        return np.concatenate([found[:, :2] - found[:, 2:] / 2, found[:, :2] + found[:, 2:] / 2], 1)

    def classes(self, rows: np.ndarray) -> np.ndarray:
        """Return the scores of the classes, float [anchors, classes]."""
        found = rows[:, _BOX : _BOX + self.scores]
        if self.objectness:
            return np.asarray(found[:, :1] * found[:, 1:])
        return found if self.background is None else np.delete(found, self.background, 1)

    def others(self, rows: np.ndarray) -> np.ndarray:
        """Return the columns behind the scores: landmarks, coefficients of masks."""
        return rows[:, _BOX + self.scores :]


@dataclass(frozen=True)
class Detections:
    """Detections of one sample: corners float64 [n, 4], scores [n], classes int [n]; highest scores first."""

    boxes: np.ndarray
    scores: np.ndarray
    labels: np.ndarray


def detections(rows: np.ndarray, classes: np.ndarray, columns: DetectionColumns, least: float) -> Detections:
    """Return the best class of every anchor whose score is at least `least`, after non-maximum suppression.

    Args:
        rows: float [anchors, columns].
        classes: the scores of their classes, float [anchors, classes].
        columns: what they are.
        least: score.
    """
    shown = np.flatnonzero(classes.max(1) >= least)
    labels, boxes = classes[shown].argmax(1), columns.boxes(rows[shown])
    scores = classes[shown, labels].astype(np.float64)
    kept = suppressed(boxes, scores, labels, overlap=_SUPPRESSED, most=_MOST_BOXES)
    return Detections(boxes[kept], scores[kept], labels[kept])


def find(source: Source, arrays: Sequence[np.ndarray]) -> DetectionColumns | None:
    """Return what the columns of an output are that holds raw detections, None where it seems to hold something else.

    Args:
        source: the computation behind it.
        arrays: what the original gives, one array a sample.
    """
    found = columns(arrays) if source.has_scores else None
    if found is None or max(arrays[0].shape) < _LEAST_ANCHORS:
        return None
    tables = [found.rows(array) for array in arrays]
    best = np.concatenate([found.classes(table).max(1) for table in tables])
    if (best >= SURE).mean() > _MOST_SURE or np.median(best) > _BACKGROUND:
        return None
    boxes = np.stack([found.boxes(table) for table in tables])
    if (boxes[..., 2:] > boxes[..., :2]).all(-1).mean() < _POSITIVE:
        return None
    centres = (boxes[..., :2] + boxes[..., 2:]) / 2
    stay = _stay(centres) if len(arrays) > 1 else any(inner.ending in _SCORES for _, inner in source.pieces)
    return found if stay and _cover(centres.mean(0)) else None


def columns(arrays: Sequence[np.ndarray]) -> DetectionColumns | None:
    """Return what the columns of an output are, should it hold raw detections; None where that can't be.

    The shorter axis is that of the columns.

    Args:
        arrays: what the original gives, one array a sample.
    """
    if len({a.shape for a in arrays}) != 1 or arrays[0].ndim != 2 or not arrays[0].size or arrays[0].dtype.kind != "f":
        return None
    axis = int(np.argmin(arrays[0].shape))
    tables = [np.moveaxis(a, axis, 1) for a in arrays]
    width = tables[0].shape[1]
    if width <= _BOX or not all(np.isfinite(table).all() for table in tables):
        return None
    ends = (c for c in range(_BOX, width) if not all(are_fractions(table[:, c]) for table in tables))
    scores = next(ends, width) - _BOX
    if not scores:
        return None
    ordered = np.mean([(table[:, 2:_BOX] >= table[:, :2]).all(1).mean() for table in tables])
    found = [table[:, _BOX : _BOX + scores] for table in tables]
    background = None
    if scores > 1 and all(map(are_probabilities, found)):
        background = int(np.sum([np.bincount(table.argmax(1), minlength=scores) for table in found], 0).argmax())
    sure = np.concatenate([table[table[:, 0] >= SURE, 1:] for table in found])
    is_shown = background is None and scores > 1 and len(sure) >= _LEAST_SURE
    is_twice = is_shown and (sure.max(1) >= SURE).mean() >= _SAID_TWICE
    return DetectionColumns(axis, bool(ordered < _POSITIVE), bool(is_twice), scores, background)


def find_apart(
    values: Mapping[str, Sequence[object]], sources: Mapping[str, Source]
) -> tuple[tuple[str, ...], DetectionColumns] | None:
    """Return the outputs that hold boxes and scores of the same anchors, in that order, and their joined columns.

    Args:
        values: output -> what it is for each sample.
        sources: output -> the computation behind it.
    """
    tables = {
        name: [a.reshape(len(a), -1) for a in found if isinstance(a, np.ndarray)]
        for name, found in values.items()
        if all(isinstance(a, np.ndarray) and a.dtype.kind == "f" and a.ndim in (1, 2) and len(a) for a in found)
    }
    for box in (name for name, found in tables.items() if all(a.shape[1] == _BOX for a in found)):
        shapes = [len(a) for a in tables[box]]
        scores = [name for name, found in tables.items() if name != box and [len(a) for a in found] == shapes]
        scores = [name for name in scores if sources[name].has_scores and all(map(are_fractions, tables[name]))]
        scores.sort(key=lambda name: tables[name][0].shape[1])  # an objectness is one number, classes are several
        if not scores:
            continue
        parts = zip(*(tables[name] for name in (box, *scores)), strict=True)
        joined = [np.concatenate(each, axis=1) for each in parts]
        source = sources[scores[0]]
        together = find(replace(source, pieces=((scores[0], source),)), joined)
        if together is not None and together.axis == 1:
            return (box, *scores), together
    return None


def _stay(centres: np.ndarray) -> bool:
    """Return whether float [samples, anchors, 2] differ between anchors rather than between samples."""
    within, whole = centres.var(0).mean(0), centres.reshape(-1, 2).var(0)
    return bool((within <= (1 - _PLACED) * whole).all() and (whole > 0).all())


def _cover(centres: np.ndarray) -> bool:
    """Return whether float [anchors, 2] lie in all cells of the rectangle that nearly all are in."""
    low, high = np.quantile(centres, [_EDGE, 1 - _EDGE], axis=0)
    if not (high > low).all():
        return False
    counts, *_ = np.histogram2d(centres[:, 0], centres[:, 1], bins=_CELLS, range=np.stack([low, high], 1))
    return bool(counts.min() >= _CELL_PART * len(centres) / _CELLS**2)
