"""Channel rules of normalisations, reductions and other operators that work along an axis.

A normalised axis may lose channels, but then the statistics of the others change: that is noted as inexact.
"""

from __future__ import annotations

from .fixups import Count
from .relations import NodeContext
from .rules_linear import Outs, broadcast, contract
from .types import Axis, UnfollowedError

LAST_FLATTENING_SOFTMAX = 12
"""Last opset version in which Softmax normalises all axes from its own on together."""


def layer_norm(step: NodeContext) -> Outs:
    """LayerNormalization and RMSNormalization: scale and bias go with the normalised axes."""
    axes, dims = list(step.axes(0)), step.dims(0)
    first = step.positive(int(step.attribute("axis", -1)), len(axes))
    tail = _normalised(step, axes, dims, first, ports=(1, 2))
    axes[first:] = tail
    statistics = [*axes[:first], *[step.single()] * len(tail)]
    return [axes, *[statistics] * (len(step.node.outputs) - 1)]


def skip_layer_norm(step: NodeContext) -> Outs:
    """com.microsoft's SkipLayerNormalization (and the simplified one): the sum of two inputs, normalised."""
    simplified = step.node.op_type.startswith("SkipSimplified")
    out = broadcast(step, step.dims(0), [(step.axes(port), step.dims(port)) for port in (0, 1)])
    first = len(out) - 1
    out[first:] = _normalised(step, out, step.dims(0), first, ports=(2, 3) if simplified else (2, 3, 4))
    statistics = [*out[:first], step.single()]
    return [out, statistics, statistics, out][: len(step.node.outputs)]


def _normalised(
    step: NodeContext, axes: list[Axis], dims: tuple[int, ...], first: int, *, ports: tuple[int, ...]
) -> list[Axis]:
    operands = [(axes[first:], dims[first:])]
    operands += [(step.axes(port), step.dims(port)) for port in ports if step.has(port)]
    found = broadcast(step, dims[first:], operands)
    for axis in found:
        step.inexact(axis)
    return found


def instance_norm(step: NodeContext) -> Outs:
    """InstanceNormalization: each channel by itself, over all positions."""
    axes = step.axes(0)
    for port in (1, 2):
        step.unite(axes[1], step.ranked(port, 1)[0])
    for axis in axes[2:]:
        step.inexact(axis)
    return [axes]


def group_norm(step: NodeContext) -> Outs:
    """GroupNormalization: whole groups go, and their number falls."""
    axes, dims = list(step.axes(0)), step.dims(0)
    groups = int(step.attribute("num_groups", 1))
    size = dims[1] // groups
    ids = step.array(axes[1], dims[1]).reshape(groups, size)
    for column in range(1, size):
        step.unite(ids[:, 0], ids[:, column])
    for port in (1, 2):
        scale, count = step.ranked(port, 1)[0], step.dims(port)[0]
        step.unite(ids[:, 0] if count == groups else ids.reshape(-1), scale)
    step.fix(Count(step.node, "num_groups", ids[:, 0]))
    for axis in axes[2:]:
        step.inexact(axis)
    axes[1] = ids.reshape(-1)
    return [axes]


def unit_norm(step: NodeContext) -> Outs:
    """LpNormalization: channels that are zero take no part in the norm."""
    axes = step.axes(0)
    step.read(0, step.positive(int(step.attribute("axis", -1)), len(axes)))
    return [axes]


def mean_variance_norm(step: NodeContext) -> Outs:
    """MeanVarianceNormalization: as LayerNormalization over the axes that it names."""
    axes = step.axes(0)
    for number in step.attribute("axes", [0, 2, 3]):
        step.inexact(axes[step.positive(int(number), len(axes))])
    return [axes]


def softmax(step: NodeContext) -> Outs:
    """Softmax and its kin: the axis that they compare along is kept, the others pass."""
    axes = step.axes(0)
    flattens = step.flow.opset <= LAST_FLATTENING_SOFTMAX
    first = step.positive(int(step.attribute("axis", 1 if flattens else -1)), len(axes))
    until = len(axes) if flattens else first + 1
    return [_kept(step, axes, range(first, until))]


def along_axis(step: NodeContext) -> Outs:
    """Keep the one axis that the operator works along, by default 0; the others pass to every output."""
    axes = step.axes(0)
    number = step.numbers("axis", 1) if step.node.op_type == "CumSum" else [int(step.attribute("axis", -1))]
    out = _kept(step, axes, [step.positive(number[0], len(axes))])
    return [out] * len(step.node.outputs)


def arg_extreme(step: NodeContext) -> Outs:
    """ArgMax and ArgMin: the axis that is searched is kept, and absent from the result."""
    axes = step.axes(0)
    axis = step.positive(int(step.attribute("axis", 0)), len(axes))
    out = _kept(step, axes, [axis])
    return [out if step.attribute("keepdims", 1) else out[:axis] + out[axis + 1 :]]


def keep_matrix(step: NodeContext) -> Outs:
    """Trilu: the last two axes are counted, the others pass."""
    axes = step.axes(0)
    return [_kept(step, axes, range(len(axes) - 2, len(axes)))]


def neighbours(step: NodeContext) -> Outs:
    """LRN: each channel is divided by its neighbours."""
    return [_kept(step, step.axes(0), [1])]


def _kept(step: NodeContext, axes: list[Axis], places: range | list[int]) -> list[Axis]:
    reason = f"{step.node.op_type} works along this axis"
    return [step.pin(axis, reason) if place in places else axis for place, axis in enumerate(axes)]


def pool(step: NodeContext) -> Outs:
    """Pooling: channels pass, positions are kept."""
    if len(step.node.outputs) > 1 and step.node.outputs[1].uses():
        raise UnfollowedError("its second output numbers positions across channels")
    axes = step.axes(0)
    return [_kept(step, axes, range(2, len(axes)))]


def reduce_sum(step: NodeContext) -> Outs:
    """Reduce to sums of values, magnitudes or squares: a channel that is zero adds nothing."""
    return _reduce(step, "sum")


def reduce_mean(step: NodeContext) -> Outs:
    """ReduceMean: the mean over fewer channels is another one."""
    return _reduce(step, "mean")


def reduce_other(step: NodeContext) -> Outs:
    """Reductions in which a zero counts: the axis is kept."""
    return _reduce(step, "other")


def _reduce(step: NodeContext, kind: str) -> Outs:
    axes = step.axes(0)
    numbers = step.numbers("axes", 1, default=[])
    reduced = {step.positive(number, len(axes)) for number in numbers}
    if not numbers and not step.attribute("noop_with_empty_axes", 0):
        reduced = set(range(len(axes)))
    out: list[Axis] = []
    for place, axis in enumerate(axes):
        if place not in reduced:
            out.append(axis)
            continue
        if kind == "sum":
            step.read(0, place)
        elif kind == "mean":
            step.inexact(axis)
        else:
            step.pin(axis, f"{step.node.op_type} compares along this axis")
        if step.attribute("keepdims", 1):
            out.append(step.single())
    return [out]


def quantized(step: NodeContext) -> Outs:
    """QuantizeLinear and DequantizeLinear: scales and zero points of an axis go with it."""
    if step.attribute("block_size", 0):
        raise UnfollowedError("its scales are those of blocks")
    axes = step.axes(0)
    for port in (1, 2):
        if not step.has(port):
            continue
        scales = step.axes(port)
        if len(scales) == 1 and step.dims(port)[0] > 1:
            step.unite(axes[step.positive(int(step.attribute("axis", 1)), len(axes))], scales[0])
    return [axes]


def einsum(step: NodeContext) -> Outs:
    """Einsum: axes of one letter are one; letters that the result lacks are summed over."""
    equation = step.text("equation", "").replace(" ", "")
    sides, _, result = equation.partition("->")
    terms = sides.split(",")
    if "." in equation or "->" not in equation or len(terms) != len(step.node.inputs):
        raise UnfollowedError(f"the equation {equation!r} is not spelled out")
    letters: dict[str, Axis] = {}
    places: dict[str, list[tuple[int, int]]] = {}
    for port, term in enumerate(terms):
        axes, dims = step.axes(port), step.dims(port)
        if len(set(term)) < len(term) or len(term) != len(axes):
            raise UnfollowedError(f"the equation {equation!r} takes a diagonal")
        for place, (letter, axis, n) in enumerate(zip(term, axes, dims, strict=True)):
            if n > 1:
                letters[letter] = step.unite(letters[letter], axis) if letter in letters else axis
                places.setdefault(letter, []).append((port, place))
    for letter, found in places.items():
        if letter in result:
            continue
        if len(found) == 2:
            contract(step, *found)
        else:
            step.read(*found[0])
    step.cost(*letters.values())
    return [[letters.get(letter, step.single()) for letter in result]]
