"""Metrics of tasks: known values, the direction of a loss, and its interval."""

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from onnxcompress.errors import DataError, UsageError
from onnxcompress.quality import metrics
from onnxcompress.quality.task.known import TASK_METRICS, task_metric
from onnxcompress.quality.task.text import symbol_distance


def _score(name, predictions, references):
    metric = task_metric(name)
    return metric.total(metric.statistics(predictions, references))


def _slow_distance(a, b):
    if not a or not b:
        return len(a) + len(b)
    return min(
        _slow_distance(a[1:], b) + 1, _slow_distance(a, b[1:]) + 1, _slow_distance(a[1:], b[1:]) + (a[0] != b[0])
    )


@given(st.text("abc", max_size=5), st.text("abc", max_size=5))
def test_edit_distance_is_that_of_the_definition(one, other):
    assert symbol_distance(one, other) == _slow_distance(one, other)


def test_word_and_character_errors():
    said, meant = ["the cat sat", "a b"], ["the cat sat down", "a c"]
    assert _score("wer", said, meant) == pytest.approx(2 / 6)
    assert _score("cer", ["abc"], ["abd"]) == pytest.approx(1 / 3)
    assert _score("wer", [[5, 6, 7]], [np.array([5, 7, -100])]) == pytest.approx(1 / 2), "padding is no token"


def test_perplexity_of_logits_and_of_sums_agree():
    logits = np.log(np.array([[[0.5, 0.25, 0.25], [0.1, 0.8, 0.1]]]))
    labels = np.array([[0, 1]])
    assert _score("perplexity", logits, labels) == pytest.approx(math.exp(-(math.log(0.5) + math.log(0.8)) / 2))
    sums = np.array([-(math.log(0.5) + math.log(0.8)), 2.0])
    assert _score("perplexity", [sums], [None]) == pytest.approx(_score("perplexity", logits, labels))


def test_bleu_and_chrf_are_those_of_sacrebleu():
    sacrebleu = pytest.importorskip("sacrebleu")
    said = ["the cat sat on the mat today", "there is a house over there"]
    meant = ["the cat sat on a mat today", "there is one house over there"]
    assert _score("bleu", said, meant) == pytest.approx(sacrebleu.corpus_bleu(said, [meant]).score)
    assert _score("chrf", said, meant) == pytest.approx(sacrebleu.corpus_chrf(said, [meant]).score)


def test_rankings():
    assert _score("spearman", [1.0, 2.0, 3.0], [10, 20, 15]) == pytest.approx(0.5)
    best = 3 / np.log2(2) + 1 / np.log2(3)
    assert _score("ndcg", [[0.1, 0.9]], [[3, 1]]) == pytest.approx((1 / np.log2(2) + 3 / np.log2(3)) / best)
    assert _score("ndcg", [[0.9, 0.1], [0.5, 0.4]], [[3, 1], [0, 0]]) == 1.0, "a query without an answer doesn't count"


def test_f1_is_the_mean_over_classes():
    assert _score("f1", [0, 0, 1, 1], [0, 1, 1, 1]) == pytest.approx((2 / 3 + 4 / 5) / 2)
    assert _score("f1", [np.array([0.1, 0.9]), np.array([0.9, 0.1])], [1, 0]) == 1.0, "scores are made classes"


def test_average_precision():
    box = [0, 0, 10, 10]
    objects = [[*box, 0], [20, 20, 30, 30, 0]]
    both = [[*box, 0.9, 0], [20, 20, 30, 31, 0.8, 0]]
    assert _score("map50", [both], [objects]) == pytest.approx(1.0)
    assert _score("map50", [both[:1]], [objects]) == pytest.approx(0.5)
    twice = [[*box, 0.9, 0], [*box, 0.85, 0], [20, 20, 30, 30, 0.8, 0]]
    assert _score("map50", [twice], [objects]) == pytest.approx((1 + 2 / 3) / 2), "an object is found once"
    assert _score("map50", [[[*box, 0.9, 1]]], [objects]) == 0.0, "another class"


@pytest.mark.parametrize("name", sorted(TASK_METRICS))
def test_a_worse_score_is_a_loss_whichever_way_the_metric_goes(name):
    metric = TASK_METRICS[name]
    worse, better = (2.0, 1.0) if metric.is_error else (1.0, 2.0)
    assert metric.fall(better, worse) > 0 > metric.fall(worse, better)
    assert metrics.fall(name, better, worse) > 0


def test_one_point_is_one_hundredth_of_each_scale():
    assert TASK_METRICS["bleu"].fall(31.0, 30.0) == pytest.approx(0.01)
    assert TASK_METRICS["perplexity"].fall(50.0, 50.5) == pytest.approx(0.01)
    assert TASK_METRICS["wer"].fall(0.30, 0.31) == pytest.approx(0.01)


def test_the_interval_is_paired_and_holds_the_loss():
    rng = np.random.default_rng(0)
    words = [[int(each) for each in rng.integers(0, 9, 20)] for _ in range(40)]
    noisy = [[9, *row[1:]] if index % 2 else row for index, row in enumerate(words)]
    metric = task_metric("wer")
    before, after = metric.statistics(words, words), metric.statistics(noisy, words)
    found = metric.loss(before, after)
    assert found.value == pytest.approx(0.025)
    assert found.low < found.value < found.high < 0.05
    assert metric.loss(after, after).high == 0.0, "the same predictions lose nothing, surely"
    assert metric.loss(before[:1], after[:1]).low == metric.loss(before[:1], after[:1]).value


def test_what_can_not_be_scored_is_named():
    with pytest.raises(UsageError, match="unknown metric 'wre'"):
        task_metric("wre")
    with pytest.raises(DataError, match="sample 0"):
        _score("f1", [[0, 1]], [[0]])
    with pytest.raises(DataError, match="is nan"):
        _score("wer", [""], [""])
    with pytest.raises(DataError, match="failed: ValueError: no"):
        task_metric(_fails).total([(1, 1)])


def _fails(predictions, labels):
    raise ValueError("no")


def test_single_models_take_them_too():
    scores = np.array([[0.9, 0.1], [0.2, 0.8]], np.float32)
    assert metrics.resolve_metric("f1")(scores, np.array([0, 1])) == 1.0
    assert metrics.needs_labels("perplexity")
    low, high = metrics.drop_interval("f1", scores, scores[::-1], np.array([0, 1]))
    assert low <= 1.0 <= high
