"""The options that `compress` and `batch` share, written once."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable, Mapping
from dataclasses import dataclass, fields
from inspect import Parameter
from typing import Annotated, Any, Literal, get_type_hints

import typer

from ..base.quantities import parse_bytes, parse_seconds
from . import options


@dataclass(frozen=True, kw_only=True)
class SharedOptions:
    """Options of one compression as a user types them, in the order of `--help`."""

    recipe: Annotated[
        str, typer.Option("--recipe", help="A shipped recipe (`onnxcompress recipes`) or a .toml file.")
    ] = "auto"
    data: options.Data = None
    evaluation: options.Evaluation = None
    metric: options.Metric = None
    max_drop: options.MaxDrop = None
    confidence: options.Confidence = None
    output_kinds: options.OutputKinds = None
    max_bytes: Annotated[str | None, typer.Option(help="Most bytes of the result: 5MB, 500KB.")] = None
    max_latency: Annotated[str | None, typer.Option(help="Most time of a run: 0.5x of the original's, or 3ms.")] = None
    target: Annotated[
        Literal["cpu", "arm", "tensorrt", "qnn"],
        typer.Option("--target", help="Where the result is to run; cpu is this machine, others are not timed."),
    ] = "cpu"
    prefer: Annotated[
        Literal["balanced", "speed", "size"],
        typer.Option("--prefer", help="size may be slower than the original; balanced weighs both and may not."),
    ] = "balanced"
    time_limit: Annotated[
        str | None,
        typer.Option(help="Time for all of it; then the best so far is the result: 10m, 90s.", show_default=False),
    ] = None
    effort: Annotated[
        Literal["quick", "default", "thorough"],
        typer.Option(
            "--effort",
            help="How long `auto` searches: 3 or 10 times the CPU time of int8 (default: at least 300 s), or no bound.",
        ),
    ] = "default"
    settings: Annotated[
        list[str] | None, typer.Option("--set", metavar="PASS.FIELD=VALUE", help="An option of a pass. Repeatable.")
    ] = None
    only: Annotated[
        list[str] | None,
        typer.Option(metavar="GLOB", help="Lossy passes touch only these nodes: a name or op:Type. Repeatable."),
    ] = None
    skip: Annotated[
        list[str] | None, typer.Option(metavar="GLOB", help="Lossy passes skip these nodes. Repeatable.")
    ] = None
    layout: options.LayoutOption = None
    size: options.Size = None
    scale: options.Scale = None
    mean: options.Mean = None
    state: options.State = None
    seed: options.Seed = 0
    threads: options.Threads = 1
    keep_node_metadata: Annotated[
        bool, typer.Option("--keep-node-metadata", help="Keep what the exporter wrote beside nodes.")
    ] = False
    freeze_inputs: Annotated[
        bool, typer.Option("--freeze-inputs", help="Make constants of inputs that have a default.")
    ] = False
    verify: Annotated[
        Literal["auto", "full", "regions"],
        typer.Option("--verify", help="Run the whole model, or only the regions that changed; auto: by size."),
    ] = "auto"

    def keywords(self) -> dict[str, Any]:
        """Return these options as fields of `CompressOptions`.

        Raises:
            UsageError: an option has another form, or names a recipe or pass that is none.
        """
        from .. import recipe
        from .samples import data_options

        recipe.check(self.recipe, self.settings or ())
        found = {each.name: getattr(self, each.name) for each in fields(self)}
        found["eval_data"] = found.pop("evaluation")
        found["data_options"] = data_options(
            *(found.pop(name) for name in ("layout", "size", "scale", "mean", "state"))
        )
        found["max_bytes"] = None if self.max_bytes is None else parse_bytes(self.max_bytes)
        found["time_limit"] = None if self.time_limit is None else parse_seconds(self.time_limit)
        return found | {name: found[name] or () for name in ("settings", "only", "skip", "output_kinds")}

    @staticmethod
    def within_limit(keywords: Mapping[str, Any]) -> dict[str, Any]:
        """Return keywords with what is left of the time limit: what this process needed to start counts."""
        from ..runtime.processes import age_seconds

        limit = keywords["time_limit"]
        return {**keywords, "time_limit": None if limit is None else max(0.0, limit - age_seconds())}


def with_shared_options(**after: str) -> Callable[[Callable[..., None]], Callable[..., None]]:
    """Let typer see the shared options in place of a command's parameter `shared`.

    Args:
        after: the order of `--help`: an option of the command -> the option that it follows.
    """

    def decorate(command: Callable[..., None]) -> Callable[..., None]:
        hints = get_type_hints(SharedOptions, include_extras=True)
        shared = [
            Parameter(each.name, Parameter.KEYWORD_ONLY, default=each.default, annotation=hints[each.name])
            for each in fields(SharedOptions)
        ]
        parameters = []
        for one in inspect.signature(command, eval_str=True).parameters.values():
            parameters += shared if one.name == "shared" else [one.replace(kind=Parameter.KEYWORD_ONLY)]
        for name, before in after.items():
            moved = parameters.pop([one.name for one in parameters].index(name))
            parameters.insert([one.name for one in parameters].index(before) + 1, moved)

        @functools.wraps(command)
        def call(**given: Any) -> None:
            common = SharedOptions(**{one.name: given.pop(one.name) for one in shared})
            command(shared=common, **given)

        call.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]
        return call

    return decorate
