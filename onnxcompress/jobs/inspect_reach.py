"""How much of a model channel pruning can reach, looked at in the form in which a recipe prunes it: folded."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np

from ..channels import groups as channel_groups
from ..core import Context, Gate
from ..recipe import Recipe

if TYPE_CHECKING:
    import onnx_ir as ir

    from ..channels.groups import Reach


def reach(model: ir.Model, feed: Mapping[str, np.ndarray], context: Context) -> Reach:
    """Fold a model; return what can be cut of it then, at the shapes of a feed, and what keeps the rest.

    Raises:
        OnnxCompressError: a pass of the recipe `fold` fails.
    """
    for one in Recipe.load("fold").active:
        one.run(model, replace(context, gate=Gate(), memo=None))
    return channel_groups.find_groups(model, feed).reach()
