"""Check that samples are where a user says they are, without importing anything heavy."""

from __future__ import annotations

from pathlib import Path

from ..errors import DataError


def check_there(spec: str | Path) -> None:
    """Refuse samples that can't be: neither a file, nor a folder, nor a function.

    Args:
        spec: a path, or `module:function` as a str.

    Raises:
        DataError: nothing is there, or what can't hold samples.
    """
    path = Path(spec)
    if path.is_dir() or path.is_file() or (isinstance(spec, str) and ":" in spec):
        return
    if path.exists():
        hint = "Give a .npz or .npy file, a folder, or module:function"
        raise DataError("is neither a file nor a folder", where=str(spec), hint=hint)
    raise DataError("no such file or folder", where=str(spec))
