"""Make an exported .onnx model smaller and faster, and prove that it is still good."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from .errors import DataError, LimitError, ModelError, OnnxCompressError, UsageError

if TYPE_CHECKING:
    from . import passes
    from .composite.value import Pipeline
    from .data.evaluation_set import DataOptions
    from .io.model_io import load, save
    from .jobs.batch import compress_many
    from .jobs.compare import compare
    from .jobs.compress import compress
    from .jobs.compress_pipeline import PipelineOptions, compress_pipeline
    from .jobs.distill import distill
    from .jobs.inspect import inspect
    from .jobs.options import CompressOptions
    from .packing.archive import pack, unpack
    from .partition.runner import PartitionedModel
    from .partition.split import split
    from .recipe import Recipe
    from .recorder.recording import recording
    from .runtime.isolation import isolated

__version__ = "0.1.0"

__all__ = [
    "CompressOptions",
    "DataError",
    "DataOptions",
    "LimitError",
    "ModelError",
    "OnnxCompressError",
    "PartitionedModel",
    "Pipeline",
    "PipelineOptions",
    "Recipe",
    "UsageError",
    "compare",
    "compress",
    "compress_many",
    "compress_pipeline",
    "distill",
    "inspect",
    "isolated",
    "load",
    "pack",
    "passes",
    "recording",
    "save",
    "split",
    "unpack",
]

_HOMES = {
    "CompressOptions": "jobs.options",
    "DataOptions": "data.evaluation_set",
    "PartitionedModel": "partition.runner",
    "Pipeline": "composite.value",
    "PipelineOptions": "jobs.compress_pipeline",
    "Recipe": "recipe",
    "compare": "jobs.compare",
    "compress": "jobs.compress",
    "compress_many": "jobs.batch",
    "compress_pipeline": "jobs.compress_pipeline",
    "distill": "jobs.distill",
    "inspect": "jobs.inspect",
    "isolated": "runtime.isolation",
    "load": "io.model_io",
    "pack": "packing.archive",
    "recording": "recorder.recording",
    "save": "io.model_io",
    "split": "partition.split",
    "unpack": "packing.archive",
}


def __getattr__(name: str) -> Any:
    """Import a name when it is first used, so that importing the package takes no time."""
    if name == "passes":
        return importlib.import_module(".passes", __name__)
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    found = getattr(importlib.import_module(f".{_HOMES[name]}", __name__), name)
    globals()[name] = found  # a function and its module may share a name: the function wins
    return found
