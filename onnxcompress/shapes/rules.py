"""Table of shape rules: operator -> rule."""

from __future__ import annotations

from collections.abc import Mapping

from ..ops import table as ops
from .facts import Fact
from .rule_step import Rule, RuleContext, as_it_came
from .rules_arithmetic import ARITHMETIC
from .rules_layout import ARRANGEMENT, SLICING
from .rules_linear import LAYERS


def _same(step: RuleContext) -> list[Fact]:
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
