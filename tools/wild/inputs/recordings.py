"""Recorded speech out of Debian's Asterisk prompts, mixed with noise; work and judge share no prompt."""

from __future__ import annotations

import io
import wave
from collections.abc import Iterator
from functools import lru_cache

import numpy as np
from scipy.signal import resample_poly

from ..catalog import Sources

SPEECH = {"work": ("asterisk_en", "asterisk_es"), "judge": ("asterisk_en", "asterisk_fr")}
"""Half -> packages of prompts; of English, which both have, either half takes every other prompt."""
LEAST_BYTES = 24_000
"""Of a prompt: a second and a half at 8 kHz in 16 bits; shorter ones are single words."""


@lru_cache(maxsize=2)
def prompts(sources: Sources) -> tuple[np.ndarray, ...]:
    """Return this half's prompts, float32 from -1 to 1 at 8 kHz, speakers in turn."""
    by_speaker = []
    for key in SPEECH[sources.which]:
        files = sources.read(key, "usr/share/asterisk/sounds/*/*.wav")
        long = [content for _, content in sorted(files.items()) if len(content) >= LEAST_BYTES]
        by_speaker.append(sources.half(long) if key == "asterisk_en" else long)
    taken = [content for turn in zip(*by_speaker, strict=False) for content in turn]
    return tuple(_samples(content) for content in taken)


def _samples(content: bytes) -> np.ndarray:
    with wave.open(io.BytesIO(content)) as file:
        return np.frombuffer(file.readframes(file.getnframes()), "<i2").astype(np.float32) / 32_768


def speech(sources: Sources, *, rate: int, seconds: float, noise: bool = True) -> Iterator[np.ndarray]:
    """Yield stretches of speech with pauses, float32 [samples] from -1 to 1, without end.

    Every prompt is brought to `rate`; loudness varies by 20 dB; every other stretch has noise with a falling
    spectrum, 5 to 30 dB below the speech.
    """
    count = round(rate * seconds)
    random, stock, position = sources.random, prompts(sources), 0
    for index in range(1_000_000):
        pieces: list[np.ndarray] = []
        while sum(map(len, pieces)) < count:
            pieces += [
                resample_poly(stock[position % len(stock)], rate, 8_000),
                np.zeros(round(random.uniform(0.1, 0.6) * rate)),
            ]
            position += 1
        joined = np.concatenate(pieces)
        start = random.integers(0, len(joined) - count + 1)
        made = joined[start : start + count] * 10 ** random.uniform(-1, 0)
        if noise and index % 2:
            level = np.sqrt(np.mean(made**2)) * 10 ** (-random.uniform(5, 30) / 20)
            made = made + level * _coloured(random, count)
        yield np.clip(made, -1, 1).astype(np.float32)


def _coloured(random: np.random.Generator, count: int) -> np.ndarray:
    """Return noise of unit power whose amplitude falls with the square root of the frequency."""
    spectrum = np.fft.rfft(random.standard_normal(count))
    made = np.fft.irfft(spectrum / np.sqrt(np.maximum(np.arange(len(spectrum)), 1)), count)
    return np.asarray(made / made.std())
