"""The verdict on models with all kinds of output: what counts, how much, and what is told."""

import math

import numpy as np
import pytest
from scipy.special import softmax

import onnxcompress as oc
from onnxcompress.data.evaluation_set import Evaluation
from onnxcompress.errors import LimitError, UsageError
from onnxcompress.quality.compare_outputs import measure, quality_notes
from onnxcompress.quality.output_kinds import OutputKind
from onnxcompress.quality.output_plan import OutputPlan
from onnxcompress.quality.output_sources import Ending, Source
from onnxcompress.quality.pairing import batch_size
from onnxcompress.quality.verdict import VerdictMeter, samples_needed, unsure
from onnxcompress.runtime.loaded_model import LoadedModel
from tests.helpers import floats, from_text, with_constants

COUNT = 32
NOTHING = Source(Ending.OTHER, "Add")


def _verdict(one, other, *, source=NOTHING, feeds=None, states=(), overrides=None, seen=0):
    """Return the loss of an output y, of which each array is what one feed gives."""
    plan = OutputPlan({"y": source}, states=frozenset(states), overrides=overrides or {})
    runs = [[value if isinstance(value, dict) else {"y": value} for value in each] for each in (one, other)]
    feeds = feeds or [{}] * len(runs[0])
    plan.decide_first(runs[0], feeds)
    meter = VerdictMeter(plan)
    for index, (a, b) in enumerate(zip(*runs, strict=True)):
        meter.add(feeds[index], a, b, seen=index < seen)
    (found,) = meter.verdict().outputs
    return found


def _normal(*shape, seed=0):
    return np.random.default_rng(seed).standard_normal((COUNT, *shape))


def _quality(text, other, feeds, **options):
    """Return what is measured of two models, from the text of one with a place for a factor in it."""
    loaded = [LoadedModel(from_text(each)) for each in (text, other)]
    plan = OutputPlan.of(loaded[0].model, **options)
    sessions = [plan.session(each) for each in loaded]
    return measure(*sessions, Evaluation(feeds=feeds, source="test"), plan=plan)


def _r2(one, other):
    return 0.5 * np.square(one - other).sum() / np.square(one - one.mean()).sum()


# --- labels and other decisions, by the floats behind them -------------------------------------------------------

LABELS = """g (float[n, 6] x) => (int64[n] y) <float[6] shift = {%s}> {
    c = Exp(x) d = Mul(c, c) m = Add(d, shift) i = Identity(m) y = ArgMax<axis = 1, keepdims = 0>(i) }"""
ROWS = [{"x": floats(4, 6, seed=seed)} for seed in range(16)]


def test_labels_are_judged_by_their_share_and_by_the_scores_behind_them():
    quality = _quality(LABELS % "0,0,0,0,0,0", LABELS % "0.5,0,0,0,0,0", ROWS)
    scores = np.exp(2 * np.concatenate([feed["x"] for feed in ROWS]).astype(np.float64))
    moved = scores + np.array([0.5, 0, 0, 0, 0, 0])
    differing = (scores.argmax(1) != moved.argmax(1)).mean()
    assert 0 < differing < 0.1
    output = quality.outputs["y"]
    assert (output.kind, output.why) == ("labels", "integers chosen by ArgMax")
    assert output.figures["differing"] == pytest.approx(differing)
    assert output.confidence == pytest.approx(softmax(scores, -1).max(1).mean(), rel=1e-4)
    assert quality.drop >= differing * 0.01 / 0.05


def test_labels_that_stay_show_damage_by_the_scores_behind_them():
    feeds = [{"x": np.where(np.arange(6) == seed % 6, 2, 0.0).astype(np.float32)[None]} for seed in range(32)]
    text = LABELS.replace("m = Add(d, shift)", "a = Mul(d, shift) m = Identity(a)")
    quality = _quality(text % "1,1,1,1,1,1", text % ",".join(["0.06"] * 6), feeds)
    assert quality.outputs["y"].figures["differing"] == 0
    assert quality.drop > 0.01


def test_labels_beside_another_output_count():
    text = LABELS.replace("=> (int64[n] y)", "=> (int64[n] y, float[n, 6] t)").replace("m = Add", "t = Tanh(x) m = Add")
    quality = _quality(text % "0,0,0,0,0,0", text % "90,0,0,0,0,0", ROWS)
    assert (quality.output, quality.outputs["t"].drop) == ("y", 0)
    assert quality.drop > 0.1


def test_what_the_result_lacks_is_left_out():
    other = """g (float[n, 6] x) => (int64[n] y) <int64[1] zero = {0}> {
        s = Shape<start = 0, end = 1>(x) y = Expand(zero, s) }"""
    quality = _quality(LABELS % "0,0,0,0,0,0", other, ROWS)
    best = np.concatenate([feed["x"] for feed in ROWS]).argmax(1)
    assert quality.drop == pytest.approx(np.mean(best != 0) * 0.01 / 0.03)
    assert quality.outputs["y"].confidence is None


def test_labels_along_the_channels_of_a_picture():
    text = """g (float[n, 5, 8, 8] x) => (int64[n, 8, 8] y) <float s = {%s}> {
        m = Mul(x, s) i = Identity(m) y = ArgMax<axis = 1, keepdims = 0>(i) }"""
    feeds = [{"x": np.exp(2 * floats(2, 5, 8, 8, seed=seed))} for seed in range(8)]
    quality = _quality(text % "1", text % "-1", feeds)
    assert quality.outputs["y"].positions == 16 * 64
    assert quality.outputs["y"].classes == 5
    assert quality.drop > 0.2


def test_booleans_are_judged_by_their_share_and_by_the_float_behind_them():
    text = """g (float[n, 8] x) => (bool[n, 8] y) <float s = {%s}, float edge = {9}> {
        t = Cos(x) m = Mul(t, s) y = Greater(m, edge) }"""
    feeds = [{"x": floats(1, 8, seed=seed)} for seed in range(16)]
    quality = _quality(text % "1", text % "2", feeds)
    values = np.cos(np.concatenate([feed["x"] for feed in feeds]).astype(np.float64))
    assert quality.outputs["y"].figures["differing"] == 0
    expected = 0.5 * np.square(values).sum() / np.square(values - values.mean(0)).sum()
    assert quality.drop == pytest.approx(expected, rel=1e-5)
    assert quality.outputs["y"].why == "booleans of Greater"


def test_strings_are_judged_by_their_share():
    one = [np.array([f"{k}", "b"], object) for k in range(COUNT)]
    other = [np.array([f"{k}", "b" if k else "c"], object) for k in range(COUNT)]
    found = _verdict(one, other)
    assert (found.kind, found.why) == (OutputKind.STRINGS, "strings")
    assert found.loss.drop.value == pytest.approx(1 / 64 * 0.01 / 0.03)


def test_indices_of_non_maximum_suppression():
    text = """g (float[1, 6, 4] x, float[1, 2, 6] q) => (int64[d, 3] y) <int64 most = {3}, float s = {%s}> {
        b = Abs(x) p = Mul(q, s) y = NonMaxSuppression(b, p, most) }"""
    feeds = [{"x": 10 * floats(1, 6, 4, seed=k), "q": floats(1, 2, 6, seed=50 + k)} for k in range(16)]
    assert _quality(text % "1", text % "1", feeds).drop == 0
    quality = _quality(text % "1", text % "-1", feeds)
    assert quality.outputs["y"].kind == "selection"
    assert quality.outputs["y"].figures["unshared"] > 0.3
    assert quality.drop > 0.1


# --- floats -------------------------------------------------------------------------------------------------------


def test_pieces_of_a_concat_are_judged_each_by_its_own_kind():
    text = """g (float[n, 4] x) => (float[n, 8] y) <float s = {%s}> {
        a = Cos(x) b = Mul(a, s) m = Softmax(x) c = Identity(m) y = Concat<axis = 1>(b, c) }"""
    feeds = [{"x": floats(1, 4, seed=seed)} for seed in range(16)]
    quality = _quality(text % "1", text % "1.2", feeds)
    values = np.cos(np.concatenate([feed["x"] for feed in feeds]).astype(np.float64))
    expected = 0.5 * np.square(0.2 * values).sum() / np.square(values - values.mean(0)).sum()
    assert quality.drop == pytest.approx(expected, rel=1e-4)
    assert quality.outputs["y"].confidence is not None  # of the scores


def test_a_piece_of_another_shape_in_the_result_is_left_to_the_output():
    text = "g (float[n, 4] x) => (float[n, 2, 4] y) <int64[1] one = {1}> { a = Tanh(x) b = Sin(x) %s }"
    apart = text % "c = Unsqueeze(a, one) d = Unsqueeze(b, one) y = Concat<axis = 1>(c, d)"
    whole = text % (
        "c = Unsqueeze(a, one) e = Neg(c) f = Neg(e) d = Unsqueeze(b, one) h = Neg(d) k = Neg(h) "
        "y = Concat<axis = 1>(f, k)"
    )
    quality = _quality(apart, whole, [{"x": floats(1, 4, seed=seed)} for seed in range(8)])
    assert quality.drop == 0


def test_what_a_residual_adds_counts():
    noise = _normal(3, 8, 8)
    feeds = [{"x": image[None]} for image in noise]
    added = 0.1 * _normal(3, 8, 8, seed=1)
    one, other = noise + added, noise + 0.5 * added
    found = _verdict(one[:, None], other[:, None], feeds=feeds)
    assert (found.kind, found.why) == (OutputKind.RESIDUAL, "like the input 'x' and near it")
    assert found.loss.drop.value == pytest.approx(0.5 * 0.25, rel=0.02)


def test_8_bit_images_lose_by_their_mean_and_by_their_squared_error():
    random = np.random.default_rng(0)
    images = random.integers(0, 256, (COUNT, 1, 3, 8, 8), np.uint8)
    off = np.clip(images.astype(int) + 8, 0, 255).astype(np.uint8)
    found = _verdict(images, off, source=Source(Ending.OTHER, "Cast", ("r",)))
    error = np.abs(images.astype(float) - off).mean() / images.std()
    assert (found.kind, found.why) == (OutputKind.IMAGE_8BIT, "integers that Cast rounds")
    assert found.loss.figures["mean_error"] == pytest.approx(error)
    assert found.loss.drop.value == pytest.approx(error / 3)


def test_embeddings_of_any_scale_lose_by_their_centred_cosine():
    values = 100 * _normal(64) + 500
    assert _verdict(values[:, None], values[:, None]).kind is OutputKind.EMBEDDING
    mixed = values + 30 * _normal(64, seed=1)
    found = _verdict(values[:, None], mixed[:, None]).loss
    x, y = values - values.mean(0), mixed - values.mean(0)
    cosine = (x * y).sum(1) / np.linalg.norm(x, axis=1) / np.linalg.norm(y, axis=1)
    assert found.figures["centred_cosine_distance"] == pytest.approx(1 - cosine.mean())
    assert found.drop.value == pytest.approx((1 - cosine.mean()) / 3)


def test_texts_with_time_first_are_taken_apart_by_sample():
    random = np.random.default_rng(0)
    logits = random.standard_normal((COUNT, 1, 20, 12))
    logits[:, :, ::2, 0] += 9
    chances = softmax(3 * logits, -1)
    found = _verdict(chances, chances)
    assert found.kind is OutputKind.TEXT_SCORES
    time_major = [each.transpose(1, 0, 2) for each in chances]  # [20, 1, 12]
    assert _verdict(time_major, time_major).kind is OutputKind.TEXT_SCORES
    blurred = softmax(3 * logits + 2 * random.standard_normal(logits.shape), -1)
    one = _verdict(chances, blurred).loss
    two = _verdict(time_major, [each.transpose(1, 0, 2) for each in blurred]).loss
    assert one.drop == two.drop
    assert one.drop.value > 0.01


def test_sorted_detections_that_swap_lose_nothing():
    rows = np.random.default_rng(0).random((COUNT, 1, 10, 6)) * [300, 300, 300, 300, 1, 80]
    rows[..., 4] = -np.sort(-rows[..., 4], axis=-1)
    swapped = rows[:, :, [1, 0, *range(2, 10)]]
    found = _verdict(rows, swapped)
    assert (found.kind, found.loss.drop.value) == (OutputKind.DETECTION_ROWS, 0)
    fewer = [each[:, :8] for each in rows]
    left, all_rows = rows[:, 0, :8, 4].sum(), rows[..., 4].sum()
    expected = (all_rows - left) / (all_rows + left)  # 1 - F1, weighted by score
    assert _verdict(rows, fewer).loss.drop.value == pytest.approx(expected * 0.01 / 0.05, rel=0.01)


def test_tables_with_other_numbers_of_rows_are_matched_and_signals_of_another_length_by_levels():
    rows = 100 * _normal(10, 4)
    assert _verdict(rows, [each[::-1][:10] for each in rows]).loss.drop.value > 0.01  # rows are compared in order
    fewer = _verdict(rows, [each[:5] for each in rows]).loss
    assert fewer.figures["matched_distance"] > 0.3
    voice = np.sin(np.arange(8000) / 5) * np.ones((COUNT, 1, 1))
    found = _verdict(voice, [each[:, :7500] for each in voice])
    assert found.loss.figures["level_distance"] == pytest.approx(0, abs=0.2)
    assert found.loss.drop.value == pytest.approx(0.01 * (500 / 8000) / 0.1)  # shorter by a sixteenth


def test_rows_of_another_width_in_each_sample():
    spans = [softmax(np.arange(float(n)))[None] for n in range(4, 4 + COUNT)]
    found = _verdict(spans, spans)
    assert (found.kind, found.loss.drop.value) == (OutputKind.CLASS_SCORES, 0)
    assert _verdict(spans, [span[:, ::-1] for span in spans]).loss.drop.value > 0.3
    numbers = [np.arange(float(n)) for n in range(4, 4 + COUNT)]
    assert _verdict(numbers, numbers).loss.drop.value == 0
    late = [np.ones((1, 4)), *([np.arange(4.0)[None]] * 20), np.arange(5.0)[None]]  # after the kind is decided
    assert _verdict(late, late).loss.drop.value == 0


def test_scalars_states_and_sequences():
    numbers = _normal()
    found = _verdict(numbers, numbers + 0.1)
    assert found.loss.drop.value == pytest.approx(0.5 * 0.01 / numbers.var())
    assert _verdict(_normal(4), _normal(4, seed=1), states=["y"]).loss is None
    assert _verdict(_normal(4), _normal(4, seed=1), states=["y"]).why == "fed back as an input"
    lists = [[value, {"b": np.ones(2), "a": 2.0}] for value in _normal(6)]
    others = [[2 * value, {"b": np.ones(2), "a": 2.0}] for value in _normal(6)]
    assert _verdict(lists, lists).loss.drop.value == 0
    assert _verdict(lists, others).loss.drop.value > 0.1
    assert _verdict(lists, others).kind is OutputKind.SEQUENCE
    words = [["a", "b"], ["c", "d"]] * 8
    assert _verdict(words, words).loss.drop.value == 0
    assert _verdict(words, [["a", "x"], ["c", "d"]] * 8).loss.drop.value > 0.01


@pytest.mark.parametrize(
    ("one", "other", "why"),
    [
        (np.ones((1, 3)), np.ones((1, 4)), "[3] of the original and [4] of the result"),
        (np.ones((1, 3)), np.full((1, 3), np.nan), "numbers that are not finite where the original's are"),
        (np.ones((1, 3)), np.ones((1, 3), int), "float64 of the original and int64 of the result"),
        (np.ones((1, 3)), [1.0, 2.0], "only one of the models gives an array"),
        ([1.0, 2.0], [1.0, 2.0, 3.0], "sequences of 2 and 3 numbers"),
    ],
)
def test_what_can_not_be_compared_is_lost(one, other, why):
    found = _verdict([one], [other])
    assert found.why == why
    assert (found.loss.drop.value, found.loss.drop.low, found.loss.drop.high) == (1, 1, 1)
    assert found.loss.divergence == math.inf


def test_detections_with_other_columns_can_not_be_compared():
    rows = np.random.default_rng(0).random((COUNT, 1, 10, 6))
    rows[..., 4] = -np.sort(-rows[..., 4], axis=-1)
    found = _verdict(rows, [np.concatenate([each, each], -1) for each in rows])
    assert found.why == "[10, 6] of the original and [10, 12] of the result"


def test_numbers_that_are_not_finite_in_both_are_left_out():
    values = _normal(4)
    values[:, 0] = np.inf
    assert _verdict(values[:, None], values[:, None]).loss.drop.value == 0


def test_every_feed_may_hold_several_samples():
    values, other = _normal(5), _normal(5) + 0.2 * _normal(5, seed=1)
    apart = _verdict(values[:, None], other[:, None], feeds=[{"x": np.ones((1, 2))}] * COUNT)
    joined = _verdict(
        values.reshape(-1, 4, 5),
        other.reshape(-1, 4, 5),
        feeds=[{"x": np.ones((4, 2)), "n": np.ones(4)}] * (COUNT // 4),
    )
    assert joined.loss.drop == apart.loss.drop


def test_the_size_of_a_batch_is_the_length_that_all_inputs_share():
    assert batch_size({"x": np.ones((4, 2)), "n": np.ones(4)}) == 4
    assert batch_size({"x": np.ones((4, 2)), "n": np.ones(3)}) == 1
    assert batch_size({"x": np.ones((0, 2))}) == batch_size({"x": np.array(1.0)}) == batch_size({}) == 1


def test_losses_on_seen_samples_are_corrected_by_those_of_others():
    values = _normal(5)
    size = np.where(np.arange(COUNT) < 16, 0.13, 0.15)[:, None]
    other = values + size * np.sign(_normal(5, seed=1))
    plain, corrected = (_verdict(values[:, None], other[:, None], seen=seen).loss.drop.value for seen in (0, 16))
    unseen = 0.5 * 0.15**2 / np.square(values - values.mean(0)).mean()
    assert plain < corrected == pytest.approx(unseen, rel=0.05)


def test_samples_that_parameters_were_fitted_to_are_left_out():
    values = _normal(5)
    size = np.where(np.arange(COUNT) < 16, 0.05, 0.15)[:, None]
    other = values + size * np.sign(_normal(5, seed=1))
    judged = _verdict(values[:, None], other[:, None], seen=16).loss
    assert judged == _verdict(values[16:, None], other[16:, None]).loss


def test_it_does_not_matter_in_which_order_seen_and_held_out_samples_come():
    values = _normal(5)
    other = values + 0.05 * np.sign(_normal(5, seed=1)) * np.where(np.arange(COUNT) % 2, 3, 1)[:, None]
    found = []
    for order in (np.arange(COUNT), np.argsort(np.arange(COUNT) % 2, kind="stable")):
        plan = OutputPlan({"y": NOTHING})
        plan.decide_first([{"y": values[None, index]} for index in order], [{}] * COUNT)
        meter = VerdictMeter(plan)
        for index in order:
            meter.add({}, {"y": values[None, index]}, {"y": other[None, index]}, seen=index % 2 == 0)
        found.append(meter.verdict().outputs[0].loss)
    assert found[0].drop.value == pytest.approx(found[1].drop.value, rel=1e-9)
    odd = np.arange(COUNT) % 2 == 1
    assert found[0].drop.value == pytest.approx(_verdict(values[odd, None], other[odd, None]).loss.drop.value)


# --- the whole: the worst output, overrides, limits, notes ------------------------------------------------------

TWO = """g (float[n, 4] x) => (float[n, 4] y, float[n, 4] z) <float a = {%s}, float b = {%s}> {
    t = Cos(x) y = Mul(t, a) z = Mul(t, b) }"""
FEEDS = [{"x": floats(1, 4, seed=seed)} for seed in range(16)]


def test_the_worst_output_is_the_score_and_the_divergence_the_mean():
    quality = _quality(TWO % (1, 1), TWO % (1.1, 1.3), FEEDS)
    values = np.cos(np.concatenate([feed["x"] for feed in FEEDS]).astype(np.float64))
    unit = 0.5 * np.square(values).sum() / np.square(values - values.mean(0)).sum()
    assert quality.output == "z"
    assert quality.drop == pytest.approx(0.09 * unit, rel=1e-4)
    assert (quality.original, quality.compressed) == (1, 1 - quality.drop)
    assert quality.divergence == pytest.approx(0.05 * unit, rel=1e-4)
    assert quality.outputs["y"].drop == pytest.approx(0.01 * unit, rel=1e-4)


def test_a_kind_that_the_user_gives_is_taken():
    quality = _quality(TWO % (1, 1), TWO % (1.1, 1.3), FEEDS, overrides={"z": OutputKind.EMBEDDING})
    assert (quality.outputs["z"].kind, quality.outputs["z"].why) == ("embedding", "--output-kind")
    assert quality.output == "y"
    state = _quality(TWO % (1, 1), TWO % (1, 1.3), FEEDS, overrides={"z": OutputKind.STATE})
    assert (state.outputs["z"].drop, state.drop) == (None, 0)


@pytest.mark.parametrize(
    ("values", "kind", "problem"),
    [
        (list(map(np.asarray, _normal())), "class-scores", "a sample is a single number or empty"),
        (np.zeros((COUNT, 0, 4)), "embedding", "a sample is a single number or empty"),
        (_normal(5), "detection-rows", "a sample is no table of rows"),
        (_normal(3, 4, 4), "selection", "a sample is no table of rows"),
        ([[1.0, 2.0]], "detection-rows", "a sample is no table of rows"),
        ([np.array(["a"], object)], "numbers", "it holds strings"),
        (np.zeros((COUNT, 0, 4)), "image-8bit", "a sample is empty"),
    ],
)
def test_a_kind_that_does_not_fit_is_refused(values, kind, problem):
    with pytest.raises(UsageError) as caught:
        _verdict(values, values, overrides={"y": OutputKind(kind)})
    assert (caught.value.message, caught.value.where) == (f"'y' can't be {kind}: {problem}", "--output-kind")


EVERY = {
    "scalar": list(_normal()),
    "vector": list(_normal(1, 5)),
    "one": list(_normal(1, 1)),
    "map": list(_normal(1, 3, 4, 4)),
    "rows": list(_normal(1, 6, 4)),
    "integers": list((9 * _normal(1, 4)).astype(np.int64)),
    "bytes": list((9 * _normal(1, 3, 4, 4)).astype(np.uint8)),
    "booleans": list(_normal(1, 4) > 0),
    "strings": [np.array(["a", "b"], object)] * 9,
    "sequence": [[np.ones(3), np.ones(2)]] * 9,
    "empty": [np.zeros((0, 4))] * 9,
    "ragged": [np.ones((1, n + 1)) for n in range(20)],
}


@pytest.mark.parametrize("kind", [None, *OutputKind])
@pytest.mark.parametrize("name", EVERY)
def test_every_output_is_measured_as_every_kind_or_refused(name, kind):
    values = [np.asarray(value) if isinstance(value, np.float64) else value for value in EVERY[name]]
    overrides = {} if kind is None else {"y": kind}
    for other in (values, values[::-1]):
        try:
            found = _verdict(values, other, overrides=overrides)
        except UsageError:
            assert kind is not None
            continue
        assert found.loss is None or math.isfinite(found.loss.drop.value)


def test_a_kind_for_no_output_is_refused():
    with pytest.raises(UsageError) as caught:
        OutputPlan.of(from_text(TWO % (1, 1)), overrides={"q": OutputKind.MASK})
    assert caught.value.message == "--output-kind names 'q', which is no output"
    assert caught.value.hint == "Outputs: y, z"


STATE = "g (float[1, 2] x, float[1, 2] h) => (float[1, 2] next) { next = Add(x, h) }"


def test_a_limit_with_nothing_measurable_fails():
    options = {
        "data": {"x": floats(20, 1, 2)}, "data_options": oc.DataOptions(state={"h": "next"}), "max_drop": 0.01,
    }  # fmt: skip
    with pytest.raises(LimitError) as caught:
        oc.compare(from_text(STATE), from_text(STATE), **options)
    text = "no output can be scored, so nothing shows that the loss is within --max-drop 0.01"
    assert (caught.value.message, caught.value.exit_code) == (text, 1)
    assert caught.value.report.notes == ("no output can be scored, so the loss is unknown",)
    with pytest.raises(LimitError) as caught:
        oc.compress(from_text(STATE), recipe="fold", **options)
    assert caught.value.message == text


def test_the_upper_end_decides_the_limit_at_a_confidence():
    other = TWO % (1.001, 1)
    options = {"data": {"x": floats(20, 4)}}
    found = oc.compare(from_text(TWO % (1, 1)), from_text(other), **options).quality
    low, high = found["drop_interval"]
    assert low < found["drop"] < high
    oc.compare(from_text(TWO % (1, 1)), from_text(other), max_drop=found["drop"], **options)
    weight = floats(16, 64)
    text = """g (float[n, 16] x, float[16, 64] w) => (float[n, 8, 8] y) <int64[3] s = {0, 8, 8}> {
        m = MatMul(x, w) y = Reshape(m, s) }"""
    options = {
        "recipe": "int8-weights",
        "data": {"x": floats(20, 16)},
        "settings": ["quantize-weights.min_elements=16"],
    }
    quality = oc.compress(with_constants(text, w=weight), **options).report.quality
    high = quality["drop_interval"][1]
    assert 0 < quality["drop"] < high
    limit = (quality["drop"] + high) / 2
    oc.compress(with_constants(text, w=weight), max_drop=limit, **options)
    with pytest.raises(LimitError) as caught:
        oc.compress(with_constants(text, w=weight), max_drop=limit, confidence=0.95, **options)
    assert caught.value.message == f"estimated falls by {high:.4g}, more than --max-drop {limit:g} allows"


def test_how_many_samples_would_settle_it():
    assert samples_needed(0.005, (0.002, 0.02), 0.01, 64) == math.ceil(64 * 3**2)
    assert samples_needed(0.015, (0.002, 0.02), 0.01, 64) == math.ceil(64 * (0.013 / 0.005) ** 2)
    assert samples_needed(0.005, (0.002, 0.009), 0.01, 64) is None
    assert samples_needed(0.05, (0.02, 0.09), 0.01, 64) is None
    assert samples_needed(0.01, (0.0, 0.02), 0.01, 64) == math.ceil(64 * (0.01 / 0.0005) ** 2)


def test_notes_say_how_sure_the_figure_is():
    quality = _quality(TWO % (1, 1), TWO % (1, 1.1), FEEDS)
    low, high = 0.0, 0.02
    unsettled = quality.model_copy(update={"drop": 0.005, "drop_interval": (low, high)})
    assert list(quality_notes(unsettled, 0.01)) == [
        "the loss is between 0 and 0.02 (90%): 16 samples don't settle whether it is within 0.01, about 144 would"
    ]
    assert list(quality_notes(unsettled, None)) == []
    assert list(quality_notes(quality.model_copy(update={"drop": None}), 0.01)) == [
        "no output can be scored, so the loss is unknown"
    ]


def test_samples_of_no_class_are_told():
    assert unsure(0.4, 1000)
    assert not unsure(0.4, 10)
    assert not unsure(0.5, 1000)
    assert not unsure(None, None)
    text = "g (float[n, 100] x) => (float[n, 100] y) { y = Softmax(x) }"
    quality = _quality(text, text, [{"x": floats(1, 100, seed=seed)} for seed in range(16)])
    confidence = quality.outputs["y"].confidence
    assert list(quality_notes(quality, None)) == [
        f"output 'y': the model is unsure about these samples (mean confidence {confidence:.2f}), so its loss may be "
        "overstated; samples of its classes, or labels (--eval), would give a sharper figure"
    ]
