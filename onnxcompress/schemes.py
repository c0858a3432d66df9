"""Scheme strings: what a quantized weight looks like, as `type/group/symmetry`, for example `int8/channel/sym`."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final, Literal

from .errors import UsageError

SUPPORTED: Final = ("int8/channel/sym", "int8/tensor/sym")


@dataclass(frozen=True)
class Scheme:
    """A parsed scheme string."""

    bits: int
    group: Literal["channel", "tensor"]
    symmetric: bool


def parse(text: str) -> Scheme:
    """Return the scheme that a string stands for.

    Raises:
        UsageError: it is none, or one that can't be written yet.
    """
    if text not in SUPPORTED:
        raise UsageError(f"scheme {text!r} is not supported", hint=f"Supported: {', '.join(SUPPORTED)}")
    kind, group, symmetry = text.split("/")
    return Scheme(int(kind.removeprefix("int")), "channel" if group == "channel" else "tensor", symmetry == "sym")


def checked(text: str) -> str:
    """Return `text` if it is a supported scheme, for the validation of options.

    Raises:
        UsageError: as `parse`.
    """
    parse(text)
    return text
