"""Kinds of outputs that a user gives: `NAME=KIND` texts, and what keeps an output from being measured so."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import numpy as np

from ..errors import UsageError
from . import raw_detections
from .output_kinds import OutputKind


def misfit(kind: OutputKind, values: Sequence[object]) -> str | None:
    """Return why an output can't be measured as a kind that the user gave, None where it can.

    Args:
        kind: the kind.
        values: what the original gives, one array a sample without its batch axis.
    """
    arrays = [value for value in values if isinstance(value, np.ndarray)]
    are_texts = any(array.dtype.kind in "OUS" for array in arrays)
    if are_texts and kind not in (OutputKind.STRINGS, OutputKind.LABELS, OutputKind.STATE):
        return "it holds strings"
    ranks = {array.ndim for array in arrays}
    if kind in (OutputKind.DETECTION_ROWS, OutputKind.SELECTION) and (len(arrays) < len(values) or ranks != {2}):
        return "a sample is no table of rows"
    if kind is OutputKind.RAW_DETECTIONS and (len(arrays) < len(values) or raw_detections.columns(arrays) is None):
        return "a sample is no table of boxes with scores from 0 to 1 behind them"
    is_of_rows = kind in (
        *(OutputKind.CLASS_SCORES, OutputKind.POSITION_SCORES, OutputKind.TEXT_SCORES, OutputKind.VECTOR),
    )
    if (is_of_rows or kind is OutputKind.EMBEDDING) and (0 in ranks or any(not array.size for array in arrays)):
        return "a sample is a single number or empty"
    if kind in (OutputKind.BINARY_SCORE, OutputKind.IMAGE_8BIT) and any(not array.size for array in arrays):
        return "a sample is empty"
    return None


def parse_kinds(texts: Iterable[str]) -> dict[str, OutputKind]:
    """Read `NAME=KIND` texts.

    Raises:
        UsageError: a text has another form, or there is no such kind.
    """
    found = {}
    for text in texts:
        name, sign, kind = text.rpartition("=")
        if not sign or kind not in list(OutputKind):
            known = ", ".join(OutputKind)
            raise UsageError(f"{text!r} is no NAME=KIND", where="--output-kind", hint=f"Kinds: {known}")
        found[name] = OutputKind(kind)
    return found
