"""`onnxcompress compress`: check what can be checked before the work, compress, save, report."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from ..base.quantities import parse_bytes, parse_seconds
from ..errors import LimitError
from . import options
from .options import ExternalData, Prefer, Target, Verify
from .report_files import Files

EXAMPLE = "Example: onnxcompress compress model.onnx -o small.onnx --recipe int8-weights --json report.json"


def compress(
    model: options.Model,
    output: Annotated[
        Path | None,
        typer.Option(
            "--output", "-o", help="Default: MODEL-compressed.onnx (.onnxpack with --pack).", show_default=False
        ),
    ] = None,
    recipe: options.RecipeName = "auto",
    data: options.Data = None,
    evaluation: options.Evaluation = None,
    metric: options.Metric = None,
    max_drop: options.MaxDrop = None,
    max_bytes: options.MaxBytes = None,
    max_latency: options.MaxLatency = None,
    target: options.TargetOption = Target.CPU,
    prefer: options.PreferOption = Prefer.BALANCED,
    timings: Annotated[
        Path | None,
        typer.Option(metavar="REPORT.json", help="Use the times of an earlier run's report in place of new ones."),
    ] = None,
    time_limit: options.TimeLimit = None,
    workers: options.Workers = 1,
    scheduler: options.Scheduler = None,
    checkpoint: options.Checkpoint = None,
    pareto: options.Pareto = None,
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
    external_data: Annotated[
        ExternalData, typer.Option(help="Large tensors beside the model; auto: only over 2 GiB.")
    ] = ExternalData.AUTO,
    keep_node_metadata: options.KeepNodeMetadata = False,
    pack: Annotated[
        bool, typer.Option("--pack", help="Write one lossless archive for delivery; `unpack` restores the model.")
    ] = False,
    verify: options.VerifyOption = Verify.AUTO,
    plan: Annotated[bool, typer.Option("--plan", help="Say what would be done; prove and write nothing.")] = False,
    json_file: options.Json = None,
    report_file: options.ReportFile = None,
    force: options.Force = False,
    verbose: options.Verbose = False,
    quiet: options.Quiet = False,
) -> None:
    """Compress MODEL, prove the result in onnxruntime, and write it with a report."""
    from . import console

    place = output or model.with_name(f"{model.stem}-compressed.onnx{'pack' if pack else ''}")
    files = Files(option=json_file, json=console.json_path(json_file), page=report_file)
    files.check(model, None if plan else place, force=force)
    _check_folders(checkpoint, pareto, force=force)
    seconds = None if time_limit is None else parse_seconds(time_limit)
    byte_limit = None if max_bytes is None else parse_bytes(max_bytes)
    console.start_log(verbose=verbose, quiet=quiet)
    if pack and place.suffix == ".onnx":
        console.warn(f"{place} will be an archive, no .onnx file: `onnxcompress unpack` makes it one")
    from ..jobs.compress import compress as run_compress
    from ..jobs.compress import located, packed
    from .samples import data_options

    try:
        result = run_compress(
            model,
            recipe=recipe,
            data=data,
            eval_data=evaluation,
            metric=metric,
            max_drop=max_drop,
            settings=settings or (),
            only=only or (),
            skip=skip or (),
            max_bytes=byte_limit,
            max_latency=max_latency,
            target=target.value,
            prefer=prefer.value,
            timings=timings,
            time_limit=seconds,
            workers=workers,
            scheduler=scheduler,
            checkpoint=checkpoint,
            pareto_dir=pareto,
            seed=seed,
            threads=threads,
            keep_node_metadata=keep_node_metadata,
            data_options=data_options(layout, size, scale, mean, state),
            verify=verify.value,
            sensitivity=report_file is not None,
            plan=plan,
            progress=console.progress(quiet=quiet),
        )
    except LimitError as error:
        files.publish(error.report, verbose=verbose, quiet=quiet)
        raise
    report = result.report
    if pack and not plan:
        report = packed(report, result.pack(place, force=force, external_data=external_data.value))
    elif not plan:
        report = located(report, result.save(place, force=force, external_data=external_data.value))
    files.publish(report, verbose=verbose, quiet=quiet)


def _check_folders(checkpoint: Path | None, pareto: Path | None, *, force: bool) -> None:
    """Find out before the work starts that a folder can't be written to."""
    from ..jobs import pareto as fronts
    from ..search import checkpoint as checkpoints

    if checkpoint is not None:
        checkpoints.check(checkpoint)
    if pareto is not None:
        fronts.check(pareto, force=force)
