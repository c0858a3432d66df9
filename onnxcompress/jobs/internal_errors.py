"""Bugs of ours that cost a run a pass: what is said of them, and when nothing of a recipe was done because of them."""

from __future__ import annotations

from collections.abc import Sequence

from ..core import Action, Change, Pass
from ..errors import one_line
from ..pipeline import InternalError

EXIT_CODE = 70
"""What the command line ends with where nothing of the recipe was done because of an error of ours."""


def all_was_lost(errors: Sequence[InternalError], changes: Sequence[Change], passes: Sequence[Pass]) -> bool:
    """Say whether nothing of a recipe was done because of internal errors.

    Lossless passes prepare the model for the lossy ones of a recipe that has some: they don't count there.
    """
    lossy = {p.name for p in passes if not p.lossless}
    main = lossy or {p.name for p in passes}
    failed = any(error.pass_name in main for error in errors)
    return failed and not any(c.action is Action.APPLIED and c.pass_name in main for c in changes)


def last_line(errors: Sequence[str]) -> str:
    """Return the last line of the command's log."""
    return one_line(
        f"{'; '.join(errors)}: this is a bug of ours and was taken back: please report it with -v's output and, "
        "if you can, the model"
    )
