"""Voices: what is lost is measured by levels and durations, with the same draws in both models, and by nothing else."""

import numpy as np
import pytest

import onnxcompress as oc
from onnxcompress.data.evaluation_set import Evaluation
from onnxcompress.quality.compare_outputs import measure
from onnxcompress.quality.output_kinds import OutputKind, decide
from onnxcompress.quality.output_plan import OutputPlan
from onnxcompress.quality.output_sources import Ending, Source
from onnxcompress.runtime.loaded_model import LoadedModel
from tests import voice
from tests.helpers import floats, from_text, with_constants

OTHER = Source(Ending.OTHER, "Tanh")


def _quality(one, other, feeds):
    first, second = LoadedModel(one), LoadedModel(other)
    plan = OutputPlan.of(first.model)
    return measure(plan.session(first), plan.session(second), Evaluation(feeds=feeds, source="test"), plan=plan)


@pytest.mark.parametrize("noise", [0.0, 0.5])
def test_the_same_model_loses_nothing_however_it_draws(noise):
    quality = _quality(voice.model(), voice.model(), voice.feeds(noise=noise))
    assert quality.drop == 0
    assert quality.outputs["y"].kind == "signal"
    assert quality.outputs["y"].max_abs == 0


@pytest.mark.parametrize("noise", [0.0, 0.5])
def test_weights_of_8_bits_are_accepted_and_of_4_and_3_refused(noise):
    feeds = voice.feeds(noise=noise)
    drops = [_quality(voice.model(), voice.model(bits), feeds).drop for bits in (8, 4, 3)]
    assert drops[0] < 0.01
    assert drops[1] > 0.03
    assert drops[2] > 0.03


def test_durations_are_judged_where_the_sound_is_the_same():
    feeds = voice.feeds(noise=0)
    quality = _quality(
        voice.model(),
        voice.model(de="Exp(ds) two = Constant<value = float {2.0}>() dd = Mul(de, two)", frames="Ceil(dd)"),
        feeds,
    )
    figures = quality.outputs["y"].figures
    assert figures["level_distance"] == 0
    assert 0.5 < figures["duration_error"] < 1
    assert quality.drop == pytest.approx(0.1 * figures["duration_error"])


def test_signals_without_a_counterpart_of_their_durations_are_aligned():
    cast = "Identity(rounded)"
    moved = "Exp(ds) half = Constant<value = float {0.5}>() up = Add(de, half) "
    moved += "i = Cast<to = 7>(up) rounded = Cast<to = 1>(i)"
    feeds = voice.feeds(noise=0)
    same = _quality(voice.model(), voice.model(frames=cast, de=moved), feeds)
    lengths = same.outputs["y"].figures
    assert "duration_error" not in lengths
    assert same.outputs["y"].max_abs is None or same.samples == len(feeds)
    assert 0 < same.drop < 0.1
    worse = _quality(voice.model(), voice.model(3, frames=cast, de=moved), feeds)
    assert worse.drop > same.drop + 0.01


def test_a_signal_of_noise_alone_is_the_same_noise():
    text = """g (float[n, m] x) => (float[n, m] y) <float s = {SCALE}> {
        r = RandomNormalLike(x) z = Mul(r, s) y = Add(x, z) }"""
    feeds = [{"x": floats(4, 6, seed=seed)} for seed in range(16)]
    one, same, other = (from_text(text.replace("SCALE", scale)) for scale in ("0.5", "0.5", "0.8"))
    assert _quality(one, same, feeds).drop == 0
    assert _quality(one, other, feeds).drop > 0.01


# --- what is sound ----------------------------------------------------------------------------------------------


def _sounds(lengths, seed=0):
    return [floats(1, length, seed=seed + length) for length in lengths]


def test_floats_about_zero_of_a_length_of_their_own_are_sound():
    lengths = (2048, 2304, 5120)
    arrays, inputs = _sounds(lengths), [{"mel": floats(80, length // 256)} for length in lengths]
    assert decide(OTHER, arrays, inputs).kind is OutputKind.SIGNAL
    assert decide(Source(Ending.SIGMOID, "Sigmoid"), arrays, inputs).kind is not OutputKind.SIGNAL
    assert decide(OTHER, [a + 3 for a in arrays], inputs).kind is not OutputKind.SIGNAL
    per_input = [{"x": array} for array in _sounds(lengths, seed=9)]
    assert decide(OTHER, arrays, per_input).kind is not OutputKind.SIGNAL
    assert decide(OTHER, [np.repeat(a, 3, 0) for a in arrays], inputs).kind is not OutputKind.SIGNAL


def test_a_vocoder_is_judged_by_what_is_heard():
    text = """g (float[1, 8, n] mel, float[8, 16, 64] up, float[1, 16, 7] w) => (float[1, 1, t] y) {
        u = ConvTranspose<strides = [64]>(mel, up) l = LeakyRelu(u) c = Conv(l, w) y = Tanh(c) }"""
    weights = {"up": floats(8, 16, 64) / 8, "w": floats(1, 16, 7) / 8}
    weights["w"] -= weights["w"].mean()
    weights["up"] -= weights["up"].mean(2, keepdims=True)
    phase = {**weights, "w": -weights["w"]}
    feeds = [{"mel": floats(1, 8, 40 + seed, seed=seed)} for seed in range(16)]
    quality = _quality(with_constants(text, **weights), with_constants(text, **phase), feeds)
    assert quality.outputs["y"].kind == "signal"
    assert quality.outputs["y"].cosine < -0.9
    assert quality.drop < 1e-4


# --- the recipes ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("noise", [0.0, 0.5])
def test_fold_says_that_nothing_is_lost(noise):
    report = oc.compress(voice.model(), recipe="fold", data=voice_data(noise)).report
    assert report.quality.drop == 0
    assert not report.internal_errors


@pytest.mark.parametrize("recipe", ["int8-weights", "int8", "float16", "auto"])
@pytest.mark.parametrize("noise", [0.0, 0.5])
def test_recipes_make_a_voice_smaller_within_the_limit(recipe, noise):
    result = oc.compress(voice.model(), recipe=recipe, data=voice_data(noise))
    report = result.report
    assert report.quality.drop < 0.01
    assert report.output.bytes < (0.7 if recipe == "float16" else 0.45) * report.input.bytes
    assert not report.internal_errors
    assert [node.op_type for node in result.model.graph].count("RandomNormalLike") == 2


def test_results_are_the_same_again():
    models = [oc.compress(voice.model(), recipe="int8-weights", data=voice_data(0.5)).model for _ in range(2)]
    reports = [_quality(voice.model(), model, voice.feeds()).drop for model in models]
    assert reports[0] == reports[1]


def voice_data(noise):
    """Return feeds of other lengths each, as a function of the user's gives them."""
    return voice.feeds(16, noise=noise)


def test_lists_of_many_lengths_are_judged_at_any_size():
    rng = np.random.default_rng(0)
    meter = OutputPlan({"y": Source(Ending.OTHER, "Tanh", sized_by=("d",))})
    assert meter.values is None
    assert decide(meter.sources["y"], [rng.standard_normal((1, n)) for n in (300, 400)], []).kind is OutputKind.SIGNAL
