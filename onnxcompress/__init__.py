"""Make an exported .onnx model smaller and faster, and prove that it is still good."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from .errors import DataError, LimitError, ModelError, OnnxCompressError, UsageError

if TYPE_CHECKING:
    from . import passes
    from .data.evaluation_set import DataOptions
    from .io.model_io import load, save
    from .jobs.compare import compare
    from .jobs.compress import compress
    from .jobs.distill import distill
    from .jobs.inspect import inspect
    from .partition.runner import PartitionedModel
    from .partition.split import split
    from .recipe import Recipe

__version__ = "0.1.0"

__all__ = [
    "DataError",
    "DataOptions",
    "LimitError",
    "ModelError",
    "OnnxCompressError",
    "PartitionedModel",
    "Recipe",
    "UsageError",
    "compare",
    "compress",
    "distill",
    "inspect",
    "load",
    "passes",
    "save",
    "split",
]

_HOMES = {
    "DataOptions": "data.evaluation_set",
    "PartitionedModel": "partition.runner",
    "Recipe": "recipe",
    "compare": "jobs.compare",
    "compress": "jobs.compress",
    "distill": "jobs.distill",
    "inspect": "jobs.inspect",
    "load": "io.model_io",
    "save": "io.model_io",
    "split": "partition.split",
}


def __getattr__(name: str) -> Any:
    """Import what is asked for when it is asked for, so that importing the package costs nothing."""
    if name == "passes":
        return importlib.import_module(".passes", __name__)
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    found = getattr(importlib.import_module(f".{_HOMES[name]}", __name__), name)
    globals()[name] = found  # a function and its module may share a name: the function wins
    return found
