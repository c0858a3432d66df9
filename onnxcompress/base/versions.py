"""Versions of this package and of what it runs on: a result depends on them as on model, data and options."""

from __future__ import annotations

import importlib.metadata
import platform

_PACKAGES = ("onnxcompress", "onnxruntime", "onnx", "onnx-ir", "numpy", "scipy")


def versions() -> dict[str, str]:
    """Return package -> version, those that are installed, and Python's."""
    found = {"python": platform.python_version(), "machine": platform.machine()}
    for name in _PACKAGES:
        try:
            found[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:  # a checkout that is not installed
            continue
    return found
