"""Activations that hardly act go, and what they stood between becomes one layer; others stay."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir
import pytest

from onnxcompress.core import Action, Context, Trial
from onnxcompress.io import model_io
from onnxcompress.passes.shallow.linearize import Linearize
from onnxcompress.quality.divergence import Divergence
from tests.helpers import floats, op_types, run, with_constants

FEEDS = [{"x": floats(1, 6, seed=seed)} for seed in range(200)]
TEXT = """g (float[N, 6] x, float[6, 10] u, float[10] p, float[10, 8] v, float[8] q, float[8, 4] w) => (float[N, 4] y) {
    a = MatMul(x, u)  b = Add(a, p)  c = Relu(b)  d = MatMul(c, v)  e = Add(d, q)  f = Relu(e)  y = MatMul(f, w) }"""


def _net(lift: float) -> ir.Model:
    second = floats(10, 8, seed=2) / 3
    return with_constants(
        TEXT,
        u=floats(6, 10, seed=1) / 2,
        p=np.full(10, lift, np.float32),
        v=second,
        q=floats(8, seed=3) - lift * second.sum(axis=0),
        w=floats(8, 4, seed=4),
    )


def _context(**more: object) -> Context:
    return Context(feeds=FEEDS, **more)  # type: ignore[arg-type]


def test_an_activation_that_never_acts_goes_and_nothing_changes():
    model, original = _net(lift=9.0), _net(lift=9.0)
    applied, kept = Linearize().run(model, _context())
    assert (applied.action, kept.action) == (Action.APPLIED, Action.SKIPPED)
    assert op_types(model) == ["Add", "MatMul", "MatMul", "Relu"]
    assert applied.bytes_after < applied.bytes_before
    assert kept.reason == "not linear: a line for each channel misses 0.14 of its variance"
    feed = {"x": floats(50, 6, seed=999)}
    np.testing.assert_allclose(run(model, feed)["y"], run(original, feed)["y"], rtol=1e-3, atol=1e-3)
    assert all(change.action is Action.SKIPPED for change in Linearize().run(model, _context()))


@pytest.mark.parametrize(("missed", "goes"), [(0.001, False), (0.05, True)])
def test_how_much_it_may_act(missed, goes):
    model, original = _net(lift=2.0), _net(lift=2.0)
    change = Linearize(missed=missed, divergence=1.0).run(model, _context())[0]
    assert (change.action is Action.APPLIED) == goes
    assert len(model.graph) == len(original.graph) - (3 if goes else 0)
    if goes:
        assert 0.001 < change.details["predicted_loss"] < 0.05
        unseen = [{"x": floats(1, 6, seed=800 + seed)} for seed in range(100)]
        measured = Divergence(original, unseen).of(model)
        assert 0 < measured < 0.05
        assert measured < 3 * change.details["measured_divergence"]


def test_how_far_the_outputs_may_go():
    model = _net(lift=0.0)
    changes = Linearize(missed=1.0, divergence=1e-6).run(model, _context())
    assert len(model.graph) == len(_net(lift=0.0).graph)
    assert all("more than 1e-06" in change.reason for change in changes)


def test_a_sigmoid_s_middle_is_a_line_too():
    model = with_constants(
        "g (float[N, 6] x, float[6, 10] u, float[10, 4] w) => (float[N, 4] y)"
        "{ a = MatMul(x, u)  b = Sigmoid(a)  y = MatMul(b, w) }",
        u=floats(6, 10, seed=1) / 30,
        w=floats(10, 4, seed=4),
    )
    original = model_io.clone(model)
    (change,) = Linearize().run(model, _context())
    assert change.action is Action.APPLIED
    assert op_types(model) == ["Add", "MatMul"]
    assert Divergence(original, FEEDS).of(model) < 1e-4


def test_convolutions_with_a_line_between():
    model = with_constants(
        """g (float[N, 3, 5, 5] x, float[6, 3, 3, 3] u, float[6] p, float[4, 6, 1, 1] v) => (float[N, 4, 3, 3] y) {
           a = Conv(x, u, p)  b = Clip(a)  c = Conv(b, v)  y = Tanh(c) }""",
        u=floats(6, 3, 3, 3, seed=1),
        p=floats(6, seed=2),
        v=floats(4, 6, 1, 1, seed=3),
    )
    original = model_io.clone(model)
    feeds = [{"x": floats(1, 3, 5, 5, seed=seed)} for seed in range(40)]
    (change,) = Linearize().run(model, Context(feeds=feeds))
    assert change.action is Action.APPLIED
    assert op_types(model) == ["Conv", "Tanh"]
    np.testing.assert_allclose(run(model, feeds[0])["y"], run(original, feeds[0])["y"], atol=1e-3)


class _Judge:
    limit = 0.01
    prefer = "balanced"

    def score(self, model: ir.Model, *, most: int | None = None) -> Trial:
        assert most is None
        return Trial(bytes=len(model.graph), size_ratio=1, latency_ratio=None, drop=0.5)


def test_a_score_that_falls_too_much_takes_it_back():
    model = _net(lift=9.0)
    change = Linearize().run(model, _context(judge=_Judge()))[0]
    assert "the score falls by 0.5" in change.reason
    assert len(model.graph) == len(_net(lift=9.0).graph)


def test_nodes_that_are_kept_away_and_recurrent_samples_are_left_alone():
    model = _net(lift=9.0)
    assert not Linearize(missed=0.5).run(model, _context(selects=lambda node: node.op_type != "Relu"))
    assert not Linearize().run(model, _context(state={"x": "y"}))
