"""Sessions whose runs take much memory: one model at a time is in the runtime, and nothing else changes."""

from __future__ import annotations

import gc
import weakref

import numpy as np
import pytest

import onnxcompress as oc
from onnxcompress.io import model_io
from onnxcompress.runtime import held_model
from onnxcompress.runtime import session as runtime
from onnxcompress.runtime.loaded_model import LoadedModel
from tests.helpers import floats, from_text, with_constants

TEXT = """g (float[1, 3] x) => (float[1, 3] y) <float[3] a = {1, 2, 3}> {
    p = Identity(x)
    q = Add(p, a)
    y = Sigmoid(q)
}"""
FEED = {"x": np.arange(3, dtype=np.float32).reshape(1, 3)}


@pytest.fixture
def loads(monkeypatch):
    """Return the list to which every load of a model adds whether it has an arena."""
    seen: list[bool] = []
    real = runtime._load

    def counted(model, options):
        seen.append(options.enable_cpu_mem_arena)
        return real(model, options)

    monkeypatch.setattr(runtime, "_load", counted)
    return seen


@pytest.fixture
def heavy(monkeypatch):
    """Let every run count as one that takes much memory."""
    monkeypatch.setattr(runtime, "HEAVY_RUN_BYTES", -1)


def test_sessions_of_light_runs_stay_loaded(loads):
    model = LoadedModel(from_text(TEXT))
    for _ in range(3):
        model.plain.run(FEED)
        model.fast.run(FEED)
    assert loads == [True, True]
    assert not model.is_heavy


@pytest.mark.usefixtures("heavy")
def test_a_heavy_model_is_given_back_while_another_is_in_use(loads):
    one, other = LoadedModel(from_text(TEXT)), LoadedModel(from_text(TEXT.replace("1, 2, 3", "4, 5, 6")))
    first = one.plain.run(FEED)["y"]
    assert one.is_heavy
    kept = first.copy()
    assert loads == [True]
    again = one.plain.run(FEED)["y"]
    assert loads == [True, False]  # an arena is kept alive by the arrays that it gave out
    one.plain.run(FEED)
    assert loads == [True, False]
    other.plain.run(FEED)
    other.plain.run(FEED)
    third = one.plain.run(FEED)["y"]
    assert loads == [True, False, True, False, False]
    np.testing.assert_array_equal(first, again)
    np.testing.assert_array_equal(first, third)
    np.testing.assert_array_equal(first, kept)


@pytest.mark.usefixtures("heavy")
def test_what_is_like_a_heavy_model_is_loaded_without_an_arena(loads):
    model = LoadedModel(from_text(TEXT))
    model.plain.run(FEED)
    LoadedModel(from_text(TEXT), like=model).fast.run(FEED)
    assert loads == [True, False]


def test_a_session_can_be_given_back_by_hand_and_dies_with_its_model(loads):
    model = LoadedModel(from_text(TEXT))
    expected = model.plain.run(FEED)["y"]
    plain = model.plain
    model.close_plain()
    assert model.plain is plain
    np.testing.assert_array_equal(model.plain.run(FEED)["y"], expected)
    assert loads == [True, True]
    gc.disable()
    try:
        watch = weakref.ref(model)
        del model
        assert watch() is None  # no circle keeps it until the next collection
    finally:
        gc.enable()


@pytest.mark.usefixtures("heavy")
def test_a_session_of_bytes_alone_stays_loaded(loads):
    session = runtime.open_session(model_io.to_bytes(from_text(TEXT)), optimize=False)
    assert not session.give_back()
    session.run(FEED)
    session.run(FEED)
    assert loads == [True]


def test_of_many_large_models_those_used_longest_ago_are_given_back(monkeypatch, loads):
    monkeypatch.setattr(held_model, "_MOST_LOADED_BYTES", 1)
    first, second, third = (LoadedModel(from_text(TEXT)) for _ in range(3))
    expected = first.plain.run(FEED)["y"]
    second.plain.run(FEED)
    third.plain.run(FEED)
    assert loads == [True, True, True]  # three are kept
    first.plain.run(FEED)
    LoadedModel(from_text(TEXT)).plain.run(FEED)  # in the place of the second
    third.plain.run(FEED)
    first.plain.run(FEED)
    assert len(loads) == 4
    second.plain.run(FEED)
    assert len(loads) == 5
    np.testing.assert_array_equal(second.plain.run(FEED)["y"], expected)


def test_lossless_recipes_score_heavy_models_without_optimizations_and_give_the_same_bytes(monkeypatch):
    light = oc.compress(from_text(TEXT), recipe="fold")
    assert not any("takes much memory" in note for note in light.report.notes)
    monkeypatch.setattr(runtime, "HEAVY_RUN_BYTES", -1)
    heavy = oc.compress(from_text(TEXT), recipe="fold")
    assert any("takes much memory" in note for note in heavy.report.notes)
    assert heavy.report.latency is None
    assert heavy.report.quality is not None
    assert heavy.report.quality.drop == pytest.approx(0, abs=1e-6)
    assert model_io.to_bytes(heavy.model) == model_io.to_bytes(light.model)


def test_heavy_models_are_compared_as_others_are(monkeypatch):
    text = """g (float[n, 64] x, float[64, 64] w) => (float[n, 64] y) { y = MatMul(x, w) }"""
    models = [with_constants(text, w=floats(64, 64, seed=seed)) for seed in (9, 10)]
    data = [{"x": floats(4, 64, seed=seed)} for seed in range(8)]
    light = oc.compare(*models, data=data)
    monkeypatch.setattr(runtime, "HEAVY_RUN_BYTES", -1)
    heavy = oc.compare(*models, data=data)
    assert heavy.quality == light.quality
    assert heavy.quality.drop > 0
