"""What is true of a runtime on one kind of processor: data files, one a target, and how they are read."""

from __future__ import annotations

import importlib.resources
import tomllib
from dataclasses import dataclass
from typing import Literal

from ..errors import UsageError

_FOLDER = importlib.resources.files(__package__)

HERE = "cpu"
"""The target that is this machine: the only one on which candidates can be timed."""
NAMES = ("cpu", "arm", "tensorrt", "qnn")

WeightKind = Literal["product", "lookup", "other"]
WeightForm = Literal["dequantize", "multiply"]


@dataclass(frozen=True, kw_only=True)
class WeightOnly:
    """How a target likes an int8 weight of some kind to become float: the nodes to write, and what it makes of them."""

    form: WeightForm = "dequantize"
    note: str = ""


def check(target: str) -> None:
    """Refuse a target of which nothing is known.

    Raises:
        UsageError: there is no such target.
    """
    if target not in NAMES:
        raise UsageError(f"unknown target {target!r}", hint=f"Known: {', '.join(NAMES)}")


def weight_only(target: str, kind: WeightKind) -> WeightOnly:
    """Return what is known of int8 weights on a target; where nothing is, DequantizeLinear is right."""
    file = _FOLDER / f"{target}.toml"
    if not file.is_file():
        return WeightOnly()
    return WeightOnly(**tomllib.loads(file.read_text(encoding="utf-8"))["weight_only"].get(kind, {}))
