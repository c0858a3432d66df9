"""Functions of the user's own, named as `module:function`."""

from __future__ import annotations

import importlib
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from ..errors import UsageError


def load_function(name: str) -> Callable[..., Any]:
    """Import the function behind `module:function`; modules in the current folder are found.

    Only for names that the user typed: never for what a model or a recipe holds.

    Raises:
        UsageError: the module can't be imported or holds no such function.

    """
    module_name, _, function_name = name.partition(":")
    try:
        module = _import_here(module_name)
    except ModuleNotFoundError as error:
        raise UsageError(f"there is no module {error.name!r} for {name!r}") from error
    except (Exception, SystemExit) as error:
        raise UsageError(f"importing {module_name!r} failed: {type(error).__name__}: {error}") from error
    function = getattr(module, function_name, None)
    if not callable(function):
        raise UsageError(f"module {module_name!r} has no function {function_name!r}")
    return function  # type: ignore[no-any-return]


def _import_here(module_name: str) -> Any:
    here = str(Path.cwd())
    added = here not in sys.path
    if added:
        sys.path.insert(0, here)
    try:
        return importlib.import_module(module_name)
    finally:
        if added:
            sys.path.remove(here)
