"""Feeds that hold sequences of arrays, whose lengths differ: they are counted, joined and named like others."""

import numpy as np
import pytest

import onnxcompress as oc
from onnxcompress.activations import calibration, observe
from onnxcompress.data import feeds as feed_facts
from onnxcompress.io import model_io
from tests.helpers import floats, from_text

TEXT = """
g (seq(float[n]) s, float[4] x) => (float[4] y)
<int64 first = {0}, float[4] w = {1, 2, 3, 4}>
{ a = SequenceAt(s, first) m = Mul(x, w) b = ReduceSum<keepdims = 0>(a) y = Add(m, b) }
"""
FEEDS = [{"s": [floats(3, seed=i), floats(5, seed=i)], "x": floats(4, seed=i)} for i in range(8)]


def test_elements_and_dimensions_of_what_has_some():
    feed = {"s": [np.zeros(3), [np.zeros((2, 2))]], "n": None, "x": np.zeros((2, 5)), "i": 3}
    assert feed_facts.elements(feed) == 3 + 4 + 10 + 1
    assert feed_facts.dims(feed) == {"x": (2, 5), "i": ()}
    assert feed_facts.largest([{"x": np.zeros(2)}, feed, {"x": np.zeros(18)}]) is feed


@pytest.mark.parametrize("recipe", ["int8", "shallow", "auto", "prune"])
def test_recipes_work_on_models_that_take_sequences(recipe):
    result = oc.compress(from_text(TEXT), recipe=recipe, data=FEEDS)
    assert not any("internal error" in change.reason for change in result.changes)


def test_a_fingerprint_sees_what_is_in_a_sequence():
    model = model_io.load(from_text(TEXT))
    other = [{**FEEDS[0], "s": [FEEDS[0]["s"][0], FEEDS[0]["s"][1] + 1]}]
    prints = {calibration.fingerprint(model, feeds, {}) for feeds in (FEEDS[:1], other, FEEDS[:1])}
    assert len(prints) == 2


def test_sequences_are_not_joined_to_batches():
    model = model_io.load(from_text("g (seq(float[n]) s) => (int64 y) { y = SequenceLength(s) }"))
    feeds = [{"s": [floats(3), floats(5)]}] * 4
    assert len(list(observe.batched(model, feeds, 4))) == 4
