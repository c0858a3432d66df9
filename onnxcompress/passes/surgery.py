"""Let a user's own function edit the model as an onnx-graphsurgeon graph."""

from __future__ import annotations

from typing import ClassVar

import onnx_ir as ir
from pydantic.dataclasses import dataclass

from .. import metrics, model_io, surgeon
from ..core import Action, Change, Context, Need
from ..errors import ModelError, UsageError


@dataclass(frozen=True, kw_only=True)
class Surgery:
    """Runs `function(graph: gs.Graph) -> gs.Graph | None` of the user's on the graph."""

    name: ClassVar[str] = "surgery"
    lossless: ClassVar[bool] = False
    needs: ClassVar[frozenset[Need]] = frozenset()
    command_line_only: ClassVar[frozenset[str]] = frozenset({"function"})

    function: str | None = None
    """`module:function`, importable from the current directory; None does nothing."""

    def run(self, model: ir.Model, context: Context) -> list[Change]:
        """Carry the model to graphsurgeon, call the function, and carry the result back."""
        if self.function is None:
            return []
        edit = metrics.load_function(self.function)
        try:
            carried = surgeon.to_surgeon(model)
        except ModelError as error:
            return [self._change(Action.SKIPPED, error.message)]
        if not context.gate.admits(self.name, self.function):
            return []
        try:
            edited = edit(carried)
        except Exception as error:
            raise UsageError(
                f"surgery function {self.function!r} failed with {type(error).__name__}: {error}",
                hint="Mend the function",
            ) from error
        model_io.replace_content(model, surgeon.from_surgeon(carried if edited is None else edited))
        return [self._change(Action.APPLIED, f"edited by {self.function}")]

    def _change(self, action: Action, reason: str) -> Change:
        return Change(pass_name=self.name, target="graph", action=action, reason=reason)
