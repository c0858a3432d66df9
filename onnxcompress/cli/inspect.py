"""`onnxcompress inspect`: where bytes, parameters, MACs and time are, and what could save them."""

from __future__ import annotations

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

    path = console.json_path(json_file)
    options.check_file(path, force=force)
    console.start_log(verbose=verbose, quiet=quiet)
    from ..jobs import inspect as inspect_job
    from .samples import data_options

    options_of_data = data_options(layout, size, scale, mean, state)
    found = inspect_job.inspect(model, data=data, data_options=options_of_data, seed=seed, threads=threads)
    if path is not None:
        console.write_json(path, found.as_json())
    if json_file == "-":
        console.show_json(found.as_json())
    elif not quiet:
        from ..report import tables_inspect

        console.show(tables_inspect.inspection_tables(found, everything=verbose))
