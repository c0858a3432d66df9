"""Two nodes in a row that one can do: reshapes, casts, slices, concatenations and reductions.

Both must stand in the same graph, and the first one's result must have no other reader (so it goes away).
Nothing here depends on sizes that only a run knows: a shape is rewritten only where it is right for all.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import ClassVar

import numpy as np
import onnx_ir as ir
from pydantic.dataclasses import dataclass

from .. import graph, ops
from ..core import Change, Context, Need
from ..shapes import Dim
from .remove_noops import FAR, same_shape, slice_parts
from .rewriting import Rewrite, Rule, Scene, outside, rewrite

_FAMILY = ("Reshape", "Flatten", "Squeeze", "Unsqueeze")
_REDUCTIONS = (
    *("ReduceSum", "ReduceMean", "ReduceMax", "ReduceMin", "ReduceProd", "ReduceL1", "ReduceL2"),
    *("ReduceLogSum", "ReduceLogSumExp", "ReduceSumSquare", "ArgMax", "ArgMin"),
)
_T = ir.DataType
_EXACT_IN: Mapping[ir.DataType, frozenset[ir.DataType]] = {
    _T.BOOL: frozenset({_T.UINT8, _T.INT8, _T.UINT16, _T.INT16, _T.INT32, _T.UINT32, _T.INT64, _T.UINT64})
    | {_T.FLOAT16, _T.BFLOAT16, _T.FLOAT, _T.DOUBLE},
    _T.UINT8: frozenset({_T.UINT16, _T.INT16, _T.UINT32, _T.INT32, _T.UINT64, _T.INT64})
    | {_T.FLOAT16, _T.BFLOAT16, _T.FLOAT, _T.DOUBLE},
    _T.INT8: frozenset({_T.INT16, _T.INT32, _T.INT64, _T.FLOAT16, _T.BFLOAT16, _T.FLOAT, _T.DOUBLE}),
    _T.UINT16: frozenset({_T.UINT32, _T.INT32, _T.UINT64, _T.INT64, _T.FLOAT, _T.DOUBLE}),
    _T.INT16: frozenset({_T.INT32, _T.INT64, _T.FLOAT, _T.DOUBLE}),
    _T.UINT32: frozenset({_T.UINT64, _T.INT64, _T.DOUBLE}),
    _T.INT32: frozenset({_T.INT64, _T.DOUBLE}),
    _T.FLOAT16: frozenset({_T.FLOAT, _T.DOUBLE}),
    _T.BFLOAT16: frozenset({_T.FLOAT, _T.DOUBLE}),
    _T.FLOAT: frozenset({_T.DOUBLE}),
}
"""Type -> types that hold every one of its values exactly."""
_FLOATS = (_T.FLOAT16, _T.BFLOAT16, _T.FLOAT, _T.DOUBLE)


@dataclass(frozen=True, kw_only=True)
class SimplifyChains:
    """Merge two nodes in a row into one: reshapes, lossless casts, slices, concatenations, kept axes."""

    name: ClassVar[str] = "simplify-chains"
    lossless: ClassVar[bool] = True
    needs: ClassVar[frozenset[Need]] = frozenset()

    def run(self, model: ir.Model, context: Context) -> list[Change]:
        """Merge them in every graph of `model` but local functions, which can't hold weights."""
        inside = {id(g) for f in model.functions.values() for g in (f.graph, *f.subgraphs())}
        rules: dict[str, list[Rule]] = {
            "Cast": [_casts],
            "Slice": [_slices],
            "Concat": [_nested_concat, _adjacent_parts],
            "ConcatFromSequence": [_listed_parts],
            "Transpose": [_moved_ones],
            "Squeeze": [_reshapes, _reduced, _picked],
            "Unsqueeze": [_reshapes, _reduced, _gathered],
            "Reshape": [_reshapes],
            "Flatten": [_reshapes],
            "Shape": [_shape_of],
            "Size": [_shape_of],
        }
        return rewrite(
            model,
            context,
            self.name,
            {kind: [outside(inside, r) for r in own] for kind, own in rules.items()},
        )


def _before(node: ir.Node, *op_types: str) -> ir.Node | None:
    """Return the node in the same graph that makes the first input for this node alone."""
    value = node.inputs[0]
    first = None if value is None else value.producer()
    if value is None or first is None or first.graph is not node.graph or not graph.is_op(first, *op_types):
        return None
    alone = graph.sole_consumer(value) is node and value is first.outputs[0]
    return first if alone and not any(o.uses() or o.is_graph_output() for o in first.outputs[1:]) else None


def _merged(node: ir.Node, first: ir.Node, apply: Callable[[], None]) -> Rewrite:
    reason = f"{first.op_type} and {node.op_type} in a row are one node ({graph.label(first)})"
    return Rewrite(target=graph.label(node), reason=reason, apply=apply)


def _inside(axes: Sequence[int], rank: int | None) -> list[int] | None:
    """Return axes counted from the front, sorted; None where a negative one needs a rank that is unknown."""
    if rank is None:
        return sorted(axes) if all(a >= 0 for a in axes) else None
    return sorted(a % rank for a in axes) if all(-rank <= a < rank for a in axes) else None


# Reshape, Flatten, Squeeze, Unsqueeze: the elements stay in order, so only the last shape counts.


def _reshapes(node: ir.Node, scene: Scene) -> Rewrite | None:
    middle = node.inputs[0]
    first = None if middle is None else middle.producer()
    if first is None or middle is None or not graph.is_op(first, *_FAMILY) or first.graph is not node.graph:
        return None
    x, out = first.inputs[0], node.outputs[0]
    if x is None:
        return None
    if (_undoes(first, node) or same_shape(scene.shapes.shape(x), scene.shapes.shape(out))) and graph.can_replace(
        out, x
    ):

        def drop() -> None:
            graph.replace_value(out, x)
            graph.remove_node(node)
            graph.remove_unread(middle)

        return Rewrite(target=graph.label(node), reason=f"{graph.label(first)} is undone", apply=drop)
    if graph.sole_consumer(middle) is not node:
        return None
    axes = _all_axes(first, node, x, scene)
    if axes is not None:
        return _merged(node, first, lambda: _set_axes(node, x, axes, scene))
    goal = _goal(first, node, x, scene) if scene.opset >= 5 else None
    if goal is None:
        return None
    keeps_zero = node.op_type == "Reshape" and bool(graph.attribute(node, "allowzero", 0))

    def reshape() -> None:
        shape = graph.add_initializer(graph.home(node), scene.names, f"{out.name}_shape", np.asarray(goal, np.int64))
        graph.turn_into(node, "Reshape", [x, shape], {"allowzero": 1} if keeps_zero else None)

    return _merged(node, first, reshape)


def _moved_ones(node: ir.Node, scene: Scene) -> Rewrite | None:
    """Write a Transpose that moves only axes of size 1 as a Reshape where it stands beside a node of that family."""
    x, out = node.inputs[0], node.outputs[0]
    dims = scene.shapes.shape(x)
    after = graph.sole_consumer(out)
    beside = _before(node, *_FAMILY) or after
    if x is None or dims is None or 0 in dims or scene.opset < 5:
        return None
    perm = graph.integers(node, "perm", default=range(len(dims))[::-1])
    if perm is None or beside is None or not graph.is_op(beside, *_FAMILY) or beside.graph is not node.graph:
        return None
    kept = [axis for axis in perm if dims[axis] != 1]
    if kept != sorted(kept):
        return None
    goal = [_size(dims[axis], copied=axis == place) for place, axis in enumerate(perm)]
    if -1 in goal and (goal.count(-1) > 1 or 0 in goal):  # a copied size of 0 leaves the rest undecided
        return None

    def reshape() -> None:
        shape = graph.add_initializer(graph.home(node), scene.names, f"{out.name}_shape", np.asarray(goal, np.int64))
        graph.turn_into(node, "Reshape", [x, shape])

    reason = f"it moves axes of size 1 only, as the {beside.op_type} beside it can ({graph.label(beside)})"
    return Rewrite(target=graph.label(node), reason=reason, apply=reshape)


def _size(dim: Dim, *, copied: bool) -> int:
    """Return what a Reshape says for an axis: its size, 0 for that of the same axis of the input, -1 for the rest."""
    return dim if isinstance(dim, int) else 0 if copied else -1


def _listed_parts(node: ir.Node, _scene: Scene) -> Rewrite | None:
    """Join the parts of a sequence that is made on the spot without making it."""
    listed = node.inputs[0]
    first = None if listed is None else listed.producer()
    axis, new_axis = graph.integers(node, "axis"), graph.integers(node, "new_axis", default=[0])
    if first is None or not graph.is_op(first, "SequenceConstruct") or first.graph is not node.graph:
        return None
    if not axis or new_axis != [0]:
        return None
    return Rewrite(
        target=graph.label(node),
        reason=f"the sequence is made of values that Concat can join ({graph.label(first)})",
        apply=lambda: graph.turn_into(node, "Concat", first.inputs, {"axis": axis[0]}),
    )


def _undoes(first: ir.Node, node: ir.Node) -> bool:
    """Say whether one squeezes what the other unsqueezed; both count axes of the same, larger rank."""
    if {first.op_type, node.op_type} != {"Squeeze", "Unsqueeze"}:
        return False
    one, other = graph.integers(first, "axes", 1), graph.integers(node, "axes", 1)
    return bool(one) and other is not None and sorted(one or []) == sorted(other)


def _all_axes(first: ir.Node, node: ir.Node, x: ir.Value, scene: Scene) -> list[int] | None:
    """Return the axes with which one Squeeze or Unsqueeze does the work of two."""
    if first.op_type != node.op_type or node.op_type not in ("Squeeze", "Unsqueeze"):
        return None
    one, two = graph.integers(first, "axes", 1), graph.integers(node, "axes", 1)
    if not one or not two:
        return None
    rank, sign = scene.shapes.rank(x), 1 if node.op_type == "Unsqueeze" else -1
    ranks = (None, None) if rank is None else (rank + sign * len(one), rank + sign * (len(one) + len(two)))
    if sign > 0:
        inner, outer = _inside(one, ranks[0]), _inside(two, ranks[1])
    else:
        outer, inner = _inside(one, rank), _inside(two, ranks[0])
    if inner is None or outer is None:
        return None
    span = len(one) + len(two) + max(inner + outer) + 1
    free = [axis for axis in range(span) if axis not in outer]
    return sorted([*outer, *(free[axis] for axis in inner)])


def _set_axes(node: ir.Node, x: ir.Value, axes: list[int], scene: Scene) -> None:
    if scene.opset < 13:
        graph.turn_into(node, node.op_type, [x], {"axes": axes})
        return
    value = graph.add_initializer(
        graph.home(node), scene.names, f"{node.outputs[0].name}_axes", np.asarray(axes, np.int64)
    )
    graph.turn_into(node, node.op_type, [x, value])


def _goal(first: ir.Node, node: ir.Node, x: ir.Value, scene: Scene) -> list[int] | None:
    """Return the shape input of a Reshape of x that gives the node's output, None if there is none."""
    source, middle = scene.shapes.shape(x), scene.shapes.shape(node.inputs[0])
    copied = _copied(first) | _copied(node)
    if node.op_type != "Reshape":
        return _written(scene.shapes.shape(node.outputs[0]), source, copied=copied)
    goal = graph.integers(node, "shape", 1)
    if goal is None or graph.attribute(node, "allowzero", 0) or 0 not in goal:
        return goal
    wanted: list[Dim] = []
    for axis, size in enumerate(goal):
        if size != 0:
            wanted.append(size)
        elif middle is None or axis >= len(middle):
            wanted.append(None)
        else:
            wanted.append(middle[axis])
    return _written(wanted, source, copied=copied)


def _copied(node: ir.Node) -> set[int]:
    """Return the axes that a Reshape copies while it infers another size: it fails where one is 0."""
    if node.op_type != "Reshape" or graph.attribute(node, "allowzero", 0):
        return set()
    goal = graph.integers(node, "shape", 1) or []
    return {axis for axis, size in enumerate(goal) if size == 0} if -1 in goal else set()


def _written(wanted: Sequence[Dim] | None, source: Sequence[Dim] | None, *, copied: set[int]) -> list[int] | None:
    """Write dimensions as a Reshape's input: numbers, 0 for a size kept in its place, -1 for one other.

    0 beside -1 fails on an empty tensor, so only `copied` axes, where that was so before, are.
    """
    if wanted is None:
        return None
    goal: list[int] = []
    for axis, dim in enumerate(wanted):
        if isinstance(dim, int):
            goal.append(dim)
        elif dim is not None and source is not None and axis < len(source) and source[axis] == dim:
            goal.append(0)
        else:
            goal.append(-1)
    if any(dim == 0 for dim in wanted) or goal.count(-1) > 1:
        return None
    if goal.count(0) == 1 and -1 not in goal:
        return [-1 if size == 0 else size for size in goal]
    kept = {axis for axis, size in enumerate(goal) if size == 0}
    return goal if -1 not in goal or kept <= copied else None


# Cast: the type in between may go if it holds every value exactly.


def _casts(node: ir.Node, scene: Scene) -> Rewrite | None:
    first = _before(node, "Cast")
    x = None if first is None else first.inputs[0]
    source = scene.shapes.dtype(x)
    if first is None or x is None or source is None:
        return None
    between, goal = (ir.DataType(int(graph.attribute(n, "to", 0))) for n in (first, node))
    if between not in _EXACT_IN.get(source, ()) or goal in (_T.STRING, _T.UNDEFINED):
        return None
    if goal != source and (goal.itemsize < 1 or "FLOAT8" in goal.name or "FLOAT4" in goal.name):
        return None
    if goal in (_T.FLOAT16, _T.BFLOAT16) and source not in _FLOATS and goal not in _EXACT_IN.get(source, ()):
        return None  # rounded once or twice, by the way the runtime takes
    if goal != source and source in _FLOATS and goal not in (*_FLOATS, _T.BOOL):
        return None  # what a number out of an integer's range becomes depends on the float type
    return _merged(node, first, lambda: graph.turn_into(node, "Cast", [x], {"to": int(goal)}))


# Slice: ranges of ranges.


def _slices(node: ir.Node, scene: Scene) -> Rewrite | None:
    first = _before(node, "Slice")
    x = None if first is None else first.inputs[0]
    if first is None or x is None:
        return None
    one, two, dims = slice_parts(first), slice_parts(node), scene.shapes.shape(x)
    if one is None or two is None:
        return None
    rank = None if dims is None else len(dims)
    parts: dict[int, tuple[int, int, int]] = {}
    for starts, ends, axes, steps in (one, two):
        for start, end, axis, step in zip(starts, ends, axes, steps, strict=True):
            at = _inside([axis], rank)
            if at is None or step < 1:
                return None
            size = dims[at[0]] if dims is not None else None
            new = (start, end, step)
            joined = _range_of_range(parts[at[0]], new, size) if at[0] in parts else new
            if joined is None:
                return None
            parts[at[0]] = joined
    if scene.opset < 10 and any(step != 1 for _, _, step in parts.values()):
        return None
    return _merged(node, first, lambda: _set_slice(node, x, parts, scene))


def _range_of_range(one: tuple[int, int, int], two: tuple[int, int, int], size: Dim) -> tuple[int, int, int] | None:
    """Return start, end and step of x[one][two], right for every size of the axis."""
    if isinstance(size, int):
        both = range(size)[slice(*one)][slice(*two)]
        return both.start, max(both.start, both.stop), both.step
    (start, end, step), (start2, end2, step2) = one, two
    if start < 0 or start2 < 0:
        return None
    if end2 >= FAR:
        stop = end
    elif end2 >= 0 and end >= 0:
        stop = min(end, start + end2 * step)
    elif end2 < 0 and end >= FAR and step == 1:
        stop = end2
    else:
        return None
    return start + start2 * step, stop, step * step2


def _set_slice(node: ir.Node, x: ir.Value, parts: Mapping[int, tuple[int, int, int]], scene: Scene) -> None:
    axes = sorted(parts)
    starts, ends, steps = ([parts[axis][n] for axis in axes] for n in range(3))
    if scene.opset < 10:
        graph.turn_into(node, "Slice", [x], {"starts": starts, "ends": ends, "axes": axes})
        return
    numbers = {"starts": starts, "ends": ends, "axes": axes}
    if any(step != 1 for step in steps):
        numbers["steps"] = steps
    values = [
        graph.add_initializer(
            graph.home(node), scene.names, f"{node.outputs[0].name}_{name}", np.asarray(array, np.int64)
        )
        for name, array in numbers.items()
    ]
    graph.turn_into(node, "Slice", [x, *values])


# Concat: of concatenations, and of the parts something was cut into.


def _axis(node: ir.Node, scene: Scene, rank_of: ir.Value | None, default: int) -> int | None:
    axis = int(graph.attribute(node, "axis", default))
    rank = scene.shapes.rank(rank_of)
    return axis if axis >= 0 else None if rank is None else axis + rank


def _same_axis(one: ir.Node, other: ir.Node, scene: Scene) -> bool:
    if {graph.attribute(n, "axis") for n in (one, other)} == {graph.attribute(one, "axis")}:
        return True
    axes = {_axis(n, scene, n.outputs[0], 1) for n in (one, other)}
    return len(axes) == 1 and None not in axes


def _nested_concat(node: ir.Node, scene: Scene) -> Rewrite | None:
    for port, value in enumerate(node.inputs):
        inner = None if value is None else value.producer()
        if value is None or inner is None or inner.graph is not node.graph or not graph.is_op(inner, "Concat"):
            continue
        if graph.sole_consumer(value) is not node or not _same_axis(node, inner, scene):
            continue
        inputs = [*node.inputs[:port], *inner.inputs, *node.inputs[port + 1 :]]
        axis = int(graph.attribute(node, "axis", 1))
        return _merged(node, inner, partial(graph.turn_into, node, "Concat", inputs, {"axis": axis}))
    return None


def _adjacent_parts(node: ir.Node, scene: Scene) -> Rewrite | None:
    """Put together again what one Split, or Slices that touch, cut apart on the same axis."""
    axis = _axis(node, scene, node.inputs[0], 1)
    for port, value in enumerate(node.inputs):
        maker = None if value is None else value.producer()
        if axis is None or maker is None or not graph.is_op(maker, "Split", "Slice"):
            continue
        if maker.inputs[0] is None:
            continue
        x = maker.inputs[0]
        whole = list(maker.outputs)
        if (
            graph.is_op(maker, "Split")
            and list(node.inputs[port : port + len(whole)]) == whole
            and (_axis(maker, scene, x, 0) == axis)
        ):
            inputs = [*node.inputs[:port], x, *node.inputs[port + len(whole) :]]
            return _merged(node, maker, partial(_rejoin, node, inputs, x))
        found = _touching_slices(node, port, axis, scene)
        if found is not None:
            return found
    return None


def _rejoin(node: ir.Node, inputs: list[ir.Value | None], x: ir.Value) -> None:
    """Concatenate `inputs`; a single one needs no node (unless it can't be the output)."""
    if inputs == [x] and graph.can_replace(node.outputs[0], x):
        parts = [v for v in dict.fromkeys(node.inputs) if v is not None]
        graph.replace_node(node, [x])
        for part in parts:
            graph.remove_unread(part)
    else:
        graph.turn_into(node, "Concat", inputs, {"axis": int(graph.attribute(node, "axis", 1))})


def _touching_slices(node: ir.Node, port: int, axis: int, scene: Scene) -> Rewrite | None:
    pair = node.inputs[port : port + 2]
    makers = [None if v is None else v.producer() for v in pair]
    if len(pair) < 2 or not all(graph.is_op(m, "Slice") and m is not None and m.graph is node.graph for m in makers):
        return None
    first, second = (m for m in makers if m is not None)
    x, one, two = first.inputs[0], slice_parts(first), slice_parts(second)
    alone = all(v is not None and graph.sole_consumer(v) is node for v in pair)
    if x is None or x is not second.inputs[0] or first is second or one is None or two is None or not alone:
        return None
    if any(len(p[0]) != 1 or p[3] != [1] or _inside(p[2], scene.shapes.rank(x)) != [axis] for p in (one, two)):
        return None
    start, end, end2 = one[0][0], one[1][0], two[1][0]
    joined = {axis: (start, end2, 1)}
    touching = two[0][0] == end and start >= 0 and (start <= end <= end2 or (start == 0 and end < 0 and end2 >= FAR))
    if not touching:
        return None
    after = node.inputs[port + 2 :]
    if start == 0 and end2 >= FAR:
        inputs = [*node.inputs[:port], x, *after]
        return _merged(node, first, lambda: _rejoin(node, inputs, x))

    def apply() -> None:
        if len(node.inputs) == 2:
            _set_slice(node, x, joined, scene)
            return
        _set_slice(second, x, joined, scene)
        second.outputs[0].name, second.outputs[0].shape = (
            scene.names.fresh(f"{second.outputs[0].name}_joined"),
            None,
        )
        _rejoin(node, [*node.inputs[:port], second.outputs[0], *after], x)

    return _merged(node, first, apply)


# Axes of size 1 that the node before could have kept or dropped itself.


def _reduced(node: ir.Node, scene: Scene) -> Rewrite | None:
    """Find a reduction that keeps its axes before a Squeeze of them, or drops them before an Unsqueeze."""
    first = _before(node, *_REDUCTIONS)
    kept = 1 if node.op_type == "Squeeze" else 0
    if first is None or int(graph.attribute(first, "keepdims", 1)) != kept:
        return None
    single = first.op_type in ("ArgMax", "ArgMin")
    axes = graph.integers(first, "axis", default=(0,)) if single else graph.integers(first, "axes", 1)
    own = graph.integers(node, "axes", 1)
    if not axes or not own:
        return None
    rank = scene.shapes.rank(first.inputs[0])
    normal = _inside(axes, rank)
    if sorted(axes) != sorted(own) and (normal is None or normal != _inside(own, rank)):
        return None
    attributes = {a.name: a for a in first.attributes.values()}
    attributes["keepdims"] = ir.AttrInt64("keepdims", 1 - kept)
    inputs, op_type = list(first.inputs), first.op_type
    return _merged(node, first, lambda: graph.turn_into(node, op_type, inputs, attributes))


def _gathered(node: ir.Node, scene: Scene) -> Rewrite | None:
    """Find one index taken out along an axis that comes back: Gather with a list of one index."""
    first = _before(node, "Gather")
    if first is None or first.inputs[0] is None or graph.is_op(first.inputs[0].producer(), "Shape"):
        return None  # onnxruntime knows Shape, Gather, Unsqueeze as a pattern
    index = graph.small_constant(first.inputs[1], most=1)
    own = graph.integers(node, "axes", 1)
    axis = int(graph.attribute(first, "axis", 0))
    rank = scene.shapes.rank(first.inputs[0])
    if index is None or index.shape != () or own is None or len(own) != 1:
        return None
    if own != [axis] and (rank is None or _inside([axis], rank) != _inside(own, rank)):
        return None
    x = first.inputs[0]

    def apply() -> None:
        one = graph.add_initializer(graph.home(node), scene.names, f"{node.outputs[0].name}_index", index.reshape(1))
        graph.turn_into(node, "Gather", [x, one], {"axis": axis})

    return _merged(node, first, apply)


def _picked(node: ir.Node, scene: Scene) -> Rewrite | None:
    """Find a slice of length 1 whose axis is squeezed: Gather with one index."""
    first = _before(node, "Slice")
    x, parts, own = (
        (None, None, None) if first is None else (first.inputs[0], slice_parts(first), graph.integers(node, "axes", 1))
    )
    if first is None or x is None or parts is None or own is None or len(own) != 1 or len(parts[0]) != 1:
        return None
    start, end, axis, step = (p[0] for p in parts)
    rank = scene.shapes.rank(x)
    if own != [axis] and (rank is None or _inside([axis], rank) != _inside(own, rank)):
        return None
    if step != 1 or not (end == start + 1 != 0 or (start == -1 and end >= FAR)) or scene.opset < 11:
        return None

    def apply() -> None:
        index = graph.add_initializer(
            graph.home(node), scene.names, f"{node.outputs[0].name}_index", np.asarray(start, np.int64)
        )
        graph.turn_into(node, "Gather", [x, index], {"axis": axis})

    return _merged(node, first, apply)


def _shape_of(node: ir.Node, scene: Scene) -> Rewrite | None:  # noqa: ARG001
    """Read the shape of x for that of f(x); the size also where only the order changes."""
    also = (*_FAMILY, "Transpose") if node.op_type == "Size" else ()
    first = _before(node, *ops.SAME_SHAPE, *also)
    if first is None or first.inputs[0] is None:
        return None
    x, attributes = first.inputs[0], dict(node.attributes)
    return _merged(node, first, lambda: graph.turn_into(node, node.op_type, [x], attributes))
