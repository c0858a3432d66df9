"""The bound on whole-model runs of a pass in a plan, and how its changes say what they rest on."""

import pytest

from onnxcompress.core import Change
from onnxcompress.search import drafts

FEEDS = [{"x": index} for index in range(8)]


@pytest.mark.parametrize(
    ("macs", "runs", "expected"),
    [
        (10**6, 50, list(range(8))),
        (10**9, 50, [0, 4]),
        (10**9, 25, [0, 2, 4, 6]),
        (10**10, 50, [0]),
        (0, 0, list(range(8))),
    ],
)
def test_samples_are_as_many_as_the_runs_allow_and_evenly_spread(macs, runs, expected):
    assert [feed["x"] for feed in drafts.some(FEEDS, macs, runs)] == expected


def test_samples_that_carry_a_state_are_the_first():
    assert [feed["x"] for feed in drafts.some(FEEDS, 10**9, 25, in_order=True)] == [0, 1, 2, 3]


def test_marked_changes_keep_their_details_and_say_what_they_rest_on():
    [change] = drafts.marked([Change.applied("p", "done", details={"loss": 1.0})], "not trained", samples=2)
    assert change.as_json() | {"loss": 1.0, "draft": "not trained", "draft_samples": 2} == change.as_json()
    assert (change.reason, change.target) == ("done", "graph")


def test_each_draft_has_a_note_and_nothing_else():
    changes = [
        Change.applied("fold", "done"),
        *drafts.marked([Change.applied("cut", "done"), Change.skipped("cut", "no")], "not trained", samples=1),
        *drafts.marked([Change.applied("zero", "done")], "by size", samples=0),
    ]
    assert drafts.notes(changes) == [
        "cut is a draft that rests on 1 sample: not trained",
        "zero is a draft that rests on the weights alone: by size",
    ]
    assert drafts.notes(changes[:1]) == []
