"""The command line: every command is a few lines around one library call. Heavy imports happen inside commands."""

from __future__ import annotations

import json
import logging
import sys
import traceback
from pathlib import Path
from typing import Annotated

import typer

from .errors import OnnxCompressError, UsageError

app = typer.Typer(
    help="Make an exported .onnx model smaller and faster, and prove that it is still good.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)


def main() -> None:
    """Run the command line; every error is one line on stderr, and only our own bugs show a traceback."""
    try:
        app()
    except OnnxCompressError as error:
        typer.echo(f"onnxcompress: error: {error}", err=True)
        sys.exit(error.exit_code)
    except MemoryError:
        typer.echo("onnxcompress: error: out of memory. Use a machine with more, or a smaller model", err=True)
        sys.exit(3)
    except Exception:  # noqa: BLE001 - the last line of defence: our bug
        traceback.print_exc()
        typer.echo("onnxcompress: this is a bug of ours; please report it with the lines above", err=True)
        sys.exit(70)


@app.command(epilog="Example: onnxcompress compress model.onnx -o small.onnx --recipe fold")
def compress(
    model: Annotated[Path, typer.Argument(help="The .onnx file to compress.")],
    output: Annotated[
        Path | None, typer.Option("--output", "-o", help="Default: MODEL-compressed.onnx beside the input.")
    ] = None,
    recipe: Annotated[str, typer.Option(help="A shipped recipe or a .toml file.")] = "auto",
    evaluation: Annotated[
        Path | None, typer.Option("--eval", help="Labelled .npz by which original and result are scored.")
    ] = None,
    metric: Annotated[str, typer.Option(help="top1, top5, or module:function(outputs, labels).")] = "top1",
    max_drop: Annotated[
        float | None, typer.Option(min=0.0, help="Most that the metric may fall (0.01 = one point).")
    ] = None,
    max_bytes: Annotated[int | None, typer.Option(min=1, help="Most bytes of the result.")] = None,
    settings: Annotated[list[str] | None, typer.Option("--set", help="PASS.FIELD=VALUE, repeatable.")] = None,
    seed: Annotated[int, typer.Option(help="Seed of the synthetic inputs.")] = 0,
    threads: Annotated[int, typer.Option(min=1, help="Threads of the runtime when it is timed.")] = 1,
    keep_node_metadata: Annotated[
        bool, typer.Option("--keep-node-metadata", help="Keep the exporter's records beside nodes.")
    ] = False,
    external_data: Annotated[str, typer.Option(help="auto, always or never.")] = "auto",
    json_file: Annotated[
        str | None, typer.Option("--json", help="Write the report here; - for standard output.")
    ] = None,
    force: Annotated[bool, typer.Option("--force", help="Replace existing files.")] = False,
    verbose: Annotated[bool, typer.Option("--verbose", "-v", help="List every change.")] = False,
) -> None:
    """Compress MODEL, prove the result in onnxruntime, and write it with a report."""
    target = output or model.with_name(f"{model.stem}-compressed.onnx")
    if external_data not in ("auto", "always", "never"):
        raise UsageError(f"--external-data {external_data!r} is none of auto, always, never")
    _check_targets(target, None if json_file in (None, "-") else Path(str(json_file)), force=force)
    logging.basicConfig(level=logging.INFO if verbose else logging.WARNING, format="%(message)s", stream=sys.stderr)
    from .compression import compress as run_compress
    from .compression import located
    from .evaluation import read_evaluation
    from .report import text

    result = run_compress(
        model,
        recipe=recipe,
        evaluation=None if evaluation is None else read_evaluation(evaluation),
        metric=metric,
        max_drop=max_drop,
        settings=settings or (),
        max_bytes=max_bytes,
        seed=seed,
        threads=threads,
        keep_node_metadata=keep_node_metadata,
    )
    saved = result.save(target, force=force, external_data=external_data)
    report = located(result.report, saved)
    document = json.dumps(report.as_json(), indent=2, allow_nan=False)
    if json_file == "-":
        typer.echo(document)
        return
    if json_file is not None:
        from . import atomic

        content = document.encode() + b"\n"
        atomic.write(Path(json_file), [content], len(content))
    text.show(report, every_change=verbose)


@app.command(name="passes", epilog="Example: onnxcompress passes fuse-affine")
def list_passes(name: Annotated[str | None, typer.Argument(help="Explain this one.")] = None) -> None:
    """List the passes, or explain one with its options."""
    from . import passes
    from .report import text

    text.show_passes([name] if name else list(passes.available()))


@app.command(name="recipes", epilog="Example: onnxcompress recipes fold")
def list_recipes(name: Annotated[str | None, typer.Argument(help="Print this one.")] = None) -> None:
    """List the recipes that ship, or print one."""
    from .recipe import Recipe, shipped

    for each in [name] if name else list(shipped()):
        recipe = Recipe.load(each)
        typer.echo(f"{recipe.name}: {recipe.description}")
    if name:
        typer.echo(shipped().get(name, ""))


def _check_targets(model: Path, report: Path | None, *, force: bool) -> None:
    """Find out before the work starts that a file can't be written after it."""
    from . import atomic

    for path in [model, report] if report else [model]:
        atomic.check_target(path, force=force)
