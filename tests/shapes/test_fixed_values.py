"""Two models with the same random numbers and durations: their signals meet place by place."""

import numpy as np
import pytest

from onnxcompress.graph import edit
from onnxcompress.io import model_io
from onnxcompress.runtime.loaded_model import LoadedModel
from onnxcompress.shapes.fixed_values import FixedValues
from tests import voice
from tests.helpers import from_text

FEEDS = voice.feeds(6)
LOUDER = {"de": "Exp(zn)"}
"""Other durations than the original's."""


def _both(other, original=None, **options):
    fixed = FixedValues.of(original or voice.model())
    return fixed, fixed.session(LoadedModel(fixed.model), **options), fixed.session(LoadedModel(other), **options)


def test_draws_and_amounts_are_found():
    fixed = FixedValues.of(voice.model())
    assert fixed
    assert fixed.amounts("y") == ("frames",)
    assert fixed.sized == {"y"}
    assert fixed.draws == (("RandomNormalLike", "z"), ("RandomNormalLike", "h"))
    assert not FixedValues.of(from_text("g (float[n] x) => (float[n] y) { y = Relu(x) }"))


@pytest.mark.parametrize("optimize", [False, True])
def test_runs_are_equal_in_any_order(optimize):
    _, one, other = _both(voice.model(), optimize=optimize)
    first = [one.run(feed)["y"] for feed in FEEDS]
    second = [other.run(feed)["y"] for feed in FEEDS[::-1]][::-1]
    assert all((a == b).all() for a, b in zip(first, second, strict=True))
    assert len({len(a.ravel()) for a in first}) > 1


def test_durations_are_given_and_each_model_tells_its_own():
    fixed, one, other = _both(voice.model(**LOUDER))
    a, b = one.run(FEEDS[0]), other.run(FEEDS[0])
    assert list(a) == list(b) == ["y", "frames"]
    assert (a["y"] == b["y"]).all()  # all but the durations is the same
    assert (a["frames"] != b["frames"]).any()
    assert (fixed.of_feed(FEEDS[0])["frames"] == a["frames"]).all()
    assert a["y"].size == voice.HOP * a["frames"].sum()


def test_the_amounts_are_those_of_the_models_own_run_with_the_same_draws():
    fixed, one, _ = _both(voice.model())
    for feed in FEEDS:
        assert (fixed.of_feed(feed)["frames"] == one.run(feed)["frames"]).all()


def test_amounts_and_draws_of_other_names_are_found_by_their_place():
    other = voice.model()
    names = edit.Names(other)
    for node in other.graph:
        if node.op_type in ("Ceil", "RandomNormalLike"):
            node.outputs[0].name = names.fresh("renamed")
    _, one, another = _both(model_io.clone(other))
    a, b = one.run(FEEDS[0]), another.run(FEEDS[0])
    assert list(b) == ["y", "frames"]
    assert (a["y"] == b["y"]).all()
    assert (a["frames"] == b["frames"]).all()
    (ceil,) = (node for node in other.graph if node.op_type == "Ceil")
    assert FixedValues.of(voice.model()).counterparts(other) == {"frames": ceil.outputs[0].name}


def test_a_model_without_a_counterpart_runs_by_itself():
    other = voice.model(
        frames="Identity(rounded)",
        de="Exp(ds) half = Constant<value = float {0.5}>() "
        "moved = Add(de, half) far = Cast<to = 7>(moved) rounded = Cast<to = 1>(far)",
    )
    fixed, _, another = _both(other)
    assert fixed.counterparts(other) == {}
    assert list(another.run(FEEDS[0])) == ["y"]


def test_amounts_are_given_in_the_type_that_a_model_takes():
    other = voice.model(frames="Cast<to = 1>(fh)", de="Exp(ds) dh = Cast<to = 10>(de) fh = Ceil(dh)")
    fixed, one, another = _both(other)
    assert fixed.counterparts(other) == {"frames": "fh"}
    a, b = one.run(FEEDS[0]), another.run(FEEDS[0])
    assert (a["y"] == b["y"]).all()
    assert b["frames"].dtype == np.float16


def test_an_amount_that_is_an_output_stays_one():
    text = voice.text().replace("(float[1, 1, t] y)", "(float[1, 1, t] y, float[1, n] frames)")
    model = voice.with_constants(text, **voice.weights())
    _, one, other = _both(voice.with_constants(text.replace("Exp(ds)", "Exp(zn)"), **voice.weights()), model)
    a, b = one.run(FEEDS[0]), other.run(FEEDS[0])
    assert list(a) == list(b) == ["y", "frames"]
    assert (a["y"] == b["y"]).all()
    assert (a["frames"] != b["frames"]).any()


def test_a_race_runs_equal_lengths():
    _, one, other = _both(voice.model(**LOUDER))
    assert other.fastest_seconds == np.inf
    assert other.run_time(FEEDS[0]).seconds > 0
    assert other.fastest_seconds <= other.slowest_seconds < np.inf
    assert (one.threads, one.provider) == (other.threads, other.provider)
