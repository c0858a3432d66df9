"""Inputs of models that hear music."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from ..catalog import Feed, Sources

RATE = 22_050
"""Samples a second; basic_pitch/constants.py."""


def basic_pitch(sources: Sources, *, name: str = "serving_default_input_2:0") -> Iterator[Feed]:
    """Yield [1, 43844, 1]: two seconds of a few voices of plucked and held notes.

    Rate and length as in basic_pitch/constants.py (22,050 Hz, 2 s less one hop of 256). The notes are synthetic:
    harmonics that fall with their number and with time, slightly out of tune. Work plays in C, judge in E flat.
    """
    count, random = 2 * RATE - 256, sources.random
    root = 48 if sources.which == "work" else 51
    scale = [0, 2, 4, 5, 7, 9, 11]
    while True:
        made = np.zeros(count)
        for _ in range(random.integers(1, 4)):
            start = 0.0
            while start < 1.9:
                length = float(random.choice([0.2, 0.4, 0.8]))
                pitch = root + 12 * random.integers(0, 3) + int(random.choice(scale))
                made += _note(random, pitch, start, length, count)
                start += length
        made += 10 ** random.uniform(-4, -2.5) * random.standard_normal(count)
        yield {name: (made / max(1, np.abs(made).max())).astype(np.float32)[None, :, None]}


def _note(random: np.random.Generator, pitch: int, start: float, length: float, count: int) -> np.ndarray:
    """Return one note of MIDI number `pitch` from `start` for `length` seconds."""
    time = np.arange(count) / RATE - start
    frequency = 440 * 2 ** ((pitch - 69 + random.normal(0, 0.05)) / 12)
    envelope = (
        np.clip(time / 0.01, 0, 1)
        * np.clip((length - time) / 0.05, 0, 1)
        * np.exp(-random.uniform(0.5, 4) * np.maximum(time, 0))
    )
    made = np.zeros(count)
    for number in range(1, min(12, int(RATE / 2 / frequency))):
        made += np.sin(2 * np.pi * number * frequency * time + random.uniform(0, 6)) / number**1.3
    return np.asarray(0.2 * random.uniform(0.3, 1) * envelope * made)
