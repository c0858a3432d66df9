"""Scores of a model's outputs, higher is better: against labels, or against the original model's outputs.

Those of tasks (word error rate, perplexity ...) may be lower where better: `fall` is the loss in either case.

All take arrays that hold one or more samples along axis 0 and return one number.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np

from ..base.user_code import load_function
from ..errors import UsageError
from ..numerics.statistics.ratios import mean_interval
from .task.known import TASK_METRICS, task_metric

Metric = Callable[[Any, Any], float]
"""(outputs, labels or the original's outputs) -> score."""


def top1(scores: np.ndarray, labels: np.ndarray) -> float:
    """Return the share of positions whose highest score is the label's.

    Args:
        scores: float [..., classes].
        labels: integers [...].

    """
    return _top(scores, labels, 1)


def top5(scores: np.ndarray, labels: np.ndarray) -> float:
    """Return the share of positions whose label is among the five highest scores; shapes as for `top1`."""
    return _top(scores, labels, 5)


def agreement(scores: np.ndarray, original: np.ndarray) -> float:
    """Return the share of positions where both models prefer the same class; both float [..., classes]."""
    return float(np.mean(np.argmax(scores, -1) == np.argmax(original, -1)))


def cosine(values: np.ndarray, original: np.ndarray) -> float:
    """Return the cosine of the angle between two arrays as vectors, 1 where both are zero, NaN never.

    Computed in float64. Elements that are not finite make it 0, unless they are the same in both.
    """
    a, b = (np.asarray(array, np.float64).ravel() for array in (values, original))
    broken = ~(np.isfinite(a) & np.isfinite(b))
    if broken.any():
        if not np.array_equal(a[broken], b[broken], equal_nan=True):
            return 0.0
        a, b = a[~broken], b[~broken]
    return cosine_of_moments(float(a @ b), float(a @ a), float(b @ b))


def cosine_of_moments(product: float, square_a: float, square_b: float) -> float:
    """Return the cosine from sum(a*b), sum(a*a) and sum(b*b)."""
    if square_a == 0 or square_b == 0:
        return 1.0 if square_a == square_b else 0.0
    return max(-1.0, min(1.0, product / math.sqrt(square_a) / math.sqrt(square_b)))


METRICS: dict[str, Metric] = {"top1": top1, "top5": top5, "cosine": cosine, "agreement": agreement}
AGAINST_LABELS = frozenset({"top1", "top5"})
"""Metrics that need labels; those of tasks (`task.known`) and a `module:function` do too."""


def needs_labels(name: str) -> bool:
    """Say whether a metric compares with labels rather than with the original's outputs."""
    return name in AGAINST_LABELS or name in TASK_METRICS or ":" in name


def resolve_metric(name: str) -> Metric:
    """Return a metric by its name, or the function behind `module:function`.

    Raises:
        UsageError: there is no such metric, module or function.

    """
    if name in METRICS:
        return METRICS[name]
    if name in TASK_METRICS:
        metric = task_metric(name)
        return lambda outputs, labels: metric.total(metric.statistics(*_samples(outputs, labels)))
    if ":" in name:
        return load_function(name)
    known = ", ".join(sorted({*METRICS, *TASK_METRICS}))
    raise UsageError(f"unknown metric {name!r}", hint=f"Known are {known} and module:function")


def fall(name: str, before: float, after: float) -> float:
    """Return the loss between two scores: positive where the second is worse, whether higher or lower is better."""
    return TASK_METRICS[name].fall(before, after) if name in TASK_METRICS else before - after


def _samples(outputs: Any, labels: Any) -> tuple[Any, Any]:
    """Return predictions and labels, sample by sample.

    Raises:
        ValueError: there is not one row of labels for each sample.
    """
    if len(outputs) != len(labels):
        raise ValueError(f"{len(labels)} rows of labels for {len(outputs)} samples")
    return outputs, labels


def drop_interval(name: str, before: Any, after: Any, truth: Any) -> tuple[float, float] | None:
    """Return the 90% interval of the fall of a score of rows, None for scores that are none of rows.

    Args:
        name: of the metric.
        before: outputs of the original, float [n, ..., classes].
        after: outputs of the result, the same.
        truth: labels, or the original's outputs.
    """
    if name in TASK_METRICS:
        task = TASK_METRICS[name]
        found = task.loss(*(task.statistics(*_samples(each, truth)) for each in (before, after)))
        return found.low, found.high
    if name not in ("agreement", "top1", "top5"):
        return None
    metric = METRICS[name]
    rows = zip(before, after, truth, strict=True)
    falls = [metric(a[None], t[None]) - metric(b[None], t[None]) for a, b, t in rows]
    found = mean_interval(np.array(falls))
    return found.low, found.high


def _classes(labels: np.ndarray, scores: np.ndarray) -> np.ndarray:
    if labels.dtype.kind not in "biuf" or labels.shape != scores.shape[:-1]:
        msg = f"labels are {labels.dtype} {list(labels.shape)}, and integers {list(scores.shape[:-1])} are needed"
        raise ValueError(msg)
    wrong = labels[~((labels >= 0) & (labels < scores.shape[-1]) & (labels == np.floor(labels)))]
    if wrong.size:
        msg = f"label {wrong[0]} is none of the {scores.shape[-1]} classes"
        raise ValueError(msg)
    return labels.astype(np.int64)


def _top(scores: np.ndarray, labels: np.ndarray, count: int) -> float:
    """Return the share of labels among the `count` highest scores; ties go to the lower class.

    Raises:
        ValueError: a label is no class.

    """
    wanted = _classes(np.asarray(labels), scores)
    own = np.take_along_axis(scores, wanted[..., None], -1)
    earlier = np.arange(scores.shape[-1]) < wanted[..., None]
    better = np.sum((scores > own) | ((scores == own) & earlier), axis=-1)
    return float(np.mean((better < count) & np.isfinite(own[..., 0])))
