"""`onnxcompress compress`: check what can be checked before the work, compress, save, report."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from ..errors import LimitError, UsageError
from . import options
from .options import Placement

if TYPE_CHECKING:
    from ..report import Report

EXAMPLE = "Example: onnxcompress compress model.onnx -o small.onnx --recipe int8-weights --json report.json"


def compress(
    model: options.Model,
    output: Annotated[
        Path | None,
        typer.Option("--output", "-o", help="Default: MODEL-compressed.onnx beside the input.", show_default=False),
    ] = None,
    recipe: Annotated[str, typer.Option(help="A shipped recipe (`onnxcompress recipes`) or a .toml file.")] = "auto",
    evaluation: options.Evaluation = None,
    metric: options.Metric = None,
    max_drop: options.MaxDrop = None,
    max_bytes: Annotated[str | None, typer.Option(help="Most bytes of the result: 5MB, 500KB.")] = None,
    settings: Annotated[
        list[str] | None, typer.Option("--set", metavar="PASS.FIELD=VALUE", help="An option of a pass. Repeatable.")
    ] = None,
    seed: options.Seed = 0,
    threads: options.Threads = 1,
    external_data: Annotated[
        Placement, typer.Option(help="Large tensors beside the model; auto: only over 2 GiB.")
    ] = Placement.AUTO,
    keep_node_metadata: Annotated[
        bool, typer.Option("--keep-node-metadata", help="Keep what the exporter wrote beside nodes.")
    ] = False,
    json_file: options.Json = None,
    force: options.Force = False,
    verbose: options.Verbose = False,
    quiet: options.Quiet = False,
) -> None:
    """Compress MODEL, prove the result in onnxruntime, and write it with a report."""
    from . import console

    target = output or model.with_name(f"{model.stem}-compressed.onnx")
    report_path = console.json_path(json_file)
    _check_places(model, target, report_path, force=force)
    byte_limit = None if max_bytes is None else options.parse_bytes(max_bytes)
    console.start_log(verbose=verbose, quiet=quiet)
    from ..compression import compress as run_compress
    from ..compression import located
    from ..evaluation import read_evaluation

    try:
        result = run_compress(
            model,
            recipe=recipe,
            evaluation=None if evaluation is None else read_evaluation(Path(evaluation)),
            metric=metric or "top1",
            max_drop=max_drop,
            settings=settings or (),
            max_bytes=byte_limit,
            seed=seed,
            threads=threads,
            keep_node_metadata=keep_node_metadata,
        )
    except LimitError as error:
        missed: Report | None = getattr(error, "report", None)
        if missed is not None:
            _publish(missed, json_file, report_path, verbose=verbose, quiet=quiet)
        raise
    report = located(result.report, result.save(target, force=force, external_data=external_data.value))
    _publish(report, json_file, report_path, verbose=verbose, quiet=quiet)


def _check_places(model: Path, target: Path, report: Path | None, *, force: bool) -> None:
    """Find out before the work starts that a file can't be written after it."""
    from .. import atomic

    if not force and target.exists() and model.exists() and target.samefile(model):
        raise UsageError("is the input itself", where=str(target), hint="Give another -o, or --force to replace it")
    if report is not None and report.absolute() in (target.absolute(), model.absolute()):
        raise UsageError("--json names the same file as the model", where=str(report), hint="Give it another name")
    for path in (target, report):
        if path is not None:
            atomic.check_target(path, force=force)


def _publish(report: Report, option: str | None, path: Path | None, *, verbose: bool, quiet: bool) -> None:
    """Write the report where it was asked for, and print it unless standard output is to be quiet or JSON."""
    from . import console

    if path is not None:
        console.write_json(path, report.as_json())
    if option == "-":
        console.show_json(report.as_json())
    elif not quiet:
        from ..report import text

        console.show(text.renderables(report, every_change=verbose))
