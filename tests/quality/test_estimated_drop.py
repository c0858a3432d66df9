"""The drop that is estimated without labels."""

import numpy as np
import pytest
from scipy.special import softmax

from onnxcompress.quality.estimated_drop import ClassScores, logit_outputs, sigmoid_values
from tests.helpers import floats, from_text


def _scores(*pairs, is_logits):
    scores = ClassScores(is_logits=is_logits)
    for before, after in pairs:
        scores.add(np.float32(before), np.float32(after))
    return scores


def test_probabilities_lose_what_the_original_gave_to_the_better_class():
    found = _scores(
        ([[0.7, 0.3, 0.0]], [[0.4, 0.6, 0.0]]),  # another class: 0.7 - 0.3
        ([[0.2, 0.5, 0.3]], [[0.1, 0.6, 0.3]]),  # the same class
        is_logits=False,
    ).as_json()
    assert found["estimated_drop"] == pytest.approx(0.2)
    assert found["confidence"] == pytest.approx(0.6)
    assert found["disagreement"] == 0.5
    assert found["positions"] == 2


def test_logits_are_scored_as_their_softmax_at_every_position():
    before, after = floats(4, 6, 9), floats(4, 6, 9, seed=1)
    found = _scores((before, after), is_logits=True).as_json()
    p = softmax(before.astype(np.float64), axis=-1).reshape(-1, 9)
    rows = np.arange(24)
    expected = p[rows, before.reshape(-1, 9).argmax(1)] - p[rows, after.reshape(-1, 9).argmax(1)]
    assert found["estimated_drop"] == pytest.approx(expected.mean())
    assert found["positions"] == 24


@pytest.mark.parametrize(
    "values", [np.zeros((2, 3)), np.ones((4, 1)), np.float32(1), np.full((1, 2), np.nan), np.float32([[2, -1]])]
)
def test_other_outputs_score_no_classes(values):
    assert not _scores((values, values), is_logits=False).is_scores


def test_an_output_that_became_nan_counts_as_wrong():
    found = _scores(([[0.1, 0.9]], [[np.nan, np.nan]]), is_logits=False).as_json()
    assert found["disagreement"] == 1


def test_logits_come_from_a_last_product():
    model = from_text(
        """g (float[n, 4] x, float[4, 3] w) => (float[n, 3] logits, float[n, 4] other, float[n, 3] late)
        {
          bias = Constant<value = float[3] {1, 2, 3}>()
          m = MatMul(x, w)
          logits = Add(m, bias)
          other = Relu(x)
          r = Relu(m)
          late = Identity(r)
        }"""
    )
    assert logit_outputs(model) == {"logits"}


def test_sigmoids_are_found_behind_what_moves_their_elements():
    model = from_text(
        """g (float[n, 2] x) => (float[n, 2] plain, float[2, n] moved, float[n, 2] other, float[n, 2] scaled) {
            plain = Sigmoid(x)
            moved = Transpose(plain)
            other = Tanh(x)
            scaled = Add(plain, plain)
        }"""
    )
    assert sigmoid_values(model.graph.outputs) == {"plain", "moved"}
