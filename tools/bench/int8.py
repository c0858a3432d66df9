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
_SHOWN = ("top1", "char_acc", "sent_acc", "lee_pearson", "cos_fp32", "acc", "bpc")


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


@dataclass(frozen=True, kw_only=True)
class Tool:
    """How a model is quantized: by a recipe of ours and its options, or by a module of ours that calls a peer.

    Args:
        name: as it stands in the table.
        options: of our command.
        peer: of the peer's module: its name and first arguments.
        without_data: calibration samples are not given.
    """

    name: str
    options: Sequence[str] = ()
    peer: Sequence[str] = ()
    without_data: bool = False


def tools(recipe: str) -> list[Tool]:
    """Return what is compared: a recipe of ours and onnxruntime's quantizers."""
    ours = Tool(name=OURS, options=("--recipe", recipe))
    return [ours, *(Tool(name=name, peer=("bench.quantizers", name)) for name in SETTINGS)]


def measure(
    models: Sequence[Path], zoo: Path, work: Path, compared: Sequence[Tool], *, peer_python: Path | None, samples: int
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
            places: dict[str, Path] = {}
            for number, tool in enumerate(t for t in compared if peer_python or not t.peer):
                out = folder / str(number) / "model.onnx"
                out.parent.mkdir()
                if tool.peer:
                    command = [str(peer_python), "-W", "ignore", "-m", *tool.peer, str(model), str(data), str(out)]
                else:
                    command = [sys.executable, "-m", "onnxcompress", "compress", str(model), "-o", str(out), "-q"]
                    command += [*tool.options, *([] if tool.without_data else ["--data", str(data)])]
                    command += [] if tool.without_data else [part for each in state for part in ("--state", each)]
                rows[tool.name] = _quantized(
                    key, tool.name, command, model.parent, out, theirs if tool.peer else ours, ours
                )
                places[tool.name] = out
            made = [name for name, row in rows.items() if not row.error]
            paths = [str(places[name]) for name in made]
            ratios = json.loads(_printed([sys.executable, "-m", "bench.race", str(data), str(model), *paths], ours))
            metrics, error = evaluate_once(model, work, ours)
            yield Row(model=key, tool=ORIGINAL, bytes=model.stat().st_size, metrics=metrics, error=error)
            for name, row in rows.items():
                ratio = ratios[made.index(name)] if name in made else None
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


def table(rows: Sequence[Row], title: str = "int8") -> Table:
    """Tabulate every tool on every model."""
    title = f"{title}: score, time as a ratio to float32, size"
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
