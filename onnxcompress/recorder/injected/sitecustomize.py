"""Runs when a Python program starts whose PYTHONPATH begins with this folder: waits for onnxruntime, then records.

Any Python from 3.8 on runs it. A program that never imports onnxruntime pays for one entry in `sys.meta_path`.
"""

from __future__ import annotations

import importlib.abc
import importlib.machinery
import importlib.util
import os
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

FOLDER = "ONNXCOMPRESS_RECORD_TO"
"""Environment variable: the folder of the recording."""

_HERE = Path(__file__).resolve().parent
_MODULE = "onnxruntime.capi.onnxruntime_inference_collection"
_NAME = "_onnxcompress_recorder"


def _record(module: ModuleType) -> None:
    """Load the package around this folder, under a name of its own and without onnxcompress, and watch the runtime."""
    home = _HERE.parent
    spec = importlib.util.spec_from_file_location(
        _NAME, str(home / "__init__.py"), submodule_search_locations=[str(home)]
    )
    _load(spec, _NAME)
    hook, store = (importlib.import_module(f"{_NAME}.{name}") for name in ("hook", "store"))
    hook.Watch(module, store.FeedStore(Path(os.environ[FOLDER])))


def _load(spec: importlib.machinery.ModuleSpec | None, name: str | None = None) -> None:
    if spec is not None and spec.loader is not None:
        module = importlib.util.module_from_spec(spec)
        if name is not None:
            sys.modules[name] = module
        spec.loader.exec_module(module)


class _WatchingLoader(importlib.abc.Loader):
    """Loads the runtime's module as its own loader does, and then watches it."""

    def __init__(self, loader: Any) -> None:
        self._loader = loader

    def __getattr__(self, name: str) -> Any:
        return getattr(self._loader, name)

    def create_module(self, spec: importlib.machinery.ModuleSpec) -> ModuleType | None:
        """Make the module."""
        module: ModuleType | None = self._loader.create_module(spec)
        return module

    def exec_module(self, module: ModuleType) -> None:
        """Run it; a fault of recording is reported and no more."""
        self._loader.exec_module(module)
        try:
            _record(module)
        except Exception as error:  # noqa: BLE001 - the program must not see it
            sys.stderr.write(f"onnxcompress: this process is not recorded: {type(error).__name__}: {error}\n")


class _Waiting(importlib.abc.MetaPathFinder):
    """Finds the runtime's module as others do, and watches it once it is loaded."""

    def find_spec(
        self,
        name: str,
        path: Any = None,  # noqa: ARG002
        target: Any = None,  # noqa: ARG002
    ) -> importlib.machinery.ModuleSpec | None:
        """Return where the module is, None for every other module."""
        if name != _MODULE:
            return None
        sys.meta_path.remove(self)
        spec = importlib.util.find_spec(name)
        if spec is not None and spec.loader is not None:
            spec.loader = _WatchingLoader(spec.loader)
        return spec


def _begin() -> None:
    """Wait for the runtime; then run the sitecustomize that this one hides."""
    if os.environ.get(FOLDER):
        sys.meta_path.insert(0, _Waiting())
    sys.path[:] = [folder for folder in sys.path if not folder or Path(folder).resolve() != _HERE]
    _load(importlib.machinery.PathFinder.find_spec("sitecustomize", sys.path))


_begin()
