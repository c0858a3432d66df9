"""Merge chains of affine nodes into the weight and bias of a linear layer: the decision, and the edit.

`plan_fusion` computes the exact terms in float64, asks whether they pay, and rounds them once; `apply_fusion` writes
what it decided.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import onnx_ir as ir

from ...graph import edit, query
from ...numerics.linear.affine_maps import AffineMap, Array, grouped, respond_grouped, scaled, stored
from ..rewriting import RewriteContext
from .affine_view import AffineLayer, Parameter, parameter

NODE_BYTES = 128
"""Bytes of a node in a file, about: a rewrite may add so many bytes of weights per node that it removes. Chosen by
judgement; not measured."""

_IDENTITY = AffineMap.of()


@dataclass(frozen=True)
class Chain:
    """Affine nodes in the order in which data runs through them, and the map that they make together."""

    nodes: tuple[ir.Node, ...] = ()
    map: AffineMap = _IDENTITY
    entry: ir.Value | None = None
    """Input of the first node."""
    stop: str = ""
    """Reason why the next node is not part of it, "" where there is none to report."""

    def stopped(self, reason: str) -> Chain:
        """Return the chain with the reason why it ends."""
        return replace(self, stop=reason)


class CannotFuseError(Exception):
    """A fusion that is not made, for the reason that the exception holds."""


@dataclass(frozen=True)
class Fusion:
    """New parameters of a layer that takes in the chains before and after it."""

    layer: AffineLayer
    before: Chain
    after: Chain
    weight: np.ndarray | None
    """The new weight, None where it is kept; of a generated one the number, or the factors that multiply it."""
    bias: np.ndarray | None
    """The new bias, None where it is kept."""
    left_before: np.ndarray | None = None
    """Shift that remains as an Add before the layer."""
    left_after: np.ndarray | None = None
    """Shift that remains as an Add after the layer."""

    @property
    def merged(self) -> tuple[ir.Node, ...]:
        """The nodes that are removed."""
        return self.before.nodes + self.after.nodes

    @property
    def bytes_before(self) -> int:
        """Bytes of the constants that are removed or replaced."""
        old = [self.layer.weight.value] if self.weight is not None else []
        old += [self.layer.bias] if self.bias is not None and self.layer.bias is not None else []
        return freed_bytes(self.merged) + query.tensor_bytes(old)

    @property
    def bytes_after(self) -> int:
        """Bytes of the new constants."""
        news = (self.weight, self.bias, self.left_before, self.left_after)
        return sum(array.nbytes for array in news if array is not None)


@dataclass(frozen=True)
class _Terms:
    """Terms of a fusion in float64, each None where nothing changes."""

    factors: Array | None
    """Multiply the weight."""
    bias: Array | None
    """The new bias; where the layer holds none, the shift after it."""
    left_before: Array | None
    scales_generated: bool
    """True where the graph multiplies a generated weight by the factors."""


def plan_fusion(layer: AffineLayer, before: Chain, after: Chain, ctx: RewriteContext) -> Fusion | None:
    """Return the layer with the chains merged into it, None where nothing would be gained.

    Raises:
        CannotFuseError: it can't be done, or the file would grow.
    """
    if not before.nodes and not after.nodes and layer.alpha == layer.beta == 1.0:
        return None
    terms = _terms(layer, before, after, ctx)
    if not _removes_nodes(layer, before, after, terms):
        if terms.scales_generated:
            raise CannotFuseError("its weight is generated from one number, and would have to be stored")
        return None
    _check_growth(layer, before.nodes + after.nodes, terms)
    return _rounded(layer, before, after, terms)


def _terms(layer: AffineLayer, before: Chain, after: Chain, ctx: RewriteContext) -> _Terms:
    head, tail = before.map, after.map
    if not (head.finite and tail.finite):
        raise CannotFuseError("the constants together are not finite")
    left_before: Array | None = None
    if head.shifts and layer.shift_fault:
        if len(before.nodes) < 2 or not (head.scale != 0).all():
            raise CannotFuseError(f"{query.label(before.nodes[0])} stays: {layer.shift_fault}")
        left_before, head = head.shift / head.scale, AffineMap(head.scale, np.zeros(1))
    factors = _factors(layer, head.scale, tail.scale * layer.alpha)
    return _Terms(
        factors=factors,
        bias=_new_bias(layer, head.shift, tail, ctx),
        left_before=left_before,
        scales_generated=layer.weight.fill is not None and factors is not None and factors.size > 1,
    )


def _removes_nodes(layer: AffineLayer, before: Chain, after: Chain, terms: _Terms) -> bool:
    """Say whether fewer nodes remain, or an Add for a BatchNormalization, or nothing but alpha and beta is merged."""
    merged = before.nodes + after.nodes
    left_after = terms.bias is not None and layer.bias_port is None
    remaining = (terms.left_before is not None) + left_after + terms.scales_generated
    becomes_add = len(merged) == remaining == 1 and any(n.op_type == "BatchNormalization" for n in merged)
    return not merged or remaining < len(merged) or (becomes_add and not terms.scales_generated)


def _rounded(layer: AffineLayer, before: Chain, after: Chain, terms: _Terms) -> Fusion:
    dtype, type_name = layer.weight.dtype.numpy(), layer.weight.dtype.name.lower()
    weight: np.ndarray | None = None
    if terms.factors is not None:
        if terms.scales_generated:
            weight = stored(terms.factors, dtype)
        else:
            weight = scaled(layer.weight.read(), terms.factors, axis=layer.out_axis)
        if weight is None:
            raise CannotFuseError(f"the weight does not fit {type_name} any more")
    rounded: dict[str, np.ndarray | None] = {}
    for kind, exact in (("bias", terms.bias), ("shift", terms.left_before)):
        rounded[kind] = None if exact is None else stored(exact, dtype)
        if exact is not None and rounded[kind] is None:
            raise CannotFuseError(f"the {kind} does not fit {type_name}")
    in_axis = layer.incoming.axis if layer.incoming is not None else -1
    has_bias = layer.bias_port is not None
    return Fusion(
        layer,
        before,
        after,
        weight,
        rounded["bias"] if has_bias else None,
        _along_axis(rounded["shift"], in_axis),
        None if has_bias else _along_axis(rounded["bias"], layer.outgoing.axis),
    )


def _along_axis(vector: np.ndarray | None, axis: int) -> np.ndarray | None:
    """Return a vector shaped to broadcast along an axis counted from the end; one number has no axis."""
    if vector is None:
        return None
    return vector.reshape(()) if vector.size == 1 else vector.reshape(-1, *(1,) * (-1 - axis))


def _factors(layer: AffineLayer, incoming: Array, outgoing: Array) -> Array | None:
    """Return the factors of the weight, None for all ones."""
    if (incoming == 1).all() and (outgoing == 1).all():
        return None
    shape = layer.weight.shape
    if layer.weight.fill is not None and not np.ptp(incoming) and not np.ptp(outgoing):
        return (incoming[:1] * outgoing[:1]).reshape((1,) * len(shape))
    by_in = grouped(incoming, shape, block_axis=0, channel_axis=layer.in_axis, groups=layer.in_groups)
    by_out = grouped(outgoing, shape, block_axis=0, channel_axis=layer.out_axis, groups=layer.out_groups)
    return by_in * by_out


def _new_bias(layer: AffineLayer, moved: Array, tail: AffineMap, ctx: RewriteContext) -> Array | None:
    """Return the bias s (beta b + alpha W t) + t', None where it is kept or absent."""
    old = layer.bias
    changes = tail.scales or tail.shifts or moved.any() or (old is not None and layer.beta != 1.0)
    if not changes or (old is None and not moved.any() and not tail.shifts):
        return None
    exact = np.zeros(1) if old is None else layer.beta * _bias_vector(layer, old, ctx)
    if moved.any():
        if layer.weight.fill is not None:
            raise CannotFuseError("its weight is generated from one number, and the shift before it is not")
        if not np.isfinite(moved).all():
            raise CannotFuseError("the shift is not finite")
        weight = layer.weight.read()
        lined = weight if layer.in_axis == 1 else np.moveaxis(weight, layer.in_axis, 1)
        exact = exact + layer.alpha * respond_grouped(lined, moved, groups=layer.in_groups)
    exact = tail.scale * exact + tail.shift
    if layer.bias_port is None:
        return exact if exact.any() else None
    return np.broadcast_to(exact, (layer.outgoing.channels or 1,))


def _bias_vector(layer: AffineLayer, bias: ir.Value, ctx: RewriteContext) -> Array:
    given = parameter(bias, ctx)
    if given is None:
        raise CannotFuseError("its bias is not constant")
    if len(given.shape) > 1 or given.shape not in ((), (1,), (layer.outgoing.channels,)):
        raise CannotFuseError(f"its bias {list(given.shape)} is not one number per channel")
    return given.read().astype(np.float64).reshape(-1)


def _check_growth(layer: AffineLayer, merged: Sequence[ir.Node], terms: _Terms) -> None:
    """Refuse where the file would grow by more than the removed nodes take and 1% of the weight."""
    freed, weight, bias = freed_bytes(merged), layer.weight, terms.bias
    added = (
        weight.nbytes
        if terms.factors is not None and weight.fill is None and query.sole_consumer(weight.value) is None
        else 0
    )
    if bias is not None and not (np.ptp(bias) == 0 and weight.fill is not None):
        old = layer.bias
        replaced = 0 if old is None or query.sole_consumer(old) is None else query.tensor_bytes([old])
        added += int(bias.size * weight.dtype.itemsize) - replaced
    if added > freed + NODE_BYTES * max(1, len(merged)) + weight.nbytes // 100:
        shared = ": its weight has other readers" if added >= weight.nbytes else ""
        raise CannotFuseError(f"the file would grow by {added - freed:,} bytes{shared}")


def freed_bytes(removed: Sequence[ir.Node]) -> int:
    """Return the bytes of the constants that only these nodes read; single numbers don't count."""
    inputs = {v for n in removed for v in n.inputs if v is not None}
    inputs = {v for v in inputs if (t := query.constant_tensor(v)) is not None and t.size > 1}
    return query.tensor_bytes(v for v in inputs if not v.is_graph_output() and all(u.node in removed for u in v.uses()))


def apply_fusion(plan: Fusion, ctx: RewriteContext) -> None:
    """Write the new parameters, connect what is around the chains, and remove their nodes."""
    layer, node = plan.layer, plan.layer.node
    _write_weight(plan, ctx)
    _write_bias(plan, ctx)
    node.attributes.pop("alpha", None)
    node.attributes.pop("beta", None)
    if plan.before.nodes and plan.before.entry is not None:
        entry = plan.before.entry
        if plan.left_before is not None:
            entry = _add(entry, plan.left_before, node, ctx)
        _replace_input(node, layer.data_port, entry)
    last = plan.after.nodes[-1].outputs[0] if plan.after.nodes else node.outputs[0]
    if plan.left_after is not None:
        source = node.outputs[0] if plan.after.nodes else edit.copy_before(node, ctx.names).outputs[0]
        if plan.after.nodes and plan.weight is not None:  # another value now: names stand for values in the proof
            source.name = ctx.names.fresh(f"{source.name}_scaled")
        anchor = plan.after.nodes[0] if plan.after.nodes else node
        edit.take_over(last, _add(source, plan.left_after, anchor, ctx))
    elif plan.after.nodes:
        edit.take_over(last, node.outputs[0])


def _write_weight(plan: Fusion, ctx: RewriteContext) -> None:
    layer, node, weight = plan.layer, plan.layer.node, plan.weight
    if weight is None:
        return
    if layer.weight.fill is not None and weight.size > 1:
        factors = ctx.add_constant(node, f"{layer.weight.value.name}_factors", weight)
        product = edit.insert_before(node, ctx.names, "Mul", [layer.weight.value, factors])
        _replace_input(node, layer.weight_port, product.outputs[0])
    else:
        _put(layer.weight, weight, node, layer.weight_port, ctx)


def _write_bias(plan: Fusion, ctx: RewriteContext) -> None:
    layer, node, port = plan.layer, plan.layer.node, plan.layer.bias_port
    given = parameter(layer.bias, ctx)
    if plan.bias is None or port is None:
        return
    if len(node.inputs) <= port:
        node.resize_inputs(port + 1)
    generated = layer.weight.fill is not None and np.ptp(plan.bias) == 0
    if given is None or generated:
        fresh = _new_constant(plan.bias, f"{layer.weight.value.name}_bias", node, ctx, generated=generated)
        _replace_input(node, port, fresh)
    else:
        _put(given, plan.bias, node, port, ctx)


def _add(value: ir.Value, shift: np.ndarray, anchor: ir.Node, ctx: RewriteContext) -> ir.Value:
    constant = ctx.add_constant(anchor, f"{value.name}_shift", shift)
    return edit.insert_before(anchor, ctx.names, "Add", [value, constant]).outputs[0]


def _put(given: Parameter, array: np.ndarray, node: ir.Node, port: int, ctx: RewriteContext) -> None:
    """Give one port of a node new data; other readers of the old keep it."""
    value = given.value
    if given.fill is None and value.is_initializer() and query.sole_consumer(value) is not None:
        edit.set_weight(value, array)
        return
    full = np.broadcast_to(array, given.shape) if given.fill is not None else array
    new = _new_constant(full, value.name or query.label(node), node, ctx, generated=given.fill is not None)
    _replace_input(node, port, new)


def _new_constant(array: np.ndarray, hint: str, node: ir.Node, ctx: RewriteContext, *, generated: bool) -> ir.Value:
    """Return a new constant for `node`; a generated one holds its first number everywhere."""
    if not generated:
        return ctx.add_constant(node, hint, array)
    shape = ctx.add_constant(node, f"{hint}_shape", np.array(array.shape, dtype=np.int64))
    fill = ir.tensor(array.reshape(-1)[:1].copy())
    maker = edit.insert_before(
        node, ctx.names, "ConstantOfShape", [shape], attributes={"value": fill}, hint=f"{hint}_filled"
    )
    return maker.outputs[0]


def _replace_input(node: ir.Node, port: int, new: ir.Value) -> None:
    """Let a port read another value, and remove what nobody reads any more."""
    old = node.inputs[port]
    node.replace_input_with(port, new)
    if old is not None:
        edit.remove_unread(old)
