"""Commands that are killed at random moments, or run out of disk: `python tools/kills.py --help`."""

from __future__ import annotations

import hashlib
import importlib
import itertools
import os
import pkgutil
import resource
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Protocol

import numpy as np
import onnx
import typer
from hardening import figures
from onnx import helper, numpy_helper

WHOLE = 10
"""One in so many is started as a user would."""
ROOT = Path(__file__).resolve().parent.parent
COMMANDS = {
    "compress": ("compress", "m.onnx", "-o", "out.onnx", "--recipe", "int8-weights"),
    "external": ("compress", "m.onnx", "-o", "out.onnx", "--recipe", "fold", "--external-data", "always"),
    "pack": ("compress", "m.onnx", "-o", "out.onnxpack", "--recipe", "fold", "--pack"),
    "unpack": ("unpack", "m.onnxpack", "-o", "out.onnx"),
    "split": ("split", "m.onnx", "-o", "out", "--parts", "3"),
}


def main(
    *,
    count: Annotated[int, typer.Option(min=1, help="kills, and as many full disks divided by five")] = 500,
    only: Annotated[str | None, typer.Option(help=f"one of {', '.join(COMMANDS)}")] = None,
    seed: Annotated[int, typer.Option(help="of the moments")] = 0,
    minutes: Annotated[float, typer.Option(min=0.1, help="stop after this time")] = 600,
    markdown: Annotated[
        Path | None, typer.Option(help="replace the figures in this file, such as tools/BENCHMARKS.md")
    ] = None,
) -> None:
    """Kill commands with SIGKILL and let the disk fill, then look at what they leave; exit 1 where that is wrong.

    Most are forks of this process, which has imported all they need, so that a kill meets the work more often than the
    start; every tenth is started as a user would.

    Example: python tools/kills.py --count 500 --markdown tools/BENCHMARKS.md
    """
    sys.path.insert(0, str(ROOT))
    import onnxcompress

    for module in pkgutil.walk_packages(onnxcompress.__path__, "onnxcompress."):
        if not module.name.endswith("__main__"):
            importlib.import_module(module.name)
    rng = np.random.default_rng(seed)
    counts: dict[str, Counter[str]] = {}
    wrong: list[str] = []
    names = [only] if only else list(COMMANDS)
    share = -(-count // len(names))
    deadline = time.monotonic() + 60 * minutes
    with tempfile.TemporaryDirectory(prefix="onnxcompress-kills-") as folder:
        trials = [Trial(name, Path(folder, name)) for name in names]
        for index, trial in itertools.product(range(share + share // 5), trials):
            if time.monotonic() > deadline:
                typer.echo(f"stopped after {minutes:g} minutes")
                break
            is_full = index % 6 == 5
            fraction, whole = float(rng.random()), index % WHOLE == 0
            if is_full:
                found = trial.fill(fraction, whole=whole)
            else:
                found = trial.kill(fraction, keeps_old=index % 2 == 0, whole=whole)
            counts.setdefault(f"{trial.name}, {'disk full' if is_full else 'killed'}", Counter())[found] += 1
            if found.startswith("WRONG"):
                wrong.append(f"{trial.name}: {found}")
                typer.echo(wrong[-1])
    lines = [
        "| command | runs | output absent | old output whole | new output whole | wrong |",
        "| --- | ---: | ---: | ---: | ---: | ---: |",
    ]
    for title, found_counts in sorted(counts.items()):
        bad = sum(number for outcome, number in found_counts.items() if outcome.startswith("WRONG"))
        cells = " | ".join(f"{found_counts[outcome]}" for outcome in ("absent", "old", "new"))
        lines.append(f"| {title} | {sum(found_counts.values())} | {cells} | {bad} |")
    typer.echo("\n".join(lines))
    if markdown:
        figures.put(markdown, "kills", "\n".join(lines))
    raise typer.Exit(1 if wrong else 0)


class Trial:
    """One command in a folder of its own, with a good run to compare with."""

    def __init__(self, name: str, folder: Path) -> None:
        self.name = name
        self._folder = folder
        folder.mkdir()
        self._arguments = COMMANDS[name]
        _write_model(folder / "m.onnx")
        if name == "unpack":
            self._run("compress", "m.onnx", "-o", "m.onnxpack", "--recipe", "fold", "--pack")
        self._inputs = _hashes(folder)
        self._seconds = {}
        for whole in (True, False):
            started = time.monotonic()
            self._run(*self._arguments, "--force", whole=whole)
            self._seconds[whole] = time.monotonic() - started
        self._good = self._outputs()
        self._largest = max((folder / name).stat().st_size for name in self._good)
        self._clean()

    def kill(self, fraction: float, *, keeps_old: bool, whole: bool) -> str:
        """Kill the command after a fraction of its time, with or without an output of before."""
        old = self._old() if keeps_old else {}
        started = time.monotonic()
        process = self._start(*self._arguments, "--force", whole=whole)
        time.sleep(fraction * self._seconds[whole] * 1.05)
        process.kill()
        if not process.end()[0]:  # it was through already: what it took is what the next moments are a part of
            self._seconds[whole] = min(self._seconds[whole], time.monotonic() - started)
        return self._judge(old)

    def fill(self, fraction: float, *, whole: bool) -> str:
        """Let no file grow beyond a fraction of the largest output."""
        limit = int(fraction * self._largest)

        def limited() -> None:
            signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
            resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))

        old = self._old()
        code, said = self._start(*self._arguments, "--force", whole=whole, before=limited).end()
        if code != 3 or "Traceback" in said:
            return f"WRONG: exit {code}: {said[-200:]}"
        hidden = [path.name for path in self._folder.iterdir() if path.name.startswith(".")]
        return f"WRONG: left {hidden}" if hidden else self._judge(old)

    def _judge(self, old: dict[str, str]) -> str:
        time.sleep(0.05)
        if {name: digest for name, digest in _hashes(self._folder).items() if name in self._inputs} != self._inputs:
            return "WRONG: the input was changed"
        found = self._outputs()
        outcome = "absent" if not found else "old" if found == old else "new" if found == self._good else ""
        if not outcome:
            both = {**old, **found}
            is_mixed = all(digest in (old.get(name), self._good.get(name)) for name, digest in both.items())
            main = next((name for name in self._good if name.endswith(("out.onnx", "out.onnxpack"))), "")
            if not (is_mixed and main and found.get(main) in (old.get(main), self._good.get(main))):
                return f"WRONG: {sorted(found)} is neither old nor new"
            outcome = "new" if found.get(main) == self._good.get(main) else "old" if main in found else "absent"
        self._run(*self._arguments, "--force")
        left = [path.name for path in self._folder.iterdir() if path.name.startswith(".")]
        if left or self._outputs() != self._good:
            return f"WRONG: the next run left {left or sorted(self._outputs())}"
        self._clean()
        return outcome

    def _old(self) -> dict[str, str]:
        """Put an earlier output of other content in place."""
        if self._arguments[0] == "split":
            self._run("split", "m.onnx", "-o", "out", "--parts", "2")
        elif "--pack" in self._arguments:
            self._run("compress", "m.onnx", "-o", "out.onnxpack", "--recipe", "int8-weights", "--pack")
        else:
            self._run("compress", "m.onnx", "-o", "out.onnx", "--recipe", "float16")
        return self._outputs()

    def _clean(self) -> None:
        for path in self._folder.glob("out*"):
            shutil.rmtree(path) if path.is_dir() else path.unlink()

    def _outputs(self) -> dict[str, str]:
        return {name: digest for name, digest in _hashes(self._folder).items() if name.startswith("out")}

    def _start(self, *arguments: str, whole: bool = False, before: Callable[[], None] | None = None) -> Process:
        return (Started if whole else Forked)(self._folder, arguments, before)

    def _run(self, *arguments: str, whole: bool = False) -> None:
        code, said = self._start(*arguments, whole=whole).end()
        if code:
            raise RuntimeError(f"{arguments}: exit {code}: {said}")


class Process(Protocol):
    """A command at work."""

    def kill(self) -> None:
        """End it with SIGKILL."""

    def end(self) -> tuple[int, str]:
        """Wait for it and return its exit code, negative for a signal, and what it said on stderr."""


class Started:
    """A command in a new process, as a user starts it."""

    def __init__(self, folder: Path, arguments: tuple[str, ...], before: Callable[[], None] | None) -> None:
        self._process = subprocess.Popen(
            [sys.executable, "-m", "onnxcompress", *arguments],
            cwd=folder,
            env=os.environ | {"PYTHONPATH": str(ROOT)},
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            preexec_fn=before,
            text=True,
        )

    def kill(self) -> None:
        """End it with SIGKILL."""
        self._process.kill()

    def end(self) -> tuple[int, str]:
        """Return its exit code and what it said."""
        _, said = self._process.communicate(timeout=300)
        return self._process.returncode, said


class Forked:
    """A command in a fork of this process."""

    def __init__(self, folder: Path, arguments: tuple[str, ...], before: Callable[[], None] | None) -> None:
        self._said = tempfile.TemporaryFile("w+")  # noqa: SIM115 - until it has been read
        self._child = os.fork()
        if self._child == 0:
            code = 70
            try:
                os.chdir(folder)
                os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
                os.dup2(self._said.fileno(), 2)
                if before:
                    before()
                sys.argv = ["onnxcompress", *arguments]
                from onnxcompress import cli

                cli.main()
            except SystemExit as end:
                code = int(end.code or 0)
            finally:
                os._exit(code)

    def kill(self) -> None:
        """End it with SIGKILL."""
        os.kill(self._child, signal.SIGKILL)

    def end(self) -> tuple[int, str]:
        """Return its exit code and what it said."""
        _, status = os.waitpid(self._child, 0)
        with self._said:
            self._said.seek(0)
            return os.waitstatus_to_exitcode(status), self._said.read()


def _hashes(folder: Path) -> dict[str, str]:
    """Return the hash of every file that is not hidden."""
    return {
        str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(folder.rglob("*"))
        if path.is_file() and not any(part.startswith(".") for part in path.relative_to(folder).parts)
    }


def _write_model(path: Path) -> None:
    rng = np.random.default_rng(0)
    names = ["x", "a", "b", "c", "y"]
    nodes = [helper.make_node("MatMul", [names[i], f"w{i}"], [names[i + 1]], name=f"n{i}") for i in range(4)]
    weights = [
        numpy_helper.from_array(rng.standard_normal((256, 256)).astype(np.float32) / 16, f"w{i}") for i in range(4)
    ]
    info = [helper.make_tensor_value_info(name, 1, [1, 256]) for name in ("x", "y")]
    graph = helper.make_graph(nodes, "g", info[:1], info[1:], weights)
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8), path)


if __name__ == "__main__":
    typer.run(main)
