"""What is true of a runtime on one kind of processor: data files, one a target, and how they are read."""

from __future__ import annotations

import importlib.resources
import tomllib

_FOLDER = importlib.resources.files(__package__)


def weight_only_note(target: str, kind: str) -> str:
    """Return what a target does with an int8 weight of that kind, "" where nothing is known.

    Args:
        target: as in `--target`.
        kind: "product", "lookup" or "dequantized", see cpu.toml.
    """
    file = _FOLDER / f"{target}.toml"
    if not file.is_file():
        return ""
    facts = tomllib.loads(file.read_text(encoding="utf-8"))
    return str(facts.get("weight_only", {}).get(kind, ""))
