"""`onnxcompress compress`: check what can be checked before the work, compress, save, report."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from ..errors import LimitError
from . import options
from .compress_pipeline import Several
from .report_files import Files
from .shared_options import SharedOptions, with_shared_options

if TYPE_CHECKING:
    from ..jobs.compress import Result
    from ..jobs.report import Report

EXAMPLE = "Example: onnxcompress compress model.onnx -o small.onnx --recipe int8-weights --json report.json"


Output = Annotated[
    Path | None,
    typer.Option("--output", "-o", help="Default: MODEL-compressed.onnx (.onnxpack with --pack).", show_default=False),
]
TimingsFile = Annotated[
    Path | None,
    typer.Option(metavar="REPORT.json", help="Use the times of an earlier run's report in place of new ones."),
]
KeepBest = Annotated[
    bool, typer.Option("--keep-best", help="Ctrl-C ends the search: the best so far is proved and written.")
]
Scheduler = Annotated[
    str | None, typer.Option(metavar="tcp://HOST:8786", help="Dask scheduler whose workers do that instead.")
]
CheckpointFolder = Annotated[
    Path | None,
    typer.Option(metavar="DIR", help="Keep intermediate results there; an interrupted run is resumed from it."),
]
FrontFolder = Annotated[
    Path | None,
    typer.Option(metavar="DIR", help="Write all models that none beats in size, time and drop, and front.json."),
]
ExternalData = Annotated[
    Literal["auto", "always", "never"], typer.Option(help="Large tensors beside the model; auto: only over 2 GiB.")
]
Pack = Annotated[
    bool, typer.Option("--pack", help="Write one lossless archive for delivery; `unpack` restores the model.")
]
ReportFile = Annotated[
    Path | None, typer.Option("--report", metavar="FILE", help="Write a report: a page (.html), .md or .json.")
]
PipelineFunction = Annotated[
    str | None,
    typer.Option(
        "--pipeline", metavar="MODULE:FUNCTION", help="Several models as one: returns an onnxcompress.Pipeline."
    ),
]
ShareWeights = Annotated[
    Literal["auto", "always", "never"],
    typer.Option("--share-weights", help="Of a pipeline: store what its models have in common once; auto: over 5%."),
]


@with_shared_options(
    timings="prefer",
    keep_best="effort",
    workers="keep_best",
    scheduler="workers",
    checkpoint="scheduler",
    pareto="checkpoint",
    external_data="threads",
    pack="keep_node_metadata",
    pipeline="pack",
    share_weights="pipeline",
)
def compress(
    models: options.Models = None,
    output: Output = None,
    *,
    shared: SharedOptions,
    timings: TimingsFile = None,
    keep_best: KeepBest = False,
    workers: Annotated[int, typer.Option(min=1, max=256, help="Processes that build candidates ahead of time.")] = 1,
    scheduler: Scheduler = None,
    checkpoint: CheckpointFolder = None,
    pareto: FrontFolder = None,
    external_data: ExternalData = "auto",
    pack: Pack = False,
    pipeline: PipelineFunction = None,
    share_weights: ShareWeights = "auto",
    plan: Annotated[bool, typer.Option("--plan", help="Say what would be done; prove and write nothing.")] = False,
    json_file: options.Json = None,
    report_file: ReportFile = None,
    force: options.Force = False,
    verbose: options.Verbose = False,
    quiet: options.Quiet = False,
) -> None:
    """Compress MODEL, or the models of a folder as one pipeline; prove the result, and write it with a report."""
    from . import console

    several = Several(models or (), pipeline, output, share_weights, json_file)
    if several.is_meant:
        one = {"--timings": timings, "--keep-best": keep_best, "--checkpoint": checkpoint, "--pareto": pareto}
        several.check(one | {"--pack": pack, "--plan": plan, "--report": report_file, "--scheduler": scheduler})
        several.compress(shared, force=force, verbose=verbose, quiet=quiet)
        return
    model = several.only
    place = output or model.with_name(f"{model.stem}-compressed.onnx{'pack' if pack else ''}")
    files = Files(option=json_file, json=console.json_path(json_file), page=report_file)
    files.check(model, None if plan else place, force=force)
    _check_folders(checkpoint, pareto, force=force)
    keywords = shared.keywords()
    console.start_log(verbose=verbose, quiet=quiet)
    if pack:
        _warn_of_name(place)
    from ..jobs import compress as job

    own: dict[str, Any] = {"timings": timings, "keep_best": keep_best, "workers": workers, "scheduler": scheduler}
    own |= {"plan": plan, "checkpoint": checkpoint, "pareto_dir": pareto, "sensitivity": report_file is not None}
    try:
        with console.display(quiet=quiet) as display:
            own |= {"progress": display.progress, "show": display.show}
            result = job.compress(model, **shared.within_limit(keywords), **own)
    except LimitError as error:
        files.publish(error.report, verbose=verbose, quiet=quiet)
        raise
    report = result.report if plan else _written(result, place, pack=pack, force=force, external_data=external_data)
    files.publish(report, verbose=verbose, quiet=quiet)
    console.end_with_bugs(report.internal_errors, is_lost=report.is_lost)


def _warn_of_name(place: Path) -> None:
    """Say so where an archive is named like a model."""
    from . import console

    if place.suffix == ".onnx":
        console.warn(f"{place} will be an archive, no .onnx file: `onnxcompress unpack` makes it one")


def _written(result: Result, place: Path, *, pack: bool, force: bool, external_data: str) -> Report:
    """Write the result, and return its report with the place."""
    if pack:
        return result.report.delivered(result.pack(place, force=force, external_data=external_data))
    return result.report.located(result.save(place, force=force, external_data=external_data))


def _check_folders(checkpoint: Path | None, pareto: Path | None, *, force: bool) -> None:
    """Refuse before the work starts a folder that can't be written to."""
    if checkpoint is not None:
        from ..search.checkpoint import check

        check(checkpoint)
    if pareto is not None:
        from ..jobs.pareto import check_front_folder

        check_front_folder(pareto, force=force)
