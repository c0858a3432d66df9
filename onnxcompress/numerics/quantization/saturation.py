"""Products of 8-bit integers on processors without VNNI, where two of them are added in 16 bits and saturate.

    VPMADDUBSW:    sat16(a_0 w_0 + a_1 w_1)       a: uint8, w: int8, of neighbouring columns

The sum of the pairs is exact from there on. Weights of 7 bits can't saturate: 2 * 255 * 63 < 2^15.
"""

from __future__ import annotations

import numpy as np

LIMIT = 32767
"""Largest int16."""
CHUNK_VALUES = 1 << 22
"""Products that are computed at a time, for memory. Chosen by judgement; not measured."""


def can_saturate(weight: np.ndarray) -> bool:
    """Say whether some uint8 activations make a pair saturate; int8 weights [..., columns]."""
    pairs = np.abs(_paired(weight.astype(np.int32)))
    positive = np.maximum(_paired(weight.astype(np.int32)), 0).sum(axis=-1)
    return bool(pairs.size) and bool(max(positive.max(), (pairs.sum(axis=-1) - positive).max()) * 255 > LIMIT)


def saturation_error(rows: np.ndarray, weight: np.ndarray, *, chunk_values: int = CHUNK_VALUES) -> np.ndarray:
    """Return the error of the sums by saturation, int64 [groups, n, out].

    Args:
        rows: uint8 [groups, n, columns].
        weight: int8 [groups, out, columns].
        chunk_values: products that are computed at a time.
    """
    groups, n, _ = rows.shape
    found = np.zeros((groups, n, weight.shape[1]), np.int64)
    for group in range(groups):
        a = _paired(rows[group].astype(np.int32))
        w = _paired(weight[group].astype(np.int32))
        most = a.max(axis=0, initial=0)
        high, low = (most * np.maximum(w, 0)).sum(axis=-1), (most * np.minimum(w, 0)).sum(axis=-1)
        # the pairs that these rows can saturate: about one in a hundred of a weight with normal values
        outs, pairs = np.nonzero((high > LIMIT) | (low < -LIMIT - 1))
        step = max(1, chunk_values // max(n, 1))
        for start in range(0, len(outs), step):
            out, pair = outs[start : start + step], pairs[start : start + step]
            sums = a[:, pair, 0] * w[out, pair, 0] + a[:, pair, 1] * w[out, pair, 1]
            firsts = np.flatnonzero(np.diff(out, prepend=-1))
            excess = np.add.reduceat(sums - np.clip(sums, -LIMIT - 1, LIMIT), firsts, axis=1)
            found[group][:, out[firsts]] += excess
    return found


def wants_seven_bits(rows: np.ndarray, weight: np.ndarray, *, zero_point: int = 0) -> bool:
    """Say whether saturation costs more than storing the weight in 7 bits would.

    Args:
        rows: quantized activations, uint8 [groups, n, columns], sampled.
        weight: the weight in floats, [groups, out, columns]; one scale for each output channel.
        zero_point: zero point of the activations.
    """
    full, coarse = (_rounded(weight, most) for most in (127, 63))
    if not can_saturate(full[0]):
        return False
    lost = saturation_error(rows, full[0]) * full[1].swapaxes(1, 2)
    centred = rows.astype(np.float32) - zero_point

    def rounding(integers: np.ndarray, scale: np.ndarray) -> np.ndarray:
        return np.asarray(centred @ (integers * scale - weight).swapaxes(1, 2))

    saturated = np.square(rounding(*full) - lost, dtype=np.float64).sum()
    return bool(saturated > np.square(rounding(*coarse), dtype=np.float64).sum())


def _rounded(weight: np.ndarray, most: int) -> tuple[np.ndarray, np.ndarray]:
    scale = np.maximum(np.abs(weight).max(axis=2, keepdims=True) / most, np.finfo(np.float32).tiny)
    return np.rint(weight / scale).astype(np.int8), scale


def _paired(array: np.ndarray) -> np.ndarray:
    """View the last axis in pairs, a zero added where it is odd: [..., pairs, 2]."""
    if array.shape[-1] % 2:
        array = np.concatenate([array, np.zeros((*array.shape[:-1], 1), array.dtype)], axis=-1)
    return array.reshape(*array.shape[:-1], -1, 2)
