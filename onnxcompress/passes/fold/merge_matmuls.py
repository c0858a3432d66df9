"""Merge matrix products of one input with several weights into one product, whose result is split again.

    x W1, x W2, x W3                     ->  Split(x [W1 W2 W3])
    x W1 + b1, x W2 + b2, x W3 + b3      ->  Split(x [W1 W2 W3] + [b1 b2 b3])       Gemm with its bias alike

Query, key and value of attention are such. It is done where onnxruntime keeps fewer nodes: it makes one Gemm of
product and sum where the input has two axes, so two of those are not worth a Split. What it would fuse with a
product (an activation, a scale, a residual sum) keeps its own.

Measured with onnxruntime on one thread, paired, against the same model without: samples of batch 1 take 0.98 to 1.00 of
the time (four transformers of 0.5 to 50 ms). A Split copies what it cuts: from 1 MB of results on it costs 0 to 2% of
the whole, at 4 to 9 MB 2 to 6%. So products whose sizes are known to be large are kept; an unknown size counts as 1.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass as plain_dataclass
from typing import Any, ClassVar

import numpy as np
import onnx_ir as ir
from pydantic.dataclasses import dataclass

from ...core import Change, Context, LosslessPass
from ...graph import edit, query
from ...io import tensors
from ...ops import table as ops
from ...shapes import infer as shapes

_TYPES = (ir.DataType.FLOAT, ir.DataType.FLOAT16, ir.DataType.DOUBLE)

_PARKED_BYTES = 1 << 20
"""Least size of merged weights that are parked in a temporary file until the model is saved. Chosen by judgement; not
measured."""
_MOST_BYTES = 128 << 20
"""Largest merged weight, which is built in memory. Chosen by judgement; not measured."""
_MOST_RESULT_BYTES = 512 << 10
"""Largest merged result: outside of a cache, splitting takes longer than one product saves. Measured on four
transformers, see above."""
_UNFUSED = ("MatMul", "LayerNormalization", "RMSNormalization", "Softmax")
"""Readers besides data movement with which onnxruntime fuses no product or sum before them."""


@dataclass(frozen=True, kw_only=True)
class MergeMatmuls(LosslessPass):
    """MatMul and Gemm nodes that read one input with constant weights become one and a Split."""

    name: ClassVar[str] = "merge-matmuls"

    def run(self, model: ir.Model, context: Context) -> list[Change]:
        """Look at the products of every value, in every graph outside of local functions."""
        found = [
            group
            for body in query.graphs_outside_functions(model)
            for group in _groups(body)
            if len({branch.node for branch in group}) > 1
        ]
        if not found:
            return []
        known, names, opset = shapes.inferred(model, context), edit.Names(model), query.opset(model)
        changes: list[Change] = []
        for group in found:
            changes += _merge(group, known, names, opset, context)
        return changes


@plain_dataclass(frozen=True)
class _Branch:
    """One product with a constant weight, and the sum with a constant bias after it or inside."""

    node: ir.Node
    weight: ir.Value
    bias: ir.Value | None
    size: int
    dtype: ir.DataType
    result: ir.Value
    """The output of the product, or that of the sum."""

    @property
    def obstacle(self) -> str:
        """Reason why it can't be merged, "" where it can."""
        if len(self.weight.uses()) != 1 or self.weight.is_graph_output():
            return f"others read its weight {self.weight.name} too"
        readers = self.result.uses()
        fused = next(
            (u.node for u in readers if not (ops.moves_data(u.node, u.idx) or query.is_op(u.node, *_UNFUSED))), None
        )
        if fused is not None:
            return f"a runtime may fuse it with {query.label(fused)}"
        return ""


def _groups(body: ir.Graph) -> Iterator[list[_Branch]]:
    """Yield the branches on each value of one graph that can be put side by side, in the order of their nodes."""
    found: dict[tuple[Any, ...], list[_Branch]] = {}
    for node in body:
        branch = _branch(node)
        if branch is not None:
            kind = (node.op_type, branch.dtype, branch.bias is None, query.attribute(node, "transB", 0))
            found.setdefault((node.inputs[0], *kind), []).append(branch)
    yield from found.values()


def _branch(node: ir.Node) -> _Branch | None:
    """Return a node as a branch, None unless it multiplies by a constant matrix and nothing else."""
    if not query.is_op(node, "MatMul", "Gemm") or len(node.inputs) < 2 or node.inputs[0] is None:
        return None
    weight = node.inputs[1]
    tensor = query.constant_tensor(weight)
    if weight is None or tensor is None or tensor.dtype not in _TYPES or len(query.dims(tensor)) != 2:
        return None
    if query.is_op(node, "MatMul"):
        size = query.dims(tensor)[1]
        after = query.sole_consumer(node.outputs[0])
        if after is not None and query.is_op(after, "Add") and after.graph is node.graph:
            bias = after.inputs[1] if after.inputs[0] is node.outputs[0] else after.inputs[0]
            if _is_row(bias, size, tensor.dtype):
                return _Branch(node, weight, bias, size, tensor.dtype, after.outputs[0])
        return _Branch(node, weight, None, size, tensor.dtype, node.outputs[0])
    settings = {"alpha": 1.0, "beta": 1.0, "transA": 0}
    if any(
        node.attributes[k].is_ref() or node.attributes[k].value != v
        for k, v in settings.items()
        if k in node.attributes
    ):
        return None
    size = query.dims(tensor)[0 if query.attribute(node, "transB", 0) else 1]
    bias = node.inputs[2] if len(node.inputs) > 2 else None
    if bias is not None and not _is_row(bias, size, tensor.dtype):
        return None
    return _Branch(node, weight, bias, size, tensor.dtype, node.outputs[0])


def _is_row(value: ir.Value | None, size: int, dtype: ir.DataType) -> bool:
    tensor = query.constant_tensor(value)
    return tensor is not None and tensor.dtype == dtype and query.dims(tensor) == (size,)


def _merge(
    group: Sequence[_Branch], known: shapes.Shapes, names: edit.Names, opset: int, context: Context
) -> list[Change]:
    """Merge the branches on one value that may be, where that leaves fewer nodes."""
    kept = [branch for branch in group if not branch.obstacle]
    rank = known.rank(group[0].node.inputs[0])
    if not _gains(group, rank):
        return []
    if not _gains(kept, rank):
        return [Change.skipped(MergeMatmuls.name, b.obstacle, target=query.label(b.node)) for b in group if b.obstacle]
    first = kept[0].node
    target = query.label(first)
    stored = query.tensor_bytes([v for b in kept for v in (b.weight, b.bias)])
    if query.tensor_bytes([b.weight for b in kept]) > _MOST_BYTES:
        reason = f"the merged weight would take {stored:,} bytes"
        return [Change.skipped(MergeMatmuls.name, reason, target=target)]
    result = _least_result_bytes(kept, known)
    if result > _MOST_RESULT_BYTES:
        reason = f"to cut {result:,} bytes of results apart takes longer than one product saves"
        return [Change.skipped(MergeMatmuls.name, reason, target=target)]
    if not context.gate.admits(MergeMatmuls.name, target):
        return []
    reason = f"{len(kept)} products of {first.inputs[0].name} became one"  # type: ignore[union-attr]
    _apply(kept, names, opset)
    return [Change.applied(MergeMatmuls.name, reason, target=target, bytes_before=stored, bytes_after=stored)]


def _gains(branches: Sequence[_Branch], rank: int | None) -> bool:
    """Say whether onnxruntime keeps fewer nodes of the merged product, of which a sum after two axes costs none."""
    if not branches:
        return False
    is_sum_apart = branches[0].bias is not None and branches[0].node.op_type == "MatMul" and rank not in (None, 1, 2)
    nodes_each = 2 if is_sum_apart else 1
    return nodes_each + 1 < nodes_each * len(branches)


def _least_result_bytes(branches: Sequence[_Branch], known: shapes.Shapes) -> int:
    """Return the bytes of the merged product's result, dimensions that are not known counted as 1."""
    dims = known.shape(branches[0].node.inputs[0]) or ()
    rows = math.prod(d for d in dims[:-1] if isinstance(d, int))
    return tensors.nbytes(branches[0].dtype, (rows, sum(b.size for b in branches)))


def _apply(branches: Sequence[_Branch], names: edit.Names, opset: int) -> None:
    """Insert the merged product before the first branch; every result keeps its name."""
    first = branches[0].node
    body, kind, x = query.home(first), first.op_type, first.inputs[0]
    attributes = {"transB": 1} if query.attribute(first, "transB", 0) else {}
    weight = edit.add_initializer(
        body, names, f"{branches[0].weight.name}_merged", _joined([b.weight for b in branches], 0 if attributes else 1)
    )
    biases = [b.bias for b in branches if b.bias is not None]
    row = edit.add_initializer(body, names, f"{biases[0].name}_merged", _joined(biases, 0)) if biases else None
    inside = [row] if row is not None and kind == "Gemm" else []
    whole = edit.insert_before(first, names, kind, [x, weight, *inside], attributes=attributes).outputs[0]
    if row is not None and not inside:
        whole = edit.insert_before(first, names, "Add", [whole, row]).outputs[0]
    parts = _split(whole, [b.size for b in branches], first, names, opset)
    for branch, part in zip(branches, parts, strict=True):
        edit.take_over(branch.result, part)


def _split(whole: ir.Value, sizes: Sequence[int], anchor: ir.Node, names: edit.Names, opset: int) -> Sequence[ir.Value]:
    """Split the last axis of a value, before `anchor`, and return the parts."""
    attributes: dict[str, Any] = {"axis": -1}
    inputs = [whole]
    if len(set(sizes)) == 1:
        if opset >= 18:
            attributes["num_outputs"] = len(sizes)
    elif opset >= 13:
        array = np.asarray(sizes, dtype=np.int64)
        inputs.append(edit.add_initializer(query.home(anchor), names, f"{whole.name}_sizes", array))
    else:
        attributes["split"] = list(sizes)
    node = edit.insert_before(anchor, names, "Split", inputs, attributes=attributes, outputs=len(sizes))
    return node.outputs


def _joined(values: Sequence[ir.Value], axis: int) -> ir.TensorProtocol | np.ndarray:
    """Return constants side by side; they are read one after the other."""
    found = [t for v in values if (t := query.constant_tensor(v)) is not None]
    shape = list(query.dims(found[0]))
    shape[axis] = sum(query.dims(t)[axis] for t in found)
    joined = np.empty(shape, dtype=found[0].dtype.numpy())
    start = 0
    for tensor in found:
        stop = start + query.dims(tensor)[axis]
        joined[(slice(None),) * axis + (slice(start, stop),)] = tensor.numpy()
        start = stop
    return tensors.parked(joined, None) if joined.nbytes >= _PARKED_BYTES else joined
