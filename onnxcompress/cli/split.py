"""`onnxcompress split`: a model as parts that run one after another in little memory."""

from __future__ import annotations

import functools
from pathlib import Path
from typing import Annotated

import typer

from ..errors import UsageError
from . import options

EXAMPLE = "Example: onnxcompress split model.onnx -o parts --max-memory 64MB, then: onnxcompress run parts --data x.npz"


Output = Annotated[
    Path | None, typer.Option("--output", "-o", help="The folder to write.", show_default=False, file_okay=False)
]
MaxMemory = Annotated[str | None, typer.Option(help="Most memory that a part may take: weights and live values, 64MB.")]
Parts = Annotated[int | None, typer.Option(min=1, help="Make so many parts, the largest as small as can be.")]
CutNames = Annotated[
    list[str] | None, typer.Option(metavar="NAME", help="Cut after the value of this name. Repeatable.")
]


def split(
    model: options.Model,
    output: Output = None,
    max_memory: MaxMemory = None,
    parts: Parts = None,
    at: CutNames = None,
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

    Sizes are those of the largest sample of --data, or of synthetic inputs.
    """
    from . import console

    if sum((max_memory is not None, parts is not None, bool(at), suggest)) != 1:
        raise UsageError("needs exactly one of --max-memory, --parts, --at and --suggest")
    if suggest and output is not None:
        raise UsageError("--suggest writes nothing", where="--output")
    options.check_file(console.json_path(json_file), force=force)
    console.start_log(verbose=verbose, quiet=quiet)
    from ..partition import split as split_job
    from ..report.tables_split import cut_tables, part_tables
    from .samples import data_options

    samples = data_options(layout, size, scale, mean, state)
    if suggest:
        places = split_job.suggest(model, data=data, data_options=samples, seed=seed)
        console.publish(places.as_json(), lambda: cut_tables(places), json_option=json_file, quiet=quiet)
        return
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
    for note in found.notes:
        console.warn(note)
    tables = functools.partial(part_tables, found, every_part=verbose)
    console.publish(found.manifest.as_json(), tables, json_option=json_file, quiet=quiet)
