"""`onnxcompress batch`: compress many models with one recipe, go on where an earlier run stopped, print one table."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from ..base.quantities import parse_bytes, parse_seconds
from . import options
from .options import Prefer, Target, Verify

EXAMPLE = "Example: onnxcompress batch models/ -o small/ --recipe int8 --data calib.npz --workers 2 --json batch.json"


def batch(
    models: Annotated[list[Path], typer.Argument(help="Folders and .onnx files.", show_default=False)],
    output: Annotated[
        Path, typer.Option("--output", "-o", help="The folder for the results, each with its report beside it.")
    ],
    recipe: options.RecipeName = "auto",
    workers: Annotated[int, typer.Option(min=1, max=256, help="Models at a time, each in a process.")] = 1,
    scheduler: Annotated[
        str | None, typer.Option(metavar="tcp://HOST:8786", help="Dask scheduler whose workers do it.")
    ] = None,
    data: options.Data = None,
    evaluation: options.Evaluation = None,
    metric: options.Metric = None,
    max_drop: options.MaxDrop = None,
    max_bytes: options.MaxBytes = None,
    max_latency: options.MaxLatency = None,
    target: options.TargetOption = Target.CPU,
    prefer: options.PreferOption = Prefer.BALANCED,
    time_limit: options.TimeLimit = None,
    settings: options.Settings = None,
    only: options.Only = None,
    skip: options.Skip = None,
    layout: options.LayoutOption = None,
    size: options.Size = None,
    scale: options.Scale = None,
    mean: options.Mean = None,
    state: options.State = None,
    seed: options.Seed = 0,
    threads: options.Threads = 1,
    keep_node_metadata: options.KeepNodeMetadata = False,
    verify: options.VerifyOption = Verify.AUTO,
    json_file: options.Json = None,
    force: options.Force = False,
    verbose: options.Verbose = False,
    quiet: options.Quiet = False,
) -> None:
    """Compress MODELS into a folder; run it again to go on after an interruption, or to try failed ones anew."""
    from . import console

    json_path = console.json_path(json_file)
    options.check_file(json_path, force=force)
    seconds = None if time_limit is None else parse_seconds(time_limit)
    byte_limit = None if max_bytes is None else parse_bytes(max_bytes)
    console.start_log(verbose=verbose, quiet=quiet)
    from ..jobs.batch import compress_many
    from ..jobs.batch_worker import Options
    from .samples import data_options

    how = Options(
        recipe=recipe,
        data=data,
        eval_data=evaluation,
        metric=metric,
        max_drop=max_drop,
        settings=tuple(settings or ()),
        only=tuple(only or ()),
        skip=tuple(skip or ()),
        max_bytes=byte_limit,
        max_latency=max_latency,
        target=target.value,
        prefer=prefer.value,
        time_limit=seconds,
        seed=seed,
        threads=threads,
        keep_node_metadata=keep_node_metadata,
        data_options=data_options(layout, size, scale, mean, state),
        verify=verify.value,
    )
    found = compress_many(
        models,
        output,
        how,
        workers=workers,
        scheduler=scheduler,
        force=force,
        done=lambda item: console.say(f"{item.source}: {item.message or item.outcome}"),
    )
    if json_path is not None:
        console.write_json(json_path, found.as_json())
    if json_file == "-":
        console.show_json(found.as_json())
    elif not quiet:
        from ..report import tables_batch

        console.show(tables_batch.renderables(found))
    raise typer.Exit(found.exit_code)
