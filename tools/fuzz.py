"""Thousands of broken models, archives, data and recipes: `python tools/fuzz.py run --help`."""

from __future__ import annotations

import importlib
import json
import pkgutil
import shutil
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Annotated

import onnx
import typer
from bench import corpus
from bench.process import ROOT
from hardening import cases, figures, pool

app = typer.Typer(no_args_is_help=True, pretty_exceptions_enable=False)
SHM = Path("/dev/shm")  # noqa: S108 - files of a case are written and removed in a moment
Seed = Annotated[int, typer.Option(help="of all cases")]
Work = Annotated[Path, typer.Option(help="folder of the generated test models")]
WORK = Path(tempfile.gettempdir()) / "onnxcompress-bench"
MOST_MODEL_BYTES = 4 << 10
EVERY = 4


def _bases(work: Path) -> list[cases.Base]:
    """Return small models to start from: backend tests, with archives and parts of those that have both."""
    sys.path.insert(0, str(ROOT))
    import onnxcompress

    for module in pkgutil.walk_packages(onnxcompress.__path__, "onnxcompress."):
        if not module.name.endswith("__main__"):
            importlib.import_module(module.name)  # before processes are forked
    work.mkdir(parents=True, exist_ok=True)
    found = []
    for index, model in enumerate(corpus.backend_models(work)):
        data = model.path.read_bytes()
        wanted = index % EVERY == 0 or any(f"/{word}" in model.key for word in ("loop", "if", "scan", "sequence"))
        if len(data) <= MOST_MODEL_BYTES and wanted:
            found.append(cases.Base(model.key, data))
    return found + [_with_files(name) for name in ("narrow", "wide", "split")]


def _with_files(name: str) -> cases.Base:
    """Return a small network with an archive and its parts."""
    import numpy as np
    from onnx import helper, numpy_helper

    from onnxcompress.packing import archive as packing
    from onnxcompress.partition import split as split_job

    rng = np.random.default_rng(len(name))
    width = {"narrow": 8, "wide": 200, "split": 48}[name]
    weights = {"w1": (8, width), "b1": (width,), "w2": (width, 8), "w3": (8, 3)}
    nodes = [
        helper.make_node("Gemm", ["x", "w1", "b1"], ["h"], name="first"),
        helper.make_node("Relu", ["h"], ["r"], name="act"),
        helper.make_node("MatMul", ["r", "w2"], ["m"], name="second"),
        helper.make_node("Add", ["m", "x"], ["s"], name="sum"),
        helper.make_node("MatMul", ["s", "w3"], ["y"], name="last"),
    ]
    graph = helper.make_graph(
        nodes,
        name,
        [helper.make_tensor_value_info("x", 1, [1, 8])],
        [helper.make_tensor_value_info("y", 1, [1, 3])],
        [numpy_helper.from_array(rng.standard_normal(s).astype(np.float32), n) for n, s in weights.items()],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "m.onnx")
        onnx.save(model, path, save_as_external_data=name == "split", location="m.data", size_threshold=100)
        packing.pack(path, Path(folder, "m.onnxpack"))
        split_job.split(path, Path(folder, "parts"), parts=2)
        return cases.Base(
            f"net/{name}",
            model.SerializeToString() if name != "split" else onnx.load(path).SerializeToString(),
            Path(folder, "m.onnxpack").read_bytes(),
            {each.name: each.read_bytes() for each in sorted(Path(folder, "parts").iterdir())},
        )


@app.command()
def run(
    *,
    count: Annotated[int, typer.Option(min=0, help="cases in killable processes")] = 2000,
    commands: Annotated[int, typer.Option(min=0, help="of these, spread evenly, also through the command")] = 20,
    first: Annotated[int, typer.Option(min=0, help="number of the first case")] = 0,
    seed: Seed = 0,
    minutes: Annotated[float, typer.Option(min=0.1, help="stop after this time")] = 600,
    log: Annotated[Path | None, typer.Option(help="JSON lines of all endings; what is in it is not run again")] = None,
    markdown: Annotated[
        Path | None, typer.Option(help="replace the figures in this file, such as tools/BENCHMARKS.md")
    ] = None,
    work: Work = WORK,
) -> None:
    """Run cases and tell how they ended; exit 1 where one ended badly.

    Example: python tools/fuzz.py run --count 100000 --commands 1000 --log fuzz.jsonl --markdown tools/BENCHMARKS.md
    """
    bases = _bases(work)
    known = _read(log)
    deadline = time.monotonic() + 60 * minutes
    scratch = Path(tempfile.mkdtemp(prefix="onnxcompress-fuzz-", dir=SHM if SHM.is_dir() else None))
    endings, commanded = [e for e, through in known if not through], [e for e, through in known if through]
    start = max([first - 1, *(e.number for e in endings)]) + 1
    step = count // commands if commands else count + 1
    asked = {e.number for e in commanded}
    try:
        with log.open("a") if log else open("/dev/null", "w") as file:  # noqa: PTH123

            def note(ending: pool.Ending, *, through_command: bool) -> None:
                (commanded if through_command else endings).append(ending)
                file.write(json.dumps(asdict(ending) | {"command": through_command}) + "\n")
                if ending.outcome not in pool.FINE:
                    file.flush()
                    typer.echo(f"{ending.number} {ending.kind} {ending.outcome}: {ending.detail}")

            for ending in pool.in_processes(bases, seed, range(start, first + count), scratch):
                note(ending, through_command=False)
                is_due = (ending.number - first) % step == step - 1
                died = ending.outcome in ("crash", "hang", "memory")
                if (is_due or died) and ending.number not in asked:
                    note(_through_command(bases, seed, ending.number, scratch), through_command=True)
                if time.monotonic() > deadline:
                    break
    finally:
        shutil.rmtree(scratch, ignore_errors=True)
    text = _report(endings, commanded)
    typer.echo(text)
    if markdown:
        figures.put(markdown, "fuzz", text)
    survived = (
        "crash",
        "hang",
        "memory",
    )  # judged by the same case as a command
    bad = [e for e in endings if e.outcome not in (*pool.FINE, *survived)]
    raise typer.Exit(int(bool(bad or [e for e in commanded if e.outcome not in pool.FINE])))


@app.command()
def case(
    number: Annotated[int, typer.Argument(help="of the case")],
    folder: Annotated[Path, typer.Argument(help="where its files are written; must not exist")],
    *,
    seed: Seed = 0,
    work: Work = WORK,
) -> None:
    """Write the files of one case and print its command.

    Example: python tools/fuzz.py case 4711 /tmp/case
    """
    found = cases.build(_bases(work), seed, number, folder)
    typer.echo(f"{found.kind} {found.base}\nonnxcompress {' '.join(found.arguments)}")


def _through_command(bases: list[cases.Base], seed: int, number: int, scratch: Path) -> pool.Ending:
    found = cases.build(bases, seed, number, scratch / f"command-{number}")
    try:
        return pool.command(found, number)
    finally:
        cases.discard(found)


def _read(log: Path | None) -> Iterator[tuple[pool.Ending, bool]] | list[tuple[pool.Ending, bool]]:
    if log is None or not log.exists():
        return []
    rows = [json.loads(line) for line in log.read_text().splitlines()]
    return [(pool.Ending(**{k: v for k, v in row.items() if k != "command"}), row["command"]) for row in rows]


def _report(endings: list[pool.Ending], commanded: list[pool.Ending]) -> str:
    columns = ("done", "refused", "bug", "partial", "changed", "escaped", "memory", "hang", "crash")
    lines = [
        f"| cases | number | {' | '.join(columns)} | slowest, s | most memory, MB |",
        f"| --- | {' | '.join(['---:'] * (len(columns) + 3))} |",
    ]
    for title, group in (*_by_kind(endings), ("all", endings), ("through the command", commanded)):
        if group:
            counts = Counter(ending.outcome for ending in group)
            slowest = max(ending.seconds for ending in group)
            peak = max(ending.peak_bytes for ending in group) / 1e6
            figures = " | ".join(f"{counts[name]:,}" for name in columns)
            lines.append(f"| {title} | {len(group):,} | {figures} | {slowest:.1f} | {peak:,.0f} |")
    return "\n".join(lines) + "\n"


def _by_kind(endings: list[pool.Ending]) -> list[tuple[str, list[pool.Ending]]]:
    return [(kind, [e for e in endings if e.kind == kind]) for kind in cases.KINDS]


if __name__ == "__main__":
    app()
