"""Split models: equality to the bit, and memory and time of running part by part beside the whole model."""

from __future__ import annotations

import json
import os
import shutil
import statistics
import sys
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from bench.measure import run
from bench.process import ROOT, TOOLS_FOLDER
from bench.tables import Table

MEGABYTE = 1e6
SHARES = (4, 8)
COUNTS = (2, 4, 8)
EXACT = ", optimizations off"


@dataclass(frozen=True, kw_only=True)
class Equality:
    """A model in a number of parts, against the whole."""

    model: str
    asked: int
    parts: int
    whole_bytes: int
    peak_bytes: int
    cut_bytes: int
    equal: bool
    largest_difference: float
    error: str = ""


@dataclass(frozen=True, kw_only=True)
class Run:
    """One way to run a model, medians over rounds; `process_bytes` is the largest peak of any."""

    model: str
    way: str
    budget_bytes: int | None
    parts: int | None
    cold_seconds: float
    cold_ratio: float
    warm_seconds: float
    process_bytes: int
    loads: int | None
    prefetches: int | None
    largest_difference: float


def equality(models: Sequence[Path], root: Path, work: Path) -> Iterator[Equality]:
    """Split each model into 2, 4 and 8 parts, each in a process of its own, and compare with the whole."""
    for model in models:
        for count in COUNTS:
            found = _child(["equality", str(model), str(count)], work)
            yield Equality(model=str(model.relative_to(root).with_suffix("")), asked=count, **found)


def runs(models: Sequence[Path], work: Path, *, rounds: int) -> Iterator[Run]:
    """Run each model whole and in parts under an eighth and a quarter of its weights, in turns, in new processes."""
    for model in models:
        size = sum(path.stat().st_size for path in model.parent.glob(f"{model.stem}.onnx*"))
        folder = Path(tempfile.mkdtemp(prefix="split-", dir=work))
        try:
            ways: list[tuple[str, int | None, list[str]]] = [("whole model", None, ["whole", str(model)])]
            parts: dict[int, int] = {}
            for share in SHARES:
                budget = size // share
                target = folder / str(share)
                parts[budget] = _child(["split", str(model), str(target), str(budget)], work)["parts"]
                ways += [
                    (f"1/{share}, prefetch {word}{kind}", budget, ["parts", str(target), str(budget), word, optimize])
                    for optimize, kind in (("on", ""), ("off", EXACT))
                    for word in ("on", "off")
                ]
            ways.append((f"whole model{EXACT}", None, ["whole", str(model), "off"]))
            collected: dict[str, list[dict[str, Any]]] = {name: [] for name, _, _ in ways}
            for index in range(rounds + 1):  # the first fills the page cache and does not count
                for name, _, arguments in ways:
                    found = _child(arguments, work)
                    if index:
                        collected[name].append(found)
            for name, budget, _ in ways:
                yield _row(model.stem, name, budget, None if budget is None else parts[budget], collected)
        finally:
            shutil.rmtree(folder)


def _row(model: str, name: str, budget: int | None, parts: int | None, found: dict[str, list[dict[str, Any]]]) -> Run:
    plain = f"whole model{EXACT}" if name.endswith(EXACT) else "whole model"
    mine, whole = found[name], found[plain]
    runs_of_both = zip(mine, whole, strict=True)
    pairs = [pair for one, other in runs_of_both for pair in zip(one["out"], other["out"], strict=True)]
    largest = max(abs(a - b) for a, b in pairs) / max(abs(b) for _, b in pairs)
    return Run(
        model=model,
        way=name,
        budget_bytes=budget,
        parts=parts,
        cold_seconds=statistics.median(one["cold"] for one in mine),
        cold_ratio=statistics.median(one["cold"] / other["cold"] for one, other in zip(mine, whole, strict=True)),
        warm_seconds=statistics.median(one["warm"] for one in mine),
        process_bytes=max(one["peak"] for one in mine),
        loads=mine[0].get("loads"),
        prefetches=mine[0].get("prefetches"),
        largest_difference=largest,
    )


def _child(arguments: Sequence[str], work: Path) -> dict[str, Any]:
    environment = os.environ | {"PYTHONPATH": os.pathsep.join([str(ROOT), str(TOOLS_FOLDER)])}
    with tempfile.TemporaryDirectory(dir=work) as folder:
        answer = Path(folder, "answer.json")
        measured = run([sys.executable, "-m", "bench.split_run", str(answer), *arguments], environment=environment)
        if measured.exit_code or not answer.exists():
            raise SystemExit(f"{' '.join(arguments)}: exit {measured.exit_code}: {measured.errors}")
        found: dict[str, Any] = json.loads(answer.read_text())
        return found


def equality_table(rows: Sequence[Equality]) -> Table:
    """Tabulate equality to the bit (optimizations off) and the largest difference with them on."""
    out = Table(
        "Zoo in 2, 4 and 8 parts: outputs against the whole model",
        [
            *("model", "parts", "files, MB", "largest peak, MB", "cut, KB", "equal to the bit"),
            "largest difference, optimizations on",
        ],
    )
    for row in rows:
        parts = str(row.parts) if row.parts == row.asked else f"{row.parts} ({row.asked} asked)"
        same = row.error or ("yes" if row.equal else "NO")
        sizes = (row.whole_bytes / MEGABYTE, row.peak_bytes / MEGABYTE, row.cut_bytes / 1e3)
        out.add(row.model, parts, *sizes, same, f"{row.largest_difference:.1e}")
    return out


def run_table(rows: Sequence[Run]) -> Table:
    """Tabulate memory and time beside the whole model."""
    out = Table(
        "Large models part by part, in processes of their own: cold is loading and the first run, warm the next",
        [
            *("model", "way", "budget, MB", "parts", "process peak, MB", "above budget, MB", "cold, s", "of whole"),
            *("warm, s", "loads", "by the thread", "largest difference"),
        ],
    )
    for row in rows:
        above = None if row.budget_bytes is None else round((row.process_bytes - row.budget_bytes) / MEGABYTE)
        out.add(
            row.model,
            row.way,
            None if row.budget_bytes is None else round(row.budget_bytes / MEGABYTE),
            row.parts,
            round(row.process_bytes / MEGABYTE),
            above,
            row.cold_seconds,
            row.cold_ratio,
            row.warm_seconds,
            row.loads,
            row.prefetches,
            f"{row.largest_difference:.1e}",
        )
    return out


def as_json(equal: Sequence[Equality], ran: Sequence[Run]) -> str:
    """Return all figures as JSON."""
    return json.dumps({"equality": [asdict(r) for r in equal], "runs": [asdict(r) for r in ran]}, indent=1) + "\n"
