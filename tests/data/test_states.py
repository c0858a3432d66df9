"""States by pattern, and how they begin."""

import numpy as np
import pytest

from onnxcompress.data import evaluation_set, states
from onnxcompress.data.evaluation_set import DataOptions
from onnxcompress.errors import UsageError
from onnxcompress.io import model_io
from onnxcompress.jobs.run import run_model
from onnxcompress.runtime.session import open_session

from ..helpers import from_text
from ..recorder.decoders import WIDTH, decoder

INPUTS = ["ids", "past.0.key", "past.0.value", "past.1.key"]
OUTPUTS = ["logits", "present.0.key", "present.0.value", "present.1.key"]


def test_a_pattern_pairs_what_its_stars_stand_for():
    pairs = {"past.0.key": "present.0.key", "past.0.value": "present.0.value", "past.1.key": "present.1.key"}
    assert states.expanded({"past.*": "present.*"}, INPUTS, OUTPUTS) == pairs
    assert states.expanded({"past.*.key": "present.*.key"}, INPUTS, None) == {
        name: output for name, output in pairs.items() if name.endswith("key")
    }
    assert states.expanded({"p*.0.*": "p*.0.*"}, ["past.0.k"], None) == {"past.0.k": "past.0.k"}


@pytest.mark.parametrize(
    ("pair", "said"),
    [
        ({"pasd.*": "present.*"}, r"no input is called 'pasd\.\*'.*nearest are .*'past\.0\.key'"),
        ({"past.0.kei": "present.0.key"}, r"no input is called 'past.0.kei'.*nearest are 'past.0.key'"),
        (
            {"past.*": "presents.*"},
            r"no output is called 'presents.0.key', for input 'past.0.key'.*nearest are 'present",
        ),
        ({"past.*": "present.0.key"}, "another number of stars"),
    ],
)
def test_what_fits_nothing_is_an_error_with_the_nearest(pair, said):
    with pytest.raises(UsageError, match=said):
        states.expanded(pair, INPUTS, OUTPUTS)


def _specs(model):
    return open_session(model_io.to_bytes(model), optimize=False).feedable


def test_a_cache_that_grows_begins_empty_and_a_state_that_does_not_begins_with_zeros(tmp_path):
    path = decoder(tmp_path / "m.onnx")
    model = model_io.load(path)
    assert states.growing_axes({"past": "present"}, _specs(model), model) == {"past": {1}}
    recurrent = from_text(
        "g (float[1, n] x, float[layers, n] past_seq) => (float[layers, n] y) { y = Add(past_seq, x) }"
    )
    assert states.growing_axes({"past_seq": "y"}, _specs(recurrent), recurrent) == {"past_seq": frozenset()}


def test_without_operators_that_tell_the_name_of_a_dimension_does():
    model = from_text("g (float[batch, past_length, 4] p) => (float[a, b, 4] q) { q = Relu(p) }")
    assert states.growing_axes({"p": "q"}, _specs(model), None) == {"p": {1}}


def test_steps_with_an_empty_start_give_what_one_prompt_gives(tmp_path):
    path = decoder(tmp_path / "m.onnx")
    model, ids = model_io.load(path), np.random.default_rng(1).integers(0, 32, (1, 5))
    session = open_session(path, optimize=False)
    feeds = [{"ids": ids[:, i : i + 1], "mask": np.ones((1, i + 1), np.float32)} for i in range(5)]
    data = evaluation_set.read(feeds, session.feedable, DataOptions(state={"past": "present"}), graph=model)
    assert data.feeds[0]["past"].shape == (1, 0, WIDTH)
    assert data.cache_inputs == {"past"}
    last = run_model(session, data)["present/00004"]
    whole = session.run({"ids": ids, "past": np.zeros((1, 0, WIDTH), np.float32), "mask": np.ones((1, 5), np.float32)})
    np.testing.assert_allclose(last, whole["present"], rtol=1e-5)
    assert [feed["past"].shape[1] for feed in data.timed(session.run)] == [4]
