"""Run a command and measure exactly it: wall time, peak memory of the process and of all it started."""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

POLL_SECONDS = 0.02


@dataclass(frozen=True, kw_only=True)
class Measured:
    """How a command went.

    `cpu_seconds` are those of the process and of all it waited for: beside other load they say more than `seconds`;
    `own_cpu_seconds` are those of the process alone, without its workers (None where /proc does not tell).
    `own_peak_bytes` is the resident peak of the process that was started, or of the child that it forks to do the work
    (file pages that it maps included);
    `own_private_peak_bytes` counts only memory that it holds alone (None where /proc does not tell);
    `tree_peak_bytes` is the largest resident peak of any single process in it, workers included.
    """

    exit_code: int
    seconds: float
    cpu_seconds: float
    own_cpu_seconds: float | None
    own_peak_bytes: int | None
    own_private_peak_bytes: int | None
    tree_peak_bytes: int
    errors: str


def run(command: Sequence[str], *, environment: dict[str, str] | None = None) -> Measured:
    """Run a command to its end.

    The kernel carries a parent's peak over into a child's, so the caller must stay small: no onnx, no numpy.
    """
    start = time.perf_counter()
    own = private = status = 0
    own_cpu = 0.0
    with tempfile.TemporaryFile("w+") as stderr:
        process = subprocess.Popen(list(command), stdout=subprocess.DEVNULL, stderr=stderr, env=environment)
        while True:
            pid, status, usage = os.wait4(process.pid, os.WNOHANG)
            if pid:
                break
            for number in (process.pid, *_forked(process.pid)):
                resident, alone = _resident_bytes(number)
                own, private = max(own, resident), max(private, alone)
                own_cpu = max(own_cpu, _cpu_seconds(number))
            time.sleep(POLL_SECONDS)
        seconds = time.perf_counter() - start
        process.returncode = os.waitstatus_to_exitcode(status)
        stderr.seek(0)
        errors = stderr.read()
    unit_bytes = 1 if sys.platform == "darwin" else 1024
    return Measured(
        exit_code=process.returncode,
        seconds=seconds,
        cpu_seconds=usage.ru_utime + usage.ru_stime,
        own_cpu_seconds=own_cpu or None,
        own_peak_bytes=own or None,
        own_private_peak_bytes=private or None,
        tree_peak_bytes=usage.ru_maxrss * unit_bytes,
        errors=(errors.strip().splitlines() or [""])[-1][:300],
    )


def _forked(pid: int) -> list[int]:
    """Return the children that run the same program: our command does its work in one."""
    try:
        command = Path(f"/proc/{pid}/cmdline").read_bytes()
        children = [int(word) for word in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]
        return [child for child in children if Path(f"/proc/{child}/cmdline").read_bytes() == command]
    except OSError:
        return []


def _resident_bytes(pid: int) -> tuple[int, int]:
    """Return the resident peak so far and the private memory now; zeros where the system does not tell."""
    try:
        lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    except OSError:
        return 0, 0
    fields = dict(line.split(":", 1) for line in lines if ":" in line)
    kilobytes = [int(fields.get(name, "0 kB").split()[0]) for name in ("VmHWM", "RssAnon")]
    return kilobytes[0] * 1024, kilobytes[1] * 1024


def _cpu_seconds(pid: int) -> float:
    """Return the CPU seconds of a process alone so far, 0 where the system does not tell."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return 0.0
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")
