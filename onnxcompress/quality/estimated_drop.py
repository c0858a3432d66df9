"""Loss of accuracy estimated without labels, for outputs that score classes.

With p the original's probabilities, a its best class and b the compressed model's best class,

    drop = mean over samples and positions of p[a] - p[b]

If the original is calibrated, p[k] is the chance that k is right, so this is the expected loss of accuracy. The share
of positions where a and b differ (the disagreement) is far stricter: most changes are between classes that the
original found about equally likely.
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx_ir as ir
from scipy.special import softmax

from ..graph import query
from ..ops import table as ops

_SUM_TOLERANCE = 1e-3
"""Deviation of a row's sum from 1 up to which it holds probabilities. Chosen by judgement; not measured."""


class ClassScores:
    """Running estimate for one output; `is_scores` says whether what was added so far scores classes at all."""

    def __init__(self, *, is_logits: bool) -> None:
        self._is_logits = is_logits
        self.is_scores = True
        self._count = 0
        self._confidence = self._drop = 0.0
        self._differing = 0

    def add(self, expected: np.ndarray, got: np.ndarray) -> None:
        """Count one pair of outputs, float [..., classes]."""
        if not self.is_scores:
            return
        p = chances(expected, is_logits=self._is_logits)
        if p is None:
            self.is_scores = False
            return
        rows = np.arange(len(p))
        best, new = p.argmax(axis=1), np.nan_to_num(got.reshape(p.shape), nan=-np.inf).argmax(axis=1)
        self._count += len(p)
        self._confidence += float(p[rows, best].sum())
        self._drop += float((p[rows, best] - p[rows, new]).sum())
        self._differing += int((best != new).sum())

    def as_json(self) -> dict[str, Any]:
        """Return confidence (mean of the original's best probability), estimated_drop, disagreement and positions."""
        count = max(1, self._count)
        return {
            "confidence": self._confidence / count,
            "estimated_drop": self._drop / count,
            "disagreement": self._differing / count,
            "positions": self._count,
        }


def chances(values: np.ndarray, *, is_logits: bool) -> np.ndarray | None:
    """Return the probabilities of classes in an output, float64 [positions, classes]; None where it scores none."""
    if values.ndim == 0 or values.shape[-1] < 2 or not np.isfinite(values).all():
        return None
    p = values.astype(np.float64)
    if not _are_probabilities(p):
        if not is_logits:
            return None
        p = softmax(p, axis=-1)
    return np.asarray(p.reshape(-1, p.shape[-1]))


@dataclass(frozen=True)
class OutputKinds:
    """Names of a model's outputs by kind: scores of classes before a softmax, and results of a sigmoid."""

    logits: frozenset[str] = frozenset()
    sigmoids: frozenset[str] = frozenset()

    @classmethod
    def of(cls, model: ir.Model) -> OutputKinds:
        """Read them off the graph."""
        return cls(logits=logit_outputs(model), sigmoids=sigmoid_values(model.graph.outputs))


def logit_outputs(model: ir.Model) -> frozenset[str]:
    """Return the names of the outputs that come from a last Gemm or MatMul, and so score classes before a softmax."""
    return frozenset(output.name or "" for output in model.graph.outputs if _ends_in_product(output))


def _ends_in_product(value: ir.Value) -> bool:
    node = value.producer()
    while node is not None and query.is_op(node, *ops.CARRIES_SCORES):
        carried = [v for v in node.inputs if v is not None and query.constant_tensor(v) is None]
        if len(carried) != 1:
            return False
        node = carried[0].producer()
    return query.is_op(node, "Gemm", "MatMul")


def _are_probabilities(values: np.ndarray) -> bool:
    return bool((values >= -_SUM_TOLERANCE).all() and (np.abs(values.sum(axis=-1) - 1) <= _SUM_TOLERANCE).all())


def sigmoid_values(values: Collection[ir.Value]) -> frozenset[str]:
    """Return the names of those values that a sigmoid makes, its elements moved at most."""
    return frozenset(value.name or "" for value in values if _is_sigmoid(value))


def _is_sigmoid(value: ir.Value | None) -> bool:
    node = None if value is None else value.producer()
    while node is not None and query.is_op(node, *ops.MOVES):
        value = node.inputs[0]
        node = None if value is None else value.producer()
    return node is not None and query.is_op(node, "Sigmoid", "HardSigmoid")
