"""Which operator follows which rule."""

from __future__ import annotations

from collections.abc import Mapping

from .. import ops
from .arithmetic import ARITHMETIC
from .arrangement import ARRANGEMENT
from .facts import Fact
from .layers import LAYERS
from .slicing import SLICING
from .step import Rule, Step, as_it_came


def _same(step: Step) -> list[Fact]:
    return [Fact(step.dims())]


RULES: Mapping[str, Rule] = {
    **dict.fromkeys(ops.SAME_SHAPE, _same),
    **ARITHMETIC,
    **ARRANGEMENT,
    **LAYERS,
    **SLICING,
    "Identity": as_it_came,
}
"""Operator of the standard domain -> the facts of its outputs."""
