"""Merge affine maps per channel into the linear operator beside them.

    W x + b, then s y + t          ->  (s W) x + (s b + t)          what follows a layer
    s x + t, then W x + b          ->  (W s) x + (b + W t)          what comes before it; t: no padding
    s x + t, then padded W x + b   ->  x + t / s, then (W s) x + b  two nodes and more become one

Maps are BatchNormalization with fixed statistics, Mul, Add, Sub, Div by a constant, Neg, and their chains.
Layers are Conv, ConvTranspose, Gemm, MatMul with a constant weight, and BatchNormalization itself (for what
follows it). A MatMul has no bias: the shift remains as one Add, which runtimes fuse themselves.
Gemm's alpha and beta go into weight and bias. Two operations of a kind with constants become one:
(x + c) + d -> x + (c + d), (x * c) * d -> x * (c * d).

Weights that ConstantOfShape generates stay generated: one number is scaled as such; where the factors differ
by channel, the graph multiplies the generated weight by them (runtimes do that once, at load), if two nodes
or more are removed for it.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import ClassVar

import numpy as np
import onnx_ir as ir
from pydantic.dataclasses import dataclass

from ...core import Change, Context, LosslessPass
from ...graph import edit, query
from ...numerics.linear.affine_maps import AffineMap, Array, stored
from ..rewriting import Refusal, Rewrite, RewriteContext, Rule, rewrite
from .affine_fusion import CannotFuseError, Chain, apply_fusion, freed_bytes, plan_fusion
from .affine_view import AffineLayer, ChannelAxis, parameter, read_layer, read_map


@dataclass(frozen=True, kw_only=True)
class FuseAffine(LosslessPass):
    """Merges BatchNormalization, Mul, Add, Sub, Div by constants into the Conv, Gemm or MatMul beside."""

    name: ClassVar[str] = "fuse-affine"

    def run(self, model: ir.Model, context: Context) -> list[Change]:
        """Rewrite every graph of the model but local functions, which can't hold weights."""
        layers = ("Conv", "ConvTranspose", "Gemm", "MatMul", "BatchNormalization")
        rules: dict[str, Sequence[Rule]] = {
            **dict.fromkeys(layers, (_merge_into_layer,)),
            **dict.fromkeys(("Add", "Sub", "Mul", "Div"), (_merge_pair,)),
        }
        return rewrite(model, context, self.name, rules)


def _merge_into_layer(node: ir.Node, ctx: RewriteContext) -> Rewrite | Refusal | None:
    layer = read_layer(node, ctx)
    if layer is None:
        return None
    after, before, nothing = _chain_after(layer, ctx), _chain_before(layer, ctx), Chain()
    fault = ""
    for head, tail in ((before, after), (nothing, after), (before, nothing)):
        try:
            plan = plan_fusion(layer, head, tail, ctx)
        except CannotFuseError as refused:
            fault = fault or str(refused)
            continue
        if plan is not None:
            names = ", ".join(query.label(n) for n in plan.merged) or "alpha and beta"
            return Rewrite(
                target=query.label(node),
                reason=f"{names} merged into the weight",
                apply=partial(apply_fusion, plan, ctx),
                bytes_before=plan.bytes_before,
                bytes_after=plan.bytes_after,
            )
    reason = fault or after.stop or before.stop
    return Refusal(target=query.label(node), reason=reason) if reason else None


def _chain_after(layer: AffineLayer, ctx: RewriteContext) -> Chain:
    chain, value = Chain(entry=layer.node.outputs[0]), layer.node.outputs[0]
    while True:
        node = query.sole_consumer(value)
        if node is None:
            return chain.stopped(_other_readers(value, layer.outgoing, ctx))
        if node.graph is not layer.node.graph:
            return chain
        found = read_map(node, value, layer.outgoing, ctx)
        if not isinstance(found, AffineMap):
            return chain.stopped(f"{query.label(node)} stays: {found}" if found else "")
        chain = Chain((*chain.nodes, node), chain.map.then(found), chain.entry)
        value = node.outputs[0]


def _other_readers(value: ir.Value, line: ChannelAxis, ctx: RewriteContext) -> str:
    """Return why the affine nodes that read a value, if any, can't be merged into the layer that computes it."""
    readers = [use.node for use in value.uses()]
    near = next((n for n in readers if isinstance(read_map(n, value, line, ctx), AffineMap)), None)
    if near is None:
        return ""
    also = "a graph output too" if value.is_graph_output() else f"read by {len(readers)} inputs"
    return f"{query.label(near)} stays: {value.name} between them is {also}"


def _chain_before(layer: AffineLayer, ctx: RewriteContext) -> Chain:
    line, value = layer.incoming, layer.data
    chain = Chain(entry=value)
    if line is None or value is None or (len(value.uses()) > 1 and value.producer() is None):
        return chain
    while True:
        node = value.producer()
        data = None if node is None else _data_input(node, ctx)
        if node is None or data is None or node.graph is not layer.node.graph:
            return chain
        found = read_map(node, data, line, ctx)
        if not isinstance(found, AffineMap):
            return chain.stopped(f"{query.label(node)} stays: {found}" if found else "")
        if query.sole_consumer(value) is None:
            return chain.stopped(f"{query.label(node)} stays: {value.name} has other readers")
        dims = ctx.shapes.shape(data)
        if max(found.scale.size, found.shift.size) > 1 and (dims is None or dims[line.axis] != line.channels):
            return chain.stopped(f"{query.label(node)} stays: the channels of {data.name} are not known")
        if _ends_a_fusion(data):
            return chain.stopped(f"{query.label(node)} stays: onnxruntime fuses it with what is before it")
        chain = Chain((node, *chain.nodes), found.then(chain.map), data)
        value = data


def _data_input(node: ir.Node, ctx: RewriteContext) -> ir.Value | None:
    """Return the one input of an affine node that is not constant."""
    if query.is_op(node, "BatchNormalization", "Neg"):
        return node.inputs[0]
    data = [v for v in node.inputs if v is not None and parameter(v, ctx) is None]
    return data[0] if len(data) == 1 else None


def _ends_a_fusion(value: ir.Value) -> bool:
    """Say whether a normalisation or activation that is spelled out may end in a scale of this value.

    Those are x / sqrt(..) with its scale and bias, and x * (1 + erf(..)) or x * (1 + tanh(..)) with its half.
    """
    node = value.producer()
    if node is None or not query.is_op(node, "Div", "Mul", "Add"):
        return False
    near = [node, *(p for v in node.inputs if v is not None and (p := v.producer()) is not None)]
    near += [p for n in near[1:] for v in n.inputs if v is not None and (p := v.producer()) is not None]
    return any(query.is_op(n, "Sqrt", "Erf", "Tanh", "Reciprocal") for n in near)


def _merge_pair(node: ir.Node, ctx: RewriteContext) -> Rewrite | None:
    """Merge two sums or two products with constants, where the constant that comes out is no larger."""
    last = _with_constant(node, ctx)
    before = None if last is None else last[0].producer()
    if last is None or before is None or before.graph is not node.graph or query.sole_consumer(last[0]) is not node:
        return None
    first = _with_constant(before, ctx)
    if first is None or (first[2] is np.add) != (last[2] is np.add) or _ends_a_fusion(first[0]):
        return None
    (data, one, *_), (_, two, combine, dtype) = first, last
    if np.broadcast_shapes(one.shape, two.shape) not in (one.shape, two.shape):
        return None
    together = stored(combine(one, two), dtype)
    if together is None:
        return None

    def apply() -> None:
        kind = "Add" if combine is np.add else "Mul"
        constant = ctx.add_constant(node, f"{before.outputs[0].name}_constant", together)
        edit.take_over(node.outputs[0], edit.insert_before(node, ctx.names, kind, [data, constant]).outputs[0])

    return Rewrite(
        target=query.label(node),
        reason=f"merged with {query.label(before)}: one constant is enough",
        apply=apply,
        bytes_before=freed_bytes((before, node)),
        bytes_after=together.nbytes,
    )


_Combine = Callable[[Array, Array], Array]


def _with_constant(node: ir.Node, ctx: RewriteContext) -> tuple[ir.Value, Array, _Combine, np.dtype[np.generic]] | None:
    """Return (x, c, how two such c combine, type) of a node x + c or x * c; None for all others."""
    if not query.is_op(node, "Add", "Sub", "Mul", "Div") or node.attributes:
        return None
    data = _data_input(node, ctx)
    ports = 0 if data is node.inputs[0] else 1
    given = parameter(node.inputs[1 - ports], ctx)
    if data is None or given is None or given.fill is not None or (ports and query.is_op(node, "Sub", "Div")):
        return None
    exact = given.read().astype(np.float64)
    if node.op_type == "Div":
        if (exact == 0).any():
            return None
        exact = 1.0 / exact
    sign = -1.0 if node.op_type == "Sub" else 1.0
    combine = np.add if node.op_type in ("Add", "Sub") else np.multiply
    return data, sign * exact, combine, given.dtype.numpy()
