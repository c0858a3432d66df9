"""Arrays that are kept for later: read back as they were, with little memory and no file left."""

import errno
import tempfile
import tracemalloc
from pathlib import Path

import numpy as np
import pytest

from onnxcompress.base.spilled_arrays import SpilledArrays
from tests.helpers import floats

LARGE = 1 << 20


def test_what_is_kept_comes_back_as_it_was():
    runs = [
        {"x": floats(300, 100, seed=seed), "h": floats(200, 400).astype(np.float16).T, "n": np.array(seed), "s": ["a"]}
        for seed in range(4)
    ]
    runs[1]["t"] = np.array(["text"] * 20_000, object)
    kept = SpilledArrays(memory_bytes=0)
    for run in runs:
        kept.append(run)
    assert len(kept) == 4
    for found in (list(kept), kept[:], [kept[index] for index in range(4)]):
        for run, other in zip(runs, found, strict=True):
            assert run.keys() == other.keys()
            assert all(np.array_equal(run[name], other[name]) for name in run)
            assert all(run[name].dtype == other[name].dtype for name in ("x", "h", "n"))


def test_memory_holds_a_part_and_the_folder_of_temporary_files_nothing(tmp_path: Path, monkeypatch):
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    kept = SpilledArrays(memory_bytes=4 * LARGE)
    tracemalloc.start()
    try:
        for seed in range(40):
            kept.append({"x": np.full(LARGE // 4, seed, np.float32)})
        held, _ = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert held < 6 * LARGE
    assert kept.held_bytes == 4 * LARGE
    assert [run["x"][0] for run in kept] == list(range(40))
    assert not list(tmp_path.iterdir())


def test_a_part_of_a_larger_block_does_not_keep_the_block():
    kept = SpilledArrays()
    block = floats(LARGE)
    kept.append({"x": block[:10]})
    assert kept[0]["x"].base is None


def test_what_does_not_fit_on_the_disk_stays_in_memory(monkeypatch):
    def full(**_):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(tempfile, "TemporaryFile", full)
    kept = SpilledArrays(memory_bytes=0)
    kept.append({"x": floats(LARGE)})
    assert np.array_equal(kept[0]["x"], floats(LARGE))
    assert kept.held_bytes == 4 * LARGE


def test_a_file_that_was_cut_short_is_an_error():
    kept = SpilledArrays(memory_bytes=0)
    kept.append({"x": floats(LARGE)})
    assert kept._file is not None
    kept._file.truncate(10)
    with pytest.raises(OSError, match="shorter"):
        _ = kept[0]
