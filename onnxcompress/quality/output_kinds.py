"""The decision table of outputs: from graph pattern and values on samples to the kind of loss that is measured.

rows look, in this order                                          kind
the user said so (--output-kind NAME=KIND)                        that one
fed back as an input, or a cache or state by its operators        state
a sequence                                                        sequence
strings                                                           strings
booleans                                                          booleans
integers behind ArgMax, TopK, a classifier                        labels
integers behind NonMaxSuppression, NonZero                        selection
8-bit integers, or integers behind Round, Clip, Cast              image-8bit
other integers                                                    labels
length differs between runs of both models                        signal (or detection-rows: rows in any order)
floats whose length follows from rounded amounts                  signal
floats about 0, whose length is no input's and varies             signal
amounts that size an output                                       durations
rows sum to 1, or log-probabilities                               class-scores, position-scores, text-scores
behind a last product, rows with a winner                         the same
rows with a column that never rises (sorted detections)           detection-rows
rows of 4 and more columns, as many as the data decide            detection-rows
several outputs with a row each for the same things               detection-rows, together
a single number behind a sigmoid                                  binary-score
shaped like an input and correlated with it above .8              residual
behind a sigmoid                                                  mask
vectors of 32 and more numbers                                    embedding
other floats                                                      numbers
"""

from __future__ import annotations

import enum
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from ..numerics.statistics.spectral_distance import FRAME
from . import raw_detections
from .output_sources import Ending, Source
from .probability_rows import are_log_probabilities, are_probabilities
from .raw_detections import DetectionColumns

_WINNER = 0.45
"""Sum of winner and skewness from which on rows score classes: ten real sets of class scores had at least .69, nine
embeddings and regressions at most .23, at any scale."""
_CORRELATED = 0.8
"""Pearson correlation with an input from which on an output is a correction of it. Chosen by judgement."""
_VECTOR_WIDTH = 5
"""Numbers from which on the largest of a vector may decide for a class; fewer are coordinates, angles and the like.
Chosen by judgement; not measured."""
_OWN_MEANS = 1.0
"""Variance of the columns' means in times of the variance within, from which on a vector holds quantities: 3.9 for the
landmarks of a face, .010 to .018 for logits of the three classifiers in models/."""
_EMBEDDING_WIDTH = 32
"""Numbers from which on a vector is taken for an embedding rather than for a set of measured quantities."""
_TOKEN_WIDTH = 64
"""The same for a vector at each position of a sequence."""
_TEXT_CLASSES = 11
"""Classes from which on scores along an axis of time with a common blank spell a text: ten digits and a blank."""
_COMMON_BLANK = 0.4
"""Part of the positions from which on a first or last class is the blank. Chosen by judgement; not measured."""
_MOST_ROWS = 4000
"""Rows that are looked at to tell kinds apart."""
_GAUSSIAN_ROWS = 2000
"""Gaussian rows that the winner statistic is compared with: a standard error of about 1%."""
_FEW_CHANNELS = 2
"""Channels of sound."""
_LEAST_SOUND = 256
"""Values of sound from which on its spectrum says something: a frame of most vocoders. Chosen by judgement."""
_BALANCED = 0.1
"""Mean over standard deviation up to which numbers vibrate about 0. Chosen by judgement; a voice (VITS) has .00."""
_LEAST_DETECTIONS = 5
"""Rows from which on a falling column is no chance: five fall by chance in 1 of 120. Chosen by judgement."""


_LEAST_COLUMNS = 4
"""Columns from which on a row may describe a box. Chosen by judgement."""


class OutputKind(enum.StrEnum):
    """Meaning of an output's numbers, and so of one point of loss."""

    CLASS_SCORES = "class-scores"
    POSITION_SCORES = "position-scores"
    TEXT_SCORES = "text-scores"
    BINARY_SCORE = "binary-score"
    EMBEDDING = "embedding"
    NUMBERS = "numbers"
    VECTOR = "vector"
    RESIDUAL = "residual"
    IMAGE_8BIT = "image-8bit"
    MASK = "mask"
    LABELS = "labels"
    BOOLEANS = "booleans"
    STRINGS = "strings"
    DETECTION_ROWS = "detection-rows"
    RAW_DETECTIONS = "raw-detections"
    SELECTION = "selection"
    SIGNAL = "signal"
    DURATIONS = "durations"
    SEQUENCE = "sequence"
    STATE = "state"


@dataclass(frozen=True)
class KindDecision:
    """The kind of an output, and why.

    Args:
        kind: what its numbers mean.
        axis: of its classes or columns, in one sample; None: all numbers are alike.
        why: what showed that.
        columns: of raw detections.
    """

    kind: OutputKind
    axis: int | None
    why: str
    columns: DetectionColumns | None = None

    @classmethod
    def of_detections(cls, columns: DetectionColumns) -> KindDecision:
        """Return the decision for raw detections."""
        return cls(OutputKind.RAW_DETECTIONS, columns.axis, columns.why, columns)


def decide(
    source: Source,
    values: Sequence[object],
    inputs: Sequence[Mapping[str, np.ndarray]],
    *,
    classes_last: bool = False,
) -> KindDecision:
    """Return the kind of an output.

    Args:
        source: the computation behind it.
        values: what the original gives, one array a sample without its batch axis (or a list, for a sequence).
        inputs: the samples' inputs in the same order, without their batch axis.
        classes_last: whether classes can lie along the last axis only.
    """
    if source.ending is Ending.STATE:
        return KindDecision(OutputKind.STATE, None, f"state or cache of {source.operator}")
    if not all(isinstance(value, np.ndarray) for value in values):
        return KindDecision(OutputKind.SEQUENCE, None, "a sequence")
    arrays = [value for value in values if isinstance(value, np.ndarray)]
    code = arrays[0].dtype.kind if arrays else "f"
    if code in "OUS":
        return KindDecision(OutputKind.STRINGS, None, "strings")
    if code == "b":
        return KindDecision(OutputKind.BOOLEANS, None, f"booleans of {source.operator or 'an input'}")
    if code in "iu":
        return _integers(source, arrays[0].dtype)
    return _floats(source, arrays, inputs, classes_last=classes_last)


def _integers(source: Source, dtype: np.dtype[np.generic]) -> KindDecision:
    if source.operator in ("NonMaxSuppression", "NonZero"):
        return KindDecision(OutputKind.SELECTION, None, f"indices chosen by {source.operator}")
    if source.ending is Ending.CHOICE:
        return KindDecision(OutputKind.LABELS, None, f"integers chosen by {source.operator}")
    is_rounded = source.ending is Ending.OTHER and source.operator in ("Cast", "Round", "Clip", "Floor", "Ceil")
    if dtype.itemsize == 1 or (is_rounded and source.values):
        return KindDecision(OutputKind.IMAGE_8BIT, None, f"integers that {source.operator or 'the model'} rounds")
    return KindDecision(OutputKind.LABELS, None, "integers")


def _floats(
    source: Source,
    arrays: Sequence[np.ndarray],
    inputs: Sequence[Mapping[str, np.ndarray]],
    *,
    classes_last: bool,
) -> KindDecision:
    if len({array.ndim for array in arrays}) > 1:
        return KindDecision(OutputKind.NUMBERS, None, "floats of several ranks")
    rank = arrays[0].ndim
    sound = _sound(source, arrays, inputs)
    if sound is not None:
        return KindDecision(OutputKind.SIGNAL, None, sound)
    columns = raw_detections.find(source, arrays)
    if columns is not None:
        return KindDecision.of_detections(columns)
    axis = -1 if classes_last else class_axis(rank)
    if rank and all(a.size for a in arrays):
        found = _scores(source, arrays, axis) or (_scores(source, arrays, -1) if axis != -1 else None)
        if found is not None:
            return found
    if rank == 2 and _falls_along_rows(arrays):
        return KindDecision(OutputKind.DETECTION_ROWS, 1, "rows sorted by a column that never rises")
    if rank == 2 and _rows_vary(arrays, inputs):
        return KindDecision(OutputKind.DETECTION_ROWS, 1, "as many rows as the data decide")
    if source.ending is Ending.SIGMOID and all(a.size == 1 for a in arrays):
        return KindDecision(OutputKind.BINARY_SCORE, None, "a single number behind a sigmoid")
    reference = like_an_input(arrays, inputs)
    if reference is not None:
        return KindDecision(OutputKind.RESIDUAL, _column_axis(arrays), f"like the input {reference!r} and near it")
    if source.ending is Ending.SIGMOID:
        return KindDecision(OutputKind.MASK, _column_axis(arrays), f"behind {source.operator or 'a sigmoid'}")
    width = arrays[0].shape[-1] if rank else 1
    are_alike = len({a.shape for a in arrays}) == 1
    if (rank == 1 and width >= _EMBEDDING_WIDTH and are_alike) or (rank == 2 and _is_token_vector(arrays)):
        return KindDecision(OutputKind.EMBEDDING, rank - 1, f"vectors of {width} numbers without a winner in each")
    is_vector = rank == 1 and width >= _VECTOR_WIDTH and source.ending is Ending.PRODUCT and are_alike
    if is_vector and not _are_quantities(arrays):
        return KindDecision(OutputKind.VECTOR, 0, f"{width} numbers behind a last {source.operator}")
    return KindDecision(OutputKind.NUMBERS, _column_axis(arrays), "floats without a special meaning")


def _are_quantities(arrays: Sequence[np.ndarray]) -> bool:
    """Say whether columns differ more than samples do: coordinates, say, each with its own mean, and no scores."""
    rows = np.stack(arrays).astype(np.float64)
    return bool(rows.mean(0).var() > _OWN_MEANS * rows.var(0).mean())


def _sound(source: Source, arrays: Sequence[np.ndarray], inputs: Sequence[Mapping[str, np.ndarray]]) -> str | None:
    """Return what shows that an output is sound, None where it seems to be something else."""
    if not all(a.ndim and a.size and a.size <= _FEW_CHANNELS * a.shape[-1] for a in arrays):
        return None
    if source.ending in (Ending.SOFTMAX, Ending.SIGMOID):
        return None
    lengths = [a.shape[-1] for a in arrays]
    if source.sized_by:
        is_long = max(lengths) >= _LEAST_SOUND
        return f"its length follows from amounts that are rounded, {source.sized_by[0]!r}" if is_long else None
    if min(lengths) < FRAME or len(set(lengths)) == 1 or len(inputs) != len(arrays):
        return None
    known = [{size for value in each.values() for size in value.shape} for each in inputs]
    if any(length in sizes for length, sizes in zip(lengths, known, strict=True)):
        return None
    values = np.concatenate([a.ravel() for a in arrays]).astype(np.float64)
    is_about_zero = bool(np.isfinite(values).all()) and abs(values.mean()) <= _BALANCED * values.std() > 0
    return "numbers about 0, of a length that varies and is no input's" if is_about_zero else None


def class_axis(rank: int) -> int:
    """Return the axis along which a sample's class scores lie: the channels of pictures, else the last one."""
    return 0 if rank >= 3 else -1


def _scores(source: Source, arrays: Sequence[np.ndarray], axis: int) -> KindDecision | None:
    rows = _rows(arrays, axis)
    if not rows or min(r.shape[1] for r in rows) < 2:
        return None
    if all(are_probabilities(r) for r in rows):
        why = "rows sum to 1"
    elif all(are_log_probabilities(r) for r in rows):
        why = "rows are logarithms of probabilities"
    elif source.ending is Ending.PRODUCT and len({r.shape[1] for r in rows}) == 1:
        winner = winner_statistic(np.concatenate(rows)[:_MOST_ROWS])
        if not winner > _WINNER:
            return None
        why = f"behind a last {source.operator}, each row with a winner (statistic {winner:.2f} > {_WINNER})"
    else:
        return None
    if arrays[0].ndim == 1:
        return KindDecision(OutputKind.CLASS_SCORES, axis, why)
    blank = _blank(rows)
    if arrays[0].ndim == 2 and blank is not None:
        return KindDecision(OutputKind.TEXT_SCORES, axis, f"{why}; class {blank} is a common blank")
    return KindDecision(OutputKind.POSITION_SCORES, axis, why)


def _rows(arrays: Sequence[np.ndarray], axis: int) -> list[np.ndarray]:
    """Return some of the rows of each sample, float64 [rows, classes]."""
    each = max(1, _MOST_ROWS // len(arrays))
    found = []
    for array in arrays:
        rows = np.moveaxis(array, axis, -1).reshape(-1, array.shape[axis])
        found.append(rows[:: max(1, len(rows) // each)][:each].astype(np.float64))
    return found if all(np.isfinite(r).all() for r in found) else []


def winner_statistic(rows: np.ndarray) -> float:
    """Return by how much the largest number of a row exceeds what chance gives, plus the skewness of columns.

    Columns are centred first. The first part is the mean of (maximum - mean) / standard deviation of a row over the
    same of Gaussian rows, less 1; the second the median over columns of their skewness.

    Args:
        rows: float64 [n, classes].
    """
    centred = rows - rows.mean(0)
    variance = np.square(centred).mean(0)
    used = variance > 1e-12 * max(float(variance.max(initial=0.0)), 1e-300)
    if used.sum() < 2:
        return 0.0
    skewness = (centred[:, used] ** 3).mean(0) / variance[used] ** 1.5
    return _peak(centred[:, used]) / _gaussian_peak(int(used.sum())) - 1 + float(np.median(skewness))


def _peak(rows: np.ndarray) -> float:
    spread = rows.std(1) + 1e-12
    return float(((rows.max(1) - rows.mean(1)) / spread).mean())


def _gaussian_peak(classes: int) -> float:
    return _peak(np.random.default_rng(0).standard_normal((min(_GAUSSIAN_ROWS, 2_000_000 // classes), classes)))


def _blank(rows: Sequence[np.ndarray]) -> int | None:
    """Return the class that separates symbols of a text, None where the rows spell none."""
    classes = rows[0].shape[1]
    if classes < _TEXT_CLASSES or sum(map(len, rows)) < 2 * len(rows):
        return None
    counts = np.bincount(np.concatenate([r.argmax(1) for r in rows]), minlength=classes)
    common = int(counts.argmax())
    is_common = counts[common] > _COMMON_BLANK * counts.sum()
    return common if is_common and common in (0, classes - 1) else None


def _falls_along_rows(arrays: Sequence[np.ndarray]) -> bool:
    """Return whether some column never rises along the rows of any sample and varies."""
    full = [a for a in arrays if a.shape[0] >= _LEAST_DETECTIONS and a.shape[1] >= 2]
    return bool(full) and sorted_column(full) is not None


def _rows_vary(arrays: Sequence[np.ndarray], inputs: Sequence[Mapping[str, np.ndarray]]) -> bool:
    """Return whether the number of rows differs between samples whose inputs have the same shapes."""
    shapes = {tuple((name, array.shape) for name, array in each.items()) for each in inputs}
    is_table = len({a.shape[1] for a in arrays}) == 1 and arrays[0].shape[1] >= _LEAST_COLUMNS
    return is_table and len(shapes) == 1 and len(inputs) == len(arrays) and len({a.shape[0] for a in arrays}) > 1


def sorted_column(arrays: Sequence[np.ndarray]) -> int | None:
    """Return the column of [rows, columns] arrays by which their rows are sorted, highest first; None without one."""
    if len({array.shape[1] for array in arrays}) != 1:
        return None
    falls = np.ones(arrays[0].shape[1], bool)
    varies = np.zeros(arrays[0].shape[1], bool)
    for array in arrays:
        if len(array) > 1:
            steps = np.diff(array.astype(np.float64), axis=0)
            falls &= (steps <= 0).all(0)
            varies |= (steps < 0).any(0)
    found = np.flatnonzero(falls & varies)
    return int(found[0]) if len(found) else None


def like_an_input(arrays: Sequence[np.ndarray], inputs: Sequence[Mapping[str, np.ndarray]]) -> str | None:
    """Return the name of an input that has the output's shape and is near it, None without one.

    Near: correlated with it, and the difference varies less than the output, so that errors are not hidden by an input
    on another scale.
    """
    for name in inputs[0] if len(inputs) == len(arrays) else ():
        if arrays[0].size < 2 and len(arrays) < 3:
            continue
        beginnings = _beginnings(arrays, inputs, name)
        if beginnings is None:
            continue
        one, other = beginnings
        if not (one.std() > 0 and other.std() > 0 and (one - other).std() < one.std()):
            continue
        if np.corrcoef(one, other)[0, 1] > _CORRELATED:
            return name
    return None


def _beginnings(
    arrays: Sequence[np.ndarray], inputs: Sequence[Mapping[str, np.ndarray]], name: str
) -> tuple[np.ndarray, np.ndarray] | None:
    """Return the first numbers of each array and of an input, float64 [n] each; None where their shapes differ."""
    found: list[tuple[np.ndarray, np.ndarray]] = []
    for array, each in zip(arrays, inputs, strict=True):
        value = each.get(name)
        if not isinstance(value, np.ndarray) or value.shape != array.shape or value.dtype.kind not in "fiu":
            return None
        found.append((array.ravel()[:_MOST_ROWS].astype(np.float64), value.ravel()[:_MOST_ROWS].astype(np.float64)))
    return np.concatenate([a for a, _ in found]), np.concatenate([b for _, b in found])


def _is_token_vector(arrays: Sequence[np.ndarray]) -> bool:
    widths, lengths = {a.shape[1] for a in arrays}, {a.shape[0] for a in arrays}
    return len(widths) == 1 and min(widths) >= _TOKEN_WIDTH and (len(lengths) > 1 or min(widths) >= max(lengths))


def no_vectors(decision: KindDecision) -> KindDecision:
    """Return a decision of which rows that were taken for embeddings are quantities, one each for a row."""
    if decision.kind is not OutputKind.EMBEDDING or decision.axis != 1:
        return decision
    return KindDecision(OutputKind.NUMBERS, 0, "rows of quantities beside scores behind a sigmoid")


def _column_axis(arrays: Sequence[np.ndarray]) -> int | None:
    """Return the axis of a sample whose entries are quantities of their own: channels, columns of a table.

    Of a table the shorter axis that is the same in all samples, of pictures and volumes the first.
    """
    rank = arrays[0].ndim
    if rank == 0:
        return None
    if rank == 1:
        return 0 if len({a.shape for a in arrays}) == 1 else None
    if rank >= 3:
        return 0 if len({a.shape[0] for a in arrays}) == 1 else None
    fixed = [axis for axis in (1, 0) if len({a.shape[axis] for a in arrays}) == 1]
    return min(fixed, key=lambda axis: arrays[0].shape[axis]) if fixed else None
