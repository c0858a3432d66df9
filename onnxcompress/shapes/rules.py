"""Which operator follows which rule."""

from __future__ import annotations

from collections.abc import Mapping

from ..ops import table as ops
from .facts import Fact
from .rule_step import Rule, Step, as_it_came
from .rules_arithmetic import ARITHMETIC
from .rules_layout import ARRANGEMENT
from .rules_linear import LAYERS
from .rules_slicing import SLICING


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
