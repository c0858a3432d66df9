"""`onnxcompress batch`: compress many models with one recipe, go on where an earlier run stopped, print one table."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from . import options
from .shared_options import SharedOptions, with_shared_options

EXAMPLE = "Example: onnxcompress batch models/ -o small/ --recipe int8 --data calib.npz --workers 2 --json batch.json"


@with_shared_options(workers="recipe", scheduler="workers")
def batch(
    models: Annotated[list[Path], typer.Argument(help="Folders and .onnx files.", show_default=False)],
    output: Annotated[
        Path, typer.Option("--output", "-o", help="The folder for the results, each with its report beside it.")
    ],
    *,
    shared: SharedOptions,
    workers: Annotated[int, typer.Option(min=1, max=256, help="Models at a time, each in a process.")] = 1,
    scheduler: Annotated[
        str | None, typer.Option(metavar="tcp://HOST:8786", help="Dask scheduler whose workers do it.")
    ] = None,
    json_file: options.Json = None,
    force: options.Force = False,
    verbose: options.Verbose = False,
    quiet: options.Quiet = False,
) -> None:
    """Compress MODELS into a folder; run it again to go on after an interruption, or to try failed ones anew."""
    from . import console

    options.check_file(console.json_path(json_file), force=force)
    keywords = shared.keywords()
    console.start_log(verbose=verbose, quiet=quiet)
    from ..jobs.batch import compress_many
    from ..jobs.options import CompressOptions
    from ..report.tables_batch import batch_tables

    found = compress_many(
        models,
        output,
        CompressOptions(**keywords),
        workers=workers,
        scheduler=scheduler,
        force=force,
        done=lambda item: console.say(f"{item.source}: {item.message or item.outcome}"),
    )
    console.publish(found.as_json(), lambda: batch_tables(found), json_option=json_file, quiet=quiet)
    console.end_with_bugs(found.internal_errors, is_lost=False)
    raise typer.Exit(found.exit_code)
