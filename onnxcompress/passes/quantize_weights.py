"""Store weights as int8 with a scale for each output channel; the arithmetic stays float.

    Conv/Gemm/MatMul(x, W)   ->  Conv/Gemm/MatMul(x, DequantizeLinear(W_int8, scale))
    Gather(table, i)         ->  DequantizeLinear(Gather(table_int8, i), scale)

W' = s q with q = round(W / s), s = max|W| / 127 of each channel. A table has one scale for all rows: an operator
on the gathered rows can't have another.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass as plain_dataclass
from typing import ClassVar

import numpy as np
import onnx_ir as ir
from pydantic.dataclasses import dataclass

from .. import graph, model_io, ops
from ..core import Action, Change, Context, Need
from ..errors import ModelError
from ..numerics import affine

_BITS = 8
_PER_CHANNEL_OPSET = 13
_NODE_BYTES = 160
"""What a DequantizeLinear node and the names of its scale take in the file, about."""


@plain_dataclass(frozen=True)
class Decision:
    """A weight, the reads that will see it quantized, the axis of its scales (None: one), and its error."""

    value: ir.Value
    reads: tuple[tuple[ir.Node, int], ...]
    axis: int | None
    is_table: bool
    sqnr_db: float


@dataclass(frozen=True, kw_only=True)
class QuantizeWeights:
    """Replaces float weights by int8 ones and DequantizeLinear nodes."""

    name: ClassVar[str] = "quantize-weights"
    lossless: ClassVar[bool] = False
    needs: ClassVar[frozenset[Need]] = frozenset()

    def run(self, model: ir.Model, context: Context) -> list[Change]:
        """Decide on every weight and quantize those that gain, the least damaged first."""
        decisions, refusals = self.decide(model, context)
        if decisions and graph.opset(model) < _PER_CHANNEL_OPSET:
            try:
                model_io.replace_content(model, model_io.convert_opset(model, _PER_CHANNEL_OPSET))
            except ModelError as error:
                return [*refusals, self._change("graph", Action.SKIPPED, f"opset 13 is needed: {error.message}")]
            decisions, refusals = self.decide(model, context)
        names = graph.Names(model)
        applied = [
            self._apply(decision, names)
            for decision in decisions
            if context.gate.admits(self.name, decision.value.name or "")
        ]
        return applied + refusals

    def decide(self, model: ir.Model, context: Context) -> tuple[list[Decision], list[Change]]:
        """Return what can be quantized, by falling signal-to-noise ratio, and what can't with the reason."""
        reads: defaultdict[ir.Value, list[tuple[ir.Node, ops.Weight]]] = defaultdict(list)
        for node, weight, value in ops.weight_reads(model):
            tensor = graph.constant_tensor(value)
            if tensor is not None and tensor.dtype == ir.DataType.FLOAT and tensor.size > 1:
                reads[value].append((node, weight))
        decisions: list[Decision] = []
        refusals: list[Change] = []
        for value, readers in reads.items():
            outcome = _decide(value, readers, context)
            if isinstance(outcome, Decision):
                decisions.append(outcome)
            else:
                refusals.append(self._change(value.name or "", Action.SKIPPED, outcome))
        decisions.sort(key=lambda d: (-d.sqnr_db, d.value.name or ""))
        return decisions, refusals

    def _apply(self, decision: Decision, names: graph.Names) -> Change:
        value = decision.value
        body, array = value.graph, graph.constant(value)
        if body is None or array is None:
            raise ValueError(f"{value.name!r} is no initializer")
        before = array.nbytes
        quantized = affine.quantize(array, axis=decision.axis, bits=_BITS, symmetric=True)
        stored = graph.add_initializer(body, names, f"{value.name}_int8", quantized.values)
        scale = graph.add_initializer(body, names, f"{value.name}_scale", quantized.scale.astype(np.float32))
        attributes = {} if decision.axis is None else {"axis": decision.axis}
        if decision.is_table:
            # onnxruntime moves this pair past a Transpose, and without a zero point takes the type for uint8
            zero = graph.add_initializer(body, names, f"{value.name}_zero", np.zeros((), np.int8))
            for node, port in decision.reads:
                node.replace_input_with(port, stored)
                _dequantize_output(node, scale, zero, names)
        else:
            users = [node for node, _ in decision.reads]
            for anchor, ports in _first_in_each_graph(users, decision.reads):
                dequantize = graph.insert_before(
                    anchor, names, "DequantizeLinear", [stored, scale], attributes=attributes
                )
                for node, port in ports:
                    node.replace_input_with(port, dequantize.outputs[0])
        graph.remove_initializer(value)
        after = quantized.values.nbytes + quantized.scale.nbytes
        kinds = ", ".join(sorted({node.op_type for node, _ in decision.reads}))
        slower = "" if decision.is_table else "; onnxruntime dequantizes it when it runs: smaller, not faster"
        reason = f"int8 weight of {kinds}{slower}"
        return Change(
            pass_name=self.name,
            target=value.name or "",
            action=Action.APPLIED,
            reason=reason,
            bytes_before=before,
            bytes_after=after,
            details={"sqnr_db": round(decision.sqnr_db, 2)},
        )

    def _change(self, target: str, action: Action, reason: str) -> Change:
        return Change(pass_name=self.name, target=target, action=action, reason=reason)


def _decide(value: ir.Value, readers: list[tuple[ir.Node, ops.Weight]], context: Context) -> Decision | str:
    """Return the decision on one weight, or the reason why it stays as it is."""
    if not all(context.selects(node) for node, _ in readers):
        return "left out by --only/--skip"
    if value.is_graph_output() or len(value.uses()) != len(readers):
        return "something other than a weight's operator reads it too"
    tensor = graph.constant_tensor(value)
    if tensor is None or not value.is_initializer():
        return "it is not an initializer"
    rank = len(tensor.shape)
    tables = {weight.is_table for _, weight in readers}
    if len(tables) > 1:
        return "it is both looked up as a table and multiplied with"
    is_table = tables.pop()
    axes = {None if is_table else weight.out_axis(node, rank) for node, weight in readers}
    axis = axes.pop() if len(axes) == 1 else None
    array = tensor.numpy()
    channels = 1 if axis is None else array.shape[axis]
    if array.size * 3 <= 4 * channels + _NODE_BYTES * len(readers):
        return "too small: the scales and the node would take more than is saved"
    if not np.isfinite(array).all():
        return "it holds NaN or infinite values"
    quantized = affine.quantize(array, axis=axis, bits=_BITS, symmetric=True)
    error_db = affine.sqnr_db(array, affine.dequantize(quantized))
    reads = tuple((node, weight.port) for node, weight in readers)
    return Decision(value, reads, axis, is_table, error_db)


def _dequantize_output(node: ir.Node, scale: ir.Value, zero: ir.Value, names: graph.Names) -> None:
    """Put a DequantizeLinear behind a Gather; the float result keeps the name that readers know."""
    output, body = node.outputs[0], node.graph
    if body is None:
        raise ValueError(f"{graph.label(node)} is in no graph")
    name = names.fresh(f"{graph.label(node)}_DequantizeLinear")
    dequantize = ir.node("DequantizeLinear", [None, scale, zero], name=name)
    body.insert_after(node, dequantize)
    result = dequantize.outputs[0]
    output.replace_all_uses_with(result, replace_graph_outputs=output.is_graph_output())
    result.name, output.name = output.name, names.fresh(f"{output.name}_int8")
    result.type, result.shape = output.type, output.shape
    output.type, output.shape = ir.TensorType(ir.DataType.INT8), None
    dequantize.replace_input_with(0, output)


def _first_in_each_graph(
    users: list[ir.Node], reads: tuple[tuple[ir.Node, int], ...]
) -> Iterator[tuple[ir.Node, list[tuple[ir.Node, int]]]]:
    """Yield the first reader in each graph with all reads of that graph."""
    for body in dict.fromkeys(node.graph for node in users):
        if body is None:
            continue
        wanted = {node for node in users if node.graph is body}
        first = next(node for node in body if node in wanted)
        yield first, [(node, port) for node, port in reads if node.graph is body]
