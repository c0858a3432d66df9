"""Data in every form that is promised, run for real, and every way in which it can fail to fit."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from PIL import Image

from onnxcompress.data import evaluation_set
from onnxcompress.data import load as data_loading
from onnxcompress.data.evaluation_set import DataOptions
from onnxcompress.errors import DataError, UsageError
from onnxcompress.io import model_io
from onnxcompress.jobs import run as run_job
from onnxcompress.runtime import session as runtime
from onnxcompress.runtime.tensor_spec import TensorSpec
from tests.helpers import floats, from_text

IMAGES = "g (float[n, 3, 4, 4] x) => (float[n, 3, 4, 4] y) { y = Neg(x) }"
COUNTER = (
    "g (float[n, 2] x, float[n, 2] before) => (float[n, 2] y, float[n, 2] after) { after = Add(x, before) y = Neg(x) }"
)


def _session(text: str) -> runtime.Session:
    return runtime.open_session(model_io.to_bytes(from_text(text)), optimize=False)


def _load(source: Any, text: str = IMAGES, **options: Any) -> data_loading.Dataset:
    return data_loading.load_data(source, _session(text).inputs, **options)


def _outputs(source: Any, text: str = IMAGES, **options: Any) -> dict[str, np.ndarray]:
    session = _session(text)
    return run_job.run_model(session, evaluation_set.read(source, session.inputs, DataOptions(**options)))


def _save(path: Path, **arrays: Any) -> Path:
    np.savez(path, **arrays)
    return path


# npz


def test_an_npz_is_cut_along_its_first_axis(tmp_path: Path):
    x = floats(5, 3, 4, 4)
    found = _load(_save(tmp_path / "d.npz", x=x, label=np.arange(5)))
    assert len(found.feeds) == 5
    assert [int(label[0]) for label in found.labels or []] == [0, 1, 2, 3, 4]
    np.testing.assert_array_equal(found.feeds[3]["x"], x[3:4])
    np.testing.assert_array_equal(_outputs(tmp_path / "d.npz")["y"], -x)


def test_an_array_with_one_axis_more_is_a_stack_of_feeds(tmp_path: Path):
    x = floats(4, 2, 3, 4, 4)
    found = _load(_save(tmp_path / "d.npz", x=x))
    assert [feed["x"].shape for feed in found.feeds] == [(2, 3, 4, 4)] * 4
    np.testing.assert_array_equal(found.feeds[2]["x"], x[2])


@pytest.mark.parametrize("name", ["label", "labels", "y"])
def test_labels_have_three_names(tmp_path: Path, name: str):
    found = _load(_save(tmp_path / "d.npz", **{"x": floats(2, 3, 4, 4), name: np.array([7, 8])}))
    assert found.labels is not None
    assert [int(label[0]) for label in found.labels] == [7, 8]


def test_a_single_input_takes_any_one_array(tmp_path: Path):
    assert len(_load(_save(tmp_path / "d.npz", other=floats(2, 3, 4, 4))).feeds) == 2


@pytest.mark.parametrize("save", [np.savez, np.savez_compressed])
def test_large_arrays_are_read_the_same_however_they_are_stored(tmp_path: Path, save: Any):
    x = floats(8000, 3, 4, 4)  # over the size from which on stored arrays are mapped
    save(tmp_path / "d.npz", x=x, other=np.asfortranarray(x))
    found = _load(tmp_path / "d.npz")
    np.testing.assert_array_equal(found.feeds[7999]["x"], x[7999:])


def test_an_array_in_the_other_order_of_memory_is_read_right(tmp_path: Path):
    x = np.asfortranarray(floats(8000, 3, 4, 4))
    np.testing.assert_array_equal(_load(_save(tmp_path / "d.npz", x=x)).feeds[11]["x"], x[11:12])


def test_several_inputs_go_together_and_one_sample_serves_all():
    specs = (
        TensorSpec("x", np.dtype(np.float32), ("n", 3), "tensor(float)"),
        TensorSpec("rate", np.dtype(np.int64), (), "tensor(int64)"),
    )
    found = data_loading.load_data({"x": floats(4, 3), "rate": np.array(16000)}, specs)
    assert len(found.feeds) == 4
    assert [int(feed["rate"]) for feed in found.feeds] == [16000] * 4
    with pytest.raises(DataError, match="4 samples of 'x' and 3 of 'rate'"):
        data_loading.load_data({"x": floats(4, 3), "rate": np.arange(3)}, specs)


def test_a_fixed_batch_takes_whole_batches(tmp_path: Path):
    text = "g (float[4, 2] x) => (float[4, 2] y) { y = Neg(x) }"
    path = _save(tmp_path / "d.npz", x=floats(8, 2), label=np.arange(8))
    judged = evaluation_set.read(path, _session(text).inputs, DataOptions())
    assert [feed["x"].shape for feed in judged.feeds] == [(4, 2)] * 2
    assert judged.labels is not None
    assert judged.labels.tolist() == list(range(8))
    with pytest.raises(DataError, match=r"10 samples of 'x' don't fill batches of 4.*last 2 out"):
        _load({"x": floats(10, 2)}, text)
    with pytest.raises(DataError, match=r"3 samples of 'x' don't fill.*Give 4 or more"):
        _load({"x": floats(3, 2)}, text)


@pytest.mark.parametrize(("labels", "told"), [(3, "3 labels for 4"), (6, "6 labels for 4"), (50, "50 labels for 4")])
def test_labels_that_are_not_one_for_each_sample_are_refused(labels: int, told: str):
    with pytest.raises(DataError, match=told):
        _load({"x": floats(4, 3, 4, 4), "label": np.arange(labels)})


def test_one_label_for_many_samples_is_refused():
    with pytest.raises(DataError, match="1 labels for 4"):
        _load({"x": floats(4, 3, 4, 4), "label": np.array(3)})


# what does not fit


@pytest.mark.parametrize(
    ("array", "told"),
    [
        (floats(2, 3, 4, 5), r"'x' float32 \[n, 3, 4, 4\] expected, the data has float32 \[1, 3, 4, 5\]"),
        (floats(2, 3), r"the data has float32 \[2, 3\]"),
        (floats(2, 3, 4, 4).astype(np.complex64), "complex64"),
        (np.full((2, 3, 4, 4), "a"), "<U1"),
        (np.full((2, 3, 4, 4), 1e60), "values don't fit"),
        (floats(0, 3, 4, 4), "no samples in it"),
    ],
)
def test_what_does_not_fit_is_an_error_that_shows_both_sides(array: np.ndarray, told: str):
    with pytest.raises(DataError, match=told):
        _load({"x": array})


def test_pictures_in_the_other_layout_are_refused_with_the_order_that_fits():
    with pytest.raises(DataError) as refused:
        _load({"x": floats(2, 4, 4, 3)})
    assert refused.value.hint.endswith("save x.transpose(0, 3, 1, 2)")
    with pytest.raises(DataError) as refused:
        _load({"x": floats(2, 5, 4, 3)})
    assert not refused.value.hint


@pytest.mark.parametrize("dtype", [np.float64, np.float16, np.uint8, np.int64, np.bool_, ">f4"])
def test_types_are_converted_where_nothing_is_lost(dtype: Any):
    x = np.arange(48).reshape(1, 3, 4, 4).astype(dtype)
    feed = _load({"x": x}).feeds[0]
    assert feed["x"].dtype == np.float32
    np.testing.assert_array_equal(feed["x"], x.astype(np.float32))


@pytest.mark.parametrize(
    ("ids", "told"),
    [
        (np.array([1.5]), "fractions would be lost"),
        (np.array([2**40]), "values don't fit"),
        (np.array([2**64 - 1], np.uint64), "values don't fit"),
    ],
)
def test_whole_numbers_must_stay_what_they_are(ids: np.ndarray, told: str):
    text = "g (int32[n] x) => (int32[n] y) { y = Neg(x) }"
    assert _load({"x": np.array([3], np.uint8)}, text).feeds[0]["x"].dtype == np.int32
    with pytest.raises(DataError, match=told):
        _load({"x": ids}, text)


def test_samples_that_are_not_finite_are_skipped_and_named(tmp_path: Path):
    x = floats(4, 3, 4, 4)
    x[1, 0, 0, 0], x[2, 0, 0, :2] = np.nan, np.inf
    path = _save(tmp_path / "d.npz", x=x, label=np.arange(4))
    judged = evaluation_set.read(path, _session(IMAGES).inputs, DataOptions())
    assert judged.labels is not None
    assert judged.labels.tolist() == [0, 3]  # labels stay with their samples
    np.testing.assert_array_equal(judged.feeds[1]["x"], x[3:])
    assert judged.notes() == [
        f"{path}[1] is skipped: 1 of 48 values of 'x' are NaN or infinite",
        f"{path}[2] is skipped: 2 of 48 values of 'x' are NaN or infinite",
    ]
    with pytest.raises(DataError, match="all 2 samples were skipped"):
        _load({"x": x[1:3]})


def test_missing_names_are_told_with_those_that_there_are():
    with pytest.raises(DataError, match=r"no array for input 'x'; the data has 'a', 'b'. The model's inputs are 'x'"):
        _load({"a": floats(1, 3, 4, 4), "b": floats(1, 3, 4, 4)})


@pytest.mark.parametrize("content", [b"", b"hello", b"PK\x03\x04 and no more"])
@pytest.mark.parametrize("suffix", ["npz", "npy"])
def test_files_that_are_no_arrays_are_named(tmp_path: Path, content: bytes, suffix: str):
    path = tmp_path / f"d.{suffix}"
    path.write_bytes(content)
    with pytest.raises(DataError, match=rf"d\.{suffix}: not a readable \.{suffix} file"):
        _load(path)


def test_a_file_that_is_cut_short_is_named(tmp_path: Path):
    path = _save(tmp_path / "d.npz", x=floats(9000, 3, 4, 4))
    path.write_bytes(path.read_bytes()[:100_000])
    with pytest.raises(DataError, match="not a readable"):
        _load(path)


@pytest.mark.parametrize("count", [1, 200_000])
def test_pickled_objects_are_never_read(tmp_path: Path, count: int):
    objects = np.array([{1: 2}] * count, object)
    np.savez(tmp_path / "d.npz", x=objects)
    np.save(tmp_path / "d.npy", objects)
    for name in ("d.npz", "d.npy"):
        with pytest.raises(DataError, match="not a readable"):
            _load(tmp_path / name)


def test_a_path_that_is_not_there_is_named(tmp_path: Path):
    with pytest.raises(DataError, match="no such file or folder"):
        _load(tmp_path / "nothing.npz")
    with pytest.raises(DataError, match="/dev/null: is neither a file nor a folder"):
        _load("/dev/null")


# folders


@pytest.mark.skipif(sys.platform != "linux", reason="reads what the kernel says of mapped files")
@pytest.mark.parametrize("suffix", ["npz", "npy"])
def test_samples_of_a_mapped_file_that_were_read_take_no_memory(tmp_path: Path, suffix: str):
    path, x = tmp_path / f"x.{suffix}", floats(8000, 3, 4, 4)
    np.savez(path, x) if suffix == "npz" else np.save(path, x)
    data = _load(str(path))
    assert np.array_equal(np.concatenate([feed["x"] for feed in data.feeds]), x)
    maps = Path("/proc/self/smaps").read_text(encoding="utf-8").split("VmFlags")
    resident = [int(each.split("Rss:")[1].split()[0]) for each in maps if str(path) in each]
    assert resident
    assert sum(resident) < x.nbytes / 1024 / 8


def test_a_folder_of_npz_holds_a_feed_each_of_its_own_shape(tmp_path: Path):
    x = floats(6, 3, 4, 4)
    for index, part in enumerate(np.split(x, [1, 3])):
        _save(tmp_path / f"{index}.npz", x=part, label=np.full(len(part), index))
    judged = evaluation_set.read(tmp_path, _session(IMAGES).inputs, DataOptions())
    assert [len(feed["x"]) for feed in judged.feeds] == [1, 2, 3]
    assert judged.labels is not None
    assert judged.labels.tolist() == [0, 1, 1, 2, 2, 2]
    np.testing.assert_array_equal(_outputs(tmp_path)["y"], -x)


def test_labels_that_some_files_lack_are_an_error(tmp_path: Path):
    _save(tmp_path / "0.npz", x=floats(1, 3, 4, 4), label=1)
    _save(tmp_path / "1.npz", x=floats(1, 3, 4, 4))
    with pytest.raises(DataError, match="1 of 2 samples have no label"):
        _load(tmp_path)


def test_labels_of_different_shapes_are_an_error(tmp_path: Path):
    _save(tmp_path / "0.npz", x=floats(1, 3, 4, 4), label=np.array([1]))
    _save(tmp_path / "1.npz", x=floats(1, 3, 4, 4), label=np.array([[1, 2]]))
    with pytest.raises(DataError, match=r"labels of different shapes: \[1, 2\], \[1\]"):
        evaluation_set.read(tmp_path, _session(IMAGES).inputs, DataOptions())


def test_a_folder_of_npy_holds_feeds_of_the_only_input(tmp_path: Path):
    x = floats(3, 3, 4, 4)
    for index in range(3):
        np.save(tmp_path / f"{index}.npy", x[index])  # without the batch axis, which is added
    np.testing.assert_array_equal(_outputs(tmp_path)["y"], -x)


def test_a_folder_of_npy_named_after_the_inputs_holds_their_samples(tmp_path: Path):
    np.save(tmp_path / "x.npy", floats(5, 3, 4, 4))
    assert len(_load(tmp_path).feeds) == 5
    np.save(tmp_path / "label.npy", np.arange(5))
    found = _load(tmp_path)
    assert found.labels is not None
    assert [int(label[0]) for label in found.labels] == [0, 1, 2, 3, 4]


def test_a_folder_of_npy_for_two_inputs(tmp_path: Path):
    np.save(tmp_path / "x.npy", floats(3, 2))
    np.save(tmp_path / "before.npy", floats(3, 2, seed=1))
    np.testing.assert_allclose(_outputs(tmp_path, COUNTER)["after"], floats(3, 2) + floats(3, 2, seed=1))


def _write_tensor(path: Path, array: np.ndarray, name: str = "") -> None:
    path.parent.mkdir(exist_ok=True)
    path.write_bytes(onnx.numpy_helper.from_array(array, name).SerializeToString())


@pytest.mark.parametrize("names", [("x", "before"), ("", "")])
def test_a_folder_of_recorded_tests_is_read_in_order(tmp_path: Path, names: tuple[str, str]):
    x, before = floats(11, 2), floats(11, 2, seed=1)
    for index in range(11):  # test_data_set_10 comes after test_data_set_9
        _write_tensor(tmp_path / f"test_data_set_{index}" / "input_0.pb", x[index : index + 1], names[0])
        _write_tensor(tmp_path / f"test_data_set_{index}" / "input_1.pb", before[index : index + 1], names[1])
    np.testing.assert_allclose(_outputs(tmp_path, COUNTER)["after"], x + before)
    assert len(_load(tmp_path / "test_data_set_3", COUNTER).feeds) == 1


def test_recorded_tests_that_are_broken_or_too_few_are_named(tmp_path: Path):
    folder = tmp_path / "test_data_set_0"
    _write_tensor(folder / "input_0.pb", floats(1, 2))
    with pytest.raises(DataError, match="test_data_set_0: 1 inputs in it, the model has 2"):
        _load(tmp_path, COUNTER)
    (folder / "input_0.pb").write_bytes(b"\xff\xff")
    with pytest.raises(DataError, match=r"input_0\.pb: not a readable ONNX tensor"):
        _load(tmp_path, COUNTER)


# images


def _picture(path: Path, array: np.ndarray) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(array).save(path)


def _pixels(*shape: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, shape, np.uint8)


def test_images_are_fed_by_channel_and_labelled_by_folder(tmp_path: Path):
    cat, dog = _pixels(4, 4, 3), _pixels(4, 4, 3, seed=1)
    _picture(tmp_path / "cat" / "1.png", cat)
    _picture(tmp_path / "dog" / "1.PNG", dog)
    judged = evaluation_set.read(tmp_path, _session(IMAGES).inputs, DataOptions())
    assert judged.labels is not None
    assert judged.labels.tolist() == [0, 1]
    np.testing.assert_array_equal(judged.feeds[0]["x"][0], cat.transpose(2, 0, 1))
    np.testing.assert_array_equal(judged.feeds[1]["x"][0], dog.transpose(2, 0, 1))


def test_images_without_folders_have_no_labels(tmp_path: Path):
    _picture(tmp_path / "1.png", _pixels(4, 4, 3))
    assert _load(tmp_path).labels is None


def test_images_are_scaled_and_shifted_by_channel(tmp_path: Path):
    pixels = _pixels(4, 4, 3)
    _picture(tmp_path / "1.png", pixels)
    scale, mean = (0.5, 1.0, 2.0), (1.0, 2.0, 3.0)
    feed = _load(tmp_path, scale=scale, mean=mean).feeds[0]
    expected = (pixels * np.array(scale) - np.array(mean)).transpose(2, 0, 1)
    np.testing.assert_allclose(feed["x"][0], expected, rtol=1e-6)
    np.testing.assert_allclose(_load(tmp_path, mean=(8.0,)).feeds[0]["x"][0], pixels.transpose(2, 0, 1) - 8.0)
    with pytest.raises(DataError, match="2 values"):
        _load(tmp_path, scale=(1.0, 2.0))


def test_images_for_channels_last_and_open_sizes(tmp_path: Path):
    text = "g (float[n, h, w, 3] x) => (float[n, h, w, 3] y) { y = Neg(x) }"
    pixels = _pixels(6, 6, 3)
    _picture(tmp_path / "1.png", pixels)
    np.testing.assert_array_equal(_load(tmp_path, text, size=6).feeds[0]["x"][0], pixels)
    feed = _load(tmp_path, text, size=6, scale=(1.0, 2.0, 3.0)).feeds[0]
    np.testing.assert_array_equal(feed["x"][0], pixels * np.array([1.0, 2.0, 3.0]))
    with pytest.raises(DataError, match="leaves the image size open"):
        _load(tmp_path, text)


def test_layout_is_believed_where_it_is_given(tmp_path: Path):
    text = "g (float[n, c, h, w] x) => (float[n, c, h, w] y) { y = Neg(x) }"
    _picture(tmp_path / "1.png", _pixels(5, 5, 3))
    assert _load(tmp_path, text, size=5).feeds[0]["x"].shape == (1, 3, 5, 5)
    assert _load(tmp_path, text, size=5, layout="nhwc").feeds[0]["x"].shape == (1, 5, 5, 3)


def test_grey_images_and_other_sizes_are_fitted(tmp_path: Path):
    text = "g (float[n, 1, 4, 8] x) => (float[n, 1, 4, 8] y) { y = Neg(x) }"
    _picture(tmp_path / "1.png", np.full((20, 20, 3), 77, np.uint8))
    feed = _load(tmp_path, text).feeds[0]
    assert feed["x"].shape == (1, 1, 4, 8)
    assert set(feed["x"].ravel()) == {77.0}


def test_images_that_are_none_and_models_without_pictures(tmp_path: Path):
    with pytest.raises(DataError, match=r"no \.npz, \.npy, test_data_set_"):
        _load(tmp_path)
    (tmp_path / "1.png").write_text("no picture")
    with pytest.raises(DataError, match=r"1\.png: not a readable image"):
        _load(tmp_path)
    with pytest.raises(DataError, match="images need a model with one input of four axes"):
        _load(tmp_path, COUNTER)
    _picture(tmp_path / "1.png", _pixels(4, 4, 3))
    text = "g (float[n, 5, 8, 8] x) => (float[n, 5, 8, 8] y) { y = Neg(x) }"
    with pytest.raises(DataError, match="no image has 5 channels"):
        _load(tmp_path, text)


# functions, feeds, state


@pytest.fixture
def module(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    (tmp_path / "users_feeds.py").write_text(
        "import sys\n"
        "import numpy as np\n"
        "def good():\n"
        "    for i in range(3):\n"
        "        yield {'x': np.full((1, 3, 4, 4), i, np.float32), 'label': i}\n"
        "def boom(): raise KeyError('boom')\n"
        "def leave(): sys.exit(5)\n"
        "def numbers(): yield 3\n"
        "def nothing(): return []\n"
        "def ragged(): yield {'x': [[1, 2], [3]]}\n"
    )
    monkeypatch.chdir(tmp_path)
    monkeypatch.delitem(sys.modules, "users_feeds", raising=False)
    return "users_feeds"


def test_a_function_yields_feeds(module: str):
    judged = evaluation_set.read(f"{module}:good", _session(IMAGES).inputs, DataOptions())
    assert [float(feed["x"].max()) for feed in judged.feeds] == [0.0, 1.0, 2.0]
    assert judged.labels is not None
    assert judged.labels.tolist() == [0, 1, 2]


@pytest.mark.parametrize(
    ("name", "told"),
    [
        ("boom", "the function failed: KeyError: 'boom'"),
        ("leave", "the function failed: SystemExit: 5"),
        ("numbers", "yields int and not dicts"),
        ("nothing", "no samples in it"),
        ("ragged", "rows differ in length"),
    ],
)
def test_what_a_function_does_wrong_is_told(module: str, name: str, told: str):
    with pytest.raises(DataError, match=told):
        _load(f"{module}:{name}")


def test_functions_that_there_are_not_are_told(module: str):
    with pytest.raises(UsageError, match="has no function 'other'"):
        _load(f"{module}:other")
    with pytest.raises(UsageError, match="there is no module 'no_such_module'"):
        _load("no_such_module:other")


def test_feeds_from_python_are_taken_as_they_are():
    feeds = [{"x": floats(1, 3, 4, 4)}, {"x": floats(2, 3, 4, 4)}]
    assert [len(feed["x"]) for feed in _load(feeds).feeds] == [1, 2]
    assert len(_load(floats(7, 3, 4, 4)).feeds) == 7
    assert len(_load(feeds).feeds[:1]) == 1


def test_state_runs_from_an_output_into_the_next_feed(tmp_path: Path):
    x = floats(4, 2)
    path = _save(tmp_path / "d.npz", x=x)
    outputs = _outputs(path, COUNTER, state={"before": "after"})
    np.testing.assert_allclose(outputs["after"], np.cumsum(x, axis=0), rtol=1e-6)
    start = _save(tmp_path / "start.npz", x=x, before=np.full((1, 2), 10, np.float32))
    outputs = _outputs(start, COUNTER, state={"before": "after"})
    np.testing.assert_allclose(outputs["after"], 10 + np.cumsum(x, axis=0), rtol=1e-6)
    with pytest.raises(DataError, match="no array for input 'before'"):
        _outputs(path, COUNTER)


def test_state_of_inputs_and_outputs_that_there_are_not():
    with pytest.raises(UsageError, match="no input 'no' to carry"):
        _load({"x": floats(1, 2)}, COUNTER, state={"no": "after"})
    with pytest.raises(UsageError, match="no output 'no' to carry"):
        _outputs({"x": floats(1, 2)}, COUNTER, state={"before": "no"})


def test_options_as_texts():
    assert data_loading.parse_numbers("0.5,1,-2e3") == (0.5, 1.0, -2000.0)
    assert data_loading.parse_state(["h=hn", "c=cn=x"]) == {"h": "hn", "c": "cn=x"}
    for text in ("", "a", "1;2", "1,,2"):
        with pytest.raises(UsageError, match="is not a number"):
            data_loading.parse_numbers(text)
    for text in ("h", "=hn", "h="):
        with pytest.raises(UsageError, match="INPUT=OUTPUT"):
            data_loading.parse_state([text])
