"""Options that several commands share, and how their texts become values."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

import typer

from ..data.source_path import check_there
from ..io.signatures import open_model


def openable(path: Path) -> Path:
    """Return the path of a model; what can be no model is refused before anything heavy is imported.

    Raises:
        ModelError: see `io.signatures.open_model`.
    """
    open_model(path)
    return path


def _there(spec: str | None) -> str | None:
    """Return where samples are; what is missing is refused before anything heavy is imported."""
    if spec is not None:
        check_there(spec)
    return spec


Layout = Literal["nchw", "nhwc"]
"""Order of the axes of images."""

_DATA = "Data"
Data = Annotated[
    str | None,
    typer.Option(
        "--data",
        callback=_there,
        help="Samples: a .npz, a folder of .npz, .npy, images or test_data_set_*, or module:function.",
        rich_help_panel=_DATA,
    ),
]
Evaluation = Annotated[
    str | None,
    typer.Option(
        "--eval",
        callback=_there,
        help="Labelled samples to score both models on; forms as of --data.",
        rich_help_panel=_DATA,
    ),
]
Metric = Annotated[
    str | None,
    typer.Option(
        help="top1, top5, cosine, agreement, wer, cer, perplexity, bleu, chrf, spearman, ndcg, map50, f1, "
        "or module:function(outputs, labels).",
        rich_help_panel=_DATA,
    ),
]
LayoutOption = Annotated[
    Layout | None, typer.Option("--layout", help="Of images, where the model leaves it open.", rich_help_panel=_DATA)
]
Size = Annotated[
    int | None, typer.Option(min=1, help="Of images, in pixels, where the model leaves it open.", rich_help_panel=_DATA)
]
Scale = Annotated[
    str | None,
    typer.Option(help="S of x*S - M for float inputs: 0.5, or one per channel: 0.5,0.4,0.3.", rich_help_panel=_DATA),
]
Mean = Annotated[str | None, typer.Option(help="M of x*S - M, in the same forms.", rich_help_panel=_DATA)]
State = Annotated[
    list[str] | None,
    typer.Option(
        help="IN=OUT: input IN gets what output OUT was one feed before; 'past.*=present.*' pairs many. Repeatable.",
        rich_help_panel=_DATA,
    ),
]
MaxDrop = Annotated[
    float | None, typer.Option(min=0.0, help="Most that the metric may fall, absolute: 0.01 is one point.")
]
Confidence = Annotated[
    float | None,
    typer.Option(min=0.5, max=0.999, help="That the loss is within the limit: .95 lets the upper end decide."),
]
OutputKinds = Annotated[
    list[str] | None,
    typer.Option("--output-kind", metavar="NAME=KIND", help="What an output is, where it is mistaken. Repeatable."),
]
Seed = Annotated[int, typer.Option(min=0, max=2**32 - 1, help="Of synthetic inputs and of rounding.")]
Threads = Annotated[int, typer.Option(min=1, max=1024, help="Threads of onnxruntime where it is timed.")]
Json = Annotated[
    str | None, typer.Option("--json", metavar="FILE|-", help="Write JSON to a file; - prints nothing else.")
]
Force = Annotated[bool, typer.Option("--force", help="Replace existing files.")]
Verbose = Annotated[bool, typer.Option("--verbose", "-v", help="List everything, and log what is being done.")]
Quiet = Annotated[bool, typer.Option("--quiet", "-q", help="No tables, no progress, no warnings: errors only.")]


def openable_models(paths: list[Path] | None) -> list[Path]:
    """Return the paths of models and folders; what can be neither is refused before anything heavy is imported.

    Raises:
        ModelError: see `io.signatures.open_model`.
    """
    return [path if path.is_dir() else openable(path) for path in paths or ()]


Models = Annotated[
    list[Path] | None,
    typer.Argument(
        metavar="MODEL",
        help="An .onnx file; or a folder with the models of a pipeline; or several models, for --pipeline.",
        callback=openable_models,
        show_default=False,
    ),
]
Model = Annotated[Path, typer.Argument(help="An .onnx file.", callback=openable, show_default=False)]


def check_file(path: Path | None, *, force: bool) -> None:
    """Find out before the work starts that a result can't be written after it.

    Raises:
        UsageError: it exists and `force` is off, or its folder can't be made.
        ModelError: its folder is not writable.
    """
    if path is not None:
        from ..base import atomic_files

        atomic_files.check_target(path, force=force)
