"""The metrics of tasks by name, and functions of the user's own as such."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

from ...base.user_code import load_function
from ...errors import DataError, UsageError
from .detection import MAP50
from .metric import FEW_RESAMPLES, TaskMetric
from .text import BLEU, CER, CHRF, WER, check_sacrebleu
from .values import F1, NDCG, PERPLEXITY, SPEARMAN

TASK_METRICS = {each.name: each for each in (WER, CER, PERPLEXITY, BLEU, CHRF, SPEARMAN, NDCG, MAP50, F1)}


def task_metric(given: str | Callable[..., float] | TaskMetric) -> TaskMetric:
    """Return a metric of predictions: by name, `module:function`, or a function (predictions, labels) -> float.

    The function's value is higher where better, and its differences are losses.

    Raises:
        UsageError: there is none of that name, or what it needs is not installed.
    """
    if isinstance(given, TaskMetric):
        return given
    if callable(given):
        return _of_function(getattr(given, "__name__", "metric"), given)
    if given in TASK_METRICS:
        if given in (BLEU.name, CHRF.name):
            check_sacrebleu()
        return TASK_METRICS[given]
    if ":" in given:
        return _of_function(given, load_function(given))
    known = ", ".join(sorted(TASK_METRICS))
    raise UsageError(f"unknown metric {given!r} of a pipeline", hint=f"Known are {known} and module:function")


def _of_function(name: str, function: Callable[..., Any]) -> TaskMetric:
    def score(pairs: Sequence[tuple[Any, Any]]) -> float:
        try:
            found = float(function([one for one, _ in pairs], [other for _, other in pairs]))
        except MemoryError:
            raise
        except Exception as error:  # the user's own function may raise anything
            text = " ".join(str(error).split())
            raise DataError(f"metric {name!r} failed: {type(error).__name__}: {text}") from error
        return found if math.isfinite(found) else math.nan

    return TaskMetric(name=name, statistic=lambda one, other: (one, other), score=score, resamples=FEW_RESAMPLES)
