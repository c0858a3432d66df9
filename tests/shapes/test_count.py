"""Figures of a model: what inference does not know is learned by running."""

from pathlib import Path

import numpy as np
import pytest

from onnxcompress.io import model_io
from onnxcompress.shapes import count as counting
from onnxcompress.shapes import resolve
from tests.helpers import from_text

VIT = Path(__file__).parents[2] / "models" / "vit.onnx"


def test_products_of_activations_count_although_inference_does_not_know_their_shapes():
    model = model_io.load(VIT)
    counts = counting.count(model, {"x": np.zeros((1, 1, 28, 28), np.float32)})
    tokens, width, heads, blocks = 50, 96, 4, 4
    linear = blocks * tokens * (4 * width * width + 2 * width * 2 * width)
    attention = blocks * heads * 2 * tokens * tokens * (width // heads)
    stem_and_head = 49 * 16 * width + width * 10
    assert counts.uncounted == ()
    assert counts.macs == linear + attention + stem_and_head


def test_a_feed_that_does_not_run_leaves_them_uncounted():
    text = """g (float[n, m] x, int64[2] shape) => (float[a, b] y)
    { r = Reshape(x, shape) t = Transpose<perm = [1, 0]>(r) y = MatMul(r, t) }"""
    x = np.ones((2, 6), np.float32)
    assert counting.count(from_text(text), {"x": x, "shape": np.array([3, 4])}).macs == 3 * 4 * 3
    counts = counting.count(from_text(text), {"x": x, "shape": np.array([5, 5])})
    assert counts.macs is None
    assert len(counts.uncounted) == 1


def test_shapes_that_are_known_are_not_inferred_again(monkeypatch):
    model = from_text("g (float[n, 4] x, float[4, 5] w) => (float[n, 5] y) { y = MatMul(x, w) }")
    feed = {"x": np.zeros((3, 4), np.float32), "w": np.zeros((4, 5), np.float32)}
    first = counting.count(model, feed)
    assert first.macs == 60
    monkeypatch.setattr(resolve, "infer_dims", lambda *_: pytest.fail("inferred again"))
    assert counting.count(model, feed, known=first.shapes) == first
