"""A recipe on real models: size, the models' own metrics before and after, latency."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from bench.measure import run
from bench.process import ROOT, TOOLS_FOLDER
from bench.tables import Table

METRICS = ("top1", "char_acc", "sent_acc", "acc")
"""The metric of a folder is the first of these that its eval gives; all are shares, higher is better."""
SIZE_LIMIT, SIZE_LIMIT_FROM_BYTES, DROP_LIMIT_POINTS = 0.28, 1_000_000, 0.3


@dataclass(frozen=True, kw_only=True)
class Row:
    """One model before and after; `original` and `compressed` are everything its eval gives."""

    model: str
    original_bytes: int
    compressed_bytes: int | None = None
    original: dict[str, float] = field(default_factory=dict)
    compressed: dict[str, float] = field(default_factory=dict)
    latency_ratio: float | None = None
    seconds: float | None = None
    error: str = ""

    @property
    def metric(self) -> str | None:
        """The name of the metric that counts."""
        return next((name for name in METRICS if name in self.original), None)

    @property
    def drop_points(self) -> float | None:
        """By how many points (hundredths) the metric fell."""
        if self.metric is None or self.metric not in self.compressed:
            return None
        return 100 * (self.original[self.metric] - self.compressed[self.metric])


def measure(models: Sequence[Path], zoo: Path, work: Path, recipe: str, settings: Sequence[str] = ()) -> Iterator[Row]:
    """Compress and evaluate each model, every step in a process of its own."""
    environment = os.environ | {"PYTHONPATH": os.pathsep.join([str(ROOT), str(TOOLS_FOLDER)])}
    for model in models:
        key, size_bytes = str(model.relative_to(zoo).with_suffix("")), _size_bytes(model.parent, model)
        folder = Path(tempfile.mkdtemp(prefix="weights-", dir=work))
        out, report = folder / "out" / "model.onnx", folder / "report.json"
        out.parent.mkdir()
        try:
            command = [sys.executable, "-m", "onnxcompress", "compress", str(model), "-o", str(out)]
            options = ["--recipe", recipe, "--json", str(report), "--force"]
            options += [part for setting in settings for part in ("--set", setting)]
            measured = run([*command, *options], environment=environment)
            if measured.exit_code != 0 or not out.exists():
                error = f"exit {measured.exit_code}: {measured.errors}"
                yield Row(model=key, original_bytes=size_bytes, seconds=measured.seconds, error=error)
                continue
            said: dict[str, Any] = json.loads(report.read_text()) if report.exists() else {}
            original, before = evaluate_once(model, work, environment)
            compressed, after = evaluate(model.parent, out, environment)
            yield Row(
                model=key,
                original_bytes=size_bytes,
                compressed_bytes=_size_bytes(out.parent, out),
                original=original,
                compressed=compressed,
                latency_ratio=(said.get("latency") or {}).get("ratio"),
                seconds=measured.seconds,
                error=before or after,
            )
        finally:
            shutil.rmtree(folder)


def table(
    rows: Sequence[Row],
    recipe: str,
    *,
    size_limit: float = SIZE_LIMIT,
    size_limit_from_bytes: int = SIZE_LIMIT_FROM_BYTES,
    drop_limit_points: float = DROP_LIMIT_POINTS,
) -> Table:
    """Tabulate sizes, metrics and latency; a star marks what misses the limits."""
    of_which = f"of {size_limit_from_bytes / 1e6:g} MB or more" if size_limit_from_bytes else "of the size"
    out = Table(
        f"{recipe}: real models (* beyond {size_limit} {of_which}, or {drop_limit_points} points)",
        [
            "model",
            "bytes",
            "after",
            "ratio",
            "metric",
            "before",
            "after",
            "drop, points",
            "latency",
            "seconds",
            "note",
        ],
    )
    for row in rows:
        ratio = row.compressed_bytes / row.original_bytes if row.compressed_bytes else None
        name, drop = row.metric, row.drop_points
        too_big = ratio is not None and ratio > size_limit and row.original_bytes >= size_limit_from_bytes
        out.add(
            row.model,
            row.original_bytes,
            row.compressed_bytes,
            None if ratio is None else f"{ratio:.3f}{'*' * too_big}",
            name,
            f"{row.original[name]:.4f}" if name else None,
            f"{row.compressed[name]:.4f}" if name and name in row.compressed else None,
            None if drop is None else f"{drop:+.2f}{'*' * (drop > drop_limit_points)}",
            None if row.latency_ratio is None else f"{row.latency_ratio:.2f}x",
            row.seconds,
            row.error[:100],
        )
    return out


def as_json(rows: Sequence[Row]) -> str:
    """Return all figures as JSON."""
    return json.dumps([asdict(row) for row in rows], indent=1) + "\n"


def evaluate_once(model: Path, work: Path, environment: dict[str, str]) -> tuple[dict[str, float], str]:
    """Evaluate an original, remembering the answer by the content of the file."""
    with model.open("rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()[:16]
    known = work / "originals" / f"{digest}.json"
    if known.exists():
        return json.loads(known.read_text()), ""
    metrics, error = evaluate(model.parent, model, environment)
    if not error:
        known.parent.mkdir(exist_ok=True)
        known.write_text(json.dumps(metrics))
    return metrics, error


def evaluate(folder: Path, model: Path, environment: dict[str, str]) -> tuple[dict[str, float], str]:
    """Return what a zoo folder's eval finds of a model, and what went wrong."""
    command = [sys.executable, "-W", "ignore", "-m", "bench.evaluate", str(folder), str(model)]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    if done.returncode != 0:
        return {}, f"eval: {(done.stderr.strip().splitlines() or ['no message'])[-1]}"
    metrics: dict[str, float] = json.loads(done.stdout.strip().splitlines()[-1])
    return metrics, ""


def _size_bytes(folder: Path, model: Path) -> int:
    files = [model, *folder.glob(f"{model.name}*.data"), *folder.glob(f"{model.stem}.data")]
    return sum(file.stat().st_size for file in set(files))
