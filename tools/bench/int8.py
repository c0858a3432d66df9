"""Recipe int8 beside onnxruntime's own quantizers, in one run: the models' metrics, paired times, bytes, seconds."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path

from bench.measure import run
from bench.process import ROOT, TOOLS_FOLDER
from bench.tables import Table
from bench.weights import evaluate, evaluate_once

OURS, ORIGINAL = "onnxcompress", "float32"
SETTINGS = ("static", "static, per channel", "static, expert", "dynamic", "dynamic, MatMul")
"""The names that `bench.quantizers` knows, which runs in the peers' environment."""
_SHOWN = ("top1", "char_acc", "sent_acc", "lee_pearson", "acc", "bpc")


@dataclass(frozen=True, kw_only=True)
class Row:
    """What one tool made of one model."""

    model: str
    tool: str
    bytes: int | None = None
    metrics: dict[str, float] = field(default_factory=dict)
    latency_ratio: float | None = None
    seconds: float | None = None
    cpu_seconds: float | None = None
    peak_bytes: int | None = None
    error: str = ""


def measure(
    models: Sequence[Path], zoo: Path, work: Path, *, peer_python: Path | None, samples: int, recipe: str
) -> Iterator[Row]:
    """Quantize each model with every tool, evaluate, and race all results against the original."""
    ours = os.environ | {"PYTHONPATH": os.pathsep.join([str(ROOT), str(TOOLS_FOLDER)])}
    theirs = os.environ | {"PYTHONPATH": str(TOOLS_FOLDER)}
    for model in models:
        key = str(model.relative_to(zoo).with_suffix(""))
        folder = Path(tempfile.mkdtemp(prefix="int8-", dir=work))
        data = folder / "samples"
        try:
            listed = [str(model.parent), str(model), str(data), str(samples)]
            state = json.loads(_printed([sys.executable, "-m", "bench.samples", *listed], ours))
            rows: dict[str, Row] = {}
            for tool in (OURS, *(SETTINGS if peer_python else ())):
                out = folder / tool / "model.onnx"
                out.parent.mkdir()
                if tool == OURS:
                    command = [sys.executable, "-m", "onnxcompress", "compress", str(model), "-o", str(out), "-q"]
                    command += ["--recipe", recipe, "--data", str(data)]
                    command += [part for each in state for part in ("--state", each)]
                else:
                    command = [str(peer_python), "-W", "ignore", "-m", "bench.quantizers", tool]
                    command += [str(model), str(data), str(out)]
                rows[tool] = _quantized(key, tool, command, model.parent, out, ours if tool == OURS else theirs, ours)
            made = [tool for tool, row in rows.items() if not row.error]
            paths = [str(folder / tool / "model.onnx") for tool in made]
            ratios = json.loads(_printed([sys.executable, "-m", "bench.race", str(data), str(model), *paths], ours))
            metrics, error = evaluate_once(model, work, ours)
            yield Row(model=key, tool=ORIGINAL, bytes=model.stat().st_size, metrics=metrics, error=error)
            for tool, row in rows.items():
                ratio = ratios[made.index(tool)] if tool in made else None
                yield Row(**(asdict(row) | {"latency_ratio": ratio}))
        finally:
            shutil.rmtree(folder)


def _quantized(
    key: str,
    tool: str,
    command: list[str],
    folder: Path,
    out: Path,
    environment: dict[str, str],
    ours: dict[str, str],
) -> Row:
    """Run a tool's command and evaluate what it wrote by the eval of the model's folder."""
    measured = run(command, environment=environment)
    is_made = measured.exit_code == 0 and out.exists()
    metrics, error = evaluate(folder, out, ours) if is_made else ({}, measured.errors or f"exit {measured.exit_code}")
    return Row(
        model=key,
        tool=tool,
        bytes=out.stat().st_size if is_made else None,
        metrics=metrics,
        seconds=measured.seconds,
        cpu_seconds=measured.cpu_seconds,
        peak_bytes=measured.tree_peak_bytes,
        error=error,
    )


def table(rows: Sequence[Row]) -> Table:
    """Tabulate every tool on every model."""
    title = "int8: score, time as a ratio to float32, size"
    out = Table(title, ["model", "tool", "metrics", "latency", "MB", "seconds", "CPU s", "peak MB", "note"])
    for row in rows:
        shown = ", ".join(f"{name} {row.metrics[name]:.4f}" for name in _SHOWN if name in row.metrics)
        out.add(
            row.model,
            row.tool,
            shown,
            None if row.latency_ratio is None else f"{row.latency_ratio:.2f}x",
            None if row.bytes is None else f"{row.bytes / 1e6:.3f}",
            row.seconds,
            row.cpu_seconds,
            None if row.peak_bytes is None else f"{row.peak_bytes / 1e6:.0f}",
            row.error[:80],
        )
    return out


def as_json(rows: Sequence[Row]) -> str:
    """Return all figures as JSON."""
    return json.dumps([asdict(row) for row in rows], indent=1) + "\n"


def _printed(command: list[str], environment: dict[str, str]) -> str:
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=True)
    return done.stdout.strip().splitlines()[-1]
