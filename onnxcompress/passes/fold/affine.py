"""Affine maps per channel go into the linear operator beside them.

    W x + b, then s y + t          ->  (s W) x + (s b + t)          what follows a layer
    s x + t, then W x + b          ->  (W s) x + (b + W t)          what comes before it; t: no padding
    s x + t, then padded W x + b   ->  x + t / s, then (W s) x + b  two nodes and more become one

Maps are BatchNormalization with fixed statistics, Mul, Add, Sub, Div by a constant, Neg, and their chains.
Layers are Conv, ConvTranspose, Gemm, MatMul with a constant weight, and BatchNormalization itself (for what
follows it). A MatMul has no bias: the shift stays behind as one Add, which runtimes fuse themselves.
Gemm's alpha and beta go into weight and bias. Two operations of a kind with constants become one:
(x + c) + d -> x + (c + d), (x * c) * d -> x * (c * d).

Weights that ConstantOfShape generates stay generated: one number is scaled as such; where the factors differ
by channel, the graph multiplies the generated weight by them (runtimes do that once, at load), if two nodes
or more go for it.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass as plain
from functools import partial
from typing import ClassVar

import numpy as np
import onnx_ir as ir
from pydantic.dataclasses import dataclass

from ...core import Change, Context, Need
from ...graph import edit, query
from ...numerics.linear.affine_maps import AffineMap, Array, grouped, respond_grouped, scaled, stored
from ..rewriting import Refusal, Rewrite, RewriteContext, Rule, outside, rewrite
from .affine_view import AffineLayer, ChannelAxis, Parameter, parameter, read_layer, read_map

NODE_BYTES = 128
"""What a node takes in a file, about: a rewrite may add so many bytes of weights per node it takes out."""

_IDENTITY = AffineMap.of()


@dataclass(frozen=True, kw_only=True)
class FuseAffine:
    """Merges BatchNormalization, Mul, Add, Sub, Div by constants into the Conv, Gemm or MatMul beside."""

    name: ClassVar[str] = "fuse-affine"
    lossless: ClassVar[bool] = True
    needs: ClassVar[frozenset[Need]] = frozenset()

    def run(self, model: ir.Model, context: Context) -> list[Change]:
        """Rewrite every graph of the model but local functions, which can't hold weights."""
        inside = {id(graph) for graph in query.function_graphs(model)}
        layers = outside(inside, _merge_into_layer)
        pairs = outside(inside, _merge_pair)
        kinds = ("Conv", "ConvTranspose", "Gemm", "MatMul", "BatchNormalization")
        rules: dict[str, Sequence[Rule]] = {
            **dict.fromkeys(kinds, (layers,)),
            **dict.fromkeys(("Add", "Sub", "Mul", "Div"), (pairs,)),
        }
        return rewrite(model, context, self.name, rules)


@plain(frozen=True)
class Chain:
    """Affine nodes in the order in which data runs through them, and the map that they make together."""

    nodes: tuple[ir.Node, ...] = ()
    map: AffineMap = _IDENTITY
    entry: ir.Value | None = None
    """What the first node reads."""
    stop: str = ""
    """Why the next node is not part of it, where that is worth telling."""


@plain(frozen=True)
class Fusion:
    """What a layer and its neighbours become."""

    layer: AffineLayer
    before: Chain
    after: Chain
    weight: np.ndarray | None
    """The new weight, None where it stays; of a generated one the number, or the factors that multiply it."""
    bias: np.ndarray | None
    """The new bias, None where it stays as it is."""
    left_before: np.ndarray | None = None
    """A shift that stays behind in front of the layer."""
    left_after: np.ndarray | None = None
    """A shift that stays behind after the layer."""


def _merge_into_layer(node: ir.Node, scene: RewriteContext) -> Rewrite | Refusal | None:
    layer = read_layer(node, scene)
    if layer is None:
        return None
    after, before, nothing = _chain_after(layer, scene), _chain_before(layer, scene), Chain()
    fault = ""
    for head, tail in ((before, after), (nothing, after), (before, nothing)):
        plan = _plan(layer, head, tail, scene)
        if isinstance(plan, Fusion):
            gone = head.nodes + tail.nodes
            took, adds = _bytes(plan)
            names = ", ".join(query.label(n) for n in gone) or "alpha and beta"
            return Rewrite(
                target=query.label(node),
                reason=f"{names} merged into the weight",
                apply=partial(_apply, plan, scene),
                bytes_before=took,
                bytes_after=adds,
            )
        fault = fault or plan
    stopped = fault or after.stop or before.stop
    return Refusal(target=query.label(node), reason=stopped) if stopped else None


def _chain_after(layer: AffineLayer, scene: RewriteContext) -> Chain:
    chain, value = Chain(entry=layer.node.outputs[0]), layer.node.outputs[0]
    while True:
        node = query.sole_consumer(value)
        if node is None:
            return _stopped(chain, _other_readers(value, layer.outgoing, scene))
        if node.graph is not layer.node.graph:
            return chain
        found = read_map(node, value, layer.outgoing, scene)
        if not isinstance(found, AffineMap):
            return _stopped(chain, f"{query.label(node)} stays: {found}" if found else "")
        chain = Chain((*chain.nodes, node), chain.map.then(found), chain.entry)
        value = node.outputs[0]


def _other_readers(value: ir.Value, line: ChannelAxis, scene: RewriteContext) -> str:
    """Return why the affine nodes that read a value, if any, can't go into the layer that made it."""
    readers = [use.node for use in value.uses()]
    near = next((n for n in readers if isinstance(read_map(n, value, line, scene), AffineMap)), None)
    if near is None:
        return ""
    also = "a graph output too" if value.is_graph_output() else f"read by {len(readers)} inputs"
    return f"{query.label(near)} stays: {value.name} between them is {also}"


def _chain_before(layer: AffineLayer, scene: RewriteContext) -> Chain:
    line, value = layer.incoming, layer.data
    chain = Chain(entry=value)
    if line is None or value is None or (len(value.uses()) > 1 and value.producer() is None):
        return chain
    while True:
        node = value.producer()
        data = None if node is None else _data_input(node, scene)
        if node is None or data is None or node.graph is not layer.node.graph:
            return chain
        found = read_map(node, data, line, scene)
        if not isinstance(found, AffineMap):
            return _stopped(chain, f"{query.label(node)} stays: {found}" if found else "")
        if query.sole_consumer(value) is None:
            return _stopped(chain, f"{query.label(node)} stays: {value.name} has other readers")
        dims = scene.shapes.shape(data)
        if max(found.scale.size, found.shift.size) > 1 and (dims is None or dims[line.axis] != line.channels):
            return _stopped(chain, f"{query.label(node)} stays: the channels of {data.name} are not known")
        if _ends_a_fusion(data):
            return _stopped(chain, f"{query.label(node)} stays: onnxruntime fuses it with what is before it")
        chain = Chain((node, *chain.nodes), found.then(chain.map), data)
        value = data


def _data_input(node: ir.Node, scene: RewriteContext) -> ir.Value | None:
    """Return the one input of an affine node that is not constant."""
    if query.is_op(node, "BatchNormalization", "Neg"):
        return node.inputs[0]
    data = [v for v in node.inputs if v is not None and parameter(v, scene) is None]
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


def _stopped(chain: Chain, reason: str) -> Chain:
    return Chain(chain.nodes, chain.map, chain.entry, reason)


def _plan(layer: AffineLayer, before: Chain, after: Chain, scene: RewriteContext) -> Fusion | str:
    """Return what the layer becomes when the chains go into it, or why not ("": nothing to do)."""
    own = AffineMap.of(scale=layer.alpha)
    if not before.nodes and not after.nodes and layer.alpha == layer.beta == 1.0:
        return ""
    if not (before.map.finite and after.map.finite):
        return "the constants together are not finite"
    left_before: Array | None = None
    head, tail = before.map, after.map
    if head.shifts and layer.shift_fault:
        movable = len(before.nodes) > 1 and (head.scale != 0).all()
        if not movable:
            return f"{query.label(before.nodes[0])} stays: {layer.shift_fault}"
        left_before, head = head.shift / head.scale, AffineMap(head.scale, np.zeros(1))
    factors = _factors(layer, head.scale, tail.scale * own.scale)
    if isinstance(factors, str):
        return factors
    new_bias = _new_bias(layer, head.shift, tail, scene)
    if isinstance(new_bias, str):
        return new_bias
    left_after = new_bias if layer.bias_port is None else None
    multiplied = layer.weight.fill is not None and factors is not None and factors.size > 1
    stay = (left_before is not None) + (left_after is not None) + multiplied
    gone = len(before.nodes) + len(after.nodes)
    to_add = (
        not multiplied
        and gone == stay == 1
        and any(n.op_type == "BatchNormalization" for n in before.nodes + after.nodes)
    )
    if gone and stay >= gone and not to_add:
        return "its weight is generated from one number, and would have to be stored" if multiplied else ""
    fault = _budget_fault(layer, before, after, changes=factors is not None, bias=new_bias)
    if fault:
        return fault
    dtype = layer.weight.dtype.numpy()
    weight = layer.weight.read() if factors is not None and not multiplied else None
    if weight is not None and factors is not None:
        weight = scaled(weight, factors, axis=layer.out_axis)
    elif factors is not None:
        weight = stored(factors, dtype)
    if factors is not None and weight is None:
        return f"the weight does not fit {layer.weight.dtype.name.lower()} any more"
    rounded: dict[str, np.ndarray | None] = {}
    for kind, exact in (("bias", new_bias), ("shift", left_before)):
        rounded[kind] = None if exact is None else stored(exact, dtype)
        if exact is not None and rounded[kind] is None:
            return f"the {kind} does not fit {layer.weight.dtype.name.lower()}"
    in_rank = layer.incoming.axis if layer.incoming is not None else -1
    return Fusion(
        layer,
        before,
        after,
        weight,
        None if layer.bias_port is None else rounded["bias"],
        _lined_up(rounded["shift"], in_rank),
        None if layer.bias_port is not None else _lined_up(rounded["bias"], layer.outgoing.axis),
    )


def _lined_up(vector: np.ndarray | None, axis: int) -> np.ndarray | None:
    """Return a vector shaped to broadcast along an axis counted from the end; one number has no axis."""
    if vector is None:
        return None
    return vector.reshape(()) if vector.size == 1 else vector.reshape(-1, *(1,) * (-1 - axis))


def _factors(layer: AffineLayer, incoming: Array, outgoing: Array) -> Array | str | None:
    """Return what the weight is multiplied by, None for all ones, or why a generated weight can't be."""
    if (incoming == 1).all() and (outgoing == 1).all():
        return None
    shape = layer.weight.shape
    if layer.weight.fill is not None and not np.ptp(incoming) and not np.ptp(outgoing):
        return (incoming[:1] * outgoing[:1]).reshape((1,) * len(shape))
    by_in = grouped(incoming, shape, block_axis=0, channel_axis=layer.in_axis, groups=layer.in_groups)
    by_out = grouped(outgoing, shape, block_axis=0, channel_axis=layer.out_axis, groups=layer.out_groups)
    return by_in * by_out


def _new_bias(layer: AffineLayer, moved: Array, tail: AffineMap, scene: RewriteContext) -> Array | str | None:
    """Return the bias s (beta b + alpha W t) + t', None where it stays what it is or absent, or a reason."""
    old = layer.bias
    changes = tail.scales or tail.shifts or moved.any() or (old is not None and layer.beta != 1.0)
    if not changes or (old is None and not moved.any() and not tail.shifts):
        return None
    exact = np.zeros(1)
    if old is not None:
        given = parameter(old, scene)
        if given is None:
            return "its bias is not constant"
        if len(given.shape) > 1 or given.shape not in ((), (1,), (layer.outgoing.channels,)):
            return f"its bias {list(given.shape)} is not one number per channel"
        exact = layer.beta * given.read().astype(np.float64).reshape(-1)
    if moved.any():
        if layer.weight.fill is not None:
            return "its weight is generated from one number, and the shift before it is not"
        if not np.isfinite(moved).all():
            return "the shift is not finite"
        weight = layer.weight.read()
        lined = weight if layer.in_axis == 1 else np.moveaxis(weight, layer.in_axis, 1)
        exact = exact + layer.alpha * respond_grouped(lined, moved, groups=layer.in_groups)
    exact = tail.scale * exact + tail.shift
    if layer.bias_port is None:
        return exact if exact.any() else None
    return np.broadcast_to(exact, (layer.outgoing.channels or 1,))


def _budget_fault(layer: AffineLayer, before: Chain, after: Chain, *, changes: bool, bias: Array | None) -> str:
    """Return why the file would grow too much ("" where it does not)."""
    gone = before.nodes + after.nodes
    freed = _freed(gone)
    item = layer.weight.dtype.itemsize
    added = 0.0
    if changes and layer.weight.fill is None and not _owned(layer.weight.value):
        added += layer.weight.nbytes
    if bias is not None and not (np.ptp(bias) == 0 and layer.weight.fill is not None):
        old = layer.bias
        added += bias.size * item - (0 if old is None or not _owned(old) else query.tensor_bytes([old]))
    allowed = freed + NODE_BYTES * max(1, len(gone)) + layer.weight.nbytes // 100
    if added <= allowed:
        return ""
    shared = ": its weight has other readers" if added >= layer.weight.nbytes else ""
    return f"the file would grow by {int(added - freed):,} bytes{shared}"


def _owned(value: ir.Value) -> bool:
    """Say whether only one port reads a value."""
    return len(value.uses()) == 1 and not value.is_graph_output()


def _freed(gone: Sequence[ir.Node]) -> int:
    """Return the bytes of the constants that only these nodes read; single numbers don't count."""
    inputs = {v for n in gone for v in n.inputs if v is not None}
    inputs = {v for v in inputs if (t := query.constant_tensor(v)) is not None and t.size > 1}
    return query.tensor_bytes(v for v in inputs if not v.is_graph_output() and all(u.node in gone for u in v.uses()))


def _bytes(plan: Fusion) -> tuple[int, int]:
    old = [plan.layer.weight.value] if plan.weight is not None else []
    old += [plan.layer.bias] if plan.bias is not None and plan.layer.bias is not None else []
    took = _freed(plan.before.nodes + plan.after.nodes) + query.tensor_bytes(old)
    news = (plan.weight, plan.bias, plan.left_before, plan.left_after)
    return took, sum(a.nbytes for a in news if a is not None)


def _apply(plan: Fusion, scene: RewriteContext) -> None:
    layer, node = plan.layer, plan.layer.node
    bias = layer.bias
    if plan.weight is not None and layer.weight.fill is not None and plan.weight.size > 1:
        factors = edit.add_initializer(query.home(node), scene.names, f"{layer.weight.value.name}_factors", plan.weight)
        product = edit.insert_before(node, scene.names, "Mul", [layer.weight.value, factors])
        _replace_input(node, layer.weight_port, product.outputs[0])
    elif plan.weight is not None:
        _put(layer.weight, plan.weight, node, layer.weight_port, scene)
    if plan.bias is not None and layer.bias_port is not None:
        if len(node.inputs) <= layer.bias_port:
            node.resize_inputs(layer.bias_port + 1)
        given = parameter(bias, scene)
        generated = layer.weight.fill is not None and np.ptp(plan.bias) == 0
        if given is None or generated:
            fresh = _new_constant(plan.bias, f"{layer.weight.value.name}_bias", node, scene, generated=generated)
            _replace_input(node, layer.bias_port, fresh)
        else:
            _put(given, plan.bias, node, layer.bias_port, scene)
    node.attributes.pop("alpha", None)
    node.attributes.pop("beta", None)
    if plan.before.nodes and plan.before.entry is not None:
        entry = plan.before.entry
        if plan.left_before is not None:
            entry = _add(entry, plan.left_before, node, scene)
        _replace_input(node, layer.data_port, entry)
    last = plan.after.nodes[-1].outputs[0] if plan.after.nodes else node.outputs[0]
    if plan.left_after is not None:
        made = node.outputs[0] if plan.after.nodes else edit.copy_before(node, scene.names).outputs[0]
        anchor = plan.after.nodes[0] if plan.after.nodes else node
        edit.take_over(last, _add(made, plan.left_after, anchor, scene))
    elif plan.after.nodes:
        edit.take_over(last, node.outputs[0])


def _add(value: ir.Value, shift: np.ndarray, anchor: ir.Node, scene: RewriteContext) -> ir.Value:
    constant = edit.add_initializer(query.home(anchor), scene.names, f"{value.name}_shift", shift)
    return edit.insert_before(anchor, scene.names, "Add", [value, constant]).outputs[0]


def _put(given: Parameter, array: np.ndarray, node: ir.Node, port: int, scene: RewriteContext) -> None:
    """Give one port of a node new data; other readers of the old keep it."""
    value = given.value
    if given.fill is None and value.is_initializer() and _owned(value):
        edit.set_weight(value, array)
        return
    full = np.broadcast_to(array, given.shape) if given.fill is not None else array
    made = _new_constant(full, value.name or query.label(node), node, scene, generated=given.fill is not None)
    _replace_input(node, port, made)


def _new_constant(array: np.ndarray, hint: str, node: ir.Node, scene: RewriteContext, *, generated: bool) -> ir.Value:
    """Return a new constant for `node`; a generated one holds its first number everywhere."""
    home = query.home(node)
    if not generated:
        return edit.add_initializer(home, scene.names, hint, array)
    shape = edit.add_initializer(home, scene.names, f"{hint}_shape", np.array(array.shape, dtype=np.int64))
    fill = ir.tensor(array.reshape(-1)[:1].copy())
    maker = edit.insert_before(
        node, scene.names, "ConstantOfShape", [shape], attributes={"value": fill}, hint=f"{hint}_filled"
    )
    return maker.outputs[0]


def _replace_input(node: ir.Node, port: int, new: ir.Value) -> None:
    """Let a port read another value; what nobody reads any more goes."""
    old = node.inputs[port]
    node.replace_input_with(port, new)
    if old is not None:
        edit.remove_unread(old)


def _merge_pair(node: ir.Node, scene: RewriteContext) -> Rewrite | None:
    """Merge two sums or two products with constants, where the constant that comes out is no larger."""
    last = _with_constant(node, scene)
    before = None if last is None else last[0].producer()
    if last is None or before is None or before.graph is not node.graph or query.sole_consumer(last[0]) is not node:
        return None
    first = _with_constant(before, scene)
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
        constant = edit.add_initializer(query.home(node), scene.names, f"{before.outputs[0].name}_constant", together)
        edit.take_over(node.outputs[0], edit.insert_before(node, scene.names, kind, [data, constant]).outputs[0])

    return Rewrite(
        target=query.label(node),
        reason=f"merged with {query.label(before)}: one constant is enough",
        apply=apply,
        bytes_before=_freed((before, node)),
        bytes_after=together.nbytes,
    )


_Combine = Callable[[Array, Array], Array]


def _with_constant(
    node: ir.Node, scene: RewriteContext
) -> tuple[ir.Value, Array, _Combine, np.dtype[np.generic]] | None:
    """Return (x, c, how two such c combine, type) of a node x + c or x * c; None for all others."""
    if not query.is_op(node, "Add", "Sub", "Mul", "Div") or node.attributes:
        return None
    data = _data_input(node, scene)
    ports = 0 if data is node.inputs[0] else 1
    given = parameter(node.inputs[1 - ports], scene)
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
