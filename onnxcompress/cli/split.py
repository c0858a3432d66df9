"""`onnxcompress split`: a model as parts that run one after another in little memory."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from ..errors import UsageError
from . import options

EXAMPLE = "Example: onnxcompress split model.onnx -o parts --max-memory 64MB, then: onnxcompress run parts --data x.npz"


def split(
    model: options.Model,
    output: Annotated[
        Path | None, typer.Option("--output", "-o", help="The folder to write.", show_default=False, file_okay=False)
    ] = None,
    max_memory: Annotated[
        str | None, typer.Option(help="Most memory that a part may take: weights and live values, 64MB.")
    ] = None,
    parts: Annotated[
        int | None, typer.Option(min=1, help="Make so many parts, the largest as small as can be.")
    ] = None,
    at: Annotated[
        list[str] | None, typer.Option(metavar="NAME", help="Cut after the value of this name. Repeatable.")
    ] = None,
    suggest: Annotated[bool, typer.Option("--suggest", help="Write nothing: list good places to cut in two.")] = False,
    data: options.Data = None,
    layout: options.LayoutOption = None,
    size: options.Size = None,
    scale: options.Scale = None,
    mean: options.Mean = None,
    state: options.State = None,
    seed: options.Seed = 0,
    json_file: options.Json = None,
    force: options.Force = False,
    verbose: options.Verbose = False,
    quiet: options.Quiet = False,
) -> None:
    """Cut MODEL into parts under a memory budget, in a number of parts, or at given values.

    Sizes are those of the largest sample of --data, or of made-up inputs.
    """
    from . import console

    if sum((max_memory is not None, parts is not None, bool(at), suggest)) != 1:
        raise UsageError("needs exactly one of --max-memory, --parts, --at and --suggest")
    if suggest and output is not None:
        raise UsageError("--suggest writes nothing", where="--output")
    path = console.json_path(json_file)
    options.check_file(path, force=force)
    console.start_log(verbose=verbose, quiet=quiet)
    from ..partition import split as split_job
    from ..report import tables_split as tables
    from .samples import data_options

    samples = data_options(layout, size, scale, mean, state)
    if suggest:
        places = split_job.suggest(model, data=data, data_options=samples, seed=seed)
        document, shown = places.as_json(), tables.cut_tables(places)
    else:
        if output is None:
            raise UsageError("a folder to write is needed", where="--output")
        found = split_job.split(
            model,
            output,
            max_memory=max_memory,
            parts=parts,
            at=at or (),
            data=data,
            data_options=samples,
            seed=seed,
            force=force,
        )
        document, shown = found.manifest.as_json(), tables.part_tables(found, every_part=verbose)
        for note in found.notes:
            console.warn(note)
    if path is not None:
        console.write_json(path, document)
    if json_file == "-":
        console.show_json(document)
    elif not quiet:
        console.show(shown)
