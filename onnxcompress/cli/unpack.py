"""`onnxcompress unpack`: the model out of an archive that `compress --pack` wrote."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from ..base.quantities import parse_bytes
from . import options

EXAMPLE = "Example: onnxcompress unpack small.onnxpack -o small.onnx"


def unpack(
    archive: Annotated[Path, typer.Argument(help="What `compress --pack` wrote.", metavar="FILE", show_default=False)],
    output: Annotated[Path, typer.Option("--output", "-o", help="The model to write.", show_default=False)],
    max_bytes: Annotated[
        str | None,
        typer.Option(
            help="Most bytes to restore: 5GB. Default: 1 GiB, or 1,000 times the archive.", show_default=False
        ),
    ] = None,
    json_file: options.Json = None,
    force: options.Force = False,
    verbose: options.Verbose = False,
    quiet: options.Quiet = False,
) -> None:
    """Restore a packed model, byte for byte, and the files that it keeps tensors in beside it."""
    from . import console

    options.check_file(console.json_path(json_file), force=force)
    limit = None if max_bytes is None else parse_bytes(max_bytes)
    console.start_log(verbose=verbose, quiet=quiet)
    from ..packing import archive as packing
    from ..report.tables import unpacked_table

    found = packing.unpack(archive, output, force=force, max_bytes=limit)
    console.publish(found.as_json(), lambda: [unpacked_table(found)], json_option=json_file, quiet=quiet)
