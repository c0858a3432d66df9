"""The trial's own loss: right values on pairs of outputs whose loss is known, and kinds told apart by simple rules."""

from __future__ import annotations

import importlib
import sys
from pathlib import Path

import numpy as np
import pytest

TOOLS = Path(__file__).parents[2] / "tools"
sys.path.insert(0, str(TOOLS))
try:
    boxes = importlib.import_module("wild.boxes")
    kinds = importlib.import_module("wild.kinds")
    loss = importlib.import_module("wild.loss")
    raw_boxes = importlib.import_module("wild.raw_boxes")
    texts = importlib.import_module("wild.texts")
finally:
    sys.path.remove(str(TOOLS))

EVEN = [[0.9, 0.1], [0.2, 0.8]]


def pairs_of(ones, others):
    return [(np.array([one]), np.array([other])) for one, other in zip(ones, others, strict=True)]


def test_lost_probability_and_changed_answers():
    found = loss.measure("class-scores", pairs_of(EVEN * 2, [[0.4, 0.6], *EVEN[1:], *EVEN]))
    assert found["value"] == 0.25
    assert found["points"] == pytest.approx(0.8 / 4)
    assert found["points_interval"][0] == 0
    assert found["points_interval"][1] > 0.4


def test_logits_lose_what_their_probabilities_lose():
    ones, others = np.log([[0.7, 0.3]] * 4) + 5, np.log([[0.7, 0.3]] * 3 + [[0.3, 0.7]]) - 2
    assert loss.measure("class-scores", pairs_of(ones, others))["points"] == pytest.approx(0.1)


def test_no_change_in_few_samples_still_leaves_room():
    few, many = (loss.measure("class-scores", pairs_of(EVEN * n, EVEN * n))["points_interval"][1] for n in (8, 200))
    assert few == pytest.approx(0.3 * 3 / 16)
    assert many < 0.003


def test_where_one_class_is_common_the_others_are_looked_at_alone():
    ones, others = [[0.9, 0.1]] * 95 + [[0.1, 0.9]] * 5, [[0.9, 0.1]] * 100
    found = loss.measure("class-scores", pairs_of(ones, others))
    assert found["points"] == pytest.approx(0.04)
    assert found["figures"]["points_of_rare"] == pytest.approx(0.8)
    assert found["points_interval"][1] >= 0.8


def test_classes_of_pictures_lie_along_channels():
    one = np.zeros((1, 2, 3, 3)) + np.array([0.8, 0.2]).reshape(1, 2, 1, 1)
    other = one.copy()
    other[0, :, 0, 0] = 0.3, 0.7
    assert loss.measure("position-scores", [(one, other)])["value"] == pytest.approx(1 / 9)
    last = [np.moveaxis(each, 1, -1) for each in (one, other)]
    assert loss.measure("position-scores", [tuple(last)])["value"] == pytest.approx(1 / 9)


def test_texts_differ_by_edits():
    def scores(classes):
        return np.log(np.eye(12)[classes][None] * 0.88 + 0.01)

    found = loss.measure("text-scores", [(scores([0, 1, 1, 0, 1, 2, 0]), scores([0, 1, 1, 0, 1, 0, 0]))])
    assert found["value"] == pytest.approx(1 / 3)
    assert found["points"] == pytest.approx((0.89 - 0.01) / 3, abs=1e-6)


@pytest.mark.parametrize(("one", "other", "edits"), [([1, 2, 3], [1, 3], 1), ([], [1, 2], 2), ([1, 2], [2, 1], 2)])
def test_edit_distance(one, other, edits):
    assert texts.edit_distance(one, other) == edits


def test_relative_error_of_numbers():
    random = np.random.default_rng(0)
    one = random.standard_normal((64, 1, 4))
    other = one + 0.1 * random.standard_normal(one.shape)
    found = loss.measure("numbers", list(zip(one, other, strict=True)))
    assert found["value"] == pytest.approx(0.1, rel=0.1)
    assert found["points"] == pytest.approx(0.005, rel=0.2)
    assert found["points_interval"][0] < found["points"] < found["points_interval"][1]
    assert found["figures"]["snr_db"] == pytest.approx(20, abs=1)


def test_a_small_column_is_not_hidden_by_a_large_one():
    one = np.random.default_rng(0).standard_normal((64, 1, 2)) * [100, 0.1]
    other = one * [1, 0]
    found = loss.measure("numbers", list(zip(one, other, strict=True)))
    assert found["points"] < 1e-5
    assert found["figures"]["worst_column"] == pytest.approx(0.5, rel=0.1)
    assert found["points_interval"][1] > 0.4


def test_masks_disagree_by_area():
    one, other = np.zeros((1, 1, 10, 10)), np.zeros((1, 1, 10, 10))
    one[..., :4], other[..., :5] = 1, 1
    figures = loss.measure("mask", [(one, other)])["figures"]
    assert figures["disagreement"] == pytest.approx(0.1)
    assert figures["one_minus_iou"] == pytest.approx(0.2)


def test_vectors_by_angle():
    one = np.random.default_rng(0).standard_normal((64, 1, 32))
    assert loss.measure("embedding", [(a, 3 * a) for a in one])["value"] == pytest.approx(0, abs=1e-12)
    assert loss.measure("embedding", [(a, -a) for a in one])["value"] == pytest.approx(2)


def test_labels_and_selections_by_share():
    assert loss.measure("labels", [(np.array([1, 2, 3, 4]), np.array([1, 2, 3, 5]))])["value"] == 0.25
    rows = np.array([[0, 0, 1], [0, 0, 2]]), np.array([[0, 0, 2], [0, 0, 3]])
    assert loss.measure("selection", [rows])["value"] == 0.5


def test_other_shapes_and_infinities_lose_all():
    one = np.ones((1, 3))
    assert loss.measure("numbers", [(one, np.ones((1, 4)))])["points"] == 1
    assert loss.measure("numbers", [(one, np.full((1, 3), np.nan))])["points"] == 1
    half = loss.measure("numbers", [(one, one), (one, one * np.nan)])
    assert half["points"] == 0.5
    assert half["broken"] == 1


def test_signals_need_no_alignment():
    random = np.random.default_rng(0)
    noise = random.standard_normal(40_000)
    assert loss.measure("signal", [(noise, random.standard_normal(32_000))])["value"] < 1
    quiet = loss.measure("signal", [(noise, 0.1 * random.standard_normal(40_000))])
    assert quiet["value"] == pytest.approx(20, abs=1)


ROWS = np.array([[10, 10, 20, 20, 0.9, 1], [50, 50, 80, 90, 0.8, 2], [0, 0, 5, 5, 0.6, 1], [0, 0, 0, 0, 0.1, 0]])


def test_boxes_match_in_any_order():
    assert loss.measure("detection-rows", [(ROWS[None], ROWS[None, ::-1])])["value"] == 0


def test_boxes_of_another_class_or_place_don_t_match():
    other = ROWS.copy()
    other[0, 5] = 3
    assert boxes.f1_counts(ROWS, other) == (2, 3, 3)
    other[1, :4] += 25
    assert boxes.f1_counts(ROWS, other) == (1, 3, 3)


def test_outputs_of_their_own_make_a_table():
    table = boxes.joined(ROWS[None, ::-1, :4], ROWS[None, ::-1, 4], ROWS[None, ::-1, 5])
    assert np.array_equal(table, ROWS)


def anchors(*found):
    """Return raw detections of two classes, float32 [1, 6, 100], (anchor, centre, size, class, score) are found."""
    table = np.full((100, 6), 0.001, np.float32)
    table[:, :4] = 10
    for at, centre, size, label, score in found:
        table[at, :4] = *centre, *size
        table[at, 4 + label] = score
    return table.T[None]


CAT, DOG = ((30, 30), (20, 10)), ((70, 60), (8, 30))


def test_anchors_become_detections():
    found = raw_boxes.detections(anchors((7, *CAT, 1, 0.9), (8, *CAT, 1, 0.8), (9, *CAT, 0, 0.7), (50, *DOG, 0, 0.3)))
    assert found == pytest.approx(
        np.array([[20, 25, 40, 35, 0.9, 1], [20, 25, 40, 35, 0.7, 0], [66, 45, 74, 75, 0.3, 0]]), abs=1e-6
    )


def test_detections_of_anchors_count_by_their_scores():
    one = anchors((7, *CAT, 1, 0.9), (50, *DOG, 0, 0.3))
    same = loss.measure("raw-detections", [(one, anchors((8, *CAT, 1, 0.9), (51, *DOG, 0, 0.3)))] * 40)
    assert same["value"] == same["points"] == 0
    told = loss.measure("raw-detections", [(one, anchors((7, *CAT, 1, 0.9)))] * 40)
    assert told["value"] == pytest.approx(1 / 3)
    assert told["points"] == pytest.approx(0.3 / 2.1 / 5)
    moved = anchors((7, (40, 30), CAT[1], 1, 0.9), (50, *DOG, 0, 0.3))
    assert loss.measure("raw-detections", [(one, moved)])["points"] == pytest.approx(1.8 / 2.4 / 5)


def test_few_detections_prove_little():
    one = anchors((7, *CAT, 1, 0.9))
    assert loss.measure("raw-detections", [(one, one)])["points_interval"][1] > 0.1


@pytest.mark.parametrize("array", [np.full((1, 6, 20), 0.5), anchors((7, *CAT, 1, 0.9)) * 10, np.zeros((1, 4, 100))])
def test_other_tables_have_no_anchors(array):
    with pytest.raises(ValueError, match="no table of boxes and fractions"):
        raw_boxes.detections(array)


def draw(shape, seed=0):
    return list(np.random.default_rng(seed).standard_normal((16, *shape)).astype(np.float32))


def peaked(shape):
    found = draw(shape)
    for index, each in enumerate(found):
        each[..., index % shape[-1]] += 8
    return found


def soft(arrays, axis=-1):
    return [np.exp(a) / np.exp(a).sum(axis, keepdims=True) for a in arrays]


@pytest.mark.parametrize(
    ("values", "kind"),
    [
        (soft(draw((1, 10))), "class-scores"),
        (peaked((1, 10)), "class-scores"),
        (soft(draw((1, 5, 8, 8)), axis=1), "position-scores"),
        (soft(draw((1, 20, 5))), "position-scores"),
        (draw((1, 128)), "embedding"),
        (draw((1, 3)), "numbers"),
        ([1 / (1 + np.exp(a)) for a in draw((1, 1))], "binary-score"),
        ([1 / (1 + np.exp(a)) for a in draw((1, 1, 16, 16))], "mask"),
        ([-np.ones((1, 1000 + i), np.float32) for i in range(4)], "signal"),
        ([-np.ones(20 + i, np.float32) for i in range(4)], "numbers"),
        ([np.full(20 + i, 0.5, np.float32) for i in range(4)], "mask"),
        ([np.array([1, 2])], "labels"),
        ([ROWS[None].repeat(2, 1)[:, [0, 2, 4, 6, 7]] * [1, 1, 1, 1, 1, 1] for _ in range(3)], "detection-rows"),
    ],
)
def test_kinds(values, kind):
    assert kinds.decide(values) == kind


def test_maps_of_scores_are_rows():
    assert kinds.plain([{"b": 0.25, "a": 0.75}]).tolist() == [[0.75, 0.25]]
