"""The command line of the benchmarks."""

from __future__ import annotations

import fnmatch
import json
import tempfile
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Annotated, Any, NoReturn

import typer
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

app = typer.Typer(
    help="Example: python tools/bench.py fold --only 'light/*' --peer-python ENV/bin/python",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
)

Zoo = Annotated[Path | None, typer.Option(help="folder of real models, searched for *.onnx", file_okay=False)]
Json = Annotated[Path | None, typer.Option("--json", help="write all figures here")]
Markdown = Annotated[Path | None, typer.Option(help="write the tables here as Markdown")]
Only = Annotated[str | None, typer.Option(help="glob on model keys, such as 'zoo/*' or 'node/*pad*'")]
Work = Annotated[Path, typer.Option(help="folder for intermediate files and generated test models")]
WORK = Path(tempfile.gettempdir()) / "onnxcompress-bench"


@app.callback()
def main() -> None:
    """Benchmarks of onnxcompress beside other tools."""


def fail(message: str) -> NoReturn:
    """End with a one-line error and exit code 2."""
    typer.echo(f"error: {message}", err=True)
    raise typer.Exit(2)


def _progress() -> Progress:
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    return Progress(*columns, console=Console(stderr=True))


@app.command()
def fold(
    *,
    tools: Annotated[str, typer.Option(help="'all', or names, comma-separated")] = "all",
    peers: Annotated[str | None, typer.Option(help="run ours and these, comma-separated")] = None,
    peer_python: Annotated[Path | None, typer.Option(help="Python with requirements-peers.txt")] = None,
    peer_cache: Annotated[Path | None, typer.Option(help="JSON of an earlier run of the peers")] = None,
    fresh: Annotated[str, typer.Option(help="peers to measure although cached, comma-separated")] = "",
    zoo: Zoo = None,
    only: Only = None,
    limit: Annotated[int | None, typer.Option(min=1, help="at most so many models")] = None,
    json_file: Json = None,
    markdown: Markdown = None,
    best: Annotated[Path | None, typer.Option(help="write the fewest nodes per model")] = None,
    level: Annotated[str, typer.Option(help="extended or all: whose nodes count")] = "extended",
    jobs: Annotated[int, typer.Option(min=1, help="models at a time; times are fair with 1 only")] = 1,
    timeout_seconds: Annotated[float, typer.Option(min=1, help="per tool and model")] = 180,
    work: Work = WORK,
) -> None:
    """Fold tools on real models and the onnx backend tests: outcomes, bytes, nodes, seconds.

    Example: python tools/bench.py fold --zoo ZOO --peer-python ENV/bin/python --json results.json
    """
    from bench import corpus
    from bench.fold import (
        PEERS,
        Results,
        Settings,
        best_nodes,
        failures,
        real_models_table,
        run,
        shortfalls,
        summary,
        unmeasured,
    )
    from bench.process import ChildDiedError
    from bench.tables import publish
    from bench.worker import OURS, TOOLS

    chosen = list(TOOLS) if tools == "all" else tools.split(",")
    if peers is not None:
        chosen = [OURS, *(p for p in peers.split(",") if p)]
    for name in chosen:
        if name not in TOOLS:
            fail(f"no tool {name!r}; there are {', '.join(TOOLS)}")
    if level not in ("extended", "all"):
        fail(f"no level {level!r}; there are extended and all")
    if zoo is not None and not zoo.is_dir():
        fail(f"{zoo} is no folder")
    try:
        cache = Results.load(peer_cache) if peer_cache is not None else None
    except (OSError, ValueError, TypeError) as error:
        fail(f"{peer_cache} is no cache of an earlier run: {error}")
    if cache is not None and cache.level != level:
        fail(f"{peer_cache} was counted at level {cache.level}")
    anew = [name for name in fresh.split(",") if name]
    for name in anew:
        if name not in chosen or name not in PEERS:
            fail(f"--fresh {name}: no such peer is measured; there are {', '.join(t for t in chosen if t in PEERS)}")
    missing = [t for t in chosen if t in PEERS and (cache is None or t not in cache.tools or t in anew)]
    if missing and peer_python is None:
        fail(f"--peer-python is needed to run {', '.join(missing)}")
    work.mkdir(parents=True, exist_ok=True)
    models = corpus.corpus(zoo.resolve() if zoo else None, work.resolve(), only=only, limit=limit)
    if not models:
        fail(f"no model matches {only!r}")
    settings = Settings(
        tools=chosen,
        peer_python=peer_python.absolute() if peer_python else None,
        timeout_seconds=timeout_seconds,
        jobs=jobs,
        level="extended" if level == "extended" else "all",
        work=work.resolve(),
        cache=cache,
        fresh=anew,
    )
    with _progress() as progress:
        try:
            results = run(models, settings, progress)
        except ChildDiedError as error:
            fail(str(error))
    if json_file is not None:
        results.save(json_file)
    if best is not None:
        best.write_text(json.dumps(best_nodes(results), indent=1, sort_keys=True) + "\n")
    tables = [summary(results), real_models_table(results, models), failures(results, models)]
    if OURS in chosen:
        tables.append(shortfalls(results))
    publish([table for table in tables if table.rows], markdown=markdown)
    typer.echo(f"{len(results.skipped):,} models left out: the runtime refuses the originals", err=True)
    if lacking := unmeasured(results):
        typer.echo(f"{lacking:,} models are not in {peer_cache}: no peers there without --peer-python", err=True)


@app.command()
def large(
    *,
    folder: Annotated[Path, typer.Option("--dir", help="folder that make_large.py filled", file_okay=False)],
    only: Annotated[str, typer.Option(help="glob on the models' names")] = "*",
    commands: Annotated[str, typer.Option(help="'all', or names, comma-separated")] = "all",
    verify: Annotated[str | None, typer.Option(help="passed on to our command, such as regions")] = None,
    json_file: Json = None,
    markdown: Markdown = None,
    work: Work = WORK,
) -> None:
    """Large models: seconds and peak memory of our whole command beside onnxruntime's quantize_dynamic.

    Example: python tools/make_large.py LARGE && python tools/bench.py large --dir LARGE
    """
    from bench import large as bench
    from bench.tables import publish

    models = sorted(folder.glob(f"{only}.onnx"))
    if not models:
        fail(f"no {only}.onnx in {folder}")
    known = {job.name: job for job in bench.jobs(verify)}
    chosen = list(known) if commands == "all" else commands.split(",")
    for name in chosen:
        if name not in known:
            fail(f"no command {name!r}; there are {', '.join(known)}")
    work.mkdir(parents=True, exist_ok=True)
    rows = []
    with _progress() as progress:
        task = progress.add_task("large", total=len(models) * len(chosen))
        for row in bench.measure([m.resolve() for m in models], [known[name] for name in chosen], work.resolve()):
            rows.append(row)
            progress.update(task, advance=1, description=f"{row.model} {row.job}")
    if json_file is not None:
        json_file.write_text(bench.as_json(rows))
    publish([bench.table(rows)], markdown=markdown)


@app.command()
def scale(
    *,
    series: Annotated[str, typer.Option(help="'all', or names, comma-separated")] = "all",
    commands: Annotated[str, typer.Option(help="'all', or names, comma-separated")] = "all",
    json_file: Json = None,
    markdown: Markdown = None,
    work: Work = WORK,
) -> None:
    """Time and memory against size: nodes, initializers, one large tensor, a large model; four sizes each.

    Example: python tools/bench.py scale --series nodes,initializers --markdown scale.md
    """
    from bench import scale as bench
    from bench.tables import publish

    chosen = list(bench.SERIES) if series == "all" else series.split(",")
    wanted = list(bench.COMMANDS) if commands == "all" else commands.split(",")
    for name in (*chosen, *wanted):
        if name not in {**bench.SERIES, **bench.COMMANDS}:
            fail(f"no {name!r}; there are {', '.join((*bench.SERIES, *bench.COMMANDS))}")
    work.mkdir(parents=True, exist_ok=True)
    rows = []
    for row in bench.measure(chosen, wanted, work.resolve()):
        rows.append(row)
        typer.echo(f"{row[0]} {row[1]:,} {row[2]}: {row[3]}", err=True)
    if json_file is not None:
        json_file.write_text(bench.as_json(rows))
    publish([bench.table(rows)], markdown=markdown)


def _evaluated(root: Path, only: str) -> list[Path]:
    """Return the models below a folder that have an eval.py beside them and match a glob."""
    found = sorted(path for path in root.rglob("*.onnx") if (path.parent / "eval.py").exists())
    models = [path for path in found if fnmatch.fnmatch(str(path.relative_to(root).with_suffix("")), only)]
    if not models:
        fail(f"no model with an eval.py beside it in {root} matches {only!r}")
    return models


@app.command()
def weights(
    *,
    zoo: Annotated[Path, typer.Option(help="folder of models with eval.py; it must be writable", file_okay=False)],
    only: Annotated[str, typer.Option(help="glob on model keys, such as 'silero_vad/*'")] = "*",
    recipe: Annotated[str, typer.Option(help="the recipe to apply")] = "int8-weights",
    json_file: Json = None,
    markdown: Markdown = None,
    work: Work = WORK,
) -> None:
    """Compress every model of a zoo and evaluate it: size ratio, metric before and after, latency ratio.

    Example: python tools/bench.py weights --zoo ZOO --only 'fmnist/*'
    """
    from bench import weights as bench
    from bench.tables import publish

    root = zoo.resolve()
    models = _evaluated(root, only)
    work.mkdir(parents=True, exist_ok=True)
    rows = []
    with _progress() as progress:
        task = progress.add_task("weights", total=len(models))
        for row in bench.measure(models, root, work.resolve(), recipe):
            rows.append(row)
            progress.update(task, advance=1, description=row.model)
    if json_file is not None:
        json_file.write_text(bench.as_json(rows))
    publish([bench.table(rows, recipe)], markdown=markdown)


@app.command()
def pack(
    *,
    zoo: Annotated[Path, typer.Option(help="folder of models, searched for *.onnx", file_okay=False)],
    only: Annotated[str, typer.Option(help="glob on model keys, such as 'fmnist/*'")] = "*",
    json_file: Json = None,
    markdown: Markdown = None,
) -> None:
    """Pack every model of a zoo: bytes beside zip -9, zstd -19 and the entropy of the exponents.

    Example: python tools/bench.py pack --zoo ZOO
    """
    import fnmatch

    from bench import pack as bench
    from bench.tables import publish

    root = zoo.resolve()
    found = sorted(root.rglob("*.onnx"))
    models = [path for path in found if fnmatch.fnmatch(str(path.relative_to(root).with_suffix("")), only)]
    if not models:
        fail(f"no model in {zoo} matches {only!r}")
    rows = list(bench.measure(models, root))
    if json_file is not None:
        json_file.write_text(bench.as_json(rows))
    publish([bench.table(rows)], markdown=markdown)


@app.command()
def int8(
    *,
    zoo: Annotated[Path, typer.Option(help="folder of models with eval.py; it must be writable", file_okay=False)],
    only: Annotated[str, typer.Option(help="glob on model keys, such as 'silero_vad/*'")] = "*",
    peer_python: Annotated[Path | None, typer.Option(help="Python with requirements-peers.txt; else ours only")] = None,
    samples: Annotated[int, typer.Option(min=1, help="calibration feeds")] = 64,
    recipe: Annotated[str, typer.Option(help="the recipe to apply")] = "int8",
    json_file: Json = None,
    markdown: Markdown = None,
    work: Work = WORK,
) -> None:
    """Recipe int8 beside onnxruntime's quantizers: the models' own metrics, paired times, bytes.

    Example: python tools/bench.py int8 --zoo ZOO --peer-python PEERS/bin/python --only 'fmnist/*'
    """
    from bench import int8 as bench
    from bench.tables import publish

    root = zoo.resolve()
    models = _evaluated(root, only)
    work.mkdir(parents=True, exist_ok=True)
    peers = None if peer_python is None else peer_python.absolute()
    rows = []
    with _progress() as progress:
        task = progress.add_task("int8", total=len(models) * (2 + (len(bench.SETTINGS) if peers else 0)))
        compared = bench.tools(recipe)
        for row in bench.measure(models, root, work.resolve(), compared, peer_python=peers, samples=samples):
            rows.append(row)
            progress.update(task, advance=1, description=row.model)
            if json_file is not None:
                json_file.write_text(bench.as_json(rows))
    publish([bench.table(rows)], markdown=markdown)


@app.command()
def auto(
    *,
    zoo: Annotated[Path, typer.Option(help="folder of models with eval.py; it must be writable", file_okay=False)],
    only: Annotated[str, typer.Option(help="glob on model keys, such as 'fmnist/*'")] = "*",
    peers: Annotated[list[Path] | None, typer.Option(help="JSON of `int8 --peer-python`; may be repeated")] = None,
    samples: Annotated[int, typer.Option(min=1, help="feeds, without labels")] = 256,
    json_file: Json = None,
    markdown: Markdown = None,
    work: Work = WORK,
) -> None:
    """Try the default recipe: drop by labels, size and time beside what is asked and what peers reach.

    With --json, models that the file has already are not run again.

    Example: python tools/bench.py auto --zoo ZOO --peers int8.json --json auto.json
    """
    from bench import auto as bench
    from bench import int8
    from bench.tables import publish

    root = zoo.resolve()
    found = json.loads(json_file.read_text()) if json_file is not None and json_file.exists() else []
    rows = [int8.Row(**each) for each in found]
    done = {row.model for row in rows if row.tool == int8.OURS and not row.error}
    models = [root / f"{key}.onnx" for key in bench.GOALS if fnmatch.fnmatch(key, only) and key not in done]
    rows = [row for row in rows if row.model in done]
    work.mkdir(parents=True, exist_ok=True)
    with _progress() as progress:
        task = progress.add_task("auto", total=2 * len(models))
        for row in int8.measure(models, root, work.resolve(), [bench.TOOL], peer_python=None, samples=samples):
            rows.append(row)
            progress.update(task, advance=1, description=row.model)
            if json_file is not None:
                json_file.write_text(int8.as_json(rows))
    publish([bench.table(rows, bench.read(peers or ()))], markdown=markdown)


def _resumed(
    targets: Sequence[Any],
    only: str,
    kind: Callable[..., Any],
    measure: Callable[[Sequence[Any]], Iterable[Any]],
    json_file: Path | None,
    work: Path,
) -> list[Any]:
    """Measure the rows that match and that the file lacks, writing it after each; return all that it then has."""
    from bench import resumed

    wanted = [target for target in targets if fnmatch.fnmatch(target.key, only)]
    if not wanted:
        fail(f"{only!r} matches none of {', '.join(target.key for target in targets)}")
    try:
        rows = resumed.load(json_file, kind)
    except (ValueError, TypeError) as error:
        fail(f"{json_file} is no file of an earlier run: {error}")
    work.mkdir(parents=True, exist_ok=True)
    left = resumed.left(rows, wanted)
    with _progress() as progress:
        task = progress.add_task("rows", total=len(left))
        for row in measure(left):
            rows.append(row)
            progress.update(task, advance=1, description=row.key)
            resumed.save(rows, json_file)
    return rows


@app.command()
def prune(
    *,
    zoo: Annotated[Path, typer.Option(help="folder of models with eval.py; it must be writable", file_okay=False)],
    only: Annotated[str, typer.Option(help="glob on rows, such as 'fmnist/mbv2*: 0.50*'")] = "*",
    samples: Annotated[int, typer.Option(min=2, help="calibration feeds, at most")] = 2048,
    json_file: Json = None,
    markdown: Markdown = None,
    work: Work = WORK,
) -> None:
    """Prune models to a part of their MACs or time: the models' own metrics, paired times, bytes, seconds.

    With --json, rows that the file has already are not measured again.

    Example: python tools/bench.py prune --zoo ZOO --only '*resnet14: *' --json prune.json
    """
    from bench import prune as bench
    from bench.tables import publish

    root, place = zoo.resolve(), work.resolve()
    rows = _resumed(
        bench.targets(),
        only,
        bench.Row,
        lambda left: bench.measure(left, root, place, samples=samples),
        json_file,
        work,
    )
    publish([bench.table(rows)], markdown=markdown)


@app.command()
def shallow(
    *,
    zoo: Annotated[Path, typer.Option(help="folder of models with eval.py; it must be writable", file_okay=False)],
    only: Annotated[str, typer.Option(help="glob on rows, such as 'fmnist/vit*'")] = "*",
    json_file: Json = None,
    markdown: Markdown = None,
    work: Work = WORK,
) -> None:
    """Blocks dropped, wide layers made thin, a cut student taught: the models' own metrics, paired times, bytes.

    With --json, rows that the file has already are not measured again.

    Example: python tools/bench.py shallow --zoo ZOO --only 'fmnist/*' --json shallow.json
    """
    from bench import shallow as bench
    from bench.tables import publish

    root, place = zoo.resolve(), work.resolve()
    rows = _resumed(bench.targets(), only, bench.Row, lambda left: bench.measure(left, root, place), json_file, work)
    publish([bench.table(rows)], markdown=markdown)


@app.command()
def lowbits(
    *,
    zoo: Annotated[Path | None, typer.Option(help="folder of models with eval.py", file_okay=False)] = None,
    only: Annotated[str, typer.Option(help="glob on model keys, such as 'chargpt/*'")] = "*",
    tools: Annotated[str, typer.Option(help="globs on what is compared, comma-separated: '4 bits*'")] = "*",
    peer_python: Annotated[Path | None, typer.Option(help="Python with requirements-peers.txt; else ours only")] = None,
    samples: Annotated[int, typer.Option(min=1, help="calibration feeds")] = 64,
    decode: Annotated[bool, typer.Option(help="time single products, one row of activations and more")] = True,
    seconds: Annotated[float, typer.Option(min=0.05, help="of each race of two products")] = 0.5,
    json_file: Json = None,
    markdown: Markdown = None,
    work: Work = WORK,
) -> None:
    """Weights of few bits beside onnxruntime's MatMulNBits quantizers; and the speed of single products.

    Example: python tools/bench.py lowbits --zoo ZOO --only 'chargpt/*' --peer-python PEERS/bin/python
    """
    from bench import int8
    from bench import lowbits as bench
    from bench.tables import publish

    if zoo is None and not decode:
        fail("--zoo, --decode or both are needed")
    compared = [tool for tool in bench.tools() if any(fnmatch.fnmatch(tool.name, glob) for glob in tools.split(","))]
    if not compared:
        fail(f"{tools!r} matches none of {', '.join(tool.name for tool in bench.tools())}")
    work.mkdir(parents=True, exist_ok=True)
    peers = None if peer_python is None else peer_python.absolute()
    rows = []
    with _progress() as progress:
        if zoo is not None:
            root = zoo.resolve()
            models = _evaluated(root, only)
            task = progress.add_task("lowbits", total=len(models) * (1 + len(compared)))
            for row in int8.measure(models, root, work.resolve(), compared, peer_python=peers, samples=samples):
                rows.append(row)
                progress.update(task, advance=1, description=row.model)
        products = bench.products(seconds) if decode else []
    if json_file is not None:
        json_file.write_text(bench.as_json(rows, products))
    tables = [int8.table(rows, "Weights of few bits")] if rows else []
    publish([*tables, *([bench.product_table(products)] if products else [])], markdown=markdown)


@app.command()
def float16(
    *,
    zoo: Annotated[Path, typer.Option(help="folder of models with eval.py; it must be writable", file_okay=False)],
    only: Annotated[str, typer.Option(help="glob on model keys, such as 'silero_vad/*'")] = "*",
    compute: Annotated[str, typer.Option(help="the pass's option: auto, float32 or float16")] = "auto",
    json_file: Json = None,
    markdown: Markdown = None,
    work: Work = WORK,
) -> None:
    """Convert every model of a zoo to float16 and evaluate it: size ratio, metric before and after, latency ratio.

    Example: python tools/bench.py float16 --zoo ZOO --compute float16
    """
    from bench import weights as bench
    from bench.tables import publish

    root = zoo.resolve()
    models = _evaluated(root, only)
    work.mkdir(parents=True, exist_ok=True)
    settings = [f"convert-float16.compute={compute}"]
    rows = []
    with _progress() as progress:
        task = progress.add_task("float16", total=len(models))
        for row in bench.measure(models, root, work.resolve(), "float16", settings):
            rows.append(row)
            progress.update(task, advance=1, description=row.model)
    if json_file is not None:
        json_file.write_text(bench.as_json(rows))
    title = "float16" if compute == "auto" else f"float16, compute {compute}"
    publish(
        [bench.table(rows, title, size_limit=0.52, size_limit_from_bytes=0, drop_limit_points=0.1)], markdown=markdown
    )


@app.command()
def split(
    *,
    zoo: Zoo = None,
    large_folder: Annotated[
        Path | None, typer.Option("--large", help="folder that make_large.py filled", file_okay=False)
    ] = None,
    only: Annotated[str, typer.Option(help="glob on the models' names: 'silero_vad/*', 'inline-650mb'")] = "*",
    rounds: Annotated[int, typer.Option(min=1, help="of all ways to run a large model, in turns")] = 3,
    json_file: Json = None,
    markdown: Markdown = None,
    work: Work = WORK,
) -> None:
    """Split models: equality of the parts, and memory and time of running large ones part by part.

    Example: python tools/bench.py split --zoo ZOO --large LARGE
    """
    import fnmatch

    from bench import split as bench
    from bench.tables import publish

    if zoo is None and large_folder is None:
        fail("--zoo, --large or both are needed")
    work.mkdir(parents=True, exist_ok=True)
    root = None if zoo is None else zoo.resolve()
    models = [] if root is None else sorted(root.rglob("*.onnx"))
    models = [path for path in models if fnmatch.fnmatch(str(path.relative_to(root)).removesuffix(".onnx"), only)]
    large_models = [] if large_folder is None else sorted(large_folder.resolve().glob("*.onnx"))
    large_models = [path for path in large_models if fnmatch.fnmatch(path.stem, only)]
    equal = []
    with _progress() as progress:
        task = progress.add_task("zoo", total=len(models) * len(bench.COUNTS))
        for row in bench.equality(models, root or work, work.resolve()):
            equal.append(row)
            progress.update(task, advance=1, description=f"{row.model} {row.asked}")
        ran = list(bench.runs(large_models, work.resolve(), rounds=rounds))
    if json_file is not None:
        json_file.write_text(bench.as_json(equal, ran))
    tables = [bench.equality_table(equal), bench.run_table(ran)]
    publish([table for table in tables if table.rows], markdown=markdown)


@app.command()
def latency(
    model: Annotated[Path, typer.Argument(help="the original", exists=True, dir_okay=False)],
    other: Annotated[Path, typer.Argument(help="the compressed model", exists=True, dir_okay=False)],
    *,
    core: Annotated[int, typer.Option(min=0, help="processor that all of it runs on")] = 0,
    loops: Annotated[int, typer.Option(min=1, help="busy loops beside it")] = 3,
    repeats: Annotated[int, typer.Option(min=1, help="ratios of each figure")] = 20,
    seconds: Annotated[float, typer.Option(min=0.05, help="most time of a race")] = 4.0,
    json_file: Json = None,
    markdown: Markdown = None,
) -> None:
    """Steadiness of latency ratios: a quiet core against busy loops on the same core.

    Example: python tools/bench.py latency models/resnet14.onnx int8.onnx
    """
    from dataclasses import asdict

    from bench import latency as bench
    from bench.tables import publish

    rows = bench.measure(model, other, core=core, loops=loops, repeats=repeats, seconds=seconds)
    if json_file is not None:
        json_file.write_text(json.dumps([asdict(row) | {"worst": row.worst} for row in rows], indent=1) + "\n")
    publish([bench.table(rows, loops=loops)], markdown=markdown)


@app.command()
def planted(
    *,
    zoo: Zoo = None,
    count: Annotated[int, typer.Option(min=1, help="bugs that move an output")] = 100,
    seed: Annotated[int, typer.Option(help="of the places and kinds")] = 0,
    only: Annotated[str, typer.Option(help="glob on the models' names: 'fmnist/*'")] = "*",
    json_file: Json = None,
    markdown: Markdown = None,
) -> None:
    """Planted bugs: whether the proof of lossless passes finds a small mistake in any layer of real models.

    Example: python tools/bench.py planted --zoo ZOO
    """
    from bench import planted as bench
    from bench.tables import publish

    paths = [*bench.fetched(), *(bench.subjects(zoo.resolve()) if zoo is not None else [])]
    models = [path for path in paths if fnmatch.fnmatch(f"{path.parent.name}/{path.stem}", only)]
    if not models:
        fail("no model to plant bugs in: --zoo, or tools/fetch_models.py")
    rows = []
    for row in bench.plant(models, count, seed=seed):
        rows.append(row)
        verdict = ("found" if row.found else "NOT FOUND") if row.counts else "moves no output, not counted"
        typer.echo(f"{row.model}: {row.bug}: {verdict} ({row.moved:.3g} times rounding)", err=True)
    if json_file is not None:
        json_file.write_text(bench.as_json(rows))
    publish([bench.table(rows)], markdown=markdown)


@app.command("verdict-bank")
def verdict_bank(
    *,
    to: Annotated[Path, typer.Option(help="folder of the bank; what it has already is kept", file_okay=False)],
    zoo: Annotated[Path, typer.Option(help="folder of models with eval.py", file_okay=False)] = Path("../shared/zoo"),
    only: Annotated[str, typer.Option(help="globs on model keys, comma-separated: 'fmnist/*'")] = "*",
) -> None:
    """Make damaged models of known loss and store what they and their originals answer, for `verdict`.

    Example: python tools/bench.py verdict-bank --to BANK --only 'fmnist/mbv2'
    """
    from bench import verdict_bank as bench

    if not zoo.is_dir():
        fail(f"{zoo} is no folder")
    for key, name, outcome in bench.make(zoo.resolve(), to.resolve(), _subjects(only)):
        typer.echo(f"{key}, {name}: {outcome}")


@app.command()
def verdict(
    *,
    bank: Annotated[Path, typer.Option(help="folder that verdict-bank filled", file_okay=False)],
    estimator: Annotated[
        str, typer.Option(help="judge (the report's figure), search (that of searches), or module:function")
    ] = "judge",
    only: Annotated[str, typer.Option(help="globs on model keys, comma-separated: 'fmnist/*'")] = "*",
    samples: Annotated[int, typer.Option(help="for the tables by model: 16, 32, 64, 128 or 256")] = 64,
    json_file: Json = None,
    markdown: Markdown = None,
) -> None:
    """Loss told without labels against loss by labels: errors, coverage of the interval, ranks.

    Example: python tools/bench.py verdict --bank BANK --markdown verdict.md
    """
    from bench import verdict as bench
    from bench.tables import publish

    try:
        tell = bench.estimator(estimator)
    except ValueError as error:
        fail(str(error))
    draws = list(bench.measure(bank, tell, _subjects(only)))
    if not draws:
        fail(f"{bank} has no damaged model of {only!r}")
    if json_file is not None:
        json_file.write_text(bench.as_json(draws))
    publish([bench.by_count(draws), bench.by_model(draws, samples), bench.by_damage(draws, samples)], markdown=markdown)


def _subjects(only: str) -> list[str]:
    """Return the keys of the bank's models that match a glob."""
    from bench.verdict_bank import SUBJECTS

    keys = [key for key in SUBJECTS if any(fnmatch.fnmatch(key, glob) for glob in only.split(","))]
    if not keys:
        fail(f"{only!r} matches none of {', '.join(SUBJECTS)}")
    return keys


@app.command("cases")
def small_cases(
    *,
    script: Annotated[
        Path, typer.Option(help="script that writes further cases; left out where there is none", dir_okay=False)
    ] = Path("../shared/cases/make_cases.py"),
    only: Annotated[str, typer.Option(help="globs on the cases' names, comma-separated: 'bool*'")] = "*",
    recipes: Annotated[str, typer.Option(help="'all', or auto, int8, prune, comma-separated")] = "all",
    json_file: Json = None,
    markdown: Markdown = None,
) -> None:
    """Small models of many kinds of output, compressed by command: true loss, told loss, and whether that was right.

    Example: python tools/bench.py cases --only 'sorted rows,tag set' --recipes int8
    """
    from bench import cases as bench
    from bench.tables import publish

    chosen = list(bench.COMMANDS) if recipes == "all" else recipes.split(",")
    for name in chosen:
        if name not in bench.COMMANDS:
            fail(f"no recipe {name!r}; there are {', '.join(bench.COMMANDS)}")
    rows = []
    with tempfile.TemporaryDirectory() as folder, _progress() as progress:
        place = Path(folder)
        given = script.resolve() if script.exists() else None
        models = bench.prepare(place, given, lambda name: any(fnmatch.fnmatch(name, g) for g in only.split(",")))
        task = progress.add_task("cases", total=len(models) * len(chosen))
        for row in bench.measure(models, chosen, place):
            rows.append(row)
            progress.update(task, advance=1, description=f"{row.case} {row.recipe}")
            if json_file is not None:
                json_file.write_text(bench.as_json(rows))
    publish([bench.table(rows)], markdown=markdown)
