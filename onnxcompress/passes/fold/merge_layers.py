"""Merge linear layers in a row, or side by side, into one layer where that is exact.

    MatMul, Gemm or 1x1 Conv beside a layer without an activation between   ->  one layer      x W1 W2 -> x (W1 W2)
    Add(Conv(x), Conv(x), scale * x, x)                                     ->  one Conv       as in RepVGG
    Add(MatMul(x), MatMul(x), x)                                            ->  one MatMul
    Conv over all of its input, activation, Flatten                         ->  Flatten, Gemm, activation

In a row they become one only where that has no more numbers, and so no more multiplications. Scales and shifts beside a
layer are `fuse-affine`'s; activations that are nearly linear are `linearize`'s.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import ClassVar

import numpy as np
import onnx_ir as ir
from pydantic.dataclasses import dataclass

from ...core import Change, Context, LosslessPass
from ...graph import edit, query
from ...ops import table as ops
from ...ops.linear import LinearLayer
from ..rewriting import Refusal, Rewrite, RewriteContext, Rule, rewrite
from . import layer_composition
from .affine_view import ChannelAxis, read_map
from .layer_composition import Merged

_SCALES = ("BatchNormalization", "Mul", "Div")


@dataclass(frozen=True, kw_only=True)
class MergeLayers(LosslessPass):
    """Linear layers in a row or side by side become one layer, exactly, where that is no larger."""

    name: ClassVar[str] = "merge-layers"

    def run(self, model: ir.Model, context: Context) -> list[Change]:
        """Look at every layer and every sum, in every graph outside of local functions."""
        rules: dict[str, Sequence[Rule]] = {
            "Conv": (_in_a_row, _whole_extent),
            **dict.fromkeys(("Gemm", "MatMul"), (_in_a_row,)),
            **dict.fromkeys(("Add", "Sum"), (_side_by_side,)),
        }
        return rewrite(model, context, self.name, rules)


def _in_a_row(node: ir.Node, ctx: RewriteContext) -> Rewrite | Refusal | None:
    second = layer_composition.free_layer(node)
    if second is None or query.sole_consumer(second.x) is None:
        return None
    first = layer_composition.layer_of(second.x)
    if first is None or first.node.graph is not node.graph:
        return None
    merged = layer_composition.merge_chain(first, second)
    if isinstance(merged, str):
        return Refusal(target=query.label(node), reason=f"not merged with the layer before: {merged}")
    if merged is None:
        return None
    return Rewrite(
        target=query.label(node),
        reason=f"merged with {query.label(first.node)} before it",
        apply=partial(put_in_a_row, merged, first, ctx.names),
        bytes_before=merged.bytes_before,
        bytes_after=merged.bytes_after,
    )


def put_in_a_row(merged: Merged, first: LinearLayer, names: edit.Names) -> None:
    """Write the merged layer in place of the second one and remove the first."""
    between, x = merged.layer.x, first.x
    layer_composition.write(merged, x, names)
    edit.remove_unread(between)


def _side_by_side(node: ir.Node, ctx: RewriteContext) -> Rewrite | Refusal | None:
    operands = [value for value in node.inputs if value is not None]
    if len(operands) != len(node.inputs) or len(operands) < 2:
        return None
    producers = [
        layer_composition.layer_of(value) if query.sole_consumer(value) is not None else None for value in operands
    ]
    layers = [layer for layer in producers if layer is not None]
    if not layers or any(layer.node.graph is not node.graph for layer in layers):
        return None
    x = layers[0].x
    if any(layer.x is not x or layer.input_axis != layers[0].input_axis for layer in layers):
        return None
    channels = layers[0].shape[0] * layers[0].shape[1]
    window = layers[0].window
    rank = ctx.shapes.rank(x) if window is None else len(window.kernel) + 2
    axis = layers[0].input_axis if window is None else 1 - len(window.kernel) - 2
    line = ChannelAxis(axis, channels, rank, -axis)
    scales = [_scale(value, x, line, ctx) for value, layer in zip(operands, producers, strict=True) if layer is None]
    known = [scale for scale in scales if scale is not None]
    if len(known) < len(scales):
        return None
    merged = layer_composition.merge_parallel(layers, known)
    if isinstance(merged, str):
        return Refusal(target=query.label(node), reason=f"not merged with what is added: {merged}")

    def apply() -> None:
        total = node.outputs[0]
        edit.take_over(total, merged.layer.y)
        layer_composition.write(merged, x, ctx.names)

    others = [query.label(layer.node) for layer in layers if layer is not merged.layer]
    return Rewrite(
        target=query.label(node),
        reason=f"{query.label(merged.layer.node)} does what was added to it too: "
        + " and ".join([*others, *["a multiple of its input"] * len(known)]),
        apply=apply,
        bytes_before=merged.bytes_before,
        bytes_after=merged.bytes_after,
    )


def _scale(
    value: ir.Value, x: ir.Value, line: ChannelAxis, ctx: RewriteContext
) -> tuple[np.ndarray, np.ndarray] | None:
    """Return a value as factors of x and shifts, float64 [channels] each; None where it is anything else."""
    channels = line.channels
    assert channels is not None
    if value is x:
        return np.ones(channels), np.zeros(channels)
    node = value.producer()
    if node is None or query.sole_consumer(value) is None or x not in node.inputs:
        return None
    found = read_map(node, x, line, ctx) if query.is_op(node, *_SCALES) else None
    if found is None or isinstance(found, str):
        return None
    scale, shift = (np.array(np.broadcast_to(each, channels)) for each in (found.scale, found.shift))
    return scale, shift


def _whole_extent(node: ir.Node, ctx: RewriteContext) -> Rewrite | None:
    layer = layer_composition.free_layer(node)
    if layer is None or layer.window is None or layer.groups > 1:
        return None
    dims = ctx.shapes.shape(layer.x)
    kernel = layer.window.kernel
    is_whole = dims is not None and tuple(dims[2:]) == kernel and layer.window.positions(kernel) == (1,) * len(kernel)
    if not is_whole or any(max(pair) for pair in layer.window.padding(kernel)):
        return None
    between: list[ir.Node] = []
    value = layer.y
    while (reader := query.sole_consumer(value)) is not None and query.is_op(reader, *ops.ELEMENTWISE):
        if reader.inputs[0] is not value or query.is_op(reader, "Cast"):
            return None
        between.append(reader)
        value = reader.outputs[0]
    if reader is None or not _flattens(reader, value, layer, ctx):
        return None
    end = reader

    def apply() -> None:
        _as_gemm(layer, between, end, ctx)

    size = query.tensor_bytes([layer.weight])
    return Rewrite(
        target=query.label(node),
        reason=f"it sees all of its input at once: a Gemm, and {query.label(end)} moves before it",
        apply=apply,
        bytes_before=size,
        bytes_after=size,
    )


def _flattens(node: ir.Node, value: ir.Value, layer: LinearLayer, ctx: RewriteContext) -> bool:
    """Say whether a node makes [N, channels] of the layer's [N, channels, 1, ...]."""
    if node.graph is not layer.node.graph or not node.inputs or node.inputs[0] is not value:
        return False
    if query.is_op(node, "Flatten"):
        return int(query.attribute(node, "axis", 1)) == 1
    if query.is_op(node, "Reshape"):
        wanted = query.small_constant(node.inputs[1]) if len(node.inputs) > 1 else None
        channels = layer.shape[1]
        return wanted is not None and wanted.tolist() in ([-1, channels], [0, -1], [0, channels])
    if query.is_op(node, "Squeeze"):
        result = ctx.shapes.shape(node.outputs[0])
        return result is not None and len(result) == 2 and result[1] == layer.shape[1]
    return False


def _as_gemm(layer: LinearLayer, between: list[ir.Node], end: ir.Node, ctx: RewriteContext) -> None:
    node, names = layer.node, ctx.names
    matrix, bias = layer_composition.weight_of(layer), layer.bias()
    _, out, _ = layer.shape
    tensor = query.constant_tensor(layer.weight)
    assert tensor is not None
    home, dtype = query.home(node), tensor.dtype.numpy()
    weight = edit.add_initializer(home, names, f"{layer.label}_matrix", matrix.reshape(out, -1).astype(dtype))
    flat = edit.insert_before(node, names, "Flatten", [layer.x], attributes={"axis": 1}, hint=f"{layer.label}_flat")
    summand = layer.bias_value
    if summand is None or bias is None or query.constant_tensor(summand) is None:
        summand = edit.add_initializer(home, names, f"{layer.label}_bias", np.zeros(out, dtype))
    value = edit.insert_before(
        node, names, "Gemm", [flat.outputs[0], weight, summand], attributes={"transB": 1}, hint=f"{layer.label}_gemm"
    ).outputs[0]
    for each in between:
        each.replace_input_with(0, value)
        value = each.outputs[0]
        value.shape = None
        value.name = names.fresh(f"{value.name}_flat")
    result = end.outputs[0]
    end.replace_input_with(0, value)
    edit.take_over(result, value)
    edit.remove_unread(layer.y)
