"""Compose and cancel Transposes, and move them behind element-wise operators where that makes them fewer.

transpose(transpose(x, p), q) = transpose(x, p[q])
f(transpose(x, p), transpose(y, p)) = transpose(f(x, y), p)      for element-wise f
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass as plain_dataclass
from typing import ClassVar

import numpy as np
import onnx_ir as ir
from pydantic.dataclasses import dataclass

from ...core import Change, Context, LosslessPass
from ...graph import edit, query
from ...ops import table as ops
from ..rewriting import Rewrite, RewriteContext, rewrite
from .chains_common import undone

_ALONG_AXIS = ("Concat", "Softmax", "LogSoftmax")
_REDUCTIONS = ("ReduceMax", "ReduceMean", "ReduceMin", "ReduceProd", "ReduceSum")
_MOST_NODES = 64
"""Most nodes that are moved at a time. Chosen by judgement; not measured."""
_MOST_ELEMENTS = 65536
"""Most elements of a constant that is transposed. Chosen by judgement; not measured."""
_MOST_COPIED = 64
"""Most elements of a constant that is transposed where others read the original too. Chosen by judgement; not
measured."""


@dataclass(frozen=True, kw_only=True)
class SimplifyTransposes(LosslessPass):
    """Compose and cancel Transposes, and move them behind element-wise nodes where fewer remain."""

    name: ClassVar[str] = "simplify-transposes"

    def run(self, model: ir.Model, context: Context) -> list[Change]:
        """Rewrite every graph of `model` but local functions, which can't hold weights."""
        return rewrite(model, context, self.name, {"Transpose": [_compose, _sink], "Gemm": [_into_gemm]})


def _perm(node: ir.Node | None, ctx: RewriteContext) -> tuple[int, ...] | None:
    """Return the permutation of a Transpose, None for other nodes and where the rank it reverses is not known."""
    if node is None or not query.is_op(node, "Transpose"):
        return None
    perm = query.integers(node, "perm")
    if perm is not None:
        return tuple(perm)
    rank = ctx.shapes.rank(node.inputs[0])
    return None if rank is None or "perm" in node.attributes else tuple(reversed(range(rank)))


def _is_identity(perm: Sequence[int]) -> bool:
    return list(perm) == list(range(len(perm)))


def _compose(node: ir.Node, ctx: RewriteContext) -> Rewrite | None:
    middle = node.inputs[0]
    first = None if middle is None else middle.producer()
    one, two = _perm(first, ctx), _perm(node, ctx)
    if one is None or two is None or first is None or middle is None or first.graph is not node.graph:
        return None
    x, out, both = first.inputs[0], node.outputs[0], [one[axis] for axis in two]
    if x is None:
        return None
    reason = f"{query.label(first)} is a Transpose too"
    if _is_identity(both) and edit.can_replace(out, x):
        return undone(node, first, x)
    if query.sole_consumer(middle) is not node:
        return None
    return Rewrite(
        target=query.label(node), reason=reason, apply=lambda: edit.turn_into(node, "Transpose", [x], {"perm": both})
    )


def _into_gemm(node: ir.Node, ctx: RewriteContext) -> Rewrite | None:
    """Let a Gemm read its matrices transposed by an attribute."""
    for port, name in enumerate(("transA", "transB")):
        value = node.inputs[port]
        before = None if value is None else value.producer()
        if value is None or before is None or _perm(before, ctx) != (1, 0) or query.sole_consumer(value) is not node:
            continue
        inputs, attributes = [*node.inputs], dict(node.attributes)
        inputs[port] = before.inputs[0]
        attributes[name] = ir.AttrInt64(name, 1 - int(query.attribute(node, name, 0)))
        return Rewrite(
            target=query.label(node),
            reason=f"{name} says what {query.label(before)} did",
            apply=lambda i=inputs, a=attributes: edit.turn_into(node, "Gemm", i, a),  # type: ignore[misc]
        )
    return None


@plain_dataclass(frozen=True, kw_only=True)
class _TransposeRegion:
    """Nodes that can work before a Transpose by `perm` instead of after it, in topological order."""

    perm: tuple[int, ...]
    nodes: dict[ir.Node, None]

    def enters(self, ctx: RewriteContext) -> list[ir.Node]:
        """Return the Transposes whose results only the region reads: they are removed."""
        makers = dict.fromkeys(v.producer() for n in self.nodes for v in n.inputs if v is not None)
        return [
            m
            for m in makers
            if m is not None
            and m not in self.nodes
            and _perm(m, ctx) == self.perm
            and not m.outputs[0].is_graph_output()
            and all(use.node in self.nodes for use in m.outputs[0].uses())
        ]

    def leaves(self, ctx: RewriteContext) -> list[tuple[ir.Value, list[ir.Node], bool]]:
        """Return each result read outside, with the Transposes that read it, and True where others do too."""
        found = []
        for value in (o for n in self.nodes for o in n.outputs):
            outside = [use.node for use in value.uses() if use.node not in self.nodes]
            after = [n for n in outside if _perm(n, ctx) is not None and n.graph is value.graph]
            others = value.is_graph_output() or len(after) < len(outside)
            if after or others:
                found.append((value, after, others))
        return found

    def gain(self, ctx: RewriteContext) -> int:
        """Return the number of Transposes that the move saves."""
        fewer = len(self.enters(ctx))
        for _, after, others in self.leaves(ctx):
            fewer += sum(self.cancels(n, ctx) for n in after if not n.outputs[0].is_graph_output()) - others
        return fewer

    def joint(self, after: ir.Node, ctx: RewriteContext) -> list[int]:
        """Return the permutation of a Transpose behind the region composed with that of the region."""
        return [self.perm[axis] for axis in _perm(after, ctx) or ()]

    def cancels(self, after: ir.Node, ctx: RewriteContext) -> bool:
        """Say whether a Transpose behind the region cancels."""
        return _is_identity(self.joint(after, ctx))


def _sink(node: ir.Node, ctx: RewriteContext) -> Rewrite | None:
    perm = _perm(node, ctx)
    if perm is None or _is_identity(perm):
        return None
    region = _grow(node, perm, ctx)
    gain = region.gain(ctx) if region.nodes else 0
    while gain <= 0 and 1 < len(region.nodes) <= 16:  # the last nodes may cost more than they save
        fewer = _TransposeRegion(perm=perm, nodes=dict.fromkeys(list(region.nodes)[:-1]))
        region, gain = fewer, fewer.gain(ctx)
    if gain <= 0:
        return None
    count = len(region.nodes)
    return Rewrite(
        target=query.label(node),
        reason=f"{gain} fewer Transpose when {count} element-wise nodes work before it",
        apply=lambda: _move(region, ctx),
    )


def _grow(node: ir.Node, perm: tuple[int, ...], ctx: RewriteContext) -> _TransposeRegion:
    """Collect the nodes behind a Transpose that can as well work before it."""
    region = _TransposeRegion(perm=perm, nodes={})
    waiting = [use.node for use in node.outputs[0].uses()]
    while waiting and len(region.nodes) < _MOST_NODES:
        candidate = waiting.pop(0)
        if candidate in region.nodes or candidate.graph is not node.graph:
            continue
        if _can_move(candidate, region, ctx):
            region.nodes[candidate] = None
            waiting += [use.node for o in candidate.outputs for use in o.uses()]
    return region


def _data_ports(node: ir.Node) -> int:
    """Return how many of the first inputs carry operands with axes."""
    return len(node.inputs) if query.is_op(node, *ops.BROADCASTING, "Concat") else 1


def _can_move(node: ir.Node, region: _TransposeRegion, ctx: RewriteContext) -> bool:
    rank = len(region.perm)
    if query.is_op(node, *_ALONG_AXIS):
        axis = int(query.attribute(node, "axis", -1))
        if not -rank <= axis < rank or (node.op_type == "Concat" and "axis" not in node.attributes):
            return False
        if node.op_type != "Concat" and (ctx.opset < 13 or region.perm[axis] != rank - 1):
            return False
    elif query.is_op(node, *_REDUCTIONS):
        axes = query.integers(node, "axes", 1)
        if not axes or not query.attribute(node, "keepdims", 1) or not all(-rank <= a < rank for a in axes):
            return False
    elif not query.is_op(node, *ops.ELEMENTWISE, *ops.BROADCASTING) or (
        ctx.opset < 7 and query.is_op(node, *ops.BROADCASTING)
    ):
        return False
    return all(_can_enter(v, node, region, ctx) for v in node.inputs[: _data_ports(node)])


def _can_enter(value: ir.Value | None, node: ir.Node, region: _TransposeRegion, ctx: RewriteContext) -> bool:
    if value is None:
        return False
    maker = value.producer()
    if maker is not None and (maker in region.nodes or _perm(maker, ctx) == region.perm):
        return maker.graph is node.graph
    tensor = query.constant_tensor(value)
    if tensor is None or len(tensor.shape) > len(region.perm):
        return False
    most = _MOST_ELEMENTS if query.sole_consumer(value) is node else _MOST_COPIED
    if node.op_type == "Concat" and len(tensor.shape) != len(region.perm):
        return False
    return tensor.size <= most


def _move(region: _TransposeRegion, ctx: RewriteContext) -> None:
    entering, leaves = [m.outputs[0] for m in region.enters(ctx)], region.leaves(ctx)
    joint = {n: region.joint(n, ctx) for _, after, _ in leaves for n in after}
    for node in region.nodes:
        _work_before(node, region, ctx)
    for value, after, others in leaves:
        name = value.name
        readers = [use for use in value.uses() if use.node not in region.nodes and use.node not in after]
        restored = None
        if others:
            maker = value.producer()
            assert maker is not None
            assert maker.graph is not None
            restored = ir.node("Transpose", [value], {"perm": list(region.perm)})
            restored.name = ctx.names.fresh(f"{maker.name or maker.op_type}_Transpose")
            maker.graph.insert_after(maker, restored)
            restored.outputs[0].type, restored.outputs[0].shape = value.type, value.shape
            if value.is_graph_output():
                outputs = maker.graph.outputs
                outputs[list(outputs).index(value)] = restored.outputs[0]
            for use in readers:
                use.node.replace_input_with(use.idx, restored.outputs[0])
        value.name, value.shape = ctx.names.fresh(f"{name}_before"), None
        if restored is not None:
            restored.outputs[0].name = name
        for node in after:
            _shorten(node, value, joint[node])
    left = {value for value, _, _ in leaves}
    for value in (o for node in region.nodes for o in node.outputs if o not in left):
        value.name, value.shape = ctx.names.fresh(f"{value.name}_before"), None
    for value in entering:
        edit.remove_unread(value)


def _work_before(node: ir.Node, region: _TransposeRegion, ctx: RewriteContext) -> None:
    """Let one node read what the Transposes read, its constants and axes permuted the other way."""
    rank = len(region.perm)
    for port, value in enumerate(node.inputs[: _data_ports(node)]):
        maker = None if value is None else value.producer()
        if value is None or maker in region.nodes:
            continue
        if maker is not None and _perm(maker, ctx) == region.perm:
            node.replace_input_with(port, maker.inputs[0])
            continue
        tensor = query.constant_tensor(value)
        if tensor is None or (tensor.size == 1 and node.op_type != "Concat"):
            continue
        array = tensor.numpy()
        array = array.reshape((1,) * (rank - array.ndim) + array.shape)
        transposed = np.ascontiguousarray(array.transpose(np.argsort(region.perm)))
        node.replace_input_with(port, ctx.add_constant(node, f"{value.name}_turned", transposed))
        edit.remove_unread(value)
    if query.is_op(node, *_ALONG_AXIS):
        axis = region.perm[int(query.attribute(node, "axis", -1))]
        node.attributes.add(ir.AttrInt64("axis", axis))
    elif query.is_op(node, *_REDUCTIONS):
        axes = [region.perm[a] for a in query.integers(node, "axes", 1) or ()]
        if "axes" in node.attributes:
            node.attributes.add(ir.AttrInt64s("axes", axes))
        else:
            old, new = (node.inputs[1], ctx.add_constant(node, f"{node.outputs[0].name}_axes", np.asarray(axes)))
            node.replace_input_with(1, new)
            if old is not None:
                edit.remove_unread(old)


def _shorten(node: ir.Node, value: ir.Value, perm: list[int]) -> None:
    """Give a Transpose behind the region its new permutation, or remove it where that is the identity."""
    if _is_identity(perm) and edit.can_replace(node.outputs[0], value):
        edit.replace_value(node.outputs[0], value)
        edit.remove_node(node)
    else:
        node.attributes.add(ir.AttrInt64s("perm", perm))
