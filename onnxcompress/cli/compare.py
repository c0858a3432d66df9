"""`onnxcompress compare`: two models side by side."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from ..errors import LimitError
from . import options

if TYPE_CHECKING:
    from ..jobs.compare import Comparison

EXAMPLE = "Example: onnxcompress compare model.onnx small.onnx --eval test.npz --metric top1 --max-drop 0.01"


def compare(
    original: Annotated[
        Path,
        typer.Argument(help="The model that is right by definition.", callback=options.openable, show_default=False),
    ],
    other: Annotated[
        Path, typer.Argument(help="The model that is compared with it.", callback=options.openable, show_default=False)
    ],
    data: options.Data = None,
    evaluation: options.Evaluation = None,
    metric: options.Metric = None,
    max_drop: options.MaxDrop = None,
    output_kinds: options.OutputKinds = None,
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
    """Compare outputs, score, size and latency of two models; beyond --max-drop the exit code is 1."""
    from . import console

    options.check_file(console.json_path(json_file), force=force)
    console.start_log(verbose=verbose, quiet=quiet)
    from ..jobs import compare as compare_job
    from ..report.tables_compare import comparison_tables
    from .samples import data_options

    def publish(found: Comparison) -> None:
        console.publish(found.as_json(), lambda: comparison_tables(found), json_option=json_file, quiet=quiet)

    try:
        found = compare_job.compare(
            original,
            other,
            data=data,
            eval_data=evaluation,
            metric=metric,
            max_drop=max_drop,
            output_kinds=output_kinds or (),
            data_options=data_options(layout, size, scale, mean, state),
            seed=seed,
            threads=threads,
            progress=console.progress(quiet=quiet),
        )
    except LimitError as error:
        publish(error.report)
        raise
    publish(found)
