"""True and reported losses of small models of many kinds of output, compressed by our command."""

from __future__ import annotations

import importlib.util
import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime as ort

from bench.process import ROOT, TOOLS_FOLDER
from bench.tables import Table
from bench.verdict_cases import KINDS, MOST_LOSS, MOST_LOSS_OF_BOXES, Feed, Outputs

COMMANDS = {
    "auto": ("--recipe", "auto"),
    "int8": ("--recipe", "int8"),
    "prune": ("--recipe", "prune", "--set", "prune-channels.keep_macs=0.3", "--max-drop", "0.01"),
}
_SAMPLES, _TEST_SAMPLES = 64, 256
_LIMIT_EXCEEDED = 1
"""Exit code of our command where a limit that the user gave is not met."""
_TIMEOUT_SECONDS = 600
"""Time after which a command is killed; an idle core takes 5 to 60 s."""
_SEED = 11
"""Of all samples; chosen freely."""


@dataclass(frozen=True, kw_only=True)
class Case:
    """A written model, the samples for our command, and what tells the true loss of a result."""

    name: str
    model: Path
    data: Path
    loss: Callable[[Path], float]
    most: float
    options: Sequence[str] = ()


@dataclass(frozen=True, kw_only=True)
class Row:
    """Result of a command for a case; losses are None where there is no result, or where none is reported."""

    case: str
    recipe: str
    exit_code: int
    true_loss: float | None
    most: float
    told: float | None = None
    interval: tuple[float, float] | None = None
    metric: str = ""
    size_ratio: float | None = None
    seconds: float = 0.0
    error: str = ""

    @property
    def is_right(self) -> bool:
        """True where the result is good, or was refused."""
        if self.true_loss is None:
            return self.exit_code == _LIMIT_EXCEEDED
        return self.true_loss <= self.most


def prepare(folder: Path, script: Path | None, only: Callable[[str], bool]) -> list[Case]:
    """Write the script's cases and our own below a folder."""
    found = [] if script is None else _given(folder / "given", script)
    for name in KINDS:
        if only(name):
            found.append(_own(folder / name.replace(" ", "-"), name))
    return [case for case in found if only(case.name)]


def _given(folder: Path, script: Path) -> list[Case]:
    """Run the script, and take over its cases that have a score."""
    subprocess.run([sys.executable, str(script), str(folder)], cwd=ROOT, check=True, capture_output=True)
    spec = importlib.util.spec_from_file_location("given_cases", script)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)

    def scored(name: str) -> Callable[[Path], float]:
        x, score, original = np.load(folder / f"{name}.npz")["x_test"], module.CASES[name][1], folder / f"{name}.onnx"
        return lambda result: float(score(module.run(str(original), x), module.run(str(result), x)))

    return [
        Case(
            name=name,
            model=folder / f"{name}.onnx",
            data=_work_samples(folder / name, np.load(folder / f"{name}.npz")["x"]),
            loss=scored(name),
            most=MOST_LOSS_OF_BOXES if "boxes" in name else MOST_LOSS,
        )
        for name in module.CASES
    ]


def _work_samples(folder: Path, x: np.ndarray) -> Path:
    """Write the samples without those that are kept for the true loss."""
    folder.mkdir()
    path = folder / "samples.npz"
    np.savez(path, x=x)
    return path


def _own(folder: Path, name: str) -> Case:
    kind, random = KINDS[name], np.random.default_rng(_SEED)
    samples, tests = kind.draw(random, _SAMPLES), kind.draw(random, _TEST_SAMPLES)
    model, data = folder / "model.onnx", folder / "samples"
    data.mkdir(parents=True)
    onnx.save(kind.build(), model)
    for index, sample in enumerate(samples):
        np.savez(data / f"{index:03}.npz", **sample)
    state = dict(option.split("=") for option in kind.options if "=" in option)
    truth = outputs(model, tests, state)
    return Case(
        name=name,
        model=model,
        data=data,
        loss=lambda result: kind.loss(tests, truth, outputs(result, tests, state)),
        most=kind.most,
        options=kind.options,
    )


def outputs(model: Path, feeds: Sequence[Feed], state: dict[str, str]) -> Outputs:
    """Run a model sample by sample with the runtime's optimizations off; a state begins with zeros."""
    options = ort.SessionOptions()
    options.intra_op_num_threads, options.log_severity_level = 1, 4
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
    session = ort.InferenceSession(str(model), options, providers=["CPUExecutionProvider"])
    names = [each.name for each in session.get_outputs()]
    shapes = {each.name: each.shape for each in session.get_inputs()}
    carried: Feed = {name: np.zeros(shapes[name], np.float32) for name in state}
    found = []
    for feed in feeds:
        values = session.run(names, feed | carried)
        carried = {name: values[names.index(source)] for name, source in state.items()}
        found.append(values)
    return found


def measure(cases: Sequence[Case], recipes: Sequence[str], work: Path) -> Iterator[Row]:
    """Compress every case by every command and measure what it lost."""
    environment = os.environ | {"PYTHONPATH": os.pathsep.join([str(ROOT), str(TOOLS_FOLDER)])}
    for case in cases:
        for recipe in recipes:
            target = work / f"{case.name}-{recipe}.onnx".replace(" ", "-")
            report = target.with_suffix(".json")
            command = [sys.executable, "-W", "ignore", "-m", "onnxcompress", "compress", str(case.model), "-q"]
            command += ["-o", str(target), "--json", str(report), "--force", "--data", str(case.data)]
            command += [*COMMANDS[recipe], *case.options]
            done = None
            try:
                done = subprocess.run(
                    command, env=environment, capture_output=True, text=True, timeout=_TIMEOUT_SECONDS, check=False
                )
            except subprocess.TimeoutExpired:
                yield _row(case, recipe, None, target, {}, f"killed after {_TIMEOUT_SECONDS} s")
                continue
            told = json.loads(report.read_text()) if report.exists() else {}
            last = (done.stderr.strip().splitlines() or [""])[-1]
            yield _row(case, recipe, done.returncode, target, told, last)


def _row(case: Case, recipe: str, code: int | None, target: Path, told: dict[str, Any], error: str) -> Row:
    quality, has_result = told.get("quality") or {}, code == 0 and target.exists()
    return Row(
        case=case.name,
        recipe=recipe,
        exit_code=-1 if code is None else code,
        true_loss=case.loss(target) if has_result else None,
        most=case.most,
        told=quality.get("drop"),
        interval=quality.get("drop_interval"),
        metric=quality.get("metric", ""),
        size_ratio=target.stat().st_size / case.model.stat().st_size if has_result else None,
        seconds=told.get("seconds", 0.0),
        error=error[:200],
    )


def table(rows: Sequence[Row]) -> Table:
    """Tabulate true and told losses and whether the verdict is right."""
    right = sum(row.is_right for row in rows)
    title = f"Verdicts on small models of many kinds: {right} of {len(rows)} are right (the true loss is at most what "
    title += "is allowed, or exit code 1)"
    out = Table(
        title, ["case", "recipe", "exit", "true loss", "allowed", "told", "interval", "size", "verdict", "note"]
    )
    for row in rows:
        out.add(
            row.case,
            row.recipe,
            row.exit_code,
            _figure(row.true_loss),
            f"{row.most:g}",
            _figure(row.told),
            None if row.interval is None else f"{row.interval[0]:.4f} to {row.interval[1]:.4f}",
            row.size_ratio,
            "right" if row.is_right else "WRONG",
            (row.metric if row.exit_code == 0 else row.error)[:100],
        )
    return out


def _figure(value: float | None) -> str | None:
    return None if value is None else f"{value:.4f}"


def as_json(rows: Sequence[Row]) -> str:
    """Return all figures as JSON."""
    return json.dumps([asdict(row) | {"right": row.is_right} for row in rows], indent=1) + "\n"
