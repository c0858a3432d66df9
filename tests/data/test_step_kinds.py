"""Steps with and without a past: what is timed, and what is held out."""

from collections import Counter

import numpy as np

from onnxcompress.data import step_kinds
from onnxcompress.data.evaluation_set import Evaluation


def feed(new, past):
    return {"ids": np.zeros((1, new), int), "mask": np.ones((1, new + past)), "past": np.zeros((1, past, 4))}


STEPS = [feed(6, 0), *(feed(1, past) for past in range(6, 12)), feed(9, 0), *(feed(1, past) for past in range(9, 20))]


def test_a_step_with_the_longest_past_and_the_longest_prompt_are_timed():
    step, prompt = step_kinds.timed(STEPS, {"past"})
    assert (step["ids"].shape, step["past"].shape[1]) == ((1, 1), 19)
    assert prompt["ids"].shape == (1, 9)


def test_without_a_cache_or_with_one_kind_the_largest_is_timed():
    assert step_kinds.timed(STEPS, ()) == (STEPS[-1],)
    assert step_kinds.timed(STEPS[1:6], {"past"}) == (STEPS[5],)
    assert step_kinds.timed([feed(3, 0), feed(5, 0)], {"past"})[0]["ids"].shape == (1, 5)


def test_each_kind_of_step_is_held_out():
    judged = Evaluation(feeds=STEPS * 2, source="", cache_inputs=frozenset({"past"}))
    working, held = judged.divided()
    kinds = Counter(each["past"].shape[1] == 0 for each in held.feeds[held.seen :])
    assert kinds == {True: 1, False: 8}
    assert len(working.feeds) + len(held.feeds) - held.seen == len(judged.feeds)


def test_samples_without_a_cache_are_divided_as_ever():
    feeds = [{"x": np.full((1, 1 + index % 2), index)} for index in range(20)]
    _, held = Evaluation(feeds=feeds, source="").divided()
    assert [int(each["x"][0, 0]) for each in held.feeds[held.seen :]] == [3, 7, 11, 15, 19]


def test_caches_are_known_by_name_or_from_outside():
    assert step_kinds.cache_inputs(["ids", "past_key_values.0", "state"], ["state"]) == {"past_key_values.0", "state"}
