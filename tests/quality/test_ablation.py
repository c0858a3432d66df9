"""Ablation finds the layers that a model depends on."""

import numpy as np
import pytest

import onnxcompress as oc
from onnxcompress.io import model_io
from onnxcompress.quality import ablation
from onnxcompress.quality.ablation import Ablation
from onnxcompress.runtime import executors
from tests.helpers import floats, with_constants

FEEDS = [{"x": floats(1, 16, seed=seed)} for seed in range(4)]


def _model(scale=1.0):
    """Two layers side by side: one adds what the other has, times a scale; and half of its channels are unused."""
    text = (
        "g (float[n, 16] x, float[16, 8] a, float[16, 8] b, float[8, 1] c) => (float[n, 1] y)"
        " { p = MatMul(x, a) q = MatMul(x, b) s = Add(p, q) y = MatMul(s, c) }"
    )
    a, c = floats(16, 8), np.ones((8, 1), np.float32)
    c[4:] = 0
    return with_constants(text, a=a, b=(scale * a).astype(np.float32), c=c)


def test_what_a_layer_gives_is_what_is_missed():
    found = ablation.before_and_after(_model(), _model(scale=3.0), FEEDS)
    assert len(found) == 3
    one, other, last = found
    assert (one.before.change, other.before.change) == (pytest.approx(0.5), pytest.approx(0.5))
    assert (one.after.change, other.after.change) == (pytest.approx(0.25), pytest.approx(0.75))
    assert last.before == Ablation(change=pytest.approx(1), channels=1, parts=(pytest.approx(1),))


def test_parts_that_nobody_reads_are_not_missed():
    parts = ablation.before_and_after(_model(), _model(), FEEDS)[0].before.parts
    assert len(parts) == 8
    assert max(parts[4:]) == 0 < min(parts[:4])


def test_a_layer_that_is_gone_is_said_to_be():
    text = "g (float[n, 16] x, float[16, 1] a) => (float[n, 1] y) { z = MatMul(x, a) y = Relu(z) }"
    found = ablation.before_and_after(_model(), with_constants(text, a=floats(16, 1)), FEEDS)
    assert [each.after is None for each in found] == [True, True, False]


def test_a_large_model_is_looked_at_with_fewer_runs(monkeypatch):
    macs = 2 * 16 * 8 + 8
    monkeypatch.setattr(ablation, "_MACS", 3 * macs)
    found = ablation.before_and_after(_model(), _model(), FEEDS)
    assert [each.before.parts for each in found] == [()] * 3
    monkeypatch.setattr(ablation, "_MACS", macs)
    assert [each.before is None for each in ablation.before_and_after(_model(), _model(), FEEDS)] == [False, True, True]


def test_a_convolution_is_silenced_by_its_channels():
    text = "g (float[n, 2, 5, 5] x, float[4, 2, 3, 3] w) => (float[n, 4, 3, 3] y) { y = Conv(x, w) }"
    model = with_constants(text, w=floats(4, 2, 3, 3))
    found = ablation.before_and_after(model, model, [{"x": floats(1, 2, 5, 5)}])[0].after
    assert (found.channels, len(found.parts), found.change) == (4, 4, pytest.approx(1))
    assert sum(part**2 for part in found.parts) == pytest.approx(1)


def test_a_process_finds_the_same():
    here = ablation.before_and_after(_model(), _model(scale=3.0), FEEDS)
    with executors.wanted(workers=2, scheduler=None) as executor:
        assert ablation.before_and_after(_model(), _model(scale=3.0), FEEDS, executor=executor) == here


def test_compress_finds_out_where_it_is_asked_to():
    model = _model()
    asked = oc.compress(model, recipe="fold", data=FEEDS, sensitivity=True).report
    assert [each.before is not None for each in asked.sensitivity] == [True] * 3
    assert asked.as_json()["sensitivity"][0]["before"]["channels"] == 8
    assert oc.compress(model, recipe="fold", data=FEEDS).report.sensitivity == ()
    assert oc.compress(model, recipe="fold", data=FEEDS, sensitivity=True, plan=True).report.sensitivity == ()
    assert model_io.model_bytes(model) == asked.input.bytes


def test_a_model_that_can_not_be_silenced_is_compressed_all_the_same(monkeypatch):
    def refuse(*_, **__):
        raise oc.ModelError("over 2 GiB")

    monkeypatch.setattr(ablation, "before_and_after", refuse)
    report = oc.compress(_model(), recipe="fold", data=FEEDS, sensitivity=True).report
    assert report.sensitivity == ()
    assert any("over 2 GiB" in note for note in report.notes)
