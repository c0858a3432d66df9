"""What is known of shapes, and of the whole numbers computed from them, as expressions over the input's dimensions.

    x [batch, seq, 128] -> Shape -> [batch, seq, 128] -> Gather 1 -> seq -> Concat(.., 4, 32) -> [batch, seq, 4, 32]

`interpret` walks the nodes once, in order. Dimensions come from the graph's inputs through shape inference and
through the rules below; a named dimension is one size wherever the name stands, an unnamed one is a size of its
own. Facts hold for every run that does not fail. Operators without a rule have what shape inference says.
"""

from __future__ import annotations

from .facts import Content, Fact, Facts, ImpossibleError
from .rules_slicing import reaches_end, slice_bounds
from .symbolic import interpret, taken_branch

__all__ = [
    "Content",
    "Fact",
    "Facts",
    "ImpossibleError",
    "interpret",
    "reaches_end",
    "slice_bounds",
    "taken_branch",
]
