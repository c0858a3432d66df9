"""Large models: time and memory of our whole command beside onnxruntime's dynamic quantization."""

from __future__ import annotations

import json
import os
import shutil
import sys
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from bench.measure import Measured, run
from bench.process import ROOT, TOOLS_FOLDER
from bench.tables import Table

BASELINE = "onnxruntime dynamic"
INLINE_LIMIT_BYTES = 2_000_000_000
MEGABYTE = 1e6


@dataclass(frozen=True)
class Job:
    """A command to measure; `{model}`, `{out}` and `{report}` are filled in."""

    name: str
    command: tuple[str, ...]


@dataclass(frozen=True, kw_only=True)
class Row:
    """One job on one model; `report` is what our own JSON report says of time and memory."""

    model: str
    job: str
    input_bytes: int
    output_bytes: int | None
    measured: Measured
    report: dict[str, Any] = field(default_factory=dict)


def jobs(verify: str | None) -> list[Job]:
    """Return the commands to compare: ours, the baseline, and merely loading and saving."""
    ours = (
        sys.executable,
        "-m",
        "onnxcompress",
        "compress",
        "{model}",
        "-o",
        "{out}",
        "--force",
        "--json",
        "{report}",
    )
    extra = ("--verify", verify) if verify else ()
    return [
        Job("fold", (*ours, "--recipe", "fold", *extra)),
        Job("int8-weights", (*ours, "--recipe", "int8-weights", *extra)),
        Job(BASELINE, (sys.executable, "-m", "bench.dynamic", "{model}", "{out}", "{external}")),
        Job("onnx load and save", (sys.executable, "-m", "bench.reload", "{model}", "{out}", "{external}")),
    ]


def measure(models: Sequence[Path], chosen: Sequence[Job], work: Path) -> Iterator[Row]:
    """Run every job on every model, each in a new process, one after the other."""
    environment = os.environ | {"PYTHONPATH": os.pathsep.join([str(ROOT), str(TOOLS_FOLDER)])}
    for model in models:
        external = model.with_name(f"{model.name}.data")
        input_bytes = sum(file.stat().st_size for file in (model, external) if file.exists())
        for job in chosen:
            folder = Path(tempfile.mkdtemp(prefix="large-", dir=work))
            out, report = folder / "out" / "model.onnx", folder / "report.json"
            out.parent.mkdir()
            values = {
                "model": str(model),
                "out": str(out),
                "report": str(report),
                "external": "external" if input_bytes > INLINE_LIMIT_BYTES else "inline",
            }
            try:
                measured = run([part.format(**values) for part in job.command], environment=environment)
                written = sum(file.stat().st_size for file in out.parent.iterdir())
                said = json.loads(report.read_text()) if report.exists() else {}
            finally:
                shutil.rmtree(folder)
            yield Row(
                model=model.stem,
                job=job.name,
                input_bytes=input_bytes,
                output_bytes=written or None,
                measured=measured,
                report={key: value for key, value in said.items() if key in REPORTED},
            )


REPORTED = ("seconds", "peak_memory_bytes", "verification")
"""What of our JSON report concerns time and memory; the rest can be long."""


def table(rows: Sequence[Row]) -> Table:
    """Tabulate seconds and memory, also as ratios to the baseline of the same run."""
    out = Table(
        "Large models: each command whole, in a process of its own",
        [
            *(
                "model",
                "command",
                "seconds",
                "ratio",
                "CPU s",
                "own CPU s",
                "ratio",
                "process, MB",
                "ratio",
                "of it private, MB",
            ),
            *("largest process, MB", "output, MB", "proof", "outcome"),
        ],
    )
    baselines = {row.model: row.measured for row in rows if row.job == BASELINE and row.measured.exit_code == 0}
    for row in rows:
        measured, base = row.measured, baselines.get(row.model)
        own, base_own = measured.own_peak_bytes, base.own_peak_bytes if base else None
        out.add(
            f"{row.model} ({row.input_bytes / MEGABYTE:,.0f} MB)",
            row.job,
            measured.seconds,
            measured.seconds / base.seconds if base else None,
            measured.cpu_seconds,
            measured.own_cpu_seconds,
            _ratio(measured.own_cpu_seconds, base.own_cpu_seconds if base else None),
            _megabytes(own),
            _ratio(own, base_own),
            _megabytes(measured.own_private_peak_bytes),
            _megabytes(measured.tree_peak_bytes),
            _megabytes(row.output_bytes),
            _proof(row.report.get("verification")),
            "ok" if measured.exit_code == 0 else f"exit {measured.exit_code}: {measured.errors[:80]}",
        )
    return out


def as_json(rows: Sequence[Row]) -> str:
    """Return all figures as JSON."""
    return json.dumps([asdict(row) for row in rows], indent=1) + "\n"


def _ratio(value: float | None, base: float | None) -> float | None:
    return value / base if value and base else None


def _megabytes(size_bytes: int | None) -> int | None:
    return None if size_bytes is None else round(size_bytes / MEGABYTE)


def _proof(verification: dict[str, Any] | None) -> str | None:
    """Say how the result was proved: by how many regions, in which time and memory of the workers."""
    if verification is None or verification["mode"] != "regions":
        return verification and str(verification["mode"])
    memory = verification["peak_memory_bytes"] / MEGABYTE
    return f"{verification['regions']} regions, {verification['seconds']:.1f} s, {memory:,.0f} MB"
