"""Spectral features of speech as the programs around the models compute them."""

from __future__ import annotations

from typing import Literal

import numpy as np


def mel_filters(rate: int, fft: int, bands: int, *, low: float = 0, high: float | None = None) -> np.ndarray:
    """Return triangular filters on Slaney's mel scale, each of unit area, [bands, fft//2 + 1]; librosa's default."""
    high = high or rate / 2
    edges = _hertz(np.linspace(_mel(low), _mel(high), bands + 2))
    bins = np.linspace(0, rate / 2, fft // 2 + 1)
    rising = (bins - edges[:-2, None]) / np.diff(edges)[:-1, None]
    falling = (edges[2:, None] - bins) / np.diff(edges)[1:, None]
    return np.asarray(np.maximum(0, np.minimum(rising, falling)) * 2 / (edges[2:] - edges[:-2])[:, None])


def _mel(hertz: float) -> float:
    return hertz * 3 / 200 if hertz < 1_000 else 15 + np.log(hertz / 1_000) * 27 / np.log(6.4)


def _hertz(mel: np.ndarray) -> np.ndarray:
    return np.where(mel < 15, mel * 200 / 3, 1_000 * np.exp((mel - 15) * np.log(6.4) / 27))


def power_spectrogram(
    samples: np.ndarray, *, fft: int, hop: int, pad: Literal["constant", "reflect"] = "constant"
) -> np.ndarray:
    """Return |STFT|**2, [frames, fft//2 + 1]: frames centred on multiples of `hop`, periodic Hann window."""
    shape = 0.5 - 0.5 * np.cos(2 * np.pi * np.arange(fft) / fft)
    padded = np.pad(samples, fft // 2, mode=pad)
    frames = np.lib.stride_tricks.sliding_window_view(padded, fft)[::hop]
    return np.asarray(np.abs(np.fft.rfft(frames * shape, axis=1)) ** 2)
