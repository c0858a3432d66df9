"""Shorten long names of nodes and of values that are neither inputs nor outputs of the model.

A converter may name every node after all layers that it came from: in a model of few weights that is half the file
(a note transcriber: 54,000 of 108,000 bytes once its weights were 8 bits).
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import ClassVar

import onnx_ir as ir
from pydantic import Field
from pydantic.dataclasses import dataclass

from ...core import GRAPH, Change, Context, LosslessPass
from ...graph import edit, query
from ...io import model_io

_NUMBER = 6
"""Characters that make equal names differ ("_12345"): a name that was cut down is not cut again."""


@dataclass(frozen=True, kw_only=True)
class ShortenNames(LosslessPass):
    """Cuts long names inside of the model down to their last parts, where that makes the file smaller by a share.

    Args:
        longest: characters of a name that are left.
        least_share: of the file that all shorter names together must save; below it names stay as they are.
    """

    name: ClassVar[str] = "shorten-names"

    longest: int = Field(default=24, ge=1)
    least_share: float = Field(default=0.01, ge=0, le=1)

    def run(self, model: ir.Model, context: Context) -> list[Change]:
        """Rename in place, all or nothing."""
        named = [one for one in _inner(model) if len(one.name or "") > self.longest + _NUMBER]
        saved = sum(_bytes(one.name or "") * _mentions(one) for one in named)
        saved -= sum(self.longest * _mentions(one) for one in named)
        if (
            not named
            or saved < self.least_share * model_io.model_bytes(model)
            or not context.gate.admits(self.name, GRAPH)
        ):
            return []
        before = model_io.model_bytes(model)
        names = edit.Names(model)
        for one in named:
            one.name = names.fresh(self._short(one.name or ""))
        reason = f"{len(named)} long names are cut down to their last parts"
        return [Change.applied(self.name, reason, bytes_before=before, bytes_after=model_io.model_bytes(model))]

    def _short(self, name: str) -> str:
        """Return the end of the first of several names in one (tf2onnx joins them by semicolons)."""
        first = next((part for part in name.split(";") if part), name)
        return first[-self.longest :].lstrip("/.:_ ") or first[-self.longest :]


def _inner(model: ir.Model) -> Iterator[ir.Node | ir.Value]:
    """Yield every node, and every value whose name no caller knows, of all graphs."""
    known = {*model.graph.inputs, *model.graph.outputs}
    for graph in query.graphs(model):
        yield from graph
        values = [*graph.inputs, *graph.initializers.values(), *(value for node in graph for value in node.outputs)]
        yield from (value for value in dict.fromkeys(values) if value not in known)


def _mentions(one: ir.Node | ir.Value) -> int:
    """Return how often the file holds the name."""
    return 1 + len(one.uses()) if isinstance(one, ir.Value) else 1


def _bytes(name: str) -> int:
    return len(name.encode())
