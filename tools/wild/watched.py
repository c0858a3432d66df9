"""Run a command within limits of CPU time, wall time and memory, counted over all processes that it starts."""

from __future__ import annotations

import contextlib
import ctypes
import os
import signal
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

POLL_SECONDS = 0.05
"""Time between two looks at the processes."""
_KILL_SECONDS = 10.0
"""Time for processes to be gone after they were killed."""
_WALL_PER_CPU = 4
"""Wall time that a command may take, as a multiple of its CPU time: the machine may be busy, a hang is still ended."""
_PR_SET_CHILD_SUBREAPER = 36
"""Option of prctl(2): orphans below this process become its children, so that none is overlooked."""


@dataclass(frozen=True, kw_only=True)
class Limits:
    """The most that a command and all processes below it may take together."""

    cpu_seconds: float
    memory_bytes: int


@dataclass(frozen=True, kw_only=True)
class Watched:
    """How a command went.

    Args:
        exit_code: negative for the number of the signal that ended it; None where a limit did.
        limit: "time" or "memory" where it was killed for that, else empty.
        seconds: wall time.
        cpu_seconds: of all its processes.
        peak_bytes: largest sum over its processes of memory that each holds alone, plus the largest share of mapped
            files among them, looked at every `POLL_SECONDS`.
    """

    exit_code: int | None
    limit: str
    seconds: float
    cpu_seconds: float
    peak_bytes: int


def run(
    command: Sequence[str],
    *,
    limits: Limits,
    stdout: Path,
    stderr: Path,
    environment: Mapping[str, str] | None = None,
    folder: Path | None = None,
) -> Watched:
    """Run a command to its end or to a limit; every process that it started is gone afterwards.

    Args:
        command: the program and its arguments.
        limits: what it may take.
        stdout: file for what it prints.
        stderr: file for its log.
        environment: all its variables; None: those of this process.
        folder: where it runs; None: where this process does.
    """
    _adopt_orphans()
    start = time.perf_counter()
    with stdout.open("wb") as out, stderr.open("wb") as err:
        process = subprocess.Popen(
            list(command),
            stdin=subprocess.DEVNULL,
            stdout=out,
            stderr=err,
            env=None if environment is None else dict(environment),
            cwd=folder,
            start_new_session=True,
        )
        seen = {process.pid}
        try:
            return _watch(process, seen, limits, start)
        finally:
            _kill(process, seen)


def _watch(process: subprocess.Popen[bytes], seen: set[int], limits: Limits, start: float) -> Watched:
    cpu, peak, limit = 0.0, 0, ""
    while True:
        alive = _trees(seen)
        seen |= set(alive)
        cpu = max(cpu, sum(map(_cpu_seconds, alive)))
        peak = max(peak, _memory_bytes(alive))
        pid, status, usage = os.wait4(process.pid, os.WNOHANG)
        if pid:
            process.returncode = os.waitstatus_to_exitcode(status)
            cpu = max(cpu, usage.ru_utime + usage.ru_stime)
            break
        seconds = time.perf_counter() - start
        if cpu > limits.cpu_seconds or seconds > _WALL_PER_CPU * limits.cpu_seconds:
            limit = "time"
        elif peak > limits.memory_bytes:
            limit = "memory"
        if limit:
            break
        time.sleep(POLL_SECONDS)
    return Watched(
        exit_code=None if limit else process.returncode,
        limit=limit,
        seconds=time.perf_counter() - start,
        cpu_seconds=cpu,
        peak_bytes=peak,
    )


def _kill(process: subprocess.Popen[bytes], seen: set[int]) -> None:
    """Kill what is left of a command, orphans and processes of other sessions included; wait until they are gone."""
    deadline = time.monotonic() + _KILL_SECONDS
    while time.monotonic() < deadline:
        seen |= set(_trees(seen))
        alive = [pid for pid in seen if _is_alive(pid)]
        for pid in alive:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        if not alive:
            break
        time.sleep(POLL_SECONDS / 10)
    process.wait()
    for pid in seen - {process.pid}:
        with contextlib.suppress(ChildProcessError):
            os.waitpid(pid, os.WNOHANG)


def _is_alive(pid: int) -> bool:
    fields = _fields(pid)
    return bool(fields) and fields[0] != "Z"


def _adopt_orphans() -> None:
    if sys.platform == "linux":
        ctypes.CDLL(None, use_errno=True).prctl(_PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)


def _trees(roots: set[int]) -> list[int]:
    """Return processes that live, all below them, and orphans of their sessions."""
    found = [pid for pid in roots if _is_alive(pid)]
    found += [pid for pid in _children(os.getpid()) if pid not in roots and _session(pid) in roots]
    for pid in found:
        found += [child for child in _children(pid) if child not in found]
    return found


def _children(pid: int) -> list[int]:
    found: list[int] = []
    with contextlib.suppress(OSError):
        for task in Path(f"/proc/{pid}/task").iterdir():
            found += [int(word) for word in (task / "children").read_text().split()]
    return found


def _fields(pid: int) -> list[str]:
    """Return the fields of /proc/PID/stat after the name, none where the process has ended."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return []


def _session(pid: int) -> int:
    fields = _fields(pid)
    return int(fields[3]) if fields else -1


def _cpu_seconds(pid: int) -> float:
    """Return the CPU time of a process and of the children that it has waited for."""
    fields = _fields(pid)
    return sum(map(int, fields[11:15])) / os.sysconf("SC_CLK_TCK") if fields else 0.0


def _memory_bytes(pids: Sequence[int]) -> int:
    alone, mapped = 0, 0
    for pid in pids:
        try:
            lines = Path(f"/proc/{pid}/status").read_text().splitlines()
        except OSError:
            continue
        fields = dict(line.split(":", 1) for line in lines if ":" in line)
        kilobytes = [int(fields.get(name, "0 kB").split()[0]) for name in ("RssAnon", "RssShmem", "RssFile")]
        alone += kilobytes[0] + kilobytes[1]
        mapped = max(mapped, kilobytes[2])
    return (alone + mapped) * 1024
