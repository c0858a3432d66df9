"""`onnxcompress run`: the outputs of a model, or of one that was split, on data."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from ..base.quantities import parse_bytes
from . import options

if TYPE_CHECKING:
    from collections.abc import Mapping

    import numpy as np
    from rich.table import Table

EXAMPLE = "Example: onnxcompress run model.onnx --data samples.npz -o outputs.npz"


def run(
    model: Annotated[
        Path, typer.Argument(help="An .onnx file, or a folder that split has written.", show_default=False)
    ],
    data: Annotated[
        str,
        typer.Option(help="Samples: a .npz, a folder of .npz, .npy, images or test_data_set_*, or module:function."),
    ],
    output: Annotated[
        Path | None,
        typer.Option(
            "--output", "-o", help="A .npz for all outputs; without it a table is printed.", show_default=False
        ),
    ] = None,
    max_memory: Annotated[
        str | None, typer.Option(help="Most memory for weights and live values, 64MB: the model runs part by part.")
    ] = None,
    layout: options.LayoutOption = None,
    size: options.Size = None,
    scale: options.Scale = None,
    mean: options.Mean = None,
    state: options.State = None,
    threads: options.Threads = 1,
    force: options.Force = False,
    verbose: options.Verbose = False,
    quiet: options.Quiet = False,
) -> None:
    """Run MODEL in onnxruntime on samples and write its outputs; a split model part by part."""
    from . import console

    options.check_file(output, force=force)
    console.start_log(verbose=verbose, quiet=quiet)
    from ..data import evaluation_set
    from ..io import model_io
    from ..jobs import run as run_job
    from .samples import data_options

    budget = None if max_memory is None else parse_bytes(max_memory, where="--max-memory")
    chosen = data_options(layout, size, scale, mean, state)
    with run_job.opened(model, max_memory=budget, data=data, data_options=chosen, threads=threads) as session:
        graph = model_io.load(model) if chosen.state and model.is_file() else None
        outputs = [spec.name for spec in session.outputs]
        samples = evaluation_set.read(data, session.feedable, chosen, model=model, graph=graph, outputs=outputs)
        for note in samples.notes():
            console.warn(note)
        arrays = run_job.run_model(session, samples, progress=console.progress(quiet=quiet))
    if output is not None:
        run_job.write_npz(output, arrays)
    if not quiet:
        console.show([_table(arrays, len(samples.feeds), output)])


def _table(arrays: Mapping[str, np.ndarray], samples: int, output: Path | None) -> Table:
    """Return the table of what came out."""
    from ..report.tables import cell, grid
    from ..report.wording import number

    table = grid(
        "output", "type", "shape", "least", "mean", "greatest", title=f"{number(samples)} samples", numbers=(3, 4, 5)
    )
    for name, array in arrays.items():
        is_number = array.size and array.dtype.kind in "fiub"
        figures = [f"{float(f()):.6g}" for f in (array.min, array.mean, array.max)] if is_number else ["", "", ""]
        table.add_row(cell(name), cell(array.dtype), cell(list(array.shape)), *figures)
    if output is not None:
        table.caption = cell(f"written to {output}")
    return table
