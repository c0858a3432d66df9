"""Take out what no output depends on: nodes, initializers and trailing outputs that nobody reads."""

from __future__ import annotations

from typing import ClassVar

import onnx_ir as ir
from pydantic.dataclasses import dataclass

from .. import graph
from ..core import Action, Change, Context, Need


@dataclass(frozen=True, kw_only=True)
class RemoveDead:
    """Removes nodes and initializers that nothing reads, in every graph."""

    name: ClassVar[str] = "remove-dead"
    lossless: ClassVar[bool] = True
    needs: ClassVar[frozenset[Need]] = frozenset()

    def run(self, model: ir.Model, context: Context) -> list[Change]:
        """Remove dead nodes from the last to the first, then dead initializers."""
        changes: list[Change] = []
        bodies = list(graph.graphs(model))
        for body in bodies:
            for node in reversed(tuple(body)):
                if _is_dead(node) and context.gate.admits(self.name, graph.label(node)):
                    changes.append(self._applied(graph.label(node), "nothing reads its outputs"))
                    body.remove(node, safe=True)
        functions = {f.graph for f in model.functions.values()}
        for body in bodies:
            if body in functions:
                continue
            for key, value in tuple(body.initializers.items()):
                if value.uses() or value.is_graph_output() or value.is_graph_input():
                    continue
                if context.gate.admits(self.name, key):
                    size_bytes = graph.tensor_bytes([value])
                    changes.append(self._applied(key, "nothing reads this weight", size_bytes))
                    del body.initializers[key]
        return changes

    def _applied(self, target: str, reason: str, size_bytes: int = 0) -> Change:
        return Change(pass_name=self.name, target=target, action=Action.APPLIED, reason=reason, bytes_before=size_bytes)


def _is_dead(node: ir.Node) -> bool:
    return not any(output.uses() or output.is_graph_output() for output in node.outputs)
