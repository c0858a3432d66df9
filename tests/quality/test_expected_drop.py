"""An expected loss of hits is steadier than what few samples show, and sees what is hidden behind a common class."""

import numpy as np
import pytest
from scipy.special import softmax

from onnxcompress.numerics.statistics import drop_estimate
from onnxcompress.quality.estimated_drop import ClassScores, OutputKinds
from onnxcompress.quality.expected_drop import SteadyDrop

LOGITS = OutputKinds(logits=frozenset({"y"}))


def _pair(count, noise, seed, *, classes=10):
    random = np.random.default_rng(seed)
    scores = random.normal(size=(count, classes)) * 3
    return scores, scores + noise * random.normal(size=scores.shape)


def _steady(pairs, kinds=LOGITS, others=()):
    found = SteadyDrop(kinds)
    for expected, got in pairs:
        found.add({"y": expected.astype(np.float32)}, {"y": got.astype(np.float32)})
    return found.drop([{"y": each.astype(np.float32)} for each in others])


def _shown(expected, got):
    scores = ClassScores(is_logits=True)
    scores.add(expected, got)
    return scores.as_json()["estimated_drop"]


def test_it_agrees_with_many_samples_and_spreads_less_than_few_show():
    truth = _shown(*_pair(100_000, 0.2, 0))
    few = [_pair(64, 0.2, seed) for seed in range(1, 41)]
    steady, shown = [_steady([pair]) for pair in few], [_shown(*pair) for pair in few]
    assert np.mean(steady) == pytest.approx(truth, rel=0.35)
    assert np.std(steady) < 0.9 * np.std(shown)


def test_scores_of_the_original_on_other_samples_help():
    few = [_pair(64, 0.2, seed) for seed in range(1, 41)]
    more = [_pair(192, 0.2, seed)[0] for seed in range(101, 141)]
    helped = [_steady([pair], others=[other]) for pair, other in zip(few, more, strict=True)]
    assert np.std(helped) < np.std([_steady([pair]) for pair in few])


def test_the_same_scores_lose_nothing_and_shifted_ones_neither():
    scores, _ = _pair(64, 0, 3)
    assert _steady([(scores, scores)]) == 0
    assert _steady([(scores, scores + 7)]) == pytest.approx(0, abs=1e-12)


def test_many_rows_speak_for_themselves():
    scores, got = _pair(3000, 0.5, 4)
    assert _steady([(scores, got)]) == pytest.approx(_shown(scores, got), rel=1e-3)


@pytest.mark.parametrize("count", [200, 3000])
def test_what_goes_wrong_behind_a_common_class_counts_in_full(count):
    p = np.full((count, 4), 0.01)
    p[:, 0] = 0.97
    p[: count // 10] = [0.01, 0.97, 0.01, 0.01]
    wrong = p.copy()
    wrong[: count // 20] = p[-1]
    drop = _steady([(p, wrong)], OutputKinds())
    assert drop == pytest.approx(0.48, abs=0.15)


def test_other_outputs_have_none():
    x = np.random.default_rng(0).normal(size=(8, 4))
    assert _steady([(x, x)], OutputKinds()) is None
    assert SteadyDrop(LOGITS).drop() is None
    found = SteadyDrop(LOGITS, skip=["y"])
    found.add({"y": x}, {"y": x})
    assert found.drop() is None


def test_what_is_not_a_number_loses_about_all():
    scores, _ = _pair(64, 0, 5)
    assert _steady([(scores, np.full_like(scores, np.nan))]) > 0.4


def test_errors_go_to_the_rows_whose_margin_is_nearest():
    scores = np.log(softmax([[5.0, 0.0], [0.2, 0.0]], axis=1))
    errors = np.array([[0.0, 0.0], [-0.5, 0.5]])
    found = drop_estimate.expected_drop(scores, np.exp(scores), scores, errors, nearest=1)
    assert found[0] == 0
    assert found[1] == pytest.approx(np.exp(scores)[1, 0] - np.exp(scores)[1, 1])
    both = drop_estimate.expected_drop(scores, np.exp(scores), scores, errors, nearest=2)
    assert both[1] == pytest.approx(found[1] / 2)


def test_rows_are_ranked_with_their_errors():
    scores, errors = drop_estimate.ranked(np.array([[1.0, 3.0, 2.0]]), np.array([[1.0, 6.0, 2.0]]), 2)
    assert scores.tolist() == [[3.0, 2.0]]
    assert errors.tolist() == [[2.0, -1.0]]
