"""Speech and phonemes by espeak-ng, and inputs of models that speak."""

from __future__ import annotations

import io
import json
import subprocess
import unicodedata
import wave
from collections.abc import Iterator
from functools import lru_cache

import numpy as np
from fetch_models import FetchError
from scipy.signal import resample_poly

from ..catalog import Feed, Sources
from . import texts

VOICES = {
    "work": ("en-us", "en-us+m3", "en-gb+f2", "en-us+f4"),
    "judge": ("en-gb", "en-us+m5", "en-us+f1", "en-gb-scotland"),
}
"""Half -> voices of espeak-ng."""


def voice(sources: Sources, index: int) -> str:
    """Return one of this half's voices."""
    return VOICES[sources.which][index % len(VOICES[sources.which])]


def _espeak(*arguments: str) -> bytes:
    try:
        done = subprocess.run(["espeak-ng", *arguments], capture_output=True, timeout=60, check=True)
    except FileNotFoundError:
        raise FetchError("espeak-ng is not installed; it speaks the samples: apt-get install espeak-ng") from None
    except (subprocess.CalledProcessError, subprocess.TimeoutExpired) as error:
        raise FetchError(f"espeak-ng failed: {error}") from None
    return done.stdout


@lru_cache(maxsize=64)
def say(text: str, *, rate: int, voice: str, speed: int) -> np.ndarray:
    """Return a text spoken, float32 from -1 to 1; `speed` in words a minute."""
    with wave.open(io.BytesIO(_espeak("--stdout", "-v", voice, "-s", str(speed), text))) as file:
        own = file.getframerate()
        # The length in the header is that of a stream whose end was not known yet.
        samples = np.frombuffer(file.readframes(10 * 60 * own), "<i2").astype(np.float32) / 32_768
    divisor = np.gcd(rate, own)
    return np.asarray(resample_poly(samples, rate // divisor, own // divisor), np.float32)


def piper(sources: Sources, *, config: str) -> Iterator[Feed]:
    """Yield "input" [1, phonemes], "input_lengths" and "scales" of English sentences.

    As Piper does it with the voice's .json: espeak-ng's phonemes (--ipa), decomposed; "^", then "_" after each, then
    "$", by phoneme_id_map; scales are the file's noise, length and duration noise.
    """
    settings = json.loads(sources.one("own", config))
    numbers, inference = settings["phoneme_id_map"], settings["inference"]
    scales = np.array([inference[key] for key in ("noise_scale", "length_scale", "noise_w")], np.float32)
    for sentence in texts.repeat(texts.english(sources)):
        spoken = _espeak("-q", "--ipa", "-v", settings["espeak"]["voice"], sentence[:90]).decode()
        phonemes = [sign for sign in unicodedata.normalize("NFD", " ".join(spoken.split())) if sign in numbers]
        ids = [*numbers["^"], *numbers["_"]]
        for sign in phonemes:
            ids += [*numbers[sign], *numbers["_"]]
        ids += numbers["$"]
        yield {"input": np.array([ids], np.int64), "input_lengths": np.array([len(ids)], np.int64), "scales": scales}
