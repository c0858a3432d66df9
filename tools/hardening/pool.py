"""Cases in forked processes that may crash, hang or eat memory: whoever asks learns how each one ended."""

from __future__ import annotations

import contextlib
import json
import logging
import os
import resource
import select
import shutil
import signal
import subprocess
import sys
import tempfile
import time
import traceback
import warnings
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import typer
from bench.process import ROOT

from hardening import cases

MOST_SECONDS = 10.0
"""Processor time of a case: beside other load it says more than time on the clock."""
MOST_WAIT_SECONDS = 60.0
"""Time on the clock."""
MOST_BYTES = 2 << 30
BATCH = 400
"""Cases that one process runs before the next one starts."""

FINE = frozenset({"done", "refused"})


@dataclass(frozen=True)
class Ending:
    """How a case ended: done, refused, bug, partial, changed, escaped, memory, hang or crash; and what it said."""

    number: int
    kind: str
    outcome: str
    detail: str = ""
    seconds: float = 0.0
    peak_bytes: int = 0


def in_processes(bases: list[cases.Base], seed: int, numbers: range, scratch: Path) -> Iterator[Ending]:
    """Run cases through the command's code, many to a process; the next process goes on after a death."""
    at = numbers.start
    while at < numbers.stop:
        stop = min(at + BATCH, numbers.stop)
        for ending in _batch(bases, seed, range(at, stop), scratch):
            at = ending.number + 1
            yield ending


def _batch(bases: list[cases.Base], seed: int, numbers: range, scratch: Path) -> Iterator[Ending]:
    reading, writing = os.pipe()
    folder = Path(tempfile.mkdtemp(prefix="fuzz-", dir=scratch))
    child = os.fork()
    if child == 0:
        os.close(reading)
        _serve(bases, seed, numbers, folder, writing)
    os.close(writing)
    done = numbers.start
    with os.fdopen(reading, "rb") as stream:
        while done < numbers.stop:
            started = time.monotonic()
            ready = _wait(stream.fileno(), child)
            line = stream.readline() if ready else b""
            if line.endswith(b"\n"):
                yield Ending(**json.loads(line))
                done += 1
                continue
            with contextlib.suppress(ProcessLookupError):
                os.killpg(child, signal.SIGKILL)
            _, status = os.waitpid(child, 0)
            child = 0
            how = signal.Signals(os.WTERMSIG(status)).name if os.WIFSIGNALED(status) else f"exit {status >> 8}"
            yield Ending(done, cases.kind_of(seed, done), "crash" if ready else "hang", how, time.monotonic() - started)
            break
    if child:
        os.waitpid(child, 0)
    shutil.rmtree(folder, ignore_errors=True)


def _wait(pipe: int, group: int) -> bool:
    """Wait for an answer; False where the processes of the group take more than their time for it."""
    started, before = time.monotonic(), _cpu_seconds(group)
    while True:
        if select.select([pipe], [], [], 0.5)[0]:
            return True
        waited = time.monotonic() - started
        if _cpu_seconds(group) - before > MOST_SECONDS or waited > MOST_WAIT_SECONDS:
            return False


def _cpu_seconds(group: int, field: int = 2) -> float:
    """Return the processor time of the processes of a group (3: session), and of those that have ended below them."""
    total = 0
    for path in Path("/proc").glob("[0-9]*/stat"):
        with contextlib.suppress(OSError):
            fields = path.read_text().rpartition(")")[2].split()
            if int(fields[field]) == group:
                total += sum(int(each) for each in fields[11:15])
    return total / os.sysconf("SC_CLK_TCK")


def _session_seconds(session: int) -> float:
    """Return the processor time of the processes of a session that live."""
    return _cpu_seconds(session, field=3)


def _serve(bases: list[cases.Base], seed: int, numbers: range, folder: Path, pipe: int) -> None:
    os.setpgid(0, 0)
    _limit()
    call = _whole_command()
    null = os.open(os.devnull, os.O_RDWR)
    for number in (0, 1, 2):
        os.dup2(null, number)
    for number in numbers:
        started = time.monotonic()
        case = cases.build(bases, seed, number, folder / str(number))
        outcome, detail, peak = _judged(case, call)
        ending = Ending(number, case.kind, outcome, detail, round(time.monotonic() - started, 3), peak)
        os.write(pipe, json.dumps(asdict(ending)).encode() + b"\n")
        cases.discard(case)
    os._exit(0)


def _limit() -> None:
    """Let a process take as much memory as is admitted: a model that wants more is to be refused."""
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    resource.setrlimit(resource.RLIMIT_DATA, (MOST_BYTES, MOST_BYTES))


class _Internal(logging.Handler):
    """Keeps the tracebacks of errors that the pipeline takes for bugs of ours and works around."""

    def __init__(self) -> None:
        super().__init__()
        self.found: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        if record.exc_info and "internal error" in record.getMessage():
            self.found.append(_short(record.exc_info[1]))


def _whole_command() -> Callable[..., Any]:
    """Return what runs the command line; typer takes longer to make it than most cases take."""
    from onnxcompress.cli import app

    return typer.main.get_command(app).main


def _judged(case: cases.Case, call: Callable[..., Any]) -> tuple[str, str, int]:
    before = case.inputs()
    watch = _Internal()
    logging.getLogger("onnxcompress").addHandler(watch)
    Path("/proc/self/clear_refs").write_text("5")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        outcome, detail = _run(case.arguments, call)
    logging.getLogger("onnxcompress").removeHandler(watch)
    peak = _peak_bytes()
    if watch.found and outcome in FINE:
        outcome, detail = "bug", watch.found[0]
    if outcome in FINE:
        outcome, detail = _effects(case, before, outcome, detail)
    if outcome in FINE and peak > MOST_BYTES:
        outcome, detail = "memory", f"{peak / 1e6:.0f} MB"
    return outcome, detail, peak


def _run(arguments: list[str], call: Callable[..., Any]) -> tuple[str, str]:
    from onnxcompress.errors import OnnxCompressError

    try:
        call(arguments, prog_name="onnxcompress", standalone_mode=False)
    except OnnxCompressError as error:
        return "refused", f"{error.exit_code} {error}"[:300]
    except (MemoryError, OSError) as error:
        return "refused", f"3 {type(error).__name__} {error}"[:300]
    except Exception as error:  # noqa: BLE001 - this is what we look for
        return "bug", _short(error)
    return "done", ""


def _short(error: BaseException | None) -> str:
    if error is None:
        return ""
    frames = [f for f in traceback.extract_tb(error.__traceback__) if "onnxcompress" in f.filename]
    places = " < ".join(f"{Path(f.filename).name}:{f.lineno}" for f in reversed(frames[-4:]))
    return f"{type(error).__name__}: {' '.join(str(error).split())[:160]} @ {places}"


def _effects(case: cases.Case, before: str, outcome: str, detail: str) -> tuple[str, str]:
    """Look at what a command has left on the disk."""
    left = case.left()
    if case.inputs() != before:
        return "changed", str(sorted(path.name for path in case.folder.rglob("*")))[:300]
    if [name for name in left if Path(name).name.startswith(".")]:
        return "partial", str(left)
    if outcome == "refused" and left:
        return "partial", str(left)
    for name in left:
        if (case.out / name).is_file() and cases.SECRET in (case.out / name).read_bytes():
            return "escaped", name
    return outcome, detail


def _peak_bytes() -> int:
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith("VmHWM:"))


def command(case: cases.Case, number: int) -> Ending:
    """Run a case as its user would, in a process of its own."""
    before = case.inputs()
    started = time.monotonic()
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    with tempfile.TemporaryFile("w+") as stderr:
        process = subprocess.Popen(
            [sys.executable, "-m", "onnxcompress", *case.arguments],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=stderr,
            env=environment,
            start_new_session=True,
            preexec_fn=_limit,
        )
        usage, status = None, None
        while time.monotonic() - started < MOST_WAIT_SECONDS and _session_seconds(process.pid) < MOST_SECONDS:
            pid, status, usage = os.wait4(process.pid, os.WNOHANG)
            if pid:
                break
            status = None
            time.sleep(0.05)
        seconds = time.monotonic() - started
        if status is None:
            os.kill(process.pid, signal.SIGKILL)
            _, _, usage = os.wait4(process.pid, 0)
        process.returncode = 0
        stderr.seek(0)
        said = stderr.read()
    peak = usage.ru_maxrss * 1024 if usage else 0
    last = (said.strip().splitlines() or [""])[-1][:300]
    code = None if status is None else os.waitstatus_to_exitcode(status)
    if code is None:
        outcome, detail = "hang", last
    elif code < 0:
        outcome, detail = "crash", signal.Signals(-code).name
    elif "Traceback" in said or code not in (0, 1, 2, 3):
        outcome, detail = "bug", f"exit {code}: {last}"
    else:
        outcome, detail = _effects(case, before, "refused" if code else "done", f"{code} {last}" if code else "")
        if peak > MOST_BYTES:
            outcome, detail = "memory", f"{peak / 1e6:.0f} MB"
    return Ending(number, case.kind, outcome, detail, round(seconds, 3), peak)


def tally(endings: list[Ending]) -> dict[str, Counter[str]]:
    """Count outcomes by kind."""
    found: dict[str, Counter[str]] = {}
    for ending in endings:
        found.setdefault(ending.kind, Counter())[ending.outcome] += 1
    return found
