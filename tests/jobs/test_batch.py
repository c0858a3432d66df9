"""Many models: what fails fails alone, what is done stays done, and a lost worker loses nothing."""

import json
import os
import signal
import threading
import time
from concurrent.futures import Executor
from pathlib import Path

import numpy as np
import pytest

import onnxcompress as oc
from onnxcompress.errors import LostWorkerError, ModelError
from onnxcompress.jobs import batch as batch_job
from onnxcompress.jobs import batch_worker
from onnxcompress.jobs.batch import compress_many
from onnxcompress.jobs.options import CompressOptions
from onnxcompress.report.tables_batch import batch_tables
from onnxcompress.runtime import executors, processes
from tests.cli.test_cli import _run as command
from tests.helpers import floats, run, with_constants

OPTIONS = CompressOptions(recipe="int8-weights")


def _model(seed=0):
    text = "g (float[n, 64] x, float[64, 64] w) => (float[n, 64] y) { m = MatMul(x, w) y = Relu(m) }"
    return with_constants(text, w=floats(64, 64, seed=seed))


@pytest.fixture
def folder(tmp_path):
    """Two models, one of them in a folder of its own."""
    (tmp_path / "in" / "deep").mkdir(parents=True)
    oc.save(_model(1), tmp_path / "in" / "a.onnx")
    oc.save(_model(2), tmp_path / "in" / "deep" / "b.onnx")
    return tmp_path


class _Here(Executor):
    """Does at once, in this process, what it is given."""

    def submit(self, fn, /, *args):
        from concurrent.futures import Future

        future = Future()
        try:
            future.set_result(fn(*args))
        except Exception as error:  # noqa: BLE001
            future.set_exception(error)
        return future


@pytest.fixture
def here(monkeypatch):
    """Work is done in this process, and noted."""
    import contextlib

    monkeypatch.setattr(executors, "opened", lambda **_: contextlib.nullcontext(_Here()))
    done, plain = [], batch_worker.here

    def noted(source, target, options):
        done.append(Path(source).name)
        return plain(source, target, options)

    monkeypatch.setattr(batch_worker, "here", noted)
    return done


def test_all_models_are_done_in_processes_and_mirrored(folder):
    found = compress_many([folder / "in"], folder / "out", OPTIONS, workers=2)
    assert [item.outcome for item in found.items] == ["done", "done"], found
    assert found.exit_code == 0
    for name in ("a.onnx", "deep/b.onnx"):
        small = folder / "out" / name
        assert small.stat().st_size < 0.5 * (folder / "in" / name).stat().st_size
        feed = {"x": floats(3, 64)}
        expected = run(oc.load(folder / "in" / name), feed)["y"]
        assert np.abs(run(oc.load(small), feed)["y"] - expected).max() < 0.02 * np.abs(expected).max()
        state = json.loads((folder / "out" / f"{name}.json").read_text())
        assert (state["outcome"], state["report"]["output"]["bytes"]) == ("done", small.stat().st_size)


def test_one_that_fails_fails_alone(folder, here):
    (folder / "in" / "broken.onnx").write_text("no model")
    found = compress_many([folder / "in"], folder / "out", OPTIONS)
    assert [item.outcome for item in found.items] == ["done", "failed", "done"]
    assert found.exit_code == 3
    assert "broken.onnx" in found.items[1].message
    assert not (folder / "out" / "broken.onnx").exists()
    assert found.as_json()["counts"] == {"done": 2, "limit": 0, "failed": 1, "bug": 0}
    assert here == ["a.onnx", "broken.onnx", "b.onnx"]


def test_what_is_done_is_not_done_again_unless_something_changed(folder, here):
    def again(options=OPTIONS, **more):
        here.clear()
        return [item.resumed for item in compress_many([folder / "in"], folder / "out", options, **more).items]

    (folder / "in" / "broken.onnx").write_text("no model")
    assert again() == [False, False, False]
    assert again() == [True, False, True]
    assert here == ["broken.onnx"]
    (folder / "in" / "broken.onnx").unlink()
    oc.save(_model(3), folder / "in" / "a.onnx", force=True)
    assert again() == [False, True]
    (folder / "out" / "deep" / "b.onnx").unlink()
    assert again() == [True, False]
    assert again(force=True) == [False, False]
    assert again(CompressOptions(recipe="fold")) == [False, False]
    (folder / "out" / "a.onnx.json").write_text("{")
    with pytest.raises(oc.UsageError, match="not of an earlier batch"):
        again(CompressOptions(recipe="fold"))


def test_data_that_changed_counts(folder, here):
    np.savez(folder / "data.npz", x=floats(4, 64))
    options = CompressOptions(recipe="int8-weights", data=str(folder / "data.npz"))
    compress_many([folder / "in"], folder / "out", options)
    np.savez(folder / "data.npz", x=floats(5, 64))
    here.clear()
    compress_many([folder / "in"], folder / "out", options)
    assert here == ["a.onnx", "b.onnx"]


def test_a_file_that_is_not_ours_is_not_replaced(folder, here):
    (folder / "out").mkdir()
    (folder / "out" / "a.onnx").write_text("mine")
    with pytest.raises(oc.UsageError, match="--force"):
        compress_many([folder / "in"], folder / "out", OPTIONS)
    assert (folder / "out" / "a.onnx").read_text() == "mine"
    assert here == []


def test_a_limit_that_is_not_met_is_told_and_stays_so(folder, here):
    options = CompressOptions(recipe="int8-weights", max_bytes=10)
    first = compress_many([folder / "in" / "a.onnx"], folder / "out", options)
    assert (first.exit_code, first.items[0].outcome) == (1, "limit")
    assert "more than 10" in first.items[0].message
    assert compress_many([folder / "in" / "a.onnx"], folder / "out", options).items[0].resumed
    assert here == ["a.onnx"]


def test_a_bug_is_told_from_a_failure(folder, here, monkeypatch):
    monkeypatch.setattr(batch_worker, "here", lambda *_: [][1])
    found = compress_many([folder / "in" / "a.onnx"], folder / "out", OPTIONS)
    assert (found.exit_code, found.items[0].outcome, here) == (70, "bug", [])


def test_what_can_be_found_out_before_is(folder, here):
    with pytest.raises(oc.UsageError, match="needs data"):
        compress_many([folder / "in"], folder / "out", CompressOptions(recipe="int8"))
    with pytest.raises(oc.UsageError, match="unknown recipe"):
        compress_many([folder / "in"], folder / "out", CompressOptions(recipe="int9"))
    with pytest.raises(oc.UsageError, match="would both become"):
        batch_job.targets([folder / "in" / "a.onnx", _copy(folder)], folder / "out")
    with pytest.raises(oc.UsageError, match="neither"):
        batch_job.targets([folder / "none"], folder / "out")
    with pytest.raises(oc.UsageError, match="where the models are"):
        batch_job.targets([folder / "in"], folder / "in")
    (folder / "empty").mkdir()
    with pytest.raises(oc.UsageError, match=r"no \.onnx"):
        batch_job.targets([folder / "empty"], folder / "out")
    assert here == []


def _copy(folder):
    (folder / "copy").mkdir()
    oc.save(_model(), folder / "copy" / "a.onnx")
    return folder / "copy" / "a.onnx"


def test_results_inside_of_the_folder_are_no_models(folder):
    (folder / "in" / "out").mkdir()
    oc.save(_model(), folder / "in" / "out" / "a.onnx")
    assert [path.name for path in batch_job.targets([folder / "in"], folder / "in" / "out")] == ["a.onnx", "b.onnx"]


def test_the_command_prints_a_table_and_ends_with_the_worst_code(folder):
    (folder / "in" / "broken.onnx").write_text("no model")
    done = command("batch", "in", "-o", "out", "--recipe", "int8-weights", "--workers", 2, cwd=folder)
    assert done.returncode == 3, done.stderr
    lines = done.stdout.splitlines()
    assert [line.split()[-1] for line in lines if line.startswith("in/")][:3] == ["done", "failed", "done"]
    assert "in/broken.onnx: " in lines[-1]
    again = command("batch", "in", "-o", "out", "--recipe", "int8-weights", "--json", "-", cwd=folder)
    assert [model["resumed"] for model in json.loads(again.stdout)["models"]] == [True, False, True]


def test_a_table_has_a_line_for_each_that_is_not_done(folder, here):
    found = compress_many(
        [folder / "in" / "a.onnx"], folder / "out", CompressOptions(recipe="int8-weights", max_bytes=10)
    )
    assert len(batch_tables(found)) == 2
    assert here == ["a.onnx"]


# ---- executors ----


def dies():
    """Kill the process that this runs in."""
    os.kill(os.getpid(), signal.SIGKILL)


def dies_at_first(mark):
    """Kill the process unless it was done before."""
    if not mark.exists():
        mark.touch()
        dies()
    return "lived"


def naps(mark, seconds):
    """Say that it has begun, and take a while."""
    mark.touch()
    time.sleep(seconds)


def refuses():
    """Fail as a model does."""
    raise ModelError("no")


def test_a_process_that_dies_loses_its_piece_only():
    with executors.opened(workers=2, scheduler=None) as executor:
        pieces = [executor.submit(each) for each in (dies, os.getpid, refuses)]
        with pytest.raises(LostWorkerError, match="SIGKILL"):
            pieces[0].result()
        assert pieces[1].result() != os.getpid()
        with pytest.raises(ModelError, match="no"):
            pieces[2].result()


def test_what_runs_is_killed_when_the_block_is_left_by_an_error(tmp_path):
    mark, started = tmp_path / "begun", time.monotonic()

    def leave():
        with executors.opened(workers=1, scheduler=None) as executor:
            executor.submit(naps, mark, 60)
            while not mark.exists():
                time.sleep(0.05)
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        leave()
    assert time.monotonic() - started < 30
    for thread in threading.enumerate():
        if thread.name.startswith("onnxcompress"):
            thread.join(5)
            assert not thread.is_alive()


def test_a_model_whose_process_died_gets_another_try(folder, monkeypatch):
    plain = executors.Processes.submit
    monkeypatch.setattr(executors.Processes, "submit", _dying_once(plain, folder / "mark"))
    found = compress_many([folder / "in" / "a.onnx"], folder / "out", OPTIONS)
    assert found.items[0].outcome == "done"
    assert (folder / "mark").exists()
    monkeypatch.setattr(executors.Processes, "submit", lambda self, *_: plain(self, dies))
    found = compress_many([folder / "in" / "deep" / "b.onnx"], folder / "out", OPTIONS)
    assert (found.items[0].outcome, found.exit_code) == ("failed", 3)
    assert "SIGKILL" in found.items[0].message


def _dying_once(plain, mark):
    def submit(self, fn, /, *args):
        return plain(self, fn, *args) if mark.exists() else plain(self, dies_at_first, mark)

    return submit


def test_a_process_that_is_not_wanted_any_more_is_killed():
    stopped = threading.Event()
    stopped.set()
    with pytest.raises(LostWorkerError, match="stopped"):
        processes.call_isolated(time.sleep, 60, stopped=stopped)


def test_nobody_at_the_address_is_an_error(monkeypatch):
    monkeypatch.setattr(executors, "_CONNECT_SECONDS", 0.5)
    with pytest.raises(oc.UsageError, match="no Dask scheduler"):
        executors.DaskCluster("tcp://127.0.0.1:9")
    monkeypatch.setattr(executors.importlib.util, "find_spec", lambda _: None)
    with pytest.raises(oc.UsageError, match=r"onnxcompress\[distributed\]"):
        executors.DaskCluster("tcp://127.0.0.1:9")


@pytest.fixture
def cluster():
    """A real cluster: a scheduler and two workers in processes of their own."""
    from distributed import LocalCluster

    with LocalCluster(
        n_workers=2, threads_per_worker=1, dashboard_address=None, host="127.0.0.1", silence_logs=50
    ) as found:
        yield found


def test_a_cluster_does_a_batch_and_the_loss_of_a_worker_loses_nothing(tmp_path, cluster):
    (tmp_path / "in").mkdir()
    for seed in range(6):
        oc.save(_model(seed), tmp_path / "in" / f"{seed}.onnx")
    (tmp_path / "in" / "broken.onnx").write_text("no model")
    np.savez(tmp_path / "data.npz", x=floats(8, 64))
    options = CompressOptions(recipe="int8-weights", data=str(tmp_path / "data.npz"))
    killed = []

    def kill(_):
        if not killed:
            killed.append(cluster.workers[0].process.process.pid)
            os.kill(killed[0], signal.SIGKILL)

    found = compress_many([tmp_path / "in"], tmp_path / "out", options, scheduler=cluster.scheduler_address, done=kill)
    assert killed
    assert [item.outcome for item in found.items] == ["done"] * 6 + ["failed"], found
    for item in found.items[:6]:
        assert Path(item.target).stat().st_size == item.report["output"]["bytes"] < 0.5 * item.report["input"]["bytes"]
        assert item.report["input"]["path"] == item.source
        assert item.report["quality"]["samples"] == 8
    again = compress_many([tmp_path / "in"], tmp_path / "out", options, scheduler=cluster.scheduler_address)
    assert [item.resumed for item in again.items] == [True] * 6 + [False]


def test_what_is_sent_is_unpacked_under_its_own_name(tmp_path):
    (tmp_path / "images" / "cat").mkdir(parents=True)
    (tmp_path / "images" / "cat" / "1.png").write_bytes(b"png")
    (tmp_path / "r.toml").write_text("x")
    shipped = batch_worker.pack(str(tmp_path / "images"), tmp_path / "r.toml", "int8", None, "module:function")
    assert list(shipped.contents) == [str(tmp_path / "images"), str(tmp_path / "r.toml")]
    for _ in range(2):
        places = batch_worker._unpack(shipped)
        assert (Path(places[str(tmp_path / "images")]) / "cat" / "1.png").read_bytes() == b"png"
        assert Path(places[str(tmp_path / "r.toml")]).name == "r.toml"
    other = batch_worker.pack(tmp_path / "r.toml")
    assert other.digest != shipped.digest
