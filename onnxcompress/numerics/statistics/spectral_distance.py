"""Distance of two signals as a listener hears it: levels in bands over short frames, in dB, phases left out.

    signal --frames of 1,024, Hann, every 256--> power in 40 mel bands --> dB --> root mean square over the bands
    frames of equal signals meet in place, those of signals of other lengths by dynamic time warping

This is the log-spectral distortion of speech coding (Gray and Markel 1976), by mel bands. Phases are left out: a
vocoder trained against a discriminator chooses them freely, and no one hears them.
"""

from __future__ import annotations

import functools

import numpy as np

FRAME = 1024
"""Values in a frame: 46 ms at 22 kHz, two pitch periods of a deep voice and more."""
_HOP = 256
"""Values from one frame to the next."""
_MOST_FRAMES = 1024
"""Frames of a signal; longer ones have fewer per second, so that memory and time of the warping are bounded."""
_BANDS = 40
"""Bands, as in recognizers of speech (Davis and Mermelstein 1980 and later ones)."""
_RATE = 22_050
"""Assumed values per second, which models don't say. At 16 or 48 kHz the same bands are somewhat wider or narrower."""
_RANGE_DB = 50.0
"""Levels further below the loudest band of loud frames count as this far below: they are masked."""
_LOUD = 95
"""Percentile over frames of their loudest band taken for the loudness of a signal."""
_TINY = 1e-30
"""Least power, against the logarithm of zero."""


def distance_db(one: np.ndarray, other: np.ndarray) -> float:
    """Return the mean over frames of the rms difference of two signals' levels, dB.

    Args:
        one: of the original, float [channels, values] or [values]; levels are limited below by its loudness.
        other: as many channels, of any length.
    """
    pairs = zip(_channels(one), _channels(other), strict=True)
    return float(np.mean([_channel_distance(a, b) for a, b in pairs]))


def _channel_distance(one: np.ndarray, other: np.ndarray) -> float:
    hop = max(_HOP, -(-max(len(one), len(other)) // _MOST_FRAMES))
    a, b = _powers(one, hop), _powers(other, hop)
    lowest = max(float(np.percentile(a.max(1), _LOUD)) * 10 ** (-_RANGE_DB / 10), _TINY)
    x, y = (10 * np.log10(np.maximum(each, lowest)) for each in (a, b))
    if len(one) == len(other):
        return float(np.sqrt(np.square(x - y).mean(1)).mean())
    return warped_distance(x, y)


def warped_distance(one: np.ndarray, other: np.ndarray) -> float:
    """Return the mean rms distance of rows along the cheapest monotonic path that meets all of both.

    Dynamic time warping with steps along one, the other, or both (Sakoe and Chiba 1978).

    Args:
        one: float64 [rows, columns].
        other: float64 [other rows, columns].
    """
    squares = np.square(one).mean(1)[:, None] + np.square(other).mean(1)[None] - 2 * one @ other.T / one.shape[1]
    costs = np.sqrt(np.maximum(squares, 0.0))
    n, m = costs.shape
    # cost and length of the best path that ends at each place of two anti-diagonals, by row + 1
    before, last = (np.full((2, n + 1), np.inf) for _ in range(2))
    for total in range(n + m - 1):
        rows = np.arange(max(0, total - m + 1), min(n, total + 1))
        here = np.full((2, n + 1), np.inf)
        if total == 0:
            start = np.zeros((2, 1))
        else:
            steps = np.stack([before[:, rows], last[:, rows], last[:, rows + 1]])
            start = np.take_along_axis(steps, steps[:, :1].argmin(0)[None].repeat(2, 1), 0)[0]
        here[:, rows + 1] = start + np.stack([costs[rows, total - rows], np.ones(len(rows))])
        before, last = last, here
    return float(last[0, n] / last[1, n])


def _channels(signal: np.ndarray) -> np.ndarray:
    found = np.asarray(signal, np.float64)
    found = np.where(np.isfinite(found), found, 0.0)
    return found.reshape(-1, found.shape[-1]) if found.ndim else found.reshape(1, 1)


def _powers(signal: np.ndarray, hop: int) -> np.ndarray:
    """Return the power in each band of each frame, float64 [frames, bands]."""
    padded = np.pad(signal, (FRAME // 2, FRAME - FRAME // 2))
    frames = np.lib.stride_tricks.sliding_window_view(padded, FRAME)[::hop]
    return np.asarray(np.square(np.abs(np.fft.rfft(frames * np.hanning(FRAME)))) @ _filters().T)


@functools.cache
def _filters() -> np.ndarray:
    """Return triangles of equal width on the mel scale, float64 [bands, FRAME / 2 + 1]."""
    frequencies = np.linspace(0, _RATE / 2, FRAME // 2 + 1)
    top = 2595 * np.log10(1 + _RATE / 2 / 700)
    edges = 700 * (10 ** (np.linspace(0, top, _BANDS + 2) / 2595) - 1)
    low, centre, high = edges[:-2, None], edges[1:-1, None], edges[2:, None]
    rising, falling = (frequencies - low) / (centre - low), (high - frequencies) / (high - centre)
    return np.asarray(np.maximum(0.0, np.minimum(rising, falling)))
