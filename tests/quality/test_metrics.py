"""Scores: what they are on a few numbers, and what is no label."""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import pytest

from onnxcompress.errors import UsageError
from onnxcompress.quality import metrics

SCORES = np.array([[0.1, 0.9, 0.0], [0.5, 0.2, 0.3], [0.0, 0.4, 0.6], [0.3, 0.3, 0.3]])


def test_top1_counts_the_highest_score_and_ties_go_to_the_lower_class():
    assert metrics.top1(SCORES, np.array([1, 0, 2, 0])) == 1.0
    assert metrics.top1(SCORES, np.array([1, 0, 2, 1])) == 0.75
    assert metrics.top1(SCORES, np.array([0, 1, 0, 2])) == 0.0


def test_top5_counts_the_five_highest():
    scores = np.arange(10.0)[None].repeat(10, 0)
    assert metrics.top5(scores, np.arange(10)) == 0.5


def test_positions_count_one_by_one():
    assert metrics.top1(SCORES.reshape(2, 2, 3), np.array([[1, 0], [0, 0]])) == 0.75


def test_a_score_that_is_no_number_is_never_right():
    scores = np.array([[np.nan, 0.0], [0.0, np.nan], [np.inf, 0.0]])
    assert metrics.top1(scores, np.array([0, 1, 1])) == 0.0


@pytest.mark.parametrize(
    ("labels", "told"),
    [
        ([1, 0, 2, 3], "label 3 is none of the 3 classes"),
        ([1, 0, 2, -1], "label -1 is none of the 3 classes"),
        ([1.0, 0.0, 2.0, 0.5], "label 0.5 is none"),
        ([1.0, 0.0, 2.0, np.nan], "label nan is none"),
        ([1, 0, 2], r"int64 \[3\], and integers \[4\]"),
        ([[1], [0], [2], [0]], r"int64 \[4, 1\]"),
        (["a", "b", "c", "d"], r"<U1 \[4\]"),
    ],
)
@pytest.mark.parametrize("metric", [metrics.top1, metrics.top5])
def test_labels_that_are_no_classes_are_refused(metric: metrics.Metric, labels: list[object], told: str):
    with pytest.raises(ValueError, match=told):
        metric(SCORES, np.array(labels))


def test_whole_numbers_in_floats_are_labels():
    assert metrics.top1(SCORES, np.array([1.0, 0.0, 2.0, 0.0])) == 1.0


def test_agreement_is_the_share_of_equal_choices():
    assert metrics.agreement(SCORES, SCORES[[0, 1, 2, 2]]) == 0.75


@pytest.mark.parametrize(
    ("one", "other", "expected"),
    [
        ([1, 0], [0, 1], 0.0),
        ([1, 1], [2, 2], 1.0),
        ([1, 1], [-1, -1], -1.0),
        ([0, 0], [0, 0], 1.0),
        ([0, 0], [0, 1], 0.0),
        ([np.nan, 1], [np.nan, 1], 1.0),
        ([np.nan, 1], [0, 1], 0.0),
        ([np.inf, 1], [-np.inf, 1], 0.0),
    ],
)
def test_cosine_is_never_nan(one: list[float], other: list[float], expected: float):
    assert metrics.cosine(np.array(one, float), np.array(other, float)) == pytest.approx(expected)


def test_cosine_of_large_halves_does_not_overflow():
    half = np.full(1000, 6e4, np.float16)
    assert metrics.cosine(half, half) == pytest.approx(1.0)


def test_metrics_by_name():
    assert metrics.resolve_metric("top1") is metrics.top1
    assert metrics.needs_labels("top5")
    assert metrics.needs_labels("module:function")
    assert not metrics.needs_labels("cosine")
    with pytest.raises(UsageError, match=r"unknown metric 'top2'\. Known are agreement, bleu, cer, chrf, cosine"):
        metrics.resolve_metric("top2")


def test_functions_are_found_in_the_current_folder_and_faults_are_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    (tmp_path / "users_metric.py").write_text("def score(outputs, labels): return 0.5\nnumber = 3\n")
    (tmp_path / "users_broken.py").write_text("def (")
    (tmp_path / "users_exit.py").write_text("import sys; sys.exit(5)")
    monkeypatch.chdir(tmp_path)
    before = list(sys.path)
    assert metrics.resolve_metric("users_metric:score")(None, None) == 0.5
    assert sys.path == before
    for name, told in (
        ("users_metric:number", "has no function 'number'"),
        ("users_broken:score", "importing 'users_broken' failed: SyntaxError"),
        ("users_exit:score", "importing 'users_exit' failed: SystemExit"),
        ("users_no_such:score", "there is no module 'users_no_such'"),
    ):
        with pytest.raises(UsageError, match=told):
            metrics.resolve_metric(name)
    monkeypatch.delitem(sys.modules, "users_metric")


def test_the_fall_of_a_score_of_rows_has_an_interval():
    labels = np.arange(40) % 4
    before, after = np.eye(4)[labels], np.eye(4)[np.where(np.arange(40) < 4, (labels + 1) % 4, labels)]
    low, high = metrics.drop_interval("top1", before, after, labels)
    assert 0 <= low < 0.1 < high < 0.25
    assert metrics.drop_interval("top1", before, before, labels) == (0, 0)
    assert metrics.drop_interval("agreement", before, after, before) == (low, high)
    assert metrics.drop_interval("cosine", before, after, before) is None
    assert metrics.drop_interval("module:function", before, after, labels) is None
