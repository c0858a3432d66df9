"""Inputs of models of signals measured on the body."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
from scipy.signal import spectrogram

from ..catalog import Feed, Sources

RATE = 256
"""Samples a second."""


def seizure(sources: Sources, *, seconds: int = 60) -> Iterator[Feed]:
    """Yield "x" [1, 100, time]: spectrograms of intracranial EEG, half of it with a seizure in it.

    As preprocess_input of brainmaze_eeg_models/seizure: standardized signal, 1 s windows every half second, bins 0
    to 99 Hz, each bin standardized over time; a minute instead of the five that the model was designed for. The
    signals are synthetic: noise that falls with frequency, alpha waves, mains hum; a seizure is a rhythm of 3 to 12 Hz
    with harmonics that grows and slows down.
    """
    random, count = sources.random, seconds * RATE
    time = np.arange(count) / RATE
    for index in range(1_000_000):
        spectrum = np.fft.rfft(random.standard_normal(count))
        frequency = np.maximum(np.fft.rfftfreq(count, 1 / RATE), 0.5)
        signal = np.fft.irfft(spectrum / frequency ** random.uniform(0.7, 1.2), count)
        signal /= signal.std()
        signal += (
            0.5
            * np.sin(2 * np.pi * random.uniform(8, 12) * time)
            * np.convolve(random.random(count) > 0.997, np.hanning(RATE), "same")
        )
        signal += 0.05 * np.sin(2 * np.pi * 50 * time)
        if index % 2:
            signal += _burst(random, time, seconds)
        yield {"x": _features((signal - signal.mean()) / signal.std())[None]}


def _burst(random: np.random.Generator, time: np.ndarray, seconds: int) -> np.ndarray:
    start, length = random.uniform(0.1, 0.5) * seconds, random.uniform(0.2, 0.4) * seconds
    inside = np.clip((time - start) / length, 0, 1)
    rhythm = np.cumsum(random.uniform(6, 12) * (1 - 0.6 * inside)) * 2 * np.pi / RATE
    shape = sum(np.sin(k * rhythm) / k for k in range(1, 6))
    return np.asarray(random.uniform(2, 8) * np.sin(np.pi * inside) ** 0.5 * shape)


def _features(signal: np.ndarray) -> np.ndarray:
    power = spectrogram(signal, RATE, nperseg=RATE, noverlap=RATE - RATE // 2)[2][:100]
    deviation = power.std(axis=1, keepdims=True)
    return ((power - power.mean(axis=1, keepdims=True)) / np.where(deviation > 0, deviation, 1)).astype(np.float32)
