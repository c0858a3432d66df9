"""Compute at compression time what the model would compute from constants at every run.

A node that depends on constants only is run once in onnxruntime and its result stored, unless that would make the
file grow: a ConstantOfShape generates megabytes from a few bytes, a Cast to a wider type doubles a weight. The bytes
of a result are compared with those that become free with it: the constants and nodes that nothing else needs, over the
whole chain that leads to it. DequantizeLinear is never folded: that would undo a quantization.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass as plain_dataclass
from typing import Annotated, ClassVar

import numpy as np
import onnx_ir as ir
from pydantic import Field
from pydantic.dataclasses import dataclass

from ...core import Change, Context, LosslessPass
from ...graph import edit, query
from ...io import tensors
from ...ops import table as ops
from ...shapes import infer as shapes
from . import constants_run

_BATCH_BYTES = 64 << 20
"""Most memory of the constants and results of nodes that are run together. Chosen by judgement; not measured."""
_PARKED_BYTES = 1 << 20
"""Least size of results that are parked in a temporary file until the model is saved. Chosen by judgement; not
measured."""
_MOST_BYTES = 1 << 30
"""Largest result of a node that is run. Chosen by judgement; not measured."""
_NAME_BYTES = 16
"""Bytes of a node or an initializer in the file besides its names and data. Estimated; not measured."""


@dataclass(frozen=True, kw_only=True)
class FoldConstants(LosslessPass):
    """Replaces nodes that depend on constants only by what they compute."""

    name: ClassVar[str] = "fold-constants"

    allowance_bytes: Annotated[int, Field(ge=0)] = 128
    """Bytes that a folded node may add beyond those that become free with it; none after a generator."""

    def run(self, model: ir.Model, context: Context) -> list[Change]:
        """Decide from the last node to the first, so that only the ends of chains are stored; then run those."""
        changes = list(_fix_types(model, context))
        candidates = _candidates(model)
        if not candidates:
            return changes
        plan = _plan(candidates, shapes.inferred(model, context), self.allowance_bytes)
        changes += [
            Change.skipped(self.name, reason, target=query.label(node)) for node, reason in plan.refused.items()
        ]
        names = edit.Names(model)
        for batch in _batches(plan.stored):
            alive = [node for node in batch if node.graph is not None]
            results = constants_run.compute(model, alive) if alive else {}
            for node in alive:
                changes += _store(node, results, plan, names, context)
        return changes


def _fix_types(model: ir.Model, context: Context) -> Iterator[Change]:
    """Turn CastLike of a constant into Cast where the wanted type is known.

    A float32 number that becomes float16 stays: onnxruntime computes float16 in float32 on most processors, takes
    the CastLike out together with the Cast that it inserts there, and would run that Cast for a folded number.
    """
    likes = [
        node
        for body in query.graphs_outside_functions(model)
        for node in body
        if query.is_op(node, "CastLike") and query.constant_tensor(node.inputs[0]) is not None
    ]
    known = shapes.inferred(model, context) if likes else None
    for node in likes:
        dtype = known.dtype(node.inputs[1]) if known is not None else None
        if dtype == ir.DataType.FLOAT16 and _is_float32_number(node.inputs[0]):
            yield Change.skipped(
                FoldConstants.name,
                "where float16 is computed in float32 the number is read as it is; in float16 it needs a Cast",
                target=query.label(node),
            )
            continue
        if dtype in constants_run.RUNNABLE and context.gate.admits(FoldConstants.name, query.label(node)):
            edit.turn_into(node, "Cast", [node.inputs[0]], {"to": int(dtype)})
            yield Change.applied(
                FoldConstants.name, f"the type that it casts to is {dtype.name}", target=query.label(node)
            )


def _is_float32_number(value: ir.Value | None) -> bool:
    tensor = query.constant_tensor(value)
    return tensor is not None and tensor.dtype == ir.DataType.FLOAT and tensor.size == 1


def _candidates(model: ir.Model) -> dict[ir.Node, None]:
    """Return the nodes that depend on constants only, each after those that it reads."""
    found: dict[ir.Node, None] = {}
    for body in query.graphs_outside_functions(model):
        for node in body:
            if _is_pure(node) and all(_is_known(value, found) for value in node.inputs if value is not None):
                found[node] = None
    return found


def _is_pure(node: ir.Node) -> bool:
    """Say whether a node is a function of its inputs that the runtime may be asked for."""
    return (
        node.domain in query.STANDARD_DOMAINS
        and any(value is not None for value in node.inputs)
        and not query.bodies(node)
        and not query.is_op(node, "DequantizeLinear", "Constant")
        and not ops.is_nondeterministic(node)
        and not any(attr.is_ref() for attr in node.attributes.values())
    )


def _is_known(value: ir.Value, found: dict[ir.Node, None]) -> bool:
    tensor = query.constant_tensor(value)
    return value.producer() in found if tensor is None else tensor.dtype in constants_run.RUNNABLE


@plain_dataclass
class _FoldPlan:
    """Nodes to store, each with the bytes that become free and are stored, and refused nodes with reasons."""

    stored: dict[ir.Node, tuple[int, int]]
    refused: dict[ir.Node, str]
    sizes: dict[ir.Value, int | None]


def _plan(candidates: dict[ir.Node, None], known: shapes.Shapes, allowance: int) -> _FoldPlan:
    """Choose the nodes whose results are stored."""
    sizes = {output: _bytes_of(output, known) for node in candidates for output in node.outputs}
    freed, generated = _freed(candidates)
    plan = _FoldPlan({}, {}, sizes)
    removed: set[ir.Node] = set()  # nodes that are stored, or that only such ones read
    for node in reversed(candidates):
        needed = [o for o in node.outputs if o.is_graph_output() or any(u.node not in removed for u in o.uses())]
        if not needed:
            removed.add(node)
            continue
        parts = [sizes[output] for output in needed]
        stored = sum(part for part in parts if part is not None)
        if (None in parts and ops.is_generator(node)) or stored > _MOST_BYTES:
            continue
        growth = stored + sum(_entry_bytes(o) for o in needed) - freed[node]
        if growth > (0 if node in generated else allowance):
            if node not in generated:
                plan.refused[node] = f"its result takes {stored:,} bytes, what it is computed from {freed[node]:,}"
            continue
        removed.add(node)
        plan.stored[node] = (freed[node], stored)
    plan.stored = dict(reversed(plan.stored.items()))
    return plan


def _freed(candidates: dict[ir.Node, None]) -> tuple[dict[ir.Node, int], set[ir.Node]]:
    """Return the bytes that become free with each node's chain, and the nodes behind a generator.

    Values with several readers count in equal parts, values that a kept node reads as nothing.
    """
    freed: dict[ir.Node, int] = {}
    generated: set[ir.Node] = set()
    shared_by: dict[ir.Value, int] = {}  # readers of a value that only candidates read, 0 for others
    for node in candidates:
        total = _node_bytes(node)
        for value in dict.fromkeys(v for v in node.inputs if v is not None):
            maker = value.producer()
            if maker in generated:
                generated.add(node)
            if value not in shared_by:
                readers = {use.node for use in value.uses()}
                is_free = not value.is_graph_output() and readers <= candidates.keys()
                shared_by[value] = len(readers) if is_free else 0
            if not shared_by[value]:
                continue
            whole = freed[maker] if maker in freed else query.tensor_bytes([value]) + _entry_bytes(value)
            total += whole // shared_by[value]
        if ops.is_generator(node):
            generated.add(node)
        freed[node] = total
    return freed, generated


def _bytes_of(value: ir.Value, known: shapes.Shapes) -> int | None:
    """Return the bytes of a value, None where its shape or type is not known."""
    dims, dtype = known.static(value), known.dtype(value)
    return None if dims is None or dtype is None else tensors.nbytes(dtype, dims)


def _node_bytes(node: ir.Node) -> int:
    """Return the bytes of a node in the file, about."""
    names = [node.name, node.op_type, *(v.name for v in (*node.inputs, *node.outputs) if v is not None)]
    attributes = sum(_NAME_BYTES + len(name) for name in node.attributes)
    return _NAME_BYTES + attributes + sum(len(name or "") + 2 for name in names)


def _entry_bytes(value: ir.Value) -> int:
    """Return the bytes of an initializer in the file besides its data, about."""
    return _NAME_BYTES + len(value.name or "")


def _batches(stored: dict[ir.Node, tuple[int, int]]) -> Iterator[Sequence[ir.Node]]:
    """Yield nodes in groups that are small enough to be run together."""
    batch: list[ir.Node] = []
    size_bytes = 0
    for node, (freed, result) in stored.items():
        if batch and size_bytes + freed + result > _BATCH_BYTES:
            yield batch
            batch, size_bytes = [], 0
        batch.append(node)
        size_bytes += freed + result
    if batch:
        yield batch


def _store(
    node: ir.Node, results: dict[ir.Value, np.ndarray], plan: _FoldPlan, names: edit.Names, context: Context
) -> list[Change]:
    """Replace a node by its results, and remove what only led to it."""
    freed, expected = plan.stored[node]
    read = [o for o in node.outputs if o.uses() or o.is_graph_output()]
    if node.graph is None or any(output not in results for output in read):
        return []  # the runtime has no kernel for it, or it fails at every run: not ours to decide
    stored = sum(results[output].nbytes for output in read)
    target = query.label(node)
    if any(plan.sizes[output] is None for output in read) and stored > max(expected, freed):
        reason = f"its result takes {stored:,} bytes, what it is computed from {freed:,}"
        return [Change.skipped(FoldConstants.name, reason, target=target)]
    if not context.gate.admits(FoldConstants.name, target):
        return []
    sources = [v for v in dict.fromkeys(node.inputs) if v is not None and not v.is_initializer()]
    arrays = [_tensor(results.pop(output), output.name) if output in read else None for output in node.outputs]
    edit.replace_by_constant(node, names, arrays)
    for value in sources:
        edit.remove_unread(value)
    return [
        Change.applied(
            FoldConstants.name,
            f"{node.op_type} of constants is stored as its result",
            target=target,
            bytes_before=freed,
            bytes_after=stored,
        )
    ]


def _tensor(array: np.ndarray, name: str | None) -> np.ndarray | ir.TensorProtocol:
    return tensors.parked(array, name) if array.nbytes >= _PARKED_BYTES else array
