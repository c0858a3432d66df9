"""Compares what two models compute: arrays only, so that a worker that compares need not know models."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Any

import numpy as np

RTOL = 1e-4
ATOL_OF_PEAK = 5e-6
"""Float outputs are equal when |a - b| <= RTOL * |a| + ATOL_OF_PEAK * (largest |a| of the output).

Measured between onnxruntime's unoptimised and optimised graphs, which fold BatchNorm and fuse operators as we do,
on all models of the development set and on densenet121, resnet50, inception, vgg and others with random weights:
the differences were at most 8e-7 of the peak for logits and hidden states, and 1.2e-5 for probabilities behind a
softmax; beyond RTOL they needed at most 1.2e-7 of the peak. A bias of 0.01 added to one channel of the *first*
convolution changed the outputs by 2e-5 to 1e-2 of the peak. What is smaller than that can't be told from rounding.
"""

SIGMOID_EPS = 4
"""Outputs of a sigmoid may be off by so many of their type's roundings at 1, however small they are.

The runtime computes it as 1/2 plus an odd function, so that small results carry the rounding of 1/2: in a text
detector all of whose scores on noise were below 3e-5, adding a bias one node later moved them by up to 1.8e-7.
"""


def mismatch(reference: Mapping[str, Any], outputs: Mapping[str, Any], *, sigmoids: Collection[str] = ()) -> str | None:
    """Return one line on where outputs are not equal, None where they are: the test for lossless rewrites.

    Args:
        reference: output name -> value of the model that is right.
        outputs: the same of the other one.
        sigmoids: the outputs that a sigmoid makes; see `estimate.sigmoid_values`.
    """
    if list(reference) != list(outputs):
        return f"the outputs are {list(outputs)} and not {list(reference)}"
    for name, expected in reference.items():
        if fault := _value_mismatch(expected, outputs[name], at_one=SIGMOID_EPS if name in sigmoids else 0):
            return f"output {name!r} {fault}"
    return None


def degenerate(reference: Mapping[str, Any], outputs: Mapping[str, Any]) -> str | None:
    """Return what makes lossy outputs unusable: another type or shape, or a NaN or infinity that wasn't there.

    Args:
        reference: output name -> array of the model before.
        outputs: the same of the model after.
    """
    for name, expected in reference.items():
        got = outputs.get(name)
        if not isinstance(expected, np.ndarray) or not isinstance(got, np.ndarray):
            if type(expected) is not type(got):
                return f"output {name!r} changed from {type(expected).__name__} to {type(got).__name__}"
            continue
        if got.dtype != expected.dtype or got.shape != expected.shape:
            return f"output {name!r} changed from {expected.dtype}{expected.shape} to {got.dtype}{got.shape}"
        if expected.dtype.kind == "f" and np.any(np.isfinite(expected) & ~np.isfinite(got)):
            return f"output {name!r} has NaN or infinite elements that were finite before"
    return None


def _value_mismatch(expected: Any, got: Any, *, at_one: float = 0) -> str | None:
    """Return how a value differs: arrays element by element, sequences and maps part by part."""
    if isinstance(expected, np.ndarray) and isinstance(got, np.ndarray):
        return _array_mismatch(expected, got, at_one=at_one)
    if type(expected) is not type(got):
        return f"is a {type(got).__name__} and not a {type(expected).__name__}"
    if isinstance(expected, list):
        if len(expected) != len(got):
            return f"has {len(got)} parts and not {len(expected)}"
        pairs = enumerate(zip(expected, got, strict=True))
        return next((f"part {i} {fault}" for i, (a, b) in pairs if (fault := _value_mismatch(a, b))), None)
    if isinstance(expected, dict):
        if expected.keys() != got.keys():
            return f"has the keys {sorted(got)} and not {sorted(expected)}"
        keys = sorted(expected)
        return next((f"[{k!r}] {fault}" for k in keys if (fault := _value_mismatch(expected[k], got[k]))), None)
    return _array_mismatch(np.asarray(expected), np.asarray(got))


def _array_mismatch(expected: np.ndarray, got: np.ndarray, *, at_one: float = 0) -> str | None:
    if expected.dtype != got.dtype or expected.shape != got.shape:
        return f"is {got.dtype}{list(got.shape)} and not {expected.dtype}{list(expected.shape)}"
    if expected.size == 0:
        return None
    if expected.dtype.kind not in "fc":
        wrong = expected != got
        return _worst(expected, got, wrong.astype(np.float64)) if wrong.any() else None
    finite = np.isfinite(expected)
    same_special = (expected == got) | (np.isnan(expected) & np.isnan(got))
    broken = ~np.where(finite, np.isfinite(got), same_special)
    if broken.any():
        return _worst(expected, got, broken.astype(np.float64))
    a, b = (np.where(finite, array, 0).astype(np.float64) for array in (expected, got))
    allowed = np.maximum(tolerance(a, expected.dtype), at_one * float(np.finfo(expected.dtype).eps))
    excess = np.abs(a - b) / (allowed + np.finfo(np.float64).tiny)
    return _worst(expected, got, excess) if excess.max() > 1 else None


def tolerance(expected: np.ndarray, dtype: np.dtype[Any]) -> np.ndarray:
    """Return how far each element may be off, float64 of the shape of `expected` (finite float64 values).

    Float16 outputs may be off by a few of their own roundings.
    """
    eps = float(np.finfo(dtype).eps)
    peak = float(np.abs(expected).max())
    return np.asarray(max(RTOL, 4 * eps) * np.abs(expected) + max(ATOL_OF_PEAK, 2 * eps) * peak)


def _worst(expected: np.ndarray, got: np.ndarray, badness: np.ndarray) -> str:
    """Describe the elements with `badness` above 0 (flags) or 1 (multiples of the tolerance)."""
    flags = badness.max() <= 1
    count = int((badness > 0).sum() if flags else (badness > 1).sum())
    at = tuple(int(i) for i in np.unravel_index(int(badness.argmax()), badness.shape))
    extent = "" if flags else f", {badness.max():.3g} times the tolerance"
    worst = f"worst at {list(at)}: {got[at]} and not {expected[at]}{extent}"
    return f"differs in {count} of {expected.size} elements, {worst}"
