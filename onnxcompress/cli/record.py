"""`onnxcompress record`: samples from the user's own program."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from ..base.quantities import parse_bytes, show_bytes
from . import options

if TYPE_CHECKING:
    from collections.abc import Sequence

    from ..recorder.catalogue import RecordedModel

_SHOWN_STATES = 2

EXAMPLE = "Example: onnxcompress record -o feeds -- python app.py --speed 2"


def record(
    output: Annotated[Path, typer.Option("--output", "-o", help="A new folder for the samples.", show_default=False)],
    command: Annotated[
        list[str] | None, typer.Argument(metavar="-- PROGRAM [ARGS]...", help="The program.", show_default=False)
    ] = None,
    most: Annotated[int, typer.Option(min=1, help="Samples kept of each model.")] = 256,
    keep: Annotated[
        Literal["reservoir", "first", "shapes"],
        typer.Option(help="Which: a fair draw of all runs, the first ones, or spread over shapes."),
    ] = "reservoir",
    max_bytes: Annotated[str, typer.Option(help="Most bytes of all samples: 500MB, 2GB.")] = "500MB",
    seed: Annotated[int, typer.Option(min=0, max=2**32 - 1, help="Of the draw.")] = 0,
    force: Annotated[bool, typer.Option("--force", help="Replace an earlier recording.")] = False,
    quiet: options.Quiet = False,
) -> None:
    """Run a program as it is and keep what its sessions of onnxruntime are fed, for --data of the other commands.

    Its exit code is passed on. Each model gets a folder, with the states that go from run to run. Python programs
    and their child processes are recorded, up to where they end or crash.
    """
    from ..recorder import catalogue, program
    from ..recorder.recording import prepare

    budget = parse_bytes(max_bytes)
    program.check(command or ())
    assert command is not None
    prepare(output, most=most, keep=keep, max_bytes=budget, force=force)
    code = program.run(command, output, most=most, keep=keep, max_bytes=budget, seed=seed)
    _tell(output, catalogue.read(output), catalogue.faults(output), command, quiet=quiet)
    raise typer.Exit(code)


def _tell(
    output: Path, models: Sequence[RecordedModel], faults: Sequence[str], command: Sequence[str], *, quiet: bool
) -> None:
    """Say on stderr what was recorded; stdout is the program's."""
    from ..recorder import program
    from . import console

    console.start_log(verbose=False, quiet=quiet)
    if not models:
        reason = "it imports no onnxruntime, or opens no session in Python"
        if not program.inherits_python_path(command):
            reason = "Python was told with -I, -E or -S to ignore PYTHONPATH, by which it is recorded"
        console.warn(f"nothing was recorded: {reason}")
    for fault in faults:
        console.warn(fault)
    for model in models:
        for note in model.notes:
            console.warn(f"{model.folder.name}: {note}")
        if not model.samples and not model.notes:
            console.warn(f"{model.folder.name}: no run has succeeded")
        if model.samples and not quiet:
            console.aside(_line(model))
    if any(model.samples for model in models) and not quiet:
        console.aside(f"recorded in {output}: give it as --data to compress, compare, inspect and run")


def _line(model: RecordedModel) -> str:
    """Return what was recorded of a model."""
    states = ", ".join(f"{name}={output}" for name, output in list(model.states.items())[:_SHOWN_STATES])
    more = len(model.states) - _SHOWN_STATES
    kept = f"{model.folder.name}: {model.samples:,} of {model.runs:,} runs kept, {show_bytes(model.sample_bytes)}"
    return kept + (f"; states {states}" if states else "") + (f" and {more} more" if more > 0 else "")
