"""From which size on dynamic quantization pays, as a section of a target profile: `python tools/probe_dynamic.py`."""

from __future__ import annotations

import sys

import typer
from probe.dynamic import facts


def main() -> None:
    """Write the section `dynamic` of a target profile to stdout."""
    lines = ["[dynamic]", *(f"{name} = {value}" for name, value in facts().items()), ""]
    sys.stdout.write("\n".join(lines))


if __name__ == "__main__":
    typer.run(main)
