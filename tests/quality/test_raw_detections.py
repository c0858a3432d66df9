"""Raw detections: recognised by what they are in either orientation, and judged by what remains after suppression."""

from dataclasses import replace

import numpy as np
import pytest

from onnxcompress.numerics.statistics import boxes
from onnxcompress.quality import raw_detections
from onnxcompress.quality.output_kinds import OutputKind
from onnxcompress.quality.output_plan import OutputPlan
from onnxcompress.quality.output_sources import Ending, Source, sources
from onnxcompress.quality.verdict import VerdictMeter
from tests.helpers import from_text

SOURCE = replace(Source(Ending.OTHER, "Concat"), has_scores=True)
SIDE, CLASSES, COUNT = 16, 6, 12
ANCHORS = SIDE * SIDE


def detector(sample: int, *, centred: bool = True, objectness: bool = False, scale: float = 160.0) -> np.ndarray:
    """Return [anchors, columns]: a grid of boxes, of which four far from each other are detections."""
    random = np.random.default_rng(sample)
    place = (np.stack(np.meshgrid(np.arange(SIDE), np.arange(SIDE)), -1).reshape(-1, 2) + 0.5) / SIDE
    centres = place + random.normal(0, 0.2 / SIDE, place.shape)
    sizes = random.uniform(0.1, 0.2, place.shape)
    found = np.concatenate([centres, sizes] if centred else [centres - sizes / 2, centres + sizes / 2], 1) * scale
    scores = random.uniform(0, 0.01, (ANCHORS, CLASSES))
    sure = random.choice([51, 60, 195, 204, 56, 199], 4, replace=False)
    scores[sure, random.integers(0, CLASSES, 4)] = random.uniform(0.5, 0.95, 4)
    parts = [found, scores]
    if objectness:
        best = scores.max(1, keepdims=True)
        parts = [found, best, np.where(scores == best, 0.95, 0.05)]
    return np.concatenate(parts, 1).astype(np.float32)


def outputs(**options):
    return [detector(sample, **options) for sample in range(COUNT)]


def judged(one, other, source=SOURCE):
    meter = VerdictMeter(OutputPlan({"y": source}))
    for a, b in zip(one, other, strict=True):
        meter.add({}, {"y": a[None]}, {"y": b[None]})
    (found,) = meter.verdict().outputs
    return found


@pytest.mark.parametrize("first", [False, True])
@pytest.mark.parametrize("scale", [1.0, 640.0])
@pytest.mark.parametrize("centred", [False, True])
@pytest.mark.parametrize("objectness", [False, True])
def test_they_are_recognised_in_every_form(first, scale, centred, objectness):
    arrays = outputs(scale=scale, centred=centred, objectness=objectness)
    found = raw_detections.find(SOURCE, [a.T for a in arrays] if first else arrays)
    assert found is not None
    assert (found.axis, found.centred, found.objectness) == (0 if first else 1, centred, objectness)
    assert found.scores == CLASSES + objectness


def _others():
    random = np.random.default_rng(0)
    regression = random.uniform(-3, 3, (COUNT, 8, 500)).astype(np.float32)
    regression[:, 4:] = random.uniform(0, 1, (COUNT, 4, 500))
    tagger = random.dirichlet(np.full(84, 0.05), (COUNT, 200)).astype(np.float32)
    mask = random.uniform(0, 1, (COUNT, 64, 64)).astype(np.float32)
    sure = np.stack(outputs())
    sure[..., 4:] = random.uniform(0, 1, sure[..., 4:].shape)
    moving = np.stack(outputs())
    moving[..., :2] = random.uniform(0, 160, moving[..., :2].shape)
    return {"regression": regression, "tagger": tagger, "mask": mask, "no background": sure, "moving": moving}


@pytest.mark.parametrize("name", _others())
def test_other_outputs_are_not_taken_for_them(name):
    assert raw_detections.find(SOURCE, list(_others()[name])) is None


def test_without_a_sigmoid_or_softmax_there_are_no_scores():
    assert raw_detections.find(replace(SOURCE, has_scores=False), outputs()) is None


def test_scores_are_found_behind_a_concat_but_not_before_a_product():
    text = """g (float[1, 4, 9] x) => (float[1, 8, 9] y, float[1, 9, 9] z) {
        s = Sigmoid(x) y = Concat<axis = 1>(x, s) t = Transpose<perm = [0, 2, 1]>(s) z = MatMul(t, x) }"""
    found = sources(from_text(text))
    assert (found["y"].has_scores, found["z"].has_scores) == (True, False)


def test_what_changes_no_detection_costs_next_to_nothing():
    one = outputs()
    random = np.random.default_rng(5)
    other = [
        a + np.concatenate([0.1 * random.standard_normal((ANCHORS, 4)), 1e-3 * random.random((ANCHORS, CLASSES))], 1)
        for a in one
    ]
    found = judged(one, [a.astype(np.float32) for a in other])
    assert found.kind is OutputKind.RAW_DETECTIONS
    assert 0 < found.loss.drop.value < 0.005
    assert judged(one, one).loss.drop.value == 0


def _damaged(array, how):
    new = array.copy()
    if how == "boxes moved by a fifth":
        new[:, 0] += 0.2 * new[:, 2]
    elif how == "classes swapped":
        new[:, 4:] = np.roll(new[:, 4:], 1, axis=1)
    elif how == "scores halved":
        new[:, 4:] /= 2
    elif how == "scores gone":
        new[:, 4:] = 0
    elif how == "one in four lost":
        new[new[:, 4:].max(1).argmax(), 4:] = 0
    return new


@pytest.mark.parametrize(
    ("how", "least"),
    [
        ("boxes moved by a fifth", 0.05),
        ("classes swapped", 0.19),
        ("scores halved", 0.05),
        ("scores gone", 0.19),
        ("one in four lost", 0.025),
    ],
)
def test_a_broken_detector_has_a_clear_loss(how, least):
    one = outputs()
    assert judged(one, [_damaged(a, how) for a in one]).loss.drop.value >= least


def test_a_lost_detection_of_four_counts_one_seventh():
    """1 - F1 of three found and none wrong, of four: 1 - 6 / 7; in points of .05."""
    one = outputs()
    lost = judged(one, [_damaged(a, "one in four lost") for a in one]).loss
    assert lost.figures["lost_detections"] == pytest.approx(1 / 7, abs=0.01)
    assert lost.drop.value == pytest.approx(0.01 / 0.05 / 7, rel=0.1)


def test_without_a_detection_scores_are_compared_and_it_is_said():
    one = [np.concatenate([a[:, :4], a[:, 4:] * 0.1], 1) for a in outputs()]
    other = [np.concatenate([a[:, :4], a[:, 4:] + np.float32(0.02)], 1) for a in one]
    found = judged(one, other)
    assert found.why.endswith("; no sample has a detection, so scores are compared as numbers")
    assert found.loss.drop.value == pytest.approx(0.02, rel=0.05)


def test_overlap_and_suppression():
    found = np.array([[0, 0, 2, 2], [0, 0, 2, 1], [1, 1, 3, 3], [0, 0, 2, 2.0]])
    table = boxes.overlaps(found, found)
    np.testing.assert_allclose(table[0], [1, 0.5, 1 / 7, 1])
    scores, labels = np.array([0.9, 0.8, 0.7, 0.6]), np.array([0, 0, 0, 1])
    kept = boxes.suppressed(found, scores, labels, overlap=0.4, most=10)
    assert kept.tolist() == [0, 2, 3], "of another class it stays"
    assert boxes.suppressed(found, scores, labels, overlap=0.4, most=2).tolist() == [0]
