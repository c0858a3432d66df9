"""The verdict on end-to-end detectors: rows in any number and order, in one output or in several."""

import numpy as np
import pytest

from onnxcompress.quality.output_kinds import OutputKind
from onnxcompress.quality.output_plan import OutputPlan
from onnxcompress.quality.output_sources import Ending, Source, sources
from onnxcompress.quality.row_tables import find, joined
from onnxcompress.quality.verdict import VerdictMeter
from tests.helpers import from_text

COUNT = 24
ROWS = Source(Ending.OTHER, "Gather", counts_rows=True)
BATCHED = Source(Ending.OTHER, "Gather")
PICTURE = {"x": np.zeros((1, 3, 8, 8), np.float32)}


def _detections(least, most, *, seed=0, classes=80):
    """Return sorted rows for each picture: four edges, score, class."""
    random = np.random.default_rng(seed)
    found = []
    for _ in range(COUNT):
        rows = random.random((random.integers(least, most + 1), 6)) * [300, 300, 300, 300, 0.7, 0] + [
            0,
            0,
            0,
            0,
            0.3,
            0,
        ]
        rows[:, 4] = -np.sort(-rows[:, 4])
        rows[:, 5] = random.integers(0, classes, len(rows))
        found.append(rows.astype(np.float32))
    return found


def _losses(one, other, kinds):
    """Return the losses of all outputs, by name; `one` and `other` hold a dict of outputs for each picture."""
    plan = OutputPlan(kinds)
    plan.decide_first(one, [PICTURE] * len(one))
    meter = VerdictMeter(plan)
    for a, b in zip(one, other, strict=True):
        meter.add(PICTURE, a, b)
    return {output.name: output for output in meter.verdict().outputs}


def _whole(tables, **_):
    return [{"y": table} for table in tables]


def _batched(tables, **_):
    return [{"y": table[None]} for table in tables]


def _numbered(tables, **_):
    """Return rows with the number of the picture in the batch first."""
    return [{"y": np.concatenate([np.zeros((len(t), 1), np.float32), t], 1)} for t in tables]


def _padded(tables, **_):
    return [{"y": np.concatenate([t, np.zeros((20, 6), np.float32)])[:20]} for t in tables]


def _apart(tables, **_):
    """Return padded rows as outputs of their own, as TensorRT's and TensorFlow's operators give them."""
    padded = [run["y"] for run in _padded(tables)]
    return [
        {
            "count": np.array([[len(t)]], np.int32),
            "boxes": p[None, :, :4],
            "scores": p[None, :, 4],
            "classes": p[None, :, 5].astype(np.int32),
        }
        for t, p in zip(tables, padded, strict=True)
    ]


FORMS = {
    "rows": (_whole, {"y": ROWS}),
    "batched": (_batched, {"y": BATCHED}),
    "numbered": (_numbered, {"y": ROWS}),
    "padded": (_padded, {"y": BATCHED}),
    "apart": (_apart, dict.fromkeys(("count", "boxes", "scores", "classes"), BATCHED)),
}


def _swapped(tables):
    """Return rows of which neighbours with nearly the same score have changed places."""
    found = []
    for table in tables:
        rows = table.copy()
        if len(rows) > 1:
            rows[:2] = rows[[1, 0]]
            rows[:2, 4] = table[:2, 4]
        found.append(rows)
    return found


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize(("least", "most"), [(0, 9), (0, 2), (1, 1)])
def test_rows_in_any_number_and_form_are_matched(form, least, most):
    shape, kinds = FORMS[form]
    tables = _detections(least, most)
    same = _losses(shape(tables), shape([table.copy() for table in tables]), kinds)
    assert [output.loss.drop.value for output in same.values()] == [0] * len(kinds)
    if form == "apart" and most < 5:
        return  # too few rows to show that the outputs belong together: see below
    wrong = _losses(shape(tables), shape([table + np.float32([0, 0, 0, 0, 0, 1]) for table in tables]), kinds)
    if most > 2:
        assert {output.kind for output in same.values()} == {OutputKind.DETECTION_ROWS}
        assert all(output.loss.drop.value == pytest.approx(0.2, rel=0.05) for output in wrong.values())
        moved = _losses(shape(tables), shape(_swapped(tables)), kinds)
        assert all(output.loss.drop.value < 0.01 for output in moved.values())


@pytest.mark.parametrize("form", FORMS)
def test_half_of_the_rows_lost_or_found_twice_as_many_count_alike(form):
    shape, kinds = FORMS[form]
    tables = _detections(6, 10)
    fewer = [table[: len(table) // 2] for table in tables]
    lost = _losses(shape(tables), shape(fewer), kinds)
    found = _losses(shape(fewer), shape(tables), kinds)
    for name in kinds:
        assert lost[name].loss.drop.value > 0.03
        assert found[name].loss.drop.value == pytest.approx(lost[name].loss.drop.value, rel=0.5)


def test_pictures_without_detections_hide_nothing():
    tables = _detections(6, 10)
    wrong = [table + np.float32([0, 0, 0, 0, 0, 1]) for table in tables]
    for index in range(0, COUNT, 2):
        tables[index] = wrong[index] = np.zeros((0, 6), np.float32)
    found = _losses(_whole(tables), _whole(wrong), {"y": ROWS})["y"]
    assert found.loss.drop.value == pytest.approx(0.2, rel=0.05)
    assert _losses(_whole(tables), _whole(tables), {"y": ROWS})["y"].loss.drop.value == 0


def test_outputs_that_only_look_alike_are_judged_apart():
    random = np.random.default_rng(0)
    inputs = [{"x": np.zeros((3, 8, 8), np.float32)}] * COUNT
    points = [random.standard_normal((5, 2)) for _ in range(COUNT)]
    features = [random.standard_normal(5) for _ in range(COUNT)]
    assert find({"points": points, "features": features}, inputs) is None
    scores = [-np.sort(-random.random(5)) for _ in range(COUNT)]
    found = find({"points": points, "scores": scores, "n": [np.array(5)] * COUNT, "m": [np.array(6)] * COUNT}, inputs)
    assert (found.columns, found.counts) == (("points", "scores"), ("n",))
    assert found.why == "rows sorted by an output that never rises: points, scores together"
    texts = [np.array(["a"], object)] * COUNT
    assert find({"points": points, "scores": scores, "s": texts, "l": [[1]] * COUNT}, inputs) == find(
        {"points": points, "scores": scores}, inputs
    )
    assert find({"scores": scores}, inputs) is None


def test_columns_of_several_lengths_make_no_rows():
    assert joined([np.ones((3, 4)), np.ones(3)]).shape == (3, 5)
    assert joined([np.ones((3, 4)), np.ones(2)]).shape == (0, 5)


def test_an_open_first_axis_beside_fixed_inputs_counts_rows():
    text = "g (float[{x}, 4] x) => (float[{y}, 4] y) {{ y = Abs(x) }}"
    assert sources(from_text(text.format(x=1, y="d")))["y"].counts_rows
    assert not sources(from_text(text.format(x="n", y="d")))["y"].counts_rows
    assert not sources(from_text(text.format(x="n", y="n")))["y"].counts_rows
    assert not sources(from_text(text.format(x=1, y=1)))["y"].counts_rows
