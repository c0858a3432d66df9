"""Scheme strings: what a quantized weight looks like, as `type/group/symmetry`.

int8/channel/sym      one scale for each output channel
int4/block32/sym      one scale for every 32 neighbouring weights of an output channel
uint4/block64/asym    and a zero point
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Final, Literal

from ..errors import UsageError

SUPPORTED: Final = ("int8/channel/sym", "int8/tensor/sym")
BLOCK_BITS: Final = (2, 4, 8)
"""Bits of integers that have a type of their own, from which budgets choose."""
DELIVERY_BITS: Final = 3
"""Bits that only a packed file gains by: they are stored as 4."""
BLOCK_SIZES: Final = (16, 32, 64, 128)
"""Weights that share a scale: sizes that MatMulNBits of onnxruntime takes. Chosen by judgement; not measured."""
BLOCKS: Final = "int4/block32/sym or uint4/block32/asym, with 2, 3, 4 or 8 bits and blocks of 16, 32, 64 or 128"
_BLOCK = re.compile(r"(u?)int(\d+)/block(\d+)/(a?)sym")


@dataclass(frozen=True)
class Scheme:
    """A parsed scheme string; `block` is None where scales don't belong to blocks."""

    bits: int
    group: Literal["channel", "tensor", "block"]
    symmetric: bool
    block: int | None = None


def parse(text: str) -> Scheme:
    """Return the scheme that a string names.

    Raises:
        UsageError: it is none, or one that can't be written.
    """
    match = _BLOCK.fullmatch(text)
    if match is not None:
        bits, block, asymmetric = int(match[2]), int(match[3]), bool(match[4])
        if bits in (*BLOCK_BITS, DELIVERY_BITS) and block in BLOCK_SIZES and asymmetric == bool(match[1]):
            return Scheme(bits, "block", not asymmetric, block)
    if text not in SUPPORTED:
        raise UsageError(f"scheme {text!r} is not supported", hint=f"Supported: {', '.join(SUPPORTED)}, {BLOCKS}")
    kind, group, symmetry = text.split("/")
    return Scheme(int(kind.removeprefix("int")), "channel" if group == "channel" else "tensor", symmetry == "sym")


def named(bits: int, block: int, *, symmetric: bool) -> str:
    """Return the string of a scheme with blocks."""
    return f"{'' if symmetric else 'u'}int{bits}/block{block}/{'' if symmetric else 'a'}sym"


def checked(text: str) -> str:
    """Return `text` if it is a scheme without blocks, for the validation of options.

    Raises:
        UsageError: it is none.
    """
    if parse(text).block is not None:
        raise UsageError(f"scheme {text!r} has blocks", hint=f"Supported: {', '.join(SUPPORTED)}")
    return text


def checked_blocks(text: str) -> str:
    """Return `text` if it is a scheme with blocks, for the validation of options.

    Raises:
        UsageError: it is none.
    """
    if parse(text).block is None:
        raise UsageError(f"scheme {text!r} has no blocks", hint=f"Supported: {BLOCKS}")
    return text
