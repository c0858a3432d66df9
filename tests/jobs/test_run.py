"""The outputs of a model over all samples, in the form that `run` writes."""

import numpy as np
import pytest

from onnxcompress.data import evaluation_set
from onnxcompress.data.evaluation_set import DataOptions
from onnxcompress.errors import ModelError, UsageError
from onnxcompress.io import model_io
from onnxcompress.jobs.run import run_model, write_npz
from onnxcompress.runtime import session as runtime
from tests.helpers import from_text

TEXT = "g (float[n, m] x) => (float[n, m] y, float total) { y = Relu(x) total = ReduceSum<keepdims = 0>(x) }"
STATE = "g (float[1, 2] x, float[1, 2] h) => (float[1, 2] y) { y = Add(x, h) }"
SEQUENCE = "g (float[n] x) => (seq(float[n]) y) { y = SequenceConstruct(x) }"
FAILS = "g (int64[1] i) => (float[1] y) <float[3] t = {1, 2, 3}> { y = Gather(t, i) }"


def _run(text, data, **options):
    session = runtime.open_session(model_io.to_bytes(from_text(text)), optimize=True)
    return run_model(session, evaluation_set.read(data, session.feedable, DataOptions(**options)))


def test_samples_are_joined_along_axis_0_and_scalars_stacked():
    x = np.arange(12, dtype=np.float32).reshape(4, 3) - 5
    found = _run(TEXT, {"x": x})
    np.testing.assert_array_equal(found["y"], np.maximum(x, 0))
    np.testing.assert_array_equal(found["total"], x.sum(1))


def test_samples_of_different_shapes_stay_apart():
    feeds = [{"x": np.ones((1, size), np.float32)} for size in (2, 3)]
    found = _run(TEXT, feeds)
    assert {name: array.shape for name, array in found.items()} == {
        "y/00000": (1, 2),
        "y/00001": (1, 3),
        "total": (2,),
    }


def test_samples_that_differ_in_axis_0_only_are_joined():
    feeds = [{"x": np.ones((size, 2), np.float32)} for size in (1, 4)]
    assert _run(TEXT, feeds)["y"].shape == (5, 2)


def test_state_is_carried_from_run_to_run():
    x = np.ones((3, 1, 2), np.float32)
    np.testing.assert_array_equal(_run(STATE, {"x": x}, state={"h": "y"})["y"][:, 0], [1, 2, 3])
    with pytest.raises(UsageError, match="no output 'q'"):
        _run(STATE, {"x": x}, state={"h": "q"})


def test_what_npz_can_not_hold_is_an_error():
    with pytest.raises(ModelError, match="output 'y' is a list"):
        _run(SEQUENCE, [{"x": np.ones(2, np.float32)}])


def test_text_and_other_objects_are_no_arrays(tmp_path):
    with pytest.raises(ValueError, match="allow_pickle"):
        write_npz(tmp_path / "o.npz", {"o": np.array([{}], dtype=object)})
    assert not list(tmp_path.iterdir())


def test_strings_are_kept_as_such(tmp_path):
    text = 'g (float[n] x) => (float[n] y, string[2] s) { y = Relu(x) s = Constant<value_strings = ["a", "bc"]>() }'
    found = _run(text, [{"x": np.ones(2, np.float32)}] * 2)
    write_npz(tmp_path / "s.npz", found)
    with np.load(tmp_path / "s.npz") as file:
        assert file["s"].tolist() == ["a", "bc", "a", "bc"]


def test_the_sample_that_fails_is_named():
    with pytest.raises(ModelError, match="sample 1"):
        _run(FAILS, [{"i": np.array([0])}, {"i": np.array([9])}])


def test_the_file_holds_the_arrays_and_is_the_same_each_time(tmp_path):
    arrays = {"a/b": np.arange(3), "a.b": np.float32([[1]]), "file": np.zeros(0)}
    write_npz(tmp_path / "one.npz", arrays)
    write_npz(tmp_path / "two.npz", arrays)
    assert (tmp_path / "one.npz").read_bytes() == (tmp_path / "two.npz").read_bytes()
    with np.load(tmp_path / "one.npz") as file:
        assert sorted(file.files) == sorted(arrays)
        for name, array in arrays.items():
            np.testing.assert_array_equal(file[name], array)
