"""Whatever happens in the other process, this one gets a value or an error of ours, and nothing is left behind."""

from __future__ import annotations

import os
import signal
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import psutil
import pytest

from onnxcompress.errors import LimitError, ModelError
from onnxcompress.runtime import processes


def double(x: np.ndarray) -> np.ndarray:
    return x * 2


def describe() -> tuple[int, str]:
    os.write(1, b"noise on standard output")
    return os.getpid(), sys.modules["__main__"].__name__


def refuse(kind: type[ModelError]) -> None:
    raise kind("it will not do", where="node 3", hint="Mend it")


def bug() -> None:
    raise KeyError("oops")


def crash() -> None:
    os.write(2, b"last words\n")
    os.kill(os.getpid(), signal.SIGABRT)


def leave(status: int) -> None:
    os._exit(status)


def sleep(pid_file: str) -> None:
    Path(pid_file).write_text(str(os.getpid()))
    time.sleep(60)


def take(count: int) -> int:
    return int(np.ones(count, np.uint8).sum())


@pytest.fixture(autouse=True)
def scratch(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Look for scratch files where nobody else writes any."""
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    yield
    assert not list(tmp_path.glob("onnxcompress-*"))


def test_the_value_comes_back_with_time_and_memory():
    answer = processes.call_isolated(double, np.arange(3), timeout_seconds=60)
    np.testing.assert_array_equal(answer.value, [0, 2, 4])
    assert 0 <= answer.seconds < 60
    assert 10e6 < answer.peak_memory_bytes < 2e9


def test_it_is_another_process_whose_noise_stays_there(capfd: pytest.CaptureFixture[str]):
    pid, main = processes.call_isolated(describe, timeout_seconds=60).value
    assert pid != os.getpid()
    assert main == "__main__"
    assert capfd.readouterr() == ("", "")


@pytest.mark.parametrize("kind", [ModelError, LimitError])
def test_errors_of_ours_come_through_whole(kind: type[ModelError]):
    with pytest.raises(kind) as caught:
        processes.call_isolated(refuse, kind, timeout_seconds=60)
    assert (caught.value.message, caught.value.where, caught.value.hint) == ("it will not do", "node 3", "Mend it")


def test_other_errors_are_bugs_and_show_where():
    with pytest.raises(RuntimeError, match=r"(?s)worker process failed.*in bug.*KeyError: 'oops'"):
        processes.call_isolated(bug, timeout_seconds=60)


def test_a_crash_is_told_with_its_signal_and_last_words():
    with pytest.raises(ModelError, match=r"was killed by SIGABRT \(it said: last words\)"):
        processes.call_isolated(crash, timeout_seconds=60)


def test_an_early_end_is_told_with_its_status():
    with pytest.raises(ModelError, match="ended with exit status 7"):
        processes.call_isolated(leave, 7, timeout_seconds=60)


def test_the_timeout_ends_the_process(tmp_path: Path):
    start = time.monotonic()
    with pytest.raises(ModelError, match="did not finish within 3 s"):
        processes.call_isolated(sleep, str(tmp_path / "pid"), timeout_seconds=3)
    assert time.monotonic() - start < 20
    pid_file = tmp_path / "pid"
    assert not pid_file.exists() or not psutil.pid_exists(int(pid_file.read_text()))


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux limits memory so")
def test_memory_over_the_limit_is_an_error_and_below_is_none():
    limit = 600_000_000
    assert processes.call_isolated(take, 1000, timeout_seconds=60, memory_bytes=limit).value == 1000
    with pytest.raises(ModelError, match="needs more memory than the limit of 600 MB"):
        processes.call_isolated(take, 2_000_000_000, timeout_seconds=60, memory_bytes=limit)


def test_functions_that_another_process_cannot_import_are_refused(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(double, "__module__", "__main__")
    with pytest.raises(TypeError, match="__main__"):
        processes.call_isolated(double, 1, timeout_seconds=60)


def test_peak_memory_follows_what_is_taken():
    small = processes.call_isolated(take, 1, timeout_seconds=60).peak_memory_bytes
    large = processes.call_isolated(take, 200_000_000, timeout_seconds=60).peak_memory_bytes
    assert 190e6 < large - small < 260e6
