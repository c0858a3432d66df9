"""The one error type that users see: what went wrong, where, and what to do about it."""

from __future__ import annotations

from typing import Any, ClassVar


class OnnxCompressError(Exception):
    """Something the user can act on.

    Args:
        message: what went wrong, one sentence without a final full stop.
        where: the file, node, field or sample it happened at ("" where nothing is more precise).
        hint: what to do about it ("" where there is nothing to do).

    `exit_code` is what the command line ends with (see docs/command-line.md).
    """

    exit_code: ClassVar[int] = 3

    def __init__(self, message: str, *, where: str = "", hint: str = "") -> None:
        super().__init__(message)
        self.message = message
        self.where = where
        self.hint = hint

    def __str__(self) -> str:
        text = f"{self.where}: {self.message}" if self.where else self.message
        return f"{text}. {self.hint}" if self.hint else text

    def __reduce__(self) -> tuple[object, tuple[object, ...]]:
        return (_rebuild, (type(self), self.message, self.where, self.hint))


def one_line(text: str) -> str:
    """Return a text on one line, with every character that a terminal would act on spelled out."""
    shown = " ".join(text.split())
    return shown if shown.isprintable() else "".join(c if c.isprintable() else ascii(c)[1:-1] for c in shown)


def _rebuild(kind: type[OnnxCompressError], message: str, where: str, hint: str) -> OnnxCompressError:
    return kind(message, where=where, hint=hint)


class LimitError(OnnxCompressError):
    """A limit that the user gave was not met; nothing is written. `report` says what was found."""

    exit_code = 1

    def __init__(self, message: str, *, where: str = "", hint: str = "", report: Any = None) -> None:
        super().__init__(message, where=where, hint=hint)
        self.report = report


class TimeUpError(Exception):
    """Work has not ended in its time; whoever limited it has another result."""


class StoppedByUserError(TimeUpError):
    """The user has stopped work (Ctrl-C), and wants what it has found until then."""


class UsageError(OnnxCompressError):
    """An unknown recipe, pass or field, a value out of range, options that contradict each other."""

    exit_code = 2


class ModelError(OnnxCompressError):
    """The model can't be read, run or written."""


class LostWorkerError(ModelError):
    """A process or a machine that worked on a model went away; another try may go well."""


class StuckError(ModelError):
    """A run of the model was ended because it took too long."""


class DataError(OnnxCompressError):
    """The data can't be read or does not fit the model."""
