"""Plan the merge of two linear layers in a row, or of several side by side, into one."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import onnx_ir as ir

from ...graph import constants as float_constants
from ...graph import edit, query
from ...numerics.linear import composition
from ...numerics.linear.patches import Window
from ...ops.linear import LinearLayer, linear_layer

_TYPES = (ir.DataType.FLOAT, ir.DataType.DOUBLE)


@dataclass(frozen=True, kw_only=True)
class Merged:
    """New parameters of a layer that replaces several.

    Args:
        layer: the layer whose node is kept.
        weight: float64 [groups, out, in, *kernel].
        bias: float64 [groups * out]; None for none.
        window: its window; None for a matrix product.
        numbers: elements of the weights that it replaces.
    """

    layer: LinearLayer
    weight: np.ndarray
    bias: np.ndarray | None
    window: Window | None
    numbers: int

    @property
    def bytes_before(self) -> int:
        """Bytes of the weights that it replaces."""
        return int(self.numbers * self._itemsize)

    @property
    def bytes_after(self) -> int:
        """Bytes of the new weight."""
        return int(self.weight.size * self._itemsize)

    @property
    def _itemsize(self) -> float:
        tensor = query.constant_tensor(self.layer.weight)
        assert tensor is not None
        return tensor.dtype.itemsize


def free_layer(node: ir.Node | None) -> LinearLayer | None:
    """Return a node as a linear layer of plain floats that are never computed, None for all others."""
    layer = None if node is None else linear_layer(node)
    if not isinstance(layer, LinearLayer) or query.constant_tensor(layer.weight) is None:
        return None
    tensors = [query.constant_tensor(v) for v in (layer.weight, layer.bias_value) if v is not None]
    return layer if all(tensor is not None and tensor.dtype in _TYPES for tensor in tensors) else None


def layer_of(value: ir.Value) -> LinearLayer | None:
    """Return the layer whose output a value is, bias included."""
    node = value.producer()
    layer = free_layer(node)
    if layer is None and query.is_op(node, "Add") and node is not None:
        found = (free_layer(v.producer()) for v in node.inputs if v is not None)
        layer = next((each for each in found if each is not None), None)
    return layer if layer is not None and layer.y is value else None


def merge_chain(first: LinearLayer, second: LinearLayer) -> Merged | str | None:
    """Return the layer that computes the second one of the first one's output.

    None where nothing would be gained in principle; the reason where it can't be done.
    """
    if first.input_axis != second.input_axis or (first.window is None) != (second.window is None):
        return None
    tensors = [query.constant_tensor(layer.weight) for layer in (first, second)]
    if tensors[0] is None or tensors[1] is None or tensors[0].dtype != tensors[1].dtype:
        return "their weights are of different types"
    bias = first.bias()
    window = None
    if first.window is not None and second.window is not None:
        found = _in_a_row(first.window, second.window, has_bias=bias is not None and bool(bias.any()))
        if not isinstance(found, Window):
            return found
        window = found
    one, two = weight_of(first), weight_of(second)
    size = _size(one, two)
    if size is None:
        return "their groups of channels don't nest"
    if size > one.size + two.size:
        return f"one layer in their place would have {size:,} numbers, more than their {one.size + two.size:,}"
    weight = composition.composed(one, two)
    assert weight is not None
    added = second.bias()
    total = None if added is None else added.astype(np.float64)
    if bias is not None:
        total = composition.carried(two, bias) + (0.0 if total is None else total)
    return Merged(layer=second, weight=weight, bias=total, window=window, numbers=one.size + two.size)


def merge_parallel(layers: Sequence[LinearLayer], scales: Sequence[tuple[np.ndarray, np.ndarray]]) -> Merged | str:
    """Return the layer that computes the sum of the outputs of layers of one input, and of multiples of the input.

    Args:
        layers: one at least.
        scales: factors and shifts of each channel, float64 [channels], of the multiples.
    """
    weights = [weight_of(layer) for layer in layers]
    order = sorted(range(len(layers)), key=lambda at: -math.prod(weights[at].shape[3:]))
    host = layers[order[0]]
    rank = weights[order[0]].ndim - 3
    widths = {(weight.shape[0] * weight.shape[1], weight.shape[0] * weight.shape[2]) for weight in weights}
    if len(widths) > 1 or any((len(scale), len(scale)) not in widths for scale, _ in scales):
        return "they are not of the same channels"
    offsets = [_offset(host.window, layers[at].window) for at in order]
    center = _offset(host.window, _point(host.window))
    if any(offset is None for offset in offsets) or (scales and center is None):
        return "their windows don't lie over each other"
    parts = [weights[at] for at in order] + [composition.scaling(scale, rank) for scale, _ in scales]
    numbers = sum(weight.size for weight in weights) + sum(2 * len(scale) for scale, _ in scales)
    places = [offset for offset in [*offsets, *[center] * len(scales)] if offset is not None]
    groups = min(part.shape[0] for part in parts)
    if parts[0].size * (parts[0].shape[0] // groups) > numbers:
        return "one layer in their place would have more numbers than they have"
    weight = composition.overlaid(parts, places)
    if weight is None:
        return "their groups of channels don't nest"
    biases = [bias for layer in layers if (bias := layer.bias()) is not None]
    shifts = [shift for _, shift in scales if shift.any()]
    total = sum((each.astype(np.float64) for each in [*biases, *shifts]), np.zeros(weight.shape[0] * weight.shape[1]))
    return Merged(
        layer=host, weight=weight, bias=total if biases or shifts else None, window=host.window, numbers=numbers
    )


def write(merged: Merged, x: ir.Value, names: edit.Names) -> ir.Value:
    """Write the new weight, window and bias, with `x` as the input; return the output, bias included."""
    layer = merged.layer
    node, port = layer.node, layer.facts.port
    old, tensor = layer.weight, query.constant_tensor(layer.weight)
    assert tensor is not None
    stored = layer.stored(merged.weight).astype(tensor.dtype.numpy())
    new = edit.add_initializer(query.home(node), names, f"{layer.label}_merged", stored)
    node.replace_input_with(port, new)
    edit.remove_unread(old)
    node.replace_input_with(layer.facts.data, x)
    if merged.window is not None:
        set_window(node, merged.window, merged.weight.shape[0])
    if merged.bias is None:
        return layer.y
    fresh = linear_layer(node)
    assert isinstance(fresh, LinearLayer)
    return fresh.with_weights(None, merged.bias, names).y


def weight_of(layer: LinearLayer) -> np.ndarray:
    """Return a layer's weight with its kernel: [groups, out, in, *kernel]."""
    kernel = () if layer.window is None else layer.window.kernel
    tensor = query.constant_tensor(layer.weight)
    matrix = layer.matrix()
    if tensor is not None and tensor.dtype == ir.DataType.DOUBLE and not query.attribute(layer.node, "alpha"):
        matrix = layer.flat(float_constants.read(layer.weight))
    return matrix.reshape(*matrix.shape[:2], -1, *kernel)


def _size(one: np.ndarray, two: np.ndarray) -> int | None:
    """Return the elements of the composed weight, None where groups don't nest."""
    groups = min(one.shape[0], two.shape[0])
    if max(one.shape[0], two.shape[0]) % groups:
        return None
    channels = two.shape[0] * two.shape[1]
    into = one.shape[0] * one.shape[2] // groups
    return int(channels * into) * max(math.prod(one.shape[3:]), math.prod(two.shape[3:]))


def _in_a_row(first: Window, second: Window, *, has_bias: bool) -> Window | str | None:
    """Return the window of both, None where each sees several positions."""
    if _is_point(second):
        if first.pads is None and any(step != 1 for step in second.strides):
            return "the padding of the first one depends on the size of the input"
        strides = tuple(a * b for a, b in zip(first.strides, second.strides, strict=True))
        return replace(first, strides=strides)
    if not _is_point(first):
        return None
    if any(step != 1 for step in first.strides):
        return "the first one skips positions"
    if has_bias and (second.pads is None or any(max(pair) for pair in second.pads)):
        return "zeros are padded between them, and the first one has a bias"
    return second


def _is_point(window: Window) -> bool:
    """Say whether a window sees one position, which is in the input."""
    if any(taps != 1 for taps in window.kernel):
        return False
    if window.pads is None:
        return all(step == 1 for step in window.strides)
    return not any(a or b for a, b in window.pads)


def _point(window: Window | None) -> Window | None:
    """Return the window that sees only the position of its result."""
    if window is None:
        return None
    ones = (1,) * len(window.kernel)
    return Window(kernel=ones, strides=ones, dilations=ones, pads=((0, 0),) * len(ones))


def _offset(host: Window | None, guest: Window | None) -> tuple[int, ...] | None:
    """Return the offset of the guest's kernel in the host's, None where they don't see the same positions."""
    if host is None or guest is None:
        return () if host is guest else None
    if host == guest:
        return (0,) * len(host.kernel)
    outer, inner = _fixed_pads(host), _fixed_pads(guest)
    if outer is None or inner is None or host.strides != guest.strides:
        return None
    found = []
    for axis, (pads, pads_inside) in enumerate(zip(outer, inner, strict=True)):
        gap, taps, taps_inside = host.dilations[axis], host.kernel[axis], guest.kernel[axis]
        if taps_inside > 1 and guest.dilations[axis] != gap:
            return None
        before, after = (a - b for a, b in zip(pads, pads_inside, strict=True))
        if before % gap or after % gap or before < 0 or after < 0 or before // gap + after // gap != taps - taps_inside:
            return None
        found.append(before // gap)
    return tuple(found)


def _fixed_pads(window: Window) -> tuple[tuple[int, int], ...] | None:
    """Return the zeros around the input, None where they depend on its size."""
    if window.pads is not None:
        return window.pads
    if any(step != 1 for step in window.strides):
        return None
    return window.padding(tuple(1 << 20 for _ in window.kernel))  # the same for every size that is large enough


def set_window(node: ir.Node, window: Window, groups: int) -> None:
    """Write a convolution's window and groups as attributes."""
    lists = {"kernel_shape": window.kernel, "strides": window.strides, "dilations": window.dilations}
    if window.pads is not None:
        lists["pads"] = (*(a for a, _ in window.pads), *(b for _, b in window.pads))
        node.attributes.pop("auto_pad", None)
    else:
        node.attributes.pop("pads", None)
        node.attributes["auto_pad"] = ir.AttrString("auto_pad", "SAME_UPPER" if window.is_upper else "SAME_LOWER")
    for name, values in lists.items():
        node.attributes[name] = ir.AttrInt64s(name, list(values))
    node.attributes["group"] = ir.AttrInt64("group", groups)
