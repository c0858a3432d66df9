"""Inputs of models that hear speech: quality, wake words, voice activity, turns, voices."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import onnxruntime as ort

from ..catalog import Feed, Sources
from . import features, recordings


def waveform(sources: Sources, *, name: str, rate: int, samples: int, scale: float = 1) -> Iterator[Feed]:
    """Yield [1, samples] stretches of speech from -1 to 1, times `scale`.

    DNSMOS: speechmos' dnsmos.py gives 9.01 s at 16 kHz as they are. openWakeWord's melspectrogram: its
    WakeWordEngine.js gives 16-bit values as floats.
    """
    for stretch in recordings.speech(sources, rate=rate, seconds=samples / rate):
        yield {name: stretch[None] * np.float32(scale)}


def dnsmos_mel(sources: Sources, *, name: str = "input_1") -> Iterator[Feed]:
    """Yield [1, 900, 120]: log power in 120 mel bands of 9 s of speech at 16 kHz.

    As audio_melspec in speechmos' dnsmos.py: windows of 321 samples every 160, decibels below the loudest,
    (dB + 40)/40, no more than 80 dB below; librosa's filters.
    """
    filters = features.mel_filters(16_000, 321, 120)
    for stretch in recordings.speech(sources, rate=16_000, seconds=9.0):
        power = features.power_spectrogram(stretch, fft=321, hop=160) @ filters.T
        decibels = 10 * np.log10(np.maximum(power, 1e-10) / max(power.max(), 1e-10))
        yield {name: ((np.maximum(decibels, -80) + 40) / 40).astype(np.float32)[None, :900]}


def wake_word_mel(sources: Sources, *, name: str = "input_1") -> Iterator[Feed]:
    """Yield [1, 76, 32, 1]: windows of 76 frames of openWakeWord's mel spectrogram of speech.

    The frames come from the package's melspectrogram.onnx, x/10 + 2, as in its WakeWordEngine.js.
    """
    run = _mel_of_wake_words(sources)
    for stretch in recordings.speech(sources, rate=16_000, seconds=2):
        yield {name: run(stretch)[None, 20:96, :, None]}


def _mel_of_wake_words(sources: Sources):
    session = ort.InferenceSession(sources.one("openwakeword", "package/models/melspectrogram.onnx"))

    def run(samples: np.ndarray) -> np.ndarray:
        frames = session.run(None, {"input": samples[None] * np.float32(32_767)})[0]
        return np.asarray(frames.reshape(-1, 32) / 10 + 2, np.float32)

    return run
