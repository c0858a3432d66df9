"""Remove optional inputs that are all zeros where the operator takes zeros for an absent one.

Initial states of recurrent layers are most often such: exporters write ConstantOfShape of the batch, which is removed
with the arithmetic that computes its shape. Biases of zeros are removed too.
"""

from __future__ import annotations

from typing import ClassVar

import numpy as np
import onnx_ir as ir
from pydantic.dataclasses import dataclass

from ...core import Change, Context, LosslessPass
from ...graph import edit, query
from ...ops import table as ops

_DEPTH = 8
"""Nodes that are followed back to a constant, at most. Chosen by judgement; not measured."""
_MOST_ELEMENTS = 1 << 16
"""Most elements of a constant that is read: no bias or state is larger."""
_GEMM_BIAS_OPTIONAL_FROM = 11
"""First opset in which Gemm works without a bias."""


@dataclass(frozen=True, kw_only=True)
class DropZeros(LosslessPass):
    """Biases and initial states that are all zeros are no longer inputs."""

    name: ClassVar[str] = "drop-zeros"

    def run(self, model: ir.Model, context: Context) -> list[Change]:
        """Look at every node that has such an input, in every graph outside of local functions."""
        changes: list[Change] = []
        opset = query.opset(model)
        candidates = (node for body in query.graphs_outside_functions(model) for node in tuple(body))
        for node in [n for n in candidates if query.is_op(n, *ops.ZERO_BY_DEFAULT)]:
            if query.is_op(node, "Gemm") and opset < _GEMM_BIAS_OPTIONAL_FROM:
                continue
            for port in ops.ZERO_BY_DEFAULT[node.op_type]:
                value = node.inputs[port] if port < len(node.inputs) else None
                target = f"{query.label(node)}:{port}"
                if value is None or not _is_zero(value) or not context.gate.admits(self.name, target):
                    continue
                reason = f"{value.name} is all zeros, which is what {node.op_type} takes without it"
                is_last = len(value.uses()) == 1 and not value.is_graph_output()
                size_bytes = query.tensor_bytes([value]) if is_last else 0  # others read it still
                _drop_input(node, port)
                changes.append(Change.applied(self.name, reason, target=target, bytes_before=size_bytes))
        return changes


def _is_zero(value: ir.Value) -> bool:
    """Say whether every element of a value is zero at every run."""
    for _ in range(_DEPTH):
        tensor = query.constant_tensor(value)
        if tensor is not None:
            return tensor.size <= _MOST_ELEMENTS and not np.any(tensor.numpy())
        node = value.producer()
        if query.is_op(node, "ConstantOfShape") and node is not None:
            fill = query.attribute(node, "value")
            return "value" not in node.attributes or (fill is not None and not np.any(fill.numpy()))
        if node is None or not query.is_op(node, "Cast", *ops.KEEPS_FILL) or node.inputs[0] is None:
            return False
        value = node.inputs[0]
    return False


def _drop_input(node: ir.Node, port: int) -> None:
    """Drop an input, absent inputs at the end, and what only led to it."""
    value = node.inputs[port]
    node.replace_input_with(port, None)
    count = len(node.inputs)
    while count and node.inputs[count - 1] is None:
        count -= 1
    node.resize_inputs(count)
    if value is not None:
        edit.remove_unread(value)
