"""`onnxcompress compress`: check what can be checked before the work, compress, save, report."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from ..byte_units import parse_bytes
from ..errors import LimitError, UsageError
from . import options
from .options import Placement, Prefer, Target, Verify

if TYPE_CHECKING:
    from ..report import Report

EXAMPLE = "Example: onnxcompress compress model.onnx -o small.onnx --recipe int8-weights --json report.json"


def compress(
    model: options.Model,
    output: Annotated[
        Path | None,
        typer.Option(
            "--output", "-o", help="Default: MODEL-compressed.onnx (.onnxpack with --pack).", show_default=False
        ),
    ] = None,
    recipe: Annotated[str, typer.Option(help="A shipped recipe (`onnxcompress recipes`) or a .toml file.")] = "auto",
    data: options.Data = None,
    evaluation: options.Evaluation = None,
    metric: options.Metric = None,
    max_drop: options.MaxDrop = None,
    max_bytes: Annotated[str | None, typer.Option(help="Most bytes of the result: 5MB, 500KB.")] = None,
    max_latency: Annotated[str | None, typer.Option(help="Most time of a run: 0.5x of the original's, or 3ms.")] = None,
    target: Annotated[
        Target, typer.Option(help="Where the result is to run; cpu is this machine, others are not timed.")
    ] = Target.CPU,
    prefer: Annotated[
        Prefer, typer.Option(help="size may be slower than the original; balanced weighs both and may not.")
    ] = Prefer.BALANCED,
    timings: Annotated[
        Path | None,
        typer.Option(metavar="REPORT.json", help="Use the times of an earlier run's report in place of new ones."),
    ] = None,
    settings: Annotated[
        list[str] | None, typer.Option("--set", metavar="PASS.FIELD=VALUE", help="An option of a pass. Repeatable.")
    ] = None,
    only: Annotated[
        list[str] | None,
        typer.Option(metavar="GLOB", help="Lossy passes touch only these nodes: a name or op:Type. Repeatable."),
    ] = None,
    skip: Annotated[
        list[str] | None, typer.Option(metavar="GLOB", help="Lossy passes leave these nodes alone. Repeatable.")
    ] = None,
    layout: options.LayoutOption = None,
    size: options.Size = None,
    scale: options.Scale = None,
    mean: options.Mean = None,
    state: options.State = None,
    seed: options.Seed = 0,
    threads: options.Threads = 1,
    external_data: Annotated[
        Placement, typer.Option(help="Large tensors beside the model; auto: only over 2 GiB.")
    ] = Placement.AUTO,
    keep_node_metadata: Annotated[
        bool, typer.Option("--keep-node-metadata", help="Keep what the exporter wrote beside nodes.")
    ] = False,
    pack: Annotated[
        bool, typer.Option("--pack", help="Write one lossless archive for delivery; `unpack` restores the model.")
    ] = False,
    verify: Annotated[
        Verify, typer.Option(help="Run the whole model, or only the regions that changed; auto: by size.")
    ] = Verify.AUTO,
    plan: Annotated[bool, typer.Option("--plan", help="Say what would be done; prove and write nothing.")] = False,
    json_file: options.Json = None,
    force: options.Force = False,
    verbose: options.Verbose = False,
    quiet: options.Quiet = False,
) -> None:
    """Compress MODEL, prove the result in onnxruntime, and write it with a report."""
    from . import console

    place = output or model.with_name(f"{model.stem}-compressed.onnx{'pack' if pack else ''}")
    report_path = console.json_path(json_file)
    _check_places(model, None if plan else place, report_path, force=force)
    byte_limit = None if max_bytes is None else parse_bytes(max_bytes)
    console.start_log(verbose=verbose, quiet=quiet)
    if pack and place.suffix == ".onnx":
        console.warn(f"{place} will be an archive, no .onnx file: `onnxcompress unpack` makes it one")
    from ..compression import compress as run_compress
    from ..compression import located, packed
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
            seed=seed,
            threads=threads,
            keep_node_metadata=keep_node_metadata,
            data_options=data_options(layout, size, scale, mean, state),
            verify=verify.value,
            plan=plan,
            progress=console.progress(quiet=quiet),
        )
    except LimitError as error:
        _publish(error.report, json_file, report_path, verbose=verbose, quiet=quiet)
        raise
    report = result.report
    if pack and not plan:
        report = packed(report, result.pack(place, force=force, external_data=external_data.value))
    elif not plan:
        report = located(report, result.save(place, force=force, external_data=external_data.value))
    _publish(report, json_file, report_path, verbose=verbose, quiet=quiet)


def _check_places(model: Path, target: Path | None, report: Path | None, *, force: bool) -> None:
    """Find out before the work starts that a file can't be written after it."""
    from .. import atomic

    if not force and target is not None and target.exists() and model.exists() and target.samefile(model):
        raise UsageError("is the input itself", where=str(target), hint="Give another -o, or --force to replace it")
    if report is not None and report.absolute() in [path.absolute() for path in (target, model) if path]:
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
