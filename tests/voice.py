"""A small synthesizer of sound: predicted durations are rounded, noise is drawn, and the signal's length follows."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir

from onnxcompress.core import Feed
from tests.helpers import with_constants

HOP = 256
SYMBOLS = 24
_WIDTH = 64
_TEXT = """g (int64[1, n] tokens, float[1] noise, float[SYMBOLS, WIDTH] table, float[WIDTH, 1] rate,
    float[WIDTH, WIDTH] hidden, float[WIDTH, HOP] voice) => (float[1, 1, t] y)
    <int64 one = {1}, int64 zero = {0}, int64[1] first = {0}, int64[1] second = {1}, int64[1] last = {-1},
     int64[3] flat = {1, 1, -1}> {
    e = Gather(table, tokens)
    p = MatMul(e, rate)
    d = Squeeze(p, last)
    z = RandomNormalLike(d)
    zn = Mul(z, noise)
    ds = Add(d, zn)
    de = Exp(ds)
    frames = Ceil(de)
    ends = CumSum(frames, one)
    total = ReduceMax<keepdims = 0>(ends)
    count = Cast<to = 7>(total)
    places = Range(zero, count, one)
    pf = Cast<to = 1>(places)
    rows = Unsqueeze(pf, second)
    before = Less(rows, ends)
    starts = Sub(ends, frames)
    after = GreaterOrEqual(rows, starts)
    on = And(before, after)
    path = Cast<to = 1>(on)
    es = Squeeze(e, first)
    mel = MatMul(path, es)
    h = RandomNormalLike(mel)
    hn = Mul(h, noise)
    m = Add(mel, hn)
    k = MatMul(m, hidden)
    r = Relu(k)
    w = MatMul(r, voice)
    s = Tanh(w)
    y = Reshape(s, flat)
}"""


def weights(bits: int | None = None) -> dict[str, np.ndarray]:
    """Return the weights, rounded to so many bits per output where that is wanted."""
    rng = np.random.default_rng(3)
    time = np.arange(HOP) / HOP
    waves = np.stack([np.sin(2 * np.pi * (1 + number) * time + number) for number in range(_WIDTH)])
    found = {
        "table": rng.standard_normal((SYMBOLS, _WIDTH)),
        "rate": rng.standard_normal((_WIDTH, 1)) * 0.5 / np.sqrt(_WIDTH) + 0.01,
        "hidden": rng.standard_normal((_WIDTH, _WIDTH)) / np.sqrt(_WIDTH),
        "voice": waves * 0.5 / (1 + np.arange(_WIDTH)[:, None]),
    }
    if bits is not None:
        for name, array in found.items():
            step = np.abs(array).max(0, keepdims=True) / (2 ** (bits - 1) - 1)
            found[name] = np.round(array / step) * step
    return {name: array.astype(np.float32) for name, array in found.items()}


def text(**replaced: str) -> str:
    """Return the graph, with parts of its text replaced: NAME="what" replaces the line that makes NAME."""
    found = _TEXT.replace("SYMBOLS", str(SYMBOLS)).replace("WIDTH", str(_WIDTH)).replace("HOP", str(HOP))
    lines = found.splitlines()
    for name, new in replaced.items():
        lines = [f"    {name} = {new}" if line.strip().startswith(f"{name} = ") else line for line in lines]
    return "\n".join(lines)


def model(bits: int | None = None, **replaced: str) -> ir.Model:
    """Return the synthesizer."""
    return with_constants(text(**replaced), **weights(bits))


def feeds(count: int = 16, *, noise: float = 0.5) -> list[Feed]:
    """Return sentences of 8 to 20 symbols."""
    rng = np.random.default_rng(5)
    return [
        {
            "tokens": rng.integers(0, SYMBOLS, (1, int(rng.integers(8, 21)))),
            "noise": np.array([noise], np.float32),
        }
        for _ in range(count)
    ]
