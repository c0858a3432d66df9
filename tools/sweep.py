"""Every shipped recipe on every model there is: `python tools/sweep.py --help`."""

from __future__ import annotations

import json
import pickle
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import onnx
import typer
from bench import corpus
from bench.process import ROOT, Child, ChildDiedError
from hardening import figures, generate

WORK = Path(tempfile.gettempdir()) / "onnxcompress-bench"
OUTCOMES = ("applied", "unchanged", "refused", "rolled back", "over limit", "wrong", "crashed")
LOSSY_DROP = 0.01
"""What a recipe that has a limit of its own may cost."""


def main(
    *,
    recipes: Annotated[str, typer.Option(help="comma-separated; all that ship without")] = "",
    zoo: Annotated[Path | None, typer.Option(help="folder of real models", file_okay=False)] = None,
    only: Annotated[str | None, typer.Option(help="glob on model keys, such as 'node/*pad*'")] = None,
    every: Annotated[int, typer.Option(min=1, help="only every n-th model")] = 1,
    generated: Annotated[int, typer.Option(min=0, help="networks made of the operator table, besides")] = 0,
    seconds: Annotated[float, typer.Option(min=1, help="most time for a model and recipe")] = 300,
    log: Annotated[Path | None, typer.Option(help="JSON lines of all results; what is in it is not run again")] = None,
    markdown: Annotated[
        Path | None, typer.Option(help="replace the figures in this file, such as tools/BENCHMARKS.md")
    ] = None,
    work: Annotated[Path, typer.Option(help="folder of the generated test models")] = WORK,
) -> None:
    """Compress models that onnxruntime runs by all recipes and judge the results anew; exit 1 where one is wrong.

    Judged by onnx's checker, by loading, and by the outputs of original and result on recorded or made-up inputs.

    Example: python tools/sweep.py --zoo ZOO --generated 1000 --log sweep.jsonl --markdown tools/BENCHMARKS.md
    """
    sys.path.insert(0, str(ROOT))
    from onnxcompress.recipe import shipped

    chosen = recipes.split(",") if recipes else list(shipped())
    work.mkdir(parents=True, exist_ok=True)
    models = corpus.corpus(zoo, work, only=only, limit=None)[::every] + write_generated(work, generated)
    rows = [json.loads(line) for line in log.read_text().splitlines()] if log and log.exists() else []
    known = {(row["model"], row["recipe"]) for row in rows}
    child = Child(sys.executable, "sweeper", with_project=True)
    with (log or Path("/dev/null")).open("a") as file:
        for model in models:
            for recipe in chosen:
                if (model.key, recipe) in known:
                    continue
                request = {"model": str(model.path), "recorded": str(model.recorded or ""), "recipe": recipe}
                started = time.monotonic()
                try:
                    found = child.ask(request, timeout_seconds=seconds)
                except ChildDiedError as error:
                    found = {"outcome": "crashed", "detail": str(error)}
                rows.append({"model": model.key, "recipe": recipe, "seconds": time.monotonic() - started} | found)
                file.write(json.dumps(rows[-1]) + "\n")
                file.flush()
                if found["outcome"] in ("wrong", "crashed"):
                    typer.echo(f"{model.key} {recipe} {found['outcome']}: {found['detail']}")
                if found["outcome"] == "not run":
                    break
    child.stop()
    text = table(rows)
    typer.echo(text)
    if markdown:
        figures.put(markdown, "sweep", text)
    raise typer.Exit(int(any(row["outcome"] in ("wrong", "crashed") for row in rows)))


def table(rows: list[dict[str, Any]]) -> str:
    """Return the figures by recipe."""
    lines = [f"| recipe | models | {' | '.join(OUTCOMES)} |", f"| --- | {' | '.join(['---:'] * (len(OUTCOMES) + 1))} |"]
    for recipe in dict.fromkeys(row["recipe"] for row in rows):
        counts = Counter(row["outcome"] for row in rows if row["recipe"] == recipe and row["outcome"] != "not run")
        lines.append(f"| {recipe} | {counts.total():,} | {' | '.join(f'{counts[name]:,}' for name in OUTCOMES)} |")
    return "\n".join(lines) + "\n"


def write_generated(work: Path, count: int) -> list[corpus.Model]:
    """Write random networks and return them."""
    from onnxcompress.ops import table as ops

    folder = work / "corpus" / "generated"
    folder.mkdir(parents=True, exist_ok=True)
    found = []
    for seed in range(count):
        path = folder / f"{seed}.onnx"
        onnx.save(generate.model(seed, sorted(ops.SAME_SHAPE)), path)
        found.append(corpus.Model(f"generated/{seed}", path))
    return found


def judge(path: Path, recorded: Path | None, recipe: str) -> dict[str, str]:
    """Compress one model and judge what came out; called in a process that may be killed."""
    from onnxcompress.data import synthetic
    from onnxcompress.errors import LimitError, OnnxCompressError
    from onnxcompress.io import model_io
    from onnxcompress.jobs import compress as compress_job
    from onnxcompress.quality import equality
    from onnxcompress.recipe import Recipe
    from onnxcompress.runtime import session as runtime
    from onnxcompress.runtime.loaded_model import LoadedModel
    from onnxcompress.verify.equal_outputs import EqualOutputs

    original = model_io.load(path)
    try:
        before = runtime.open_session(path, optimize=False)
        feeds = _feeds(before, recorded) or synthetic.runnable_feeds(original, before, seed=7, count=2)
        expected = [before.run(feed) for feed in feeds]
        again = [before.run(feed) for feed in feeds]
    except OnnxCompressError as error:
        return {"outcome": "not run", "detail": str(error)}
    try:
        needs = Recipe.load(recipe).needs_data
        result = compress_job.compress(path, recipe=recipe, data=feeds * 2 if needs else None)
    except LimitError as error:
        return {"outcome": "over limit", "detail": str(error)}
    except OnnxCompressError as error:
        return {"outcome": "refused", "detail": str(error)}
    data = model_io.to_bytes(result.model)
    if _checks(path.read_bytes()) and not _checks(data):
        return {"outcome": "wrong", "detail": "the checker refuses the result and not the original"}
    after = runtime.open_session(data, optimize=False)
    runtime.open_session(data, optimize=True)
    actions = {change.action.value for change in result.changes}
    proof = EqualOutputs(LoadedModel(original), feeds, expected)
    if Recipe.load(recipe).lossless and (fault := proof.mismatch(LoadedModel(result.model))):
        return {"outcome": "wrong", "detail": fault[:300]}
    for feed, want, twice in zip(feeds, expected, again, strict=True):
        stable = {name: want[name] for name in want if equality.degenerate({name: want[name]}, twice) is None}
        if fault := equality.degenerate(stable, after.run(feed)):
            return {"outcome": "wrong", "detail": fault[:300]}
    drop = None if result.report.quality is None else result.report.quality.drop
    if recipe in ("auto", "int8") and drop is not None and drop > LOSSY_DROP + 1e-9:
        return {"outcome": "wrong", "detail": f"drop {drop}"}
    outcome = "rolled back" if "rolled-back" in actions else "applied" if "applied" in actions else "unchanged"
    lost = next(
        (f"{c.pass_name} {c.target}: {c.reason}" for c in result.changes if c.action.value == "rolled-back"), ""
    )
    return {"outcome": outcome, "detail": lost[:300]}


def _checks(data: bytes) -> bool:
    try:
        onnx.checker.check_model(data)
    except (onnx.checker.ValidationError, ValueError):
        return False
    return True


def _feeds(session: Any, recorded: Path | None) -> list[dict[str, np.ndarray]]:
    """Return recorded feeds, by name."""
    if recorded is None:
        return []
    feeds = pickle.loads(recorded.read_bytes())  # noqa: S301 - written by the corpus
    names = [spec.name for spec in session.inputs]
    return [feed if isinstance(feed, dict) else dict(zip(names, feed, strict=False)) for feed in feeds]


if __name__ == "__main__":
    typer.run(main)
