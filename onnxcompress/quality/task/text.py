"""Metrics of text: word and character error rate, BLEU and chrF.

A text is a str, or a sequence of tokens (integers); negative ones are padding. Texts are compared as they are:
lower case, punctuation and numerals are the caller's matter.
"""

from __future__ import annotations

import functools
import importlib
import importlib.util
import math
from collections.abc import Sequence
from typing import Any

import numpy as np

from ...errors import UsageError
from ...numerics.statistics import row_matching
from .metric import FEW_RESAMPLES, TaskMetric, summed


def symbol_distance(one: Sequence[Any], other: Sequence[Any]) -> int:
    """Return the edit distance of sequences of words, characters or tokens, see `row_matching.edit_distance`."""
    codes: dict[Any, int] = {}
    numbers = [[codes.setdefault(each, len(codes)) for each in side] for side in (one, other)]
    return row_matching.edit_distance(*numbers)


def tokens(text: Any) -> list[Any]:
    """Return the words of a str, or the tokens of a sequence of integers without padding (negative ones)."""
    if isinstance(text, np.ndarray) and text.dtype.kind in "US" and text.size == 1:
        text = text.reshape(())[()]
    if isinstance(text, bytes):
        text = text.decode("utf-8", "replace")
    if isinstance(text, str):
        return text.split()
    found = np.asarray(text)
    if found.dtype.kind in "US":
        return [str(each) for each in found.ravel()]
    if found.size and found.dtype.kind not in "iu":
        raise ValueError(f"a text or integer tokens are needed, not {found.dtype} {list(found.shape)}")
    return [each for each in found.ravel().tolist() if each >= 0]


def _joined(text: Any) -> str:
    """Return a text with single blanks: what characters are compared in."""
    return " ".join(str(each) for each in tokens(text))


def _word_errors(prediction: Any, reference: Any) -> np.ndarray:
    wanted = tokens(reference)
    return np.array([symbol_distance(tokens(prediction), wanted), len(wanted)], np.float64)


def _character_errors(prediction: Any, reference: Any) -> np.ndarray:
    wanted = _joined(reference)
    return np.array([symbol_distance(_joined(prediction), wanted), len(wanted)], np.float64)


def _ratio(sums: np.ndarray) -> float:
    return float(sums[0] / sums[1]) if sums[1] > 0 else math.nan


def check_sacrebleu() -> None:
    """Refuse before the work starts a metric whose library is missing.

    Raises:
        UsageError: sacrebleu is not installed.
    """
    if importlib.util.find_spec("sacrebleu") is None:
        hint = "pip install 'onnxcompress[translation]'"
        raise UsageError("bleu and chrf need sacrebleu", where="--metric", hint=hint)


@functools.cache
def _scorer(name: str) -> Any:
    check_sacrebleu()
    return getattr(importlib.import_module("sacrebleu.metrics"), name)()


def _bleu_counts(prediction: Any, reference: Any) -> np.ndarray:
    """Return matches of 1 to 4 words, their numbers, and both lengths: float [10]."""
    scorer = _scorer("BLEU")
    found = scorer.sentence_score(_joined(prediction), [_joined(reference)])
    return np.array([*found.counts, *found.totals, found.sys_len, found.ref_len], np.float64)


def _bleu(sums: np.ndarray) -> float:
    scorer, counts = _scorer("BLEU"), [int(each) for each in sums]
    found = scorer.compute_bleu(counts[:4], counts[4:8], counts[8], counts[9], smooth_method="exp")
    return float(found.score)


def _chrf(pairs: Sequence[tuple[str, str]]) -> float:
    return float(_scorer("CHRF").corpus_score([one for one, _ in pairs], [[other for _, other in pairs]]).score)


WER = TaskMetric(name="wer", statistic=_word_errors, score=summed(_ratio), is_error=True)
"""Edits of words divided by the words of the references."""
CER = TaskMetric(name="cer", statistic=_character_errors, score=summed(_ratio), is_error=True)
"""Edits of characters divided by the characters of the references; of tokens, of their decimal numbers."""
BLEU = TaskMetric(name="bleu", statistic=_bleu_counts, score=summed(_bleu), scale="percent")
"""Of the corpus, as sacrebleu counts it (13a, up to 4 words, exponential smoothing): 0 to 100."""
CHRF = TaskMetric(
    name="chrf",
    statistic=lambda one, other: (_joined(one), _joined(other)),
    score=_chrf,
    scale="percent",
    resamples=FEW_RESAMPLES,
)
"""Of the corpus, as sacrebleu counts it (6 characters, no words, beta 2): 0 to 100."""
