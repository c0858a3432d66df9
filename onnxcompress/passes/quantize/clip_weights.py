"""The largest weights are clipped, so that integers of few bits have finer steps.

W   ->   W' = max(min(W, alpha), -alpha)
"""

from __future__ import annotations

from dataclasses import fields
from typing import Annotated, ClassVar, Literal

import numpy as np
import onnx_ir as ir
from pydantic import Field
from pydantic.dataclasses import dataclass

from ...core import Action, Change, Context, Need
from ...errors import UsageError
from ...graph import constants as float_constants
from ...graph import edit
from ...numerics.quantization import weight_clipping
from ...ops.linear import LinearLayer, linear_layers


@dataclass(frozen=True, kw_only=True)
class ClipWeights:
    """Clip the weights of linear layers to [-alpha, alpha]."""

    name: ClassVar[str] = "clip-weights"
    lossless: ClassVar[bool] = False
    needs: ClassVar[frozenset[Need]] = frozenset()

    alpha: Annotated[float | None, Field(gt=0)] = None
    """The bound itself."""
    percentile: Annotated[float | None, Field(gt=0, le=100)] = None
    """The bound below which so many percent of the absolute values are."""
    bits: Annotated[int | None, Field(ge=2, le=8)] = None
    """The bound with the least squared error after rounding to integers of so many bits. Without any option, 8."""
    group: Literal["channel", "tensor"] = "channel"
    """What has a bound of its own: each output channel, or the whole weight."""

    def __post_init__(self) -> None:
        """Refuse several bounds at once."""
        given = [f.name for f in fields(self) if f.name != "group" and getattr(self, f.name) is not None]
        if len(given) > 1:
            raise UsageError(f"clip-weights: {' and '.join(given)} are given", hint="Give one of them")

    def run(self, model: ir.Model, context: Context) -> list[Change]:
        """Clip the weights of all linear layers that `context` admits."""
        names = edit.Names(model)
        changes = []
        for layer in linear_layers(model):
            if not context.selects(layer.node):
                continue
            if layer.is_fixed or len(layer.weight.uses()) > 1:
                why = "its weights are integers" if layer.is_fixed else "others read its weights too"
                changes.append(Change(pass_name=self.name, target=layer.label, action=Action.SKIPPED, reason=why))
                continue
            matrix = layer.matrix()
            alpha = self._bounds(matrix)
            clipped = np.clip(matrix, -alpha, alpha)
            count = int((clipped != matrix).sum())
            if count and context.gate.admits(self.name, layer.label):
                changes.append(self._write(layer, clipped, count, alpha, names))
        return changes

    def _bounds(self, matrix: np.ndarray) -> np.ndarray:
        """Return alpha, float32 [groups, out, 1] or [1, 1, 1], for a matrix [groups, out, columns]."""
        rows = matrix.reshape(-1, matrix.shape[2]) if self.group == "channel" else matrix.reshape(1, -1)
        if self.alpha is not None:
            found = np.full(len(rows), self.alpha)
        elif self.percentile is not None:
            found = weight_clipping.percentile(rows, self.percentile)
        else:
            found = weight_clipping.least_error(rows, 8 if self.bits is None else self.bits)
        shape = (*matrix.shape[:2], 1) if self.group == "channel" else (1, 1, 1)
        return found.reshape(shape).astype(np.float32)

    def _write(
        self, layer: LinearLayer, clipped: np.ndarray, count: int, alpha: np.ndarray, names: edit.Names
    ) -> Change:
        size = float_constants.stored_bytes(layer.weight)
        layer.with_weights(clipped, None, names)
        return Change.applied(
            self.name,
            f"{count} of {clipped.size} weights clipped",
            target=layer.label,
            bytes_before=size,
            bytes_after=size,
            details={"clipped": count, "alpha": [float(alpha.min()), float(alpha.max())]},
        )
