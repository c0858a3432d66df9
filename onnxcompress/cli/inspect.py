"""`onnxcompress inspect`: where bytes, parameters, MACs and time are, and what could save them."""

from __future__ import annotations

import functools

from . import options

EXAMPLE = "Example: onnxcompress inspect model.onnx --json -"


def inspect(
    model: options.Model,
    data: options.Data = None,
    layout: options.LayoutOption = None,
    size: options.Size = None,
    scale: options.Scale = None,
    mean: options.Mean = None,
    state: options.State = None,
    seed: options.Seed = 0,
    threads: options.Threads = 1,
    json_file: options.Json = None,
    force: options.Force = False,
    verbose: options.Verbose = False,
    quiet: options.Quiet = False,
) -> None:
    """Say where bytes, parameters, MACs and time are, which share each pass could reach, and what blocks the rest."""
    from . import console

    options.check_file(console.json_path(json_file), force=force)
    console.start_log(verbose=verbose, quiet=quiet)
    from ..jobs import inspect as inspect_job
    from ..report.tables_inspect import inspection_tables
    from .samples import data_options

    options_of_data = data_options(layout, size, scale, mean, state)
    found = inspect_job.inspect(model, data=data, data_options=options_of_data, seed=seed, threads=threads)
    tables = functools.partial(inspection_tables, found, everything=verbose)
    console.publish(found.as_json(), tables, json_option=json_file, quiet=quiet)
