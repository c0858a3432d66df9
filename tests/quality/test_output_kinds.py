"""Every row of the decision table, on arrays, and the statistics that it goes by at any scale."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.special import log_softmax, softmax

from onnxcompress.errors import UsageError
from onnxcompress.quality.kind_overrides import parse_kinds
from onnxcompress.quality.output_kinds import (
    KindDecision,
    OutputKind,
    decide,
    like_an_input,
    sorted_column,
    winner_statistic,
)
from onnxcompress.quality.output_sources import Ending, Source

COUNT = 16
OTHER = Source(Ending.OTHER, "Add")
PRODUCT = Source(Ending.PRODUCT, "Gemm")
SIGMOID = Source(Ending.SIGMOID, "Sigmoid")
PLAIN = "floats without a special meaning"


def _normal(*shape, seed=0):
    return np.random.default_rng(seed).standard_normal((COUNT, *shape))


def _scores(*shape, seed=0):
    """Return logits of which one in each row is far above the others."""
    random = np.random.default_rng(seed)
    found = random.standard_normal((COUNT, *shape))
    best = random.integers(0, shape[-1], (COUNT, *shape[:-1]))
    np.put_along_axis(found, best[..., None], 8.0, -1)
    return found


def _text(*, blank=0, classes=12):
    found = _scores(20, classes)
    found[:, ::2, blank] = 20
    return found


def _detections():
    found = _normal(10, 6)
    found[..., 4] = -np.sort(-np.random.default_rng(0).random((COUNT, 10)), axis=1)
    return found


IMAGE = _normal(3, 8, 8)

TABLE = {
    "state": (Source(Ending.STATE, "LSTM"), _normal(4), OutputKind.STATE, None, "state or cache of LSTM"),
    "sequence": (OTHER, [[1.0], [2.0]], OutputKind.SEQUENCE, None, "a sequence"),
    "strings": (OTHER, np.array([["a"], ["b"]], object), OutputKind.STRINGS, None, "strings"),
    "booleans": (
        Source(Ending.COMPARISON, "Greater"), _normal(4) > 0, OutputKind.BOOLEANS, None, "booleans of Greater",
    ),
    "labels": (
        Source(Ending.CHOICE, "ArgMax"), np.ones((4, 2), np.int64), OutputKind.LABELS, None,
        "integers chosen by ArgMax",
    ),
    "selection": (
        Source(Ending.CHOICE, "NonMaxSuppression"), np.ones((4, 3), np.int64), OutputKind.SELECTION, None,
        "indices chosen by NonMaxSuppression",
    ),
    "non-zero": (
        Source(Ending.CHOICE, "NonZero"), np.ones((4, 3), np.int64), OutputKind.SELECTION, None,
        "indices chosen by NonZero",
    ),
    "8-bit": (
        Source(Ending.OTHER, ""), np.ones((4, 3), np.uint8), OutputKind.IMAGE_8BIT, None,
        "integers that the model rounds",
    ),
    "rounded": (
        Source(Ending.OTHER, "Round", ("a",)), np.ones((4, 3), np.int32), OutputKind.IMAGE_8BIT, None,
        "integers that Round rounds",
    ),
    "integers": (Source(Ending.OTHER, "Add"), np.ones((4, 3), np.int64), OutputKind.LABELS, None, "integers"),
    "probabilities": (OTHER, softmax(_normal(5), -1), OutputKind.CLASS_SCORES, -1, "rows sum to 1"),
    "log": (OTHER, log_softmax(_normal(5), -1), OutputKind.CLASS_SCORES, -1, "rows are logarithms of probabilities"),
    "positions": (OTHER, softmax(_normal(20, 5), -1), OutputKind.POSITION_SCORES, -1, "rows sum to 1"),
    "pixels": (OTHER, softmax(_normal(5, 6, 7), 1), OutputKind.POSITION_SCORES, 0, "rows sum to 1"),
    "pixels last": (OTHER, softmax(_normal(6, 7, 5), -1), OutputKind.POSITION_SCORES, -1, "rows sum to 1"),
    "text": (
        OTHER, softmax(_text(), -1), OutputKind.TEXT_SCORES, -1, "rows sum to 1; class 0 is a common blank",
    ),
    "text, blank last": (
        OTHER, softmax(_text(blank=11), -1), OutputKind.TEXT_SCORES, -1, "rows sum to 1; class 11 is a common blank",
    ),
    "detections": (OTHER, _detections(), OutputKind.DETECTION_ROWS, 1, "rows sorted by a column that never rises"),
    "binary": (SIGMOID, _normal(1), OutputKind.BINARY_SCORE, None, "a single number behind a sigmoid"),
    "mask": (SIGMOID, _normal(1, 8, 8), OutputKind.MASK, 0, "behind Sigmoid"),
    "embedding": (PRODUCT, _normal(32), OutputKind.EMBEDDING, 0, "vectors of 32 numbers without a winner in each"),
    "tokens": (PRODUCT, _normal(7, 64), OutputKind.EMBEDDING, 1, "vectors of 64 numbers without a winner in each"),
    "vector": (PRODUCT, _normal(31), OutputKind.VECTOR, 0, "31 numbers behind a last Gemm"),
    "landmarks": (PRODUCT, np.arange(10) + 0.5 * _normal(10), OutputKind.NUMBERS, 0, PLAIN),
    "coordinates": (PRODUCT, _normal(4), OutputKind.NUMBERS, 0, PLAIN),
    "numbers": (OTHER, _normal(31), OutputKind.NUMBERS, 0, PLAIN),
    "boxes": (OTHER, _normal(40, 4), OutputKind.NUMBERS, 1, PLAIN),
    "channels": (OTHER, _normal(5, 4, 4), OutputKind.NUMBERS, 0, PLAIN),
    "scalars": (OTHER, _normal(), OutputKind.NUMBERS, None, PLAIN),
    "constants": (PRODUCT, np.ones((COUNT, 4)), OutputKind.NUMBERS, 0, PLAIN),
    "not finite": (PRODUCT, np.full((COUNT, 4), np.nan), OutputKind.NUMBERS, 0, PLAIN),
}  # fmt: skip


@pytest.mark.parametrize("row", TABLE)
def test_the_kind_of_each_row_of_the_table(row):
    source, values, kind, axis, why = TABLE[row]
    samples = values if isinstance(values, list) else [np.asarray(value) for value in values]
    assert decide(source, samples, []) == KindDecision(kind, axis, why)


def test_scores_behind_a_last_product_are_told_with_their_statistic():
    values = list(_scores(10))
    statistic = winner_statistic(np.stack(values))
    why = f"behind a last Gemm, each row with a winner (statistic {statistic:.2f} > 0.45)"
    assert decide(PRODUCT, values, []) == KindDecision(OutputKind.CLASS_SCORES, -1, why)
    assert decide(OTHER, values, []).kind is OutputKind.NUMBERS


def test_an_output_near_an_input_is_judged_by_what_it_adds():
    residual = [{"x": x} for x in IMAGE]
    found = decide(OTHER, list(IMAGE + 0.1 * _normal(3, 8, 8, seed=1)), residual)
    assert found == KindDecision(OutputKind.RESIDUAL, 0, "like the input 'x' and near it")
    assert decide(OTHER, list(_normal(3, 8, 8, seed=1)), residual).kind is OutputKind.NUMBERS


def test_a_map_that_resembles_an_input_of_another_scale_is_no_residual():
    bright = [{"x": 255 * x} for x in IMAGE]
    mask = 1 / (1 + np.exp(-IMAGE))
    assert np.corrcoef(mask.ravel(), IMAGE.ravel())[0, 1] > 0.8
    assert decide(SIGMOID, list(mask), bright) == KindDecision(OutputKind.MASK, 0, "behind Sigmoid")


def test_inputs_of_other_samples_or_types_or_shapes_are_none_that_it_resembles():
    values = list(IMAGE)
    assert like_an_input(values, [{"x": x} for x in IMAGE]) == "x"
    assert like_an_input(values, [{"x": IMAGE}]) is None
    assert like_an_input(values, [{"x": x[:2]} for x in IMAGE]) is None
    assert like_an_input(values, [{"x": x > 0} for x in IMAGE]) is None
    assert like_an_input(values, []) is None


def test_samples_of_several_ranks_are_numbers():
    found = decide(PRODUCT, [np.array(1.0), np.ones(3)], [])
    assert found == KindDecision(OutputKind.NUMBERS, None, "floats of several ranks")


def test_columns_need_the_same_width_in_every_sample():
    ragged = [np.ones((5, n)) * np.arange(5)[:, None] for n in (3, 4)]
    assert decide(OTHER, ragged, []) == KindDecision(OutputKind.NUMBERS, 0, PLAIN)
    vectors = [np.arange(3.0), np.arange(4.0)]
    assert decide(OTHER, vectors, []) == KindDecision(OutputKind.NUMBERS, None, PLAIN)
    spans = [softmax(np.arange(float(n))) for n in (5, 7, 9)]
    assert decide(OTHER, spans, []) == KindDecision(OutputKind.CLASS_SCORES, -1, "rows sum to 1")


@pytest.mark.parametrize("scale", [1e-3, 1.0, 1e4])
@pytest.mark.parametrize("classes", [3, 10, 1000])
def test_scores_have_a_winner_at_any_scale_and_vectors_have_none(scale, classes):
    random = np.random.default_rng(classes)
    labels = random.integers(0, classes, 600)
    centres = 3 * np.eye(classes)
    scores = centres[labels] + random.standard_normal((600, classes)) * 0.5
    vectors = random.standard_normal((600, classes)) @ random.standard_normal((classes, classes))
    offset = 5 * random.standard_normal(classes)
    assert winner_statistic(scale * (scores + offset)) > 0.45
    assert winner_statistic(scale * (vectors + offset)) < 0.3


@given(st.floats(0.001, 1000), st.floats(-100, 100))
def test_the_statistic_does_not_know_scale_nor_offset(scale, offset):
    rows = _scores(6)
    assert winner_statistic(scale * rows + offset) == pytest.approx(winner_statistic(rows), abs=1e-4)


def test_fewer_than_two_columns_that_vary_have_no_winner():
    assert winner_statistic(np.ones((5, 4))) == 0
    assert winner_statistic(np.eye(4)[:, :1] * [1, 0, 0]) == 0


def test_detections_are_sorted_in_every_sample_by_a_column_that_varies():
    rows = np.array([[0.0, 3, 1], [1, 2, 1], [0, 1, 1]])
    assert sorted_column([rows, rows[:1]]) == 1
    assert sorted_column([rows, rows[::-1]]) is None
    assert sorted_column([np.ones((3, 2))]) is None


def test_kinds_are_read_from_texts():
    assert parse_kinds(["a=mask", "b=c=embedding"]) == {"a": OutputKind.MASK, "b=c": OutputKind.EMBEDDING}
    assert parse_kinds([]) == {}


@pytest.mark.parametrize("text", ["a=masks", "mask", "a=", ""])
def test_other_texts_are_refused(text):
    with pytest.raises(UsageError) as caught:
        parse_kinds([text])
    assert (caught.value.message, caught.value.where) == (f"{text!r} is no NAME=KIND", "--output-kind")
    assert caught.value.hint == (
        "Kinds: class-scores, position-scores, text-scores, binary-score, embedding, numbers, vector, residual, "
        "image-8bit, mask, labels, booleans, strings, detection-rows, raw-detections, selection, signal, durations, "
        "sequence, state"
    )
