"""Activations with a range by their operators keep it, whatever samples reach."""

import numpy as np
import pytest

from onnxcompress.activations.calibration import calibrate
from onnxcompress.numerics.quantization.affine_activations import IntegerGrid
from onnxcompress.passes.quantize.clip_ranges import choose_ranges
from onnxcompress.passes.quantize.known_ranges import known_ranges
from tests.helpers import floats, with_constants

CASES = {
    "s = Sigmoid(x) y = Identity(s)": {"s": (0, 1), "y": (0, 1)},
    "s = Softmax(x) t = Transpose(s) y = Relu(t)": {"s": (0, 1), "t": (0, 1)},
    "s = Tanh(x) c = Concat<axis = 0>(s, s) y = Relu(c)": {"s": (-1, 1), "c": (-1, 1)},
    "s = Sigmoid(x) b = Relu(x) y = Concat<axis = 0>(s, b)": {"s": (0, 1)},
    "s = Sigmoid(x) y = Mul(s, k)": {"s": (0, 1), "y": (0, 640)},
    "s = Sigmoid(x) y = Mul(k, s)": {"s": (0, 1), "y": (0, 640)},
    "s = Sigmoid(x) y = Mul(s, x)": {"s": (0, 1)},
    "s = Clip(x, lo, hi) y = Relu(s)": {"s": (2, 6)},
    "s = Clip(x, lo) y = Relu(s)": {},
    "y = Relu(x)": {},
}


@pytest.mark.parametrize("text", CASES)
def test_ranges_follow_the_operators(text):
    given = "g (float[1, 4] x, float k, float lo, float hi) => (float[a, b] y)"
    model = with_constants(f"{given} {{ {text} }}", k=np.float32(640), lo=np.float32(2), hi=np.float32(6))
    assert known_ranges(model) == {name: pytest.approx(ends) for name, ends in CASES[text].items()}


def test_scores_beyond_all_samples_stay_possible():
    model = with_constants(
        "g (float[N, 8] x, float[8, 8] w, float[8, 8] v) => (float[N, 8] y)"
        "{ h = MatMul(x, w) a = Sigmoid(h) y = MatMul(a, v) }",
        w=np.eye(8, dtype=np.float32),
        v=floats(8, 8, seed=1),
    )
    samples = -np.abs(floats(64, 1, 8, seed=2))  # no activation over one half
    samples[0] = 2 * np.eye(8, dtype=np.float32)[0]  # inputs reach 2, activations .88 in one place
    ranges = known_ranges(model)
    assert ranges == {"a": (0.0, 1.0)}
    chosen = _chosen(model, samples)
    assert chosen["a"].method == "known"
    assert chosen["a"].affine.scale == pytest.approx(1 / 255)


def _chosen(model, samples):
    feeds = [{"x": sample} for sample in samples]
    found = calibrate(model, feeds, ["h", "a"])
    return choose_ranges(model, feeds, found, IntegerGrid("u8"))
