"""`onnxcompress distill`: a student learns from a teacher, without labels."""

from __future__ import annotations

import functools
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from ..errors import LimitError
from . import options

if TYPE_CHECKING:
    from ..jobs.distill import TransferReport

EXAMPLE = "Example: onnxcompress distill small.onnx --teacher large.onnx --data calib.npz -o taught.onnx"

Student = Annotated[
    Path, typer.Argument(help="The .onnx file that learns.", callback=options.openable, show_default=False)
]
Teacher = Annotated[
    Path, typer.Option("--teacher", help="The .onnx file that knows.", callback=options.openable, show_default=False)
]


def distill(
    student: Student,
    teacher: Teacher,
    output: Annotated[Path, typer.Option("--output", "-o", help="The student that has learnt.", show_default=False)],
    data: options.Data = None,
    evaluation: options.Evaluation = None,
    metric: options.Metric = None,
    max_drop: options.MaxDrop = None,
    steps: Annotated[
        int, typer.Option(min=0, help="Batches of the training from end to end; 0: closed forms only.")
    ] = 400,
    layout: options.LayoutOption = None,
    size: options.Size = None,
    scale: options.Scale = None,
    mean: options.Mean = None,
    seed: options.Seed = 0,
    threads: options.Threads = 1,
    json_file: options.Json = None,
    force: options.Force = False,
    verbose: options.Verbose = False,
    quiet: options.Quiet = False,
) -> None:
    """Teach STUDENT what --teacher gives: layer by layer in closed form, then from end to end. No labels are needed."""
    from . import console

    options.check_file(console.json_path(json_file), force=force)
    options.check_file(output, force=force)
    if data is None:
        raise typer.BadParameter("a student learns from samples: give --data")
    console.start_log(verbose=verbose, quiet=quiet)
    from ..jobs import distill as distill_job
    from ..report.tables_distill import transfer_tables
    from .samples import data_options

    def publish(found: TransferReport) -> None:
        tables = functools.partial(transfer_tables, found, verbose=verbose)
        console.publish(found.as_json(), tables, json_option=json_file, quiet=quiet)

    try:
        result = distill_job.distill(
            student,
            teacher,
            data=data,
            eval_data=evaluation,
            metric=metric,
            max_drop=max_drop,
            steps=steps,
            data_options=data_options(layout, size, scale, mean, None),
            seed=seed,
            threads=threads,
            progress=console.progress(quiet=quiet),
        )
    except LimitError as error:
        publish(error.report)
        raise
    result.save(output, force=force)
    publish(result.report)
