"""Ranges are clipped where the layers behind gain, and kept where they don't."""

from __future__ import annotations

import numpy as np
import pytest

from onnxcompress.activations.calibration import calibrate
from onnxcompress.activations.layer_inputs import sample_rows
from onnxcompress.graph import edit
from onnxcompress.numerics.quantization.affine_activations import IntegerGrid
from onnxcompress.ops.linear import linear_layers
from onnxcompress.passes.quantize.clip_ranges import choose_ranges
from tests.helpers import floats, from_text

TEXT = """
g (float[N, 4] x, bool p) => (float[N, 2] y, float[N, 2] z, float[N, 4] s)
<float[4, 2] w = {0, 0, 0, 0, 0, 0, 0, 0}> {
  h = Relu(x)
  y = MatMul(h, w)
  s = Sigmoid(x)
  e = Exp(h)
  z = If (p) <
    then_branch = yes () => (float[N, 2] a) { t = Abs(x)  a = MatMul(t, w) },
    else_branch = no () => (float[N, 2] b) { n = Neg(x)  b = MatMul(n, w) }
  >
}
"""
VALUES = ["h", "s", "e", "t", "n"]


def _chosen(outlier_weight: float, count: int = 3):
    model = from_text(TEXT)
    weight = np.ones((4, 2), np.float32)
    weight[3] = outlier_weight
    edit.set_weight(model.graph.initializers["w"], weight)
    feeds = []
    for i in range(count):
        x = floats(1000, 4, seed=i)
        x[0, 3] = 60  # one in 4,000, so that sampled rows may lack it
        feeds.append({"x": x, "p": np.array(True)})
    grid = IntegerGrid("u8")
    return choose_ranges(model, feeds, calibrate(model, feeds, VALUES), grid), feeds, model


def test_a_clip_that_layers_gain_by_is_taken():
    chosen, _, _ = _chosen(0.0)
    assert chosen["h"].affine.high < 30
    assert chosen["h"].method.startswith(("mse", "percentile"))


def test_a_clip_that_layers_lose_by_is_not():
    chosen, _, _ = _chosen(1.0)
    assert chosen["h"].affine.high == pytest.approx(60, rel=0.01)


def test_other_values_keep_what_was_seen():
    chosen, _, _ = _chosen(0.0)
    assert chosen["s"].method == "known"
    assert (chosen["s"].affine.low, chosen["s"].affine.high) == (0, pytest.approx(1))
    assert chosen["e"].method == "min-max"
    assert "n" not in chosen  # no sample takes that branch
    assert chosen["t"].affine.low == 0


def test_rows_are_those_that_layers_read():
    _, feeds, model = _chosen(0.0)
    layers = linear_layers(model)
    found = sample_rows(model, feeds, layers)
    taken = {found[id(layer.node)].layer.x.name: found[id(layer.node)] for layer in layers}
    assert taken["n"].is_empty
    rows = taken["h"].rows()[0]
    assert 200 <= len(rows) <= 260
    everything = np.concatenate([np.maximum(feed["x"], 0) for feed in feeds])
    assert (rows[:, None] == everything[None]).all(axis=2).any(axis=1).all()
    np.testing.assert_array_equal(
        taken["t"].extremes.highs, np.abs(np.concatenate([f["x"] for f in feeds])).max(axis=0)
    )


def test_of_many_samples_some_are_run_and_of_steps_the_first():
    text = """
    g (float[1, 2] x, float[1, 2] h) => (float[1, 2] n, float[1, 2] y) <float[2, 2] w = {1, 0, 0, 1}> {
      n = Add(x, h)
      y = MatMul(n, w)
    }
    """
    model = from_text(text)
    feeds = [{"x": np.ones((1, 2), np.float32), "h": np.zeros((1, 2), np.float32)} for _ in range(100)]
    (layer,) = linear_layers(model)
    spread = sample_rows(model, feeds, [layer])[id(layer.node)]
    assert spread.rows().shape == (1, 25, 2)
    assert spread.extremes.highs.max() == 1
    steps = sample_rows(model, feeds, [layer], state={"h": "n"})[id(layer.node)]
    np.testing.assert_array_equal(steps.rows()[0, :, 0], np.arange(1, 33))
