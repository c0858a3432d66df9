"""The judge that a pass is given which makes a part of a candidate."""

from __future__ import annotations

import onnx_ir as ir

from ..core import Judge, Prefer, Trial


class Within:
    """Judges for a pass that makes a part of a candidate: whether the whole is accepted is decided later."""

    def __init__(self, outer: Judge, place: str) -> None:
        self._outer = outer
        self._place = place
        self.limit = outer.limit
        self.prefer: Prefer = outer.prefer

    def __call__(self, model: ir.Model, label: str) -> Trial:
        """Score and time a candidate."""
        return self._outer(model, f"{self._place}/{label}")

    def score(self, model: ir.Model, *, most: int | None = None) -> Trial:
        """Score a candidate without timing it."""
        return self._outer.score(model, most=most)

    def fault(self, model: ir.Model) -> str | None:  # noqa: ARG002 - the protocol's signature
        """Find none."""
        return None
