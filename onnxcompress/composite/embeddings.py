"""Built-in driver of sentence encoders: pooling, and the likeness of a query with what is compared with it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np

from .sessions import outputs_of

Pooling = Literal["mean", "cls"]


@dataclass(frozen=True, kw_only=True)
class SentenceEncoder:
    """Embeds the rows of a sample.

    The prediction is the embedding of a single row, float32 [width]; of several, the cosines of the first (a query)
    with each of the others (documents), float32 [rows - 1].

    Args:
        encoder: name of the part.
        output: that is pooled: [rows, length, width], or taken as it is: [rows, width].
        pooling: over the length: mean of what the mask leaves, or the first token.
    """

    encoder: str
    output: str
    pooling: Pooling

    def __call__(self, sessions: Mapping[str, Any], sample: Mapping[str, np.ndarray]) -> np.ndarray:
        """Return the prediction for one sample: the encoder's inputs by name."""
        values = np.asarray(outputs_of(sessions[self.encoder], dict(sample))[self.output], np.float64)
        if values.ndim == 3:
            mask = sample.get("attention_mask")
            values = values[:, 0] if self.pooling == "cls" else _mean(values, mask)
        values = values / np.maximum(np.linalg.norm(values, axis=-1, keepdims=True), 1e-12)
        return np.asarray(values[0] if len(values) == 1 else values[1:] @ values[0], np.float32)


def _mean(values: np.ndarray, mask: np.ndarray | None) -> np.ndarray:
    weights = np.ones(values.shape[:2]) if mask is None else np.asarray(mask, np.float64)
    return np.asarray((values * weights[..., None]).sum(1) / np.maximum(weights.sum(1)[:, None], 1e-9))
