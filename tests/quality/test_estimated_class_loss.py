"""Loss of accuracy of outputs that score classes, of texts and of decisions."""

import numpy as np
import pytest
from scipy.special import log_softmax, softmax

from onnxcompress.numerics.statistics.drop_posterior import drop_posterior
from onnxcompress.numerics.statistics.estimate import Estimate
from onnxcompress.quality.estimated_class_loss import (
    RowCollector,
    class_loss,
    expected_disagreement,
    mean_divergence,
    text_loss,
    yes_and_no,
)


def _rows(pairs, axis=-1):
    collector = RowCollector(axis)
    for one, other in pairs:
        collector.add(np.asarray(one, np.float64), np.asarray(other, np.float64))
    return collector.rows()


def _noisy(count=64, classes=10, noise=1.0, seed=0):
    random = np.random.default_rng(seed)
    logits = random.standard_normal((count, classes)) * 3
    return logits, logits + noise * random.standard_normal(logits.shape)


def test_rows_hold_what_each_decision_loses():
    p, q = np.array([0.7, 0.2, 0.1]), np.array([0.3, 0.6, 0.1])
    rows = _rows([(p, q), (p, p)])
    assert rows.sample.tolist() == [0, 1]
    assert rows.lost == pytest.approx([0.5, 0])
    assert rows.divergence == pytest.approx([(p * np.log(p / q)).sum(), 0])
    assert rows.confidence == pytest.approx([0.7, 0.7])
    assert (rows.best.tolist(), rows.new.tolist()) == ([0, 0], [1, 0])
    assert rows.margin == pytest.approx([np.log(3.5)] * 2)
    assert rows.margin_error == pytest.approx([np.log(0.5) - np.log(3.5), 0])
    assert (rows.logit_error, rows.classes) == (None, 3)


def test_logits_are_scored_as_their_softmax_and_logarithms_as_what_they_are():
    logits, other = _noisy()
    as_logits, as_chances, as_logs = (
        class_loss(_rows(zip(f(logits), f(other), strict=True)))
        for f in (lambda x: x + 5, lambda x: softmax(x, -1), lambda x: log_softmax(x, -1))
    )
    for found in (as_chances, as_logs):
        assert (found.value, found.low, found.high) == pytest.approx(
            (as_logits.value, as_logits.low, as_logits.high), rel=1e-6
        )


def test_the_loss_is_the_posterior_of_the_samples_means():
    logits, other = _noisy(64 * 5)
    pairs = [(logits[k : k + 5], other[k : k + 5]) for k in range(0, 320, 5)]
    rows = _rows(pairs)
    p, q = softmax(logits, -1), softmax(other, -1)
    each = np.arange(320)
    lost = (p[each, p.argmax(1)] - p[each, q.argmax(1)]).reshape(64, 5).mean(1)
    divergence = (p * np.log(p / q)).sum(1).reshape(64, 5).mean(1)
    expected = drop_posterior(lost, divergence, rows=5, confidence=p.max(1).mean(), chance=0.1)
    found = class_loss(rows)
    assert rows.logit_error < 0.125
    assert (found.value, found.low, found.high) == pytest.approx((expected.value, expected.low, expected.high))
    assert mean_divergence(rows) == pytest.approx(divergence.mean())


def test_classes_of_pictures_lie_along_their_channels():
    random = np.random.default_rng(0)
    one, other = random.standard_normal((2, 5, 6, 7))
    rows, moved = _rows([(one, other)], 0), _rows([(np.moveaxis(one, 0, -1), np.moveaxis(other, 0, -1))])
    assert rows.lost == pytest.approx(moved.lost)
    assert len(rows.lost) == 42


def test_of_large_pictures_a_regular_choice_is_compared():
    assert len(_rows([(np.random.default_rng(0).random((3, 200, 200)),) * 2], 0).lost) == 4000


def test_rare_classes_count_for_themselves_where_one_prevails():
    random = np.random.default_rng(0)
    logits = random.standard_normal((64, 5))
    logits[:58, 0] += 8
    logits[58:, 3] += 8
    other = logits.copy()
    other[58:, 0] += 9  # whatever is rare is taken for common
    found = class_loss(_rows(zip(logits, other, strict=True)))
    p, q = softmax(logits, -1), softmax(other, -1)
    each = np.arange(64)
    whole = drop_posterior(
        p[each, p.argmax(1)] - p[each, q.argmax(1)], (p * np.log(p / q)).sum(1),
        rows=1, confidence=p.max(1).mean(), chance=0.2,
    )  # fmt: skip
    assert found.value > 4 * whole.value
    assert found.value > 0.5


def test_destroyed_logits_are_more_than_a_point_though_no_sample_flips():
    logits = np.eye(10)[np.arange(64) % 10] * 30
    other = logits * 0.4  # the best classes stay
    rows = _rows(zip(logits, other, strict=True))
    assert rows.logit_error == pytest.approx(0.5 * 0.6**2)
    assert class_loss(rows).value == pytest.approx(0.01 * 0.18 / 0.125 * 1.001)
    mild = _rows(zip(logits, logits * 0.6, strict=True))
    assert mild.logit_error == pytest.approx(0.08)
    assert class_loss(mild).value < 0.01


def test_scores_that_became_no_numbers_are_wrong():
    rows = _rows([([0.1, 0.9], [np.nan, np.nan])])
    assert rows.new.tolist() == [0]
    assert rows.lost == pytest.approx([0.8])


def test_equal_scores_lose_nothing():
    logits, _ = _noisy()
    rows = _rows(zip(logits, logits, strict=True))
    assert class_loss(rows) == expected_disagreement(rows) == Estimate(0, 0, 0)


def test_a_single_class_can_not_be_taken_for_another():
    rows = _rows([([[3.0], [1.0]], [[0.0], [9.0]])])
    assert rows.lost.tolist() == rows.margin.tolist() == rows.divergence.tolist() == [0, 0]


def test_rows_of_another_width_in_each_sample():
    spans = [softmax(np.arange(float(n))) for n in (4, 6, 8)]
    rows = _rows([(span, span[::-1]) for span in spans])
    assert rows.classes == 6
    assert rows.lost == pytest.approx([span[-1] - span[0] for span in spans])


def test_a_yes_is_a_choice_between_two():
    assert yes_and_no(np.array([[0.9], [0.2]])).tolist() == [[pytest.approx(0.1), 0.9], [0.8, 0.2]]


def _spelled(symbols, classes=12, confidence=0.9):
    found = np.full((len(symbols), classes), (1 - confidence) / (classes - 1))
    found[np.arange(len(symbols)), symbols] = confidence
    return found


def test_texts_lose_edits_and_neither_repeats_nor_blanks():
    text = [1, 0, 2, 2, 0, 3, 0, 4, 0, 5]  # 1 2 3 4 5
    same = [1, 1, 0, 2, 0, 3, 3, 4, 0, 5]
    assert text_loss(_rows([(_spelled(text), _spelled(same))] * 8), 0).value == 0
    wrong = [1, 0, 2, 2, 0, 6, 0, 4, 0, 5]
    lost = 0.9 - 0.1 / 11
    found = text_loss(_rows([(_spelled(text), _spelled(wrong))] * 2 + [(_spelled(text),) * 2] * 6), 0)
    assert found.value == pytest.approx(2 * 1 * lost / (8 * 5))
    assert found.low <= found.value <= found.high
    dropped = [1, 0, 2, 2, 0, 0, 0, 4, 0, 5]
    found = text_loss(_rows([(_spelled(text), _spelled(dropped))] * 8), 0)
    assert found.value == pytest.approx(lost / 5)


def test_a_text_that_is_blank_throughout_is_scored_by_its_positions():
    blank = _spelled([0] * 10)
    rows = _rows([(blank, blank)] * 4)
    assert text_loss(rows, 0) == class_loss(rows) == Estimate(0, 0, 0)


def test_the_expected_disagreement_is_near_the_share_that_is_seen_and_smooth():
    logits, other = _noisy(4000, noise=0.5)
    rows = _rows(zip(logits, other, strict=True))
    found = expected_disagreement(rows)
    seen = float((rows.best != rows.new).mean())
    assert found.value == pytest.approx(seen, rel=0.4)
    assert found.low < found.value < found.high


def test_losses_are_scaled_by_sample():
    logits, other = _noisy(8)
    rows = _rows([(logits[:4], other[:4]), (logits[4:], other[4:])])
    scaled = rows.scaled(np.array([1.0, 4.0]))
    assert scaled.divergence == pytest.approx(rows.divergence * np.repeat([1, 4], 4))
    assert scaled.lost == pytest.approx(rows.lost * np.repeat([1, 4], 4))
    assert scaled.margin_error == pytest.approx(rows.margin_error * np.repeat([1, 2], 4))
