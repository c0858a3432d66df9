"""Metrics of numbers: perplexity, F1, rank correlation, and gain of a ranking."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence
from typing import Any

import numpy as np
from scipy.special import logsumexp
from scipy.stats import spearmanr

from .metric import TaskMetric, mean, summed

_MOST_RANKED = 10
"""Places of a ranking that count: nDCG@10, the form that retrieval benchmarks report."""


def token_losses(logits: np.ndarray, labels: np.ndarray) -> np.ndarray:
    """Return the sum of -ln p(label) in nats, and the number of labels: float64 [2].

    Args:
        logits: float [..., classes], before the softmax; logarithms of probabilities serve as well.
        labels: integers [...]; negative ones don't count.

    Raises:
        ValueError: the shapes don't fit, or a label is no class.
    """
    scores, wanted = np.asarray(logits, np.float64), np.asarray(labels)
    if wanted.dtype.kind not in "iu" or scores.shape[:-1] != wanted.shape:
        seen = f"labels are {wanted.dtype} {list(wanted.shape)}, scores {list(scores.shape)}"
        raise ValueError(f"{seen}: an integer for each position is needed")
    counted = wanted >= 0
    if counted.any() and wanted.max() >= scores.shape[-1]:
        raise ValueError(f"label {wanted.max()} is none of the {scores.shape[-1]} classes")
    scores, wanted = scores[counted], wanted[counted]
    own = np.take_along_axis(scores, wanted[:, None].astype(np.int64), -1)[:, 0]
    return np.array([float(np.sum(logsumexp(scores, axis=-1) - own)), wanted.size])


def _surprise(prediction: Any, reference: Any) -> np.ndarray:
    """Return (sum of -ln p, tokens): the prediction itself, or what logits give for labels."""
    found = np.asarray(prediction)
    if found.shape == (2,) and found.dtype.kind == "f":
        return found.astype(np.float64)
    return token_losses(found, np.asarray(reference))


def _perplexity(sums: np.ndarray) -> float:
    return float(np.exp(min(sums[0] / sums[1], 700.0))) if sums[1] > 0 else math.nan  # e^709 overflows


def _classes_of(values: Any, *, is_scores: bool) -> list[int]:
    found = np.asarray(values)
    if is_scores and found.ndim and found.dtype.kind == "f":
        return [int(each) for each in np.argmax(found, -1).ravel()]
    if found.dtype.kind not in "biu":
        raise ValueError(f"class numbers are needed, not {found.dtype} {list(found.shape)}")
    return [int(each) for each in found.ravel()]


def _class_pairs(prediction: Any, reference: Any) -> Counter[tuple[int, int]]:
    """Count (predicted class, true class); references below zero don't count."""
    wanted = _classes_of(reference, is_scores=False)
    found = _classes_of(prediction, is_scores=True)
    if len(found) != len(wanted):
        raise ValueError(f"{len(found)} predictions for {len(wanted)} labels")
    return Counter(pair for pair in zip(found, wanted, strict=True) if pair[1] >= 0)


def _macro_f1(counts: Sequence[Counter[tuple[int, int]]]) -> float:
    """Return the mean over the classes of 2 TP / (2 TP + FP + FN)."""
    right: Counter[int] = Counter()
    said: Counter[int] = Counter()
    true: Counter[int] = Counter()
    for each in counts:
        for (one, other), count in each.items():
            said[one] += count
            true[other] += count
            right[one] += count if one == other else 0
    return mean([2 * right[name] / (said[name] + true[name]) for name in sorted(said | true)])


def _number_pairs(prediction: Any, reference: Any) -> tuple[np.ndarray, np.ndarray]:
    one, other = np.asarray(prediction, np.float64).ravel(), np.asarray(reference, np.float64).ravel()
    if one.size != other.size:
        raise ValueError(f"{one.size} predictions for {other.size} labels")
    return one, other


def _spearman(pairs: Sequence[tuple[np.ndarray, np.ndarray]]) -> float:
    one, other = (np.concatenate([pair[side] for pair in pairs]) for side in (0, 1))
    if one.size < 2 or np.ptp(other) == 0 or not np.isfinite(one).all():
        return math.nan
    return 0.0 if np.ptp(one) == 0 else float(spearmanr(one, other).statistic)


def _gain(prediction: Any, reference: Any) -> float | None:
    """Return nDCG@10 of one query: sum of relevance / log2(place + 1), divided by that of the best order.

    K. Jaervelin, J. Kekaelaeinen, "Cumulated gain-based evaluation of IR techniques", 2002, with gains as given. Of
    equal scores the earlier document comes first. None where nothing is relevant.
    """
    scores, relevance = _number_pairs(prediction, reference)
    weights = 1 / np.log2(np.arange(2, min(_MOST_RANKED, scores.size) + 2))
    best = float(np.sort(relevance)[::-1][: weights.size] @ weights)
    order = np.argsort(-scores, kind="stable")[: weights.size]
    return float(relevance[order] @ weights) / best if best > 0 else None


PERPLEXITY = TaskMetric(
    name="perplexity",
    statistic=_surprise,
    score=summed(_perplexity),
    is_error=True,
    scale="relative",
    needs_labels=False,
)
"""exp(mean -ln p) over all tokens; a loss of 0.01 is one hundredth more."""
F1 = TaskMetric(name="f1", statistic=_class_pairs, score=_macro_f1)
"""Mean over the classes, of class numbers or of scores [..., classes]."""
SPEARMAN = TaskMetric(name="spearman", statistic=_number_pairs, score=_spearman)
"""Rank correlation of all numbers with the labels."""
NDCG = TaskMetric(name="ndcg", statistic=_gain, score=mean)
"""Mean over the queries of the gain of ten places; a sample is a query: scores and relevances of its documents."""
