"""Commands of `tools/wild.py`."""

from __future__ import annotations

import signal
import sys
import tempfile
from pathlib import Path
from typing import Annotated, Any

import typer
from bench.process import ROOT
from bench.tables import Table, publish
from fetch_models import UnknownNameError

from wild import table as tables
from wild.catalog import WildModel, load_catalog, select
from wild.run import Trial
from wild.steps import STEPS
from wild.watched import Limits

app = typer.Typer(add_completion=False, no_args_is_help=True, pretty_exceptions_enable=False)
CACHE = ROOT / "models" / "wild"
SMALL = ("mtcnn_pnet", "mtcnn_onet", "magika", "attacut_thai", "chars2vec")
"""Models under 5 MB out of one registry, of five kinds, that the tests try."""
RESULTS = Path(tempfile.gettempdir()) / "onnxcompress-wild"

Only = Annotated[list[str] | None, typer.Option(help="name or kind of a model; repeatable. All without.")]
Cache = Annotated[Path, typer.Option(help="folder of models and samples", file_okay=False)]
Folder = Annotated[Path, typer.Option(help="folder of the results", file_okay=False)]


@app.command("list")
def list_models(*, only: Only = None) -> None:
    """List the models, where they come from and under which licence."""
    out = Table("Models of the trial", ["model", "kind", "package", "licence", "inputs", "state"])
    for model in chosen(only):
        package = f"{model.registry} {model.package} {model.version}"
        state = ", ".join(map("=".join, model.state.items())) or None
        out.add(model.name, model.kind, package, model.licence, model.inputs, state)
    publish([out], markdown=None)


@app.command()
def fetch(
    *,
    only: Only = None,
    cache: Cache = CACHE,
    small: Annotated[bool, typer.Option("--small", help="only the five that the tests try")] = False,
) -> None:
    """Fetch the models and make their samples; what is there with the right hash is not fetched again.

    Exit 3 where one can't be had.
    """
    failed = 0
    for model in chosen(list(SMALL) if small else only):
        try:
            path = model.fetch(cache)
            for which in ("work", "judge"):
                model.write_feeds(path, cache / "feeds" / model.name, which)
        except Exception as error:  # noqa: BLE001 - said in one line; the others are fetched nevertheless
            failed += 1
            sys.stderr.write(f"error: {model.name}: {error}\n")
        else:
            sys.stdout.write(f"{model.name:28} {path.stat().st_size:>12,} {path}\n")
    if failed:
        raise typer.Exit(3)


@app.command()
def run(
    *,
    only: Only = None,
    steps: Annotated[str, typer.Option(help="comma-separated; all without: " + ", ".join(STEPS))] = "",
    folder: Folder = RESULTS,
    cache: Cache = CACHE,
    timeout: Annotated[float, typer.Option(min=1, help="CPU seconds that a command may take")] = 600,
    memory: Annotated[float, typer.Option(min=0.1, help="GB that it may take")] = 8.0,
    judge_seconds: Annotated[float, typer.Option(min=1, help="CPU seconds for judging a result; a tenth: timing")] = 60,
    again: Annotated[bool, typer.Option("--again", help="run also what has been run")] = False,
    keep: Annotated[bool, typer.Option("--keep", help="keep the models that are made")] = False,
) -> None:
    """Run the steps on the models, one at a time, and write a row for each; what has one already is not run again.

    Rows are one JSON file each, FOLDER/MODEL/STEP.json; what the commands printed, and the report, are in
    FOLDER/MODEL/STEP/. A row is current while the model and the project's code are the same.

    Example: python tools/wild.py run --only basic_pitch --steps fold,int8 --folder results
    """
    names = steps.split(",") if steps else list(STEPS)
    unknown = sorted(set(names) - set(STEPS))
    if unknown:
        sys.stderr.write(f"error: no step is called {', '.join(unknown)}; there are {', '.join(STEPS)}\n")
        raise typer.Exit(2)
    trial = Trial(
        results=folder,
        cache=cache,
        limits=Limits(cpu_seconds=timeout, memory_bytes=int(memory * 1e9)),
        keep=keep,
        judge_seconds=judge_seconds,
        pair_seconds=judge_seconds / 10,
    )
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # what runs below is ended, too
    wanted = [step for name, step in STEPS.items() if name in names]
    failed = 0
    for model in chosen(only):
        try:
            for row in trial.run(model, wanted, again=again):
                sys.stdout.write(line_of(row) + "\n")
                sys.stdout.flush()
        except Exception as error:  # noqa: BLE001 - a model that can't be had; the others are tried nevertheless
            failed += 1
            sys.stderr.write(f"error: {model.name}: {type(error).__name__}: {error}\n")
    if failed:
        raise typer.Exit(3)


@app.command()
def table(
    *,
    folder: Folder = RESULTS,
    markdown: Annotated[Path | None, typer.Option(help="write the tables there, too")] = None,
) -> None:
    """Print all rows of a folder and what the trial is to reach."""
    rows = tables.read_rows(folder)
    publish([tables.by_row(rows), tables.sums(rows)], markdown=markdown)


def chosen(only: list[str] | None) -> list[WildModel]:
    """Return the models of these names or kinds, all without; ends with exit code 2 where one is unknown."""
    try:
        return select(load_catalog(), only or [])
    except UnknownNameError as error:
        sys.stderr.write(f"error: {error}\n")
        raise typer.Exit(2) from None


def line_of(row: dict[str, Any]) -> str:
    """Return a row as one line of a log."""
    size = row.get("size_ratio")
    parts = [f"{row['model']:28} {row['step']:14} {row['outcome']:16}", f"{size:.3f}" if size else "-"]
    if "cpu_seconds" in row:
        parts.append(f"{row['cpu_seconds']:.0f} CPU s, {row['peak_bytes'] / 1e6:.0f} MB")
    return "  ".join([*parts, *row.get("claims", []), row.get("message", "") if row["outcome"] != "done" else ""])
