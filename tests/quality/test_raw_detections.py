"""Raw detections: told from other outputs, and judged by the detections that remain after suppression."""

import numpy as np
import pytest

from onnxcompress.errors import UsageError
from onnxcompress.numerics.statistics.boxes import overlaps, suppressed
from onnxcompress.quality.output_kinds import OutputKind
from onnxcompress.quality.output_plan import OutputPlan
from onnxcompress.quality.output_sources import Ending, Source, sources
from onnxcompress.quality.verdict import VerdictMeter
from tests.helpers import from_text
from tests.quality.raw_detectors import COUNT, LAYOUTS, made

SCORED = Source(Ending.OTHER, "Concat", has_scores=True)
PICTURE = {"x": np.zeros((1, 3, 8, 8), np.float32)}


def _outputs(one, other, kinds=None, overrides=None):
    """Return the losses by output; `one` and `other` hold arrays [samples, ...] by output."""
    plan = OutputPlan(kinds or dict.fromkeys(one, SCORED), overrides or {})
    count = len(next(iter(one.values())))
    before, after = (
        [{name: value[index : index + 1].astype(np.float32) for name, value in each.items()} for index in range(count)]
        for each in (one, other)
    )
    plan.decide_first(before, [PICTURE] * count)
    meter = VerdictMeter(plan)
    for runs in zip(before, after, strict=True):
        meter.add(PICTURE, *runs)
    return {output.name: output for output in meter.verdict().outputs}


def _loss(one, other, **options):
    return _outputs({"y": one}, {"y": other}, **options)["y"]


@pytest.mark.parametrize(
    ("layout", "form"),
    [
        ("channels first", "centre and size) about anchors that cover a picture, with scores of 6 classes"),
        ("channels last", "centre and size) about anchors that cover a picture, with scores of 6 classes"),
        ("corners", "corners) about anchors that cover a picture, with scores of 6 classes"),
        ("parts of the picture", "centre and size) about anchors that cover a picture, with scores of 6 classes"),
        ("objectness", "centre and size) about anchors that cover a picture, with objectness and scores of 6 classes"),
        (
            "objectness, channels first",
            "centre and size) about anchors that cover a picture, with objectness and scores of 6 classes",
        ),
        ("background", "centre and size) about anchors that cover a picture, with scores of 6 classes"),
        ("masks", "centre and size) about anchors that cover a picture, with scores of 6 classes"),
        ("one class", "centre and size) about anchors that cover a picture, with scores of 1 classes"),
    ],
)
def test_every_layout_is_recognised(layout, form):
    values = LAYOUTS[layout](*made())
    found = _loss(values, values)
    assert (found.kind, found.why) == (OutputKind.RAW_DETECTIONS, f"boxes ({form}")
    assert found.loss.drop.value == 0
    assert found.loss.figures["detections"] > 20


def _noise(boxes, scores):
    random = np.random.default_rng(1)
    return (
        boxes + random.normal(0, 0.2, boxes.shape),
        np.clip(scores + random.normal(0, 1e-3, scores.shape) * (scores > 0.01), 0, 1),
    )


def _moved(boxes, scores):
    return boxes + np.pad(0.2 * boxes[..., 2:], ((0, 0), (0, 0), (0, 2))), scores


def _killed(boxes, scores):
    """Return the detections without those of every fourth sample."""
    return boxes, np.where(np.arange(COUNT)[:, None, None] % 4 == 0, 0.001, scores)


DAMAGES = {
    "boxes moved by a fifth": (_moved, 0.15, 0.2),
    "classes swapped": (lambda b, s: (b, np.roll(s, 1, -1)), 0.199, 0.2),
    "scores halved": (lambda b, s: (b, s / 2), 0.08, 0.2),
    "no scores": (lambda b, s: (b, 0 * s), 0.199, 0.2),
    "a quarter of the samples without any": (_killed, 0.02, 0.05),
}


@pytest.mark.parametrize("layout", ["channels first", "corners", "parts of the picture", "objectness", "masks"])
@pytest.mark.parametrize("damage", DAMAGES)
def test_damage_is_seen(layout, damage):
    change, least, most = DAMAGES[damage]
    boxes, scores = made()
    found = _loss(LAYOUTS[layout](boxes, scores), LAYOUTS[layout](*change(boxes, scores))).loss
    assert least <= found.drop.value <= most
    assert found.drop.low <= found.drop.value <= found.drop.high


@pytest.mark.parametrize("layout", ["channels first", "channels last", "corners", "parts of the picture", "masks"])
def test_small_errors_cost_little(layout):
    boxes, scores = made()
    found = _loss(LAYOUTS[layout](boxes, scores), LAYOUTS[layout](*_noise(boxes, scores))).loss
    assert found.drop.value < 0.001
    assert found.figures["lost_detections"] < 0.005


def test_background_weighs_nothing_and_new_detections_do():
    boxes, scores = made()
    quiet = scores.max(-1, keepdims=True) < 0.2
    other = np.where(quiet, scores + 0.02, scores)
    assert _loss(LAYOUTS["channels last"](boxes, scores), LAYOUTS["channels last"](boxes, other)).loss.drop.value == 0
    more = np.where(quiet & (np.arange(boxes.shape[1])[:, None] % 50 == 0), 0.6, scores)
    assert _loss(LAYOUTS["channels last"](boxes, scores), LAYOUTS["channels last"](boxes, more)).loss.drop.value > 0.04


def test_what_is_lost_near_the_threshold_weighs_less():
    boxes, scores = made()
    best = scores.max(-1, keepdims=True)
    faint, sure = np.where(best < 0.5, 0.0, scores), np.where(best > 0.8, 0.0, scores)
    for other in (faint, sure):
        found = _loss(LAYOUTS["channels last"](boxes, scores), LAYOUTS["channels last"](boxes, other)).loss.figures
        assert (found["lost_by_score"] < found["lost_detections"]) == (other is faint)


def test_without_a_detection_the_scores_count_and_the_report_says_so():
    boxes, scores = made(faint=True)
    one = LAYOUTS["channels last"](boxes, scores)
    same, other = _loss(one, one), _loss(one, LAYOUTS["channels last"](boxes, scores + 0.02))
    assert same.loss.drop.value == 0
    assert other.loss.drop.value == pytest.approx(0.02, rel=1e-3)
    assert other.why.endswith("; no sample has a detection, so scores are compared as numbers")
    assert _loss(one, LAYOUTS["channels last"](boxes, scores * 20)).loss.drop.value > 0.19


def test_few_detections_leave_the_loss_open():
    boxes, scores = made(objects=1)
    other = _noise(boxes, scores)
    few, many = (
        _loss(
            LAYOUTS["channels last"](boxes[:n], scores[:n]), LAYOUTS["channels last"](other[0][:n], other[1][:n])
        ).loss
        for n in (3, COUNT)
    )
    assert few.drop.high > 2 * many.drop.high > 4 * many.drop.value
    assert few.drop.high == pytest.approx(0.2 * 0.5 / (few.figures["detections"] + 1), rel=0.02)


def test_boxes_and_scores_of_outputs_of_their_own_are_joined():
    boxes, scores = made()
    one = {"boxes": boxes, "scores": scores}
    kinds = {"boxes": Source(Ending.OTHER, "Mul"), "scores": Source(Ending.SIGMOID, "Sigmoid", has_scores=True)}
    found = _outputs(one, {"boxes": boxes, "scores": np.roll(scores, 1, -1)}, kinds)
    assert {output.kind for output in found.values()} == {OutputKind.RAW_DETECTIONS}
    assert [output.loss.drop.value for output in found.values()] == [pytest.approx(0.2)] * 2
    objectness = {"boxes": boxes, "p": scores.max(-1), "scores": scores / scores.max(-1, keepdims=True)}
    found = _outputs(objectness, objectness, {**kinds, "p": kinds["scores"]})
    assert "with objectness and scores of 6 classes" in found["boxes"].why
    assert _outputs(one, one, {**kinds, "scores": Source(Ending.PRODUCT, "Conv")})["boxes"].kind is OutputKind.NUMBERS


def _random(*shape):
    return np.random.default_rng(2).standard_normal((COUNT, *shape))


def _sparse(*shape):
    return np.random.default_rng(3).beta(0.2, 20, (COUNT, *shape))


def _picture_masks():
    """Return masks of 8 classes, each somewhere else in each sample, [COUNT, 8, 400]."""
    found = np.full((COUNT, 8, 20, 20), 0.01)
    for index in range(COUNT):
        for label in range(8):
            x, y = np.random.default_rng(index * 8 + label).integers(0, 15, 2)
            found[index, label, y : y + 5, x : x + 5] = 0.98
    return found.reshape(COUNT, 8, -1)


OTHERS = {
    "a regression of numbers": np.concatenate([_random(4, 500), np.abs(_sparse(4, 500))], 1),
    "positive numbers that the samples decide": np.concatenate([np.abs(_random(4, 500)), _sparse(4, 500)], 1),
    "numbers of positions on a line": np.concatenate(
        [np.tile(np.arange(1, 501.0), (COUNT, 4, 1)) + np.abs(_random(4, 500)), _sparse(4, 500)], 1
    ),
    "a classifier of several labels": _sparse(84),
    "a tagger of 84 labels": _sparse(500, 84),
    "masks": _picture_masks(),
    "boxes without a score": _random(4, 500),
    "boxes beside scores that are mostly high": LAYOUTS["channels last"](made()[0], 1 - made()[1]),
    "logits": LAYOUTS["channels last"](made()[0], np.log(made()[1] + 1e-6)),
    "few rows": LAYOUTS["channels last"](*made())[:, ::20],
}


@pytest.mark.parametrize("name", OTHERS)
def test_what_only_resembles_them_is_judged_as_before(name):
    values = OTHERS[name]
    assert _loss(values, values).kind is not OutputKind.RAW_DETECTIONS
    wrong = values + 0.2 * values.std() * np.random.default_rng(4).standard_normal(values.shape)
    plain = _loss(values, wrong, kinds={"y": Source(Ending.OTHER, "Concat")})
    assert _loss(values, wrong).loss.drop == plain.loss.drop


def test_without_a_sigmoid_in_the_graph_or_from_one_sample_alone_nothing_is_assumed():
    values = LAYOUTS["channels first"](*made())
    assert _loss(values, values, kinds={"y": Source(Ending.OTHER, "Concat")}).kind is not OutputKind.RAW_DETECTIONS
    assert _loss(values[:1], values[:1]).kind is not OutputKind.RAW_DETECTIONS
    pieces = (("b", Source(Ending.OTHER, "Mul")), ("s", Source(Ending.SIGMOID, "Sigmoid")))
    joined = Source(Ending.OTHER, "Concat", pieces=pieces, has_scores=True)
    assert _loss(values[:1], values[:1], kinds={"y": joined}).kind is OutputKind.RAW_DETECTIONS


def test_the_user_may_say_so():
    boxes, scores = made()
    values = LAYOUTS["channels last"](boxes, scores)[:1]
    given = {"y": OutputKind.RAW_DETECTIONS}
    found = _loss(values, LAYOUTS["channels last"](boxes, 0 * scores)[:1], overrides=given)
    assert (found.kind, found.why, found.loss.drop.value) == (given["y"], "--output-kind", pytest.approx(0.2))
    for wrong in (values[..., :4], values * 3, values[..., None]):
        with pytest.raises(UsageError) as caught:
            _loss(wrong, wrong, overrides=given)
        problem = "a sample is no table of boxes with scores from 0 to 1 behind them"
        assert caught.value.message == f"'y' can't be raw-detections: {problem}"


@pytest.mark.parametrize(
    ("body", "expected"),
    [
        ("s = Sigmoid(x) p = Mul(s, half) y = Concat<axis = 1>(x, p)", True),
        ("s = Softmax(x) a, b = Split<axis = 1, num_outputs = 2>(s) y = Concat<axis = 1>(x, a)", True),
        ("s = Sigmoid(x) m = MatMul(s, w) y = Concat<axis = 1>(x, m)", False),
        ("y = Tanh(x)", False),
    ],
)
def test_scores_are_found_behind_a_sigmoid_before_any_product(body, expected):
    text = f"g (float[n, 4] x, float[4, 3] w) => (float[n, d] y) <float half = {{0.5}}> {{ {body} }}"
    assert sources(from_text(text, opset=18))["y"].has_scores is expected


def test_overlaps_and_suppression():
    boxes = np.array([[0, 0, 10, 10], [0, 0, 10, 6], [0, 0, 10, 5], [20, 20, 30, 30], [5, 5, 5, 5]], float)
    assert overlaps(boxes[:1], boxes)[0] == pytest.approx([1, 0.6, 0.5, 0, 0])
    scores, labels = np.array([0.9, 0.8, 0.7, 0.95, 0.1]), np.array([0, 0, 1, 0, 0])
    assert suppressed(boxes, scores, labels, overlap=0.5, most=9).tolist() == [3, 0, 2, 4]
    assert suppressed(boxes, scores, labels, overlap=0.6, most=9).tolist() == [3, 0, 1, 2, 4]
    assert suppressed(boxes, scores, labels, overlap=0.5, most=2).tolist() == [3, 0]


def test_objects_of_two_classes_at_one_place_are_no_objectness():
    boxes, scores = made()
    scores[..., 0] = np.minimum(scores[..., 0], 0.2)
    best = np.argsort(-scores[0].max(-1))[:4]
    scores[0, best, :2] = 0.9
    values = LAYOUTS["channels last"](boxes, scores)
    assert "with scores of 6 classes" in _loss(values, values).why
