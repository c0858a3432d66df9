"""What onnxruntime runs on integers, as a target profile: `python tools/probe.py > operators.toml`."""

from __future__ import annotations

import sys
from typing import Annotated, Any

import typer
from probe.measure import conversions, rows


def main(
    activation: Annotated[str, typer.Option(help="type of activations: uint8 or int8")] = "uint8",
    *,
    verbose: Annotated[bool, typer.Option("--verbose", "-v", help="say on stderr what was found, floats too")] = False,
) -> None:
    """Write the sections `static.conversions` and `static.operators` of a target profile to stdout."""

    def say(text: str) -> None:
        if verbose:
            typer.echo(text, err=True)

    _section("static.conversions", conversions())
    for key, row in rows(activation, say):
        _section(f'static.operators."{key}"' if "." in key else f"static.operators.{key}", row)


def _section(title: str, row: dict[str, Any]) -> None:
    lines = [f"[{title}]", *(f"{name} = {_literal(value)}" for name, value in row.items()), ""]
    sys.stdout.write("\n".join(lines) + "\n")


def _literal(value: Any) -> str:
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, str):
        return f'"{value}"'
    if isinstance(value, list | tuple):
        return "[" + ", ".join(_literal(each) for each in value) + "]"
    if isinstance(value, dict):
        return "{ " + ", ".join(f"{key} = {_literal(each)}" for key, each in value.items()) + " }"
    return f"{value:g}"


if __name__ == "__main__":
    typer.run(main)
