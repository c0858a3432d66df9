"""Relations between channel ids: what link functions see (`NodeContext`), and what they collect (`Relations`).

An axis of a value is an array of ids, one per index, or a `Pin`, which says why nothing of it can be removed. Link
functions relate ids and never solve anything: unions, products and pins are collected and solved at once at the end.

    Reshape [n, 96] -> [n, 4, 24]     ids f [96]  =  product of h [4] and d [24]: f[24*i + j] needs h[i] and d[j]
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np

from ..graph import query
from .types import FIRST_WHERE, ITSELF, Axis, Cost, Ids, Made, Pin, Product, Read, UnfollowedError

if TYPE_CHECKING:
    import onnx_ir as ir

    from ..shapes.facts import Facts
    from .fixups import Fix


@dataclass(eq=False)
class Relations:
    """Everything that the walk over a graph collects.

    Args:
        at: facts at the sizes of one feed.
        always: facts that hold for every feed.
        opset: version of the standard domain.
    """

    at: Facts
    always: Facts
    opset: int
    count: int = 0
    axes: dict[ir.Value, list[Axis]] = field(default_factory=dict)
    constants: dict[ir.Value, list[Axis]] = field(default_factory=dict)
    unions: list[tuple[Ids, Ids]] = field(default_factory=list)
    products: list[Product] = field(default_factory=list)
    pins: list[tuple[Ids, Pin]] = field(default_factory=list)
    inexact: list[tuple[Ids, ir.Node]] = field(default_factory=list)
    reads: list[Read] = field(default_factory=list)
    made: list[Made] = field(default_factory=list)
    costs: list[Cost] = field(default_factory=list)
    fixes: list[Fix] = field(default_factory=list)

    def fresh(self, count: int) -> Ids:
        """Return ids that nothing else has."""
        ids = np.arange(self.count, self.count + count)
        self.count += count
        return ids

    def dims(self, value: ir.Value | None) -> tuple[int, ...] | None:
        """Return the dimensions of a value at the feed, None where one is not known."""
        return self.at.static(value)

    def dtype(self, value: ir.Value) -> np.dtype[Any] | None:
        """Return the type of a value's elements, None where it is not known."""
        return self.at.dtype(value)

    def rank(self, value: ir.Value) -> int | None:
        """Return the number of axes of a value, None where it is not known."""
        dims = self.dims(value)
        sizes = dims if dims is not None else self.at.dims(value)
        return None if sizes is None else len(sizes)

    def of(self, value: ir.Value) -> list[Axis] | None:
        """Return the axes of a value, None where not even their number is known.

        A constant gets ids when it is first asked for.
        """
        if value in self.axes:
            return self.axes[value]
        tensor = query.constant_tensor(value)
        if tensor is None:
            return None
        single = Pin(str(value.name), "has one index", by_nature=True)
        axes: list[Axis] = [single if n < 2 else self.fresh(n) for n in query.dims(tensor)]
        self.axes[value] = self.constants[value] = axes
        return axes

    def pin(self, axis: Axis, pin: Pin) -> None:
        """Keep every index of an axis."""
        if not isinstance(axis, Pin):
            self.pins.append((axis, pin))

    def pin_value(self, value: ir.Value, pin: Pin) -> None:
        """Keep a value as it is."""
        for axis in self.of(value) or ():
            self.pin(axis, pin)

    def unite(self, one: Axis, other: Axis) -> Axis:
        """Let two axes of one length lose the same indices, or none where one of them is pinned."""
        if isinstance(one, Pin):
            self.pin(other, one)
            return other
        if isinstance(other, Pin):
            self.pin(one, other)
        elif one is not other:
            self.unions.append((one, other))
        return one


class NodeContext:
    """One node, as its link function sees it.

    A link function asks for the axes of each input that it follows, relates them, and returns the axes of the
    outputs. Inputs that it does not ask for are pinned.
    """

    def __init__(self, node: ir.Node, flow: Relations) -> None:
        self.node = node
        self.flow = flow
        self.followed: set[int] = set()

    # What the node is.

    def has(self, port: int) -> bool:
        """Say whether an input is there."""
        return port < len(self.node.inputs) and self.node.inputs[port] is not None

    def value(self, port: int) -> ir.Value:
        """Return an input.

        Raises:
            UnfollowedError: it is absent.
        """
        value = self.node.inputs[port] if port < len(self.node.inputs) else None
        if value is None:
            raise UnfollowedError(f"input {port} is absent")
        return value

    def attribute(self, name: str, default: Any = None) -> Any:
        """Return an attribute's value."""
        return query.attribute(self.node, name, default)

    def text(self, name: str, default: str) -> str:
        """Return an attribute that is a string."""
        found = self.attribute(name, default)
        return found.decode() if isinstance(found, bytes) else str(found)

    def dims(self, port: int) -> tuple[int, ...]:
        """Return the dimensions of an input at the feed.

        Raises:
            UnfollowedError: they are not known.
        """
        return self._known(self.value(port))

    def out_dims(self, index: int = 0) -> tuple[int, ...]:
        """Return the dimensions of an output at the feed.

        Raises:
            UnfollowedError: they are not known.
        """
        return self._known(self.node.outputs[index])

    def _known(self, value: ir.Value) -> tuple[int, ...]:
        dims = self.flow.dims(value)
        if dims is None:
            raise UnfollowedError(f"the shape of {value.name} is not known")
        return dims

    def is_static(self, value: ir.Value, axis: int) -> bool:
        """Say whether a dimension is the same at every feed."""
        dims = self.flow.always.dims(value)
        return dims is not None and axis < len(dims) and dims[axis].as_int() is not None

    def numbers(self, name: str, port: int, *, default: Sequence[int] | None = None) -> list[int]:
        """Return whole numbers, an attribute or an input by opset, as they are at every feed.

        Raises:
            UnfollowedError: only a run decides.
        """
        if self.node.attributes.get(name) is None and self.has(port):
            content = self.flow.always.content(self.node.inputs[port])
            found = None if content is None else content.numbers()
        else:
            found = query.integers(self.node, name, default=default)
        if found is None:
            raise UnfollowedError(f"{name} are computed at run time")
        return found

    def elements(self, name: str, port: int) -> list[int | None]:
        """Return whole numbers as `numbers` does, None in the place of each that only a run decides.

        Raises:
            UnfollowedError: not even how many there are is known.
        """
        if self.node.attributes.get(name) is None and self.has(port):
            content = self.flow.always.content(self.node.inputs[port])
            if content is not None:
                return [None if size is None else size.as_int() for size in content.elements]
        return list(self.numbers(name, port))

    def can_write(self, port: int) -> bool:
        """Say whether numbers can be put into a small input: it is a constant, or one that a Where can overwrite."""
        computed = self.flow.opset >= FIRST_WHERE and self.flow.dtype(self.value(port)) == np.int64
        return computed or self.constant(port) is not None

    def positive(self, axis: int, rank: int) -> int:
        """Return an axis counted from the front.

        Raises:
            UnfollowedError: there is no such axis.
        """
        if not -rank <= axis < rank:
            raise UnfollowedError(f"axis {axis} of {rank}")
        return axis % rank

    # Its channels.

    def axes(self, port: int) -> list[Axis]:
        """Return the axes of an input, which counts as followed from now on.

        Raises:
            UnfollowedError: their number is not known.
        """
        value = self.value(port)
        axes = self.flow.of(value)
        if axes is None:
            raise UnfollowedError(f"the shape of {value.name} is not known")
        self.followed.add(port)
        return axes

    def ranked(self, port: int, rank: int) -> list[Axis]:
        """Return the axes of an input that has so many.

        Raises:
            UnfollowedError: it has more or fewer.
        """
        axes = self.axes(port)
        if len(axes) != rank:
            raise UnfollowedError(f"input {port} has {len(axes)} axes and not {rank}")
        return axes

    def constant(self, port: int) -> ir.Value | None:
        """Return an input that no run changes, None for all others."""
        value = self.value(port)
        return value if query.constant_tensor(value) is not None else None

    def pinned(self, reason: str, *, by_nature: bool = False) -> Pin:
        """Return a pin with this node as its place."""
        return Pin(query.label(self.node), reason, by_nature)

    def single(self) -> Pin:
        """Return the pin of an axis of one index."""
        return self.pinned("has one index", by_nature=True)

    def pin(self, axis: Axis, reason: str, *, by_nature: bool = False) -> Pin:
        """Keep every index of an axis; what comes out in its place is pinned as well."""
        pin = axis if isinstance(axis, Pin) else self.pinned(reason, by_nature=by_nature)
        self.flow.pin(axis, pin)
        return pin

    def unite(self, one: Axis, other: Axis) -> Axis:
        """Let two axes of one length lose the same indices."""
        return self.flow.unite(one, other)

    def array(self, axis: Axis, count: int) -> Ids:
        """Return an axis as ids, pinned ones for one that is pinned."""
        if not isinstance(axis, Pin):
            return axis
        ids = self.flow.fresh(count)
        self.flow.pins.append((ids, axis))
        return ids

    def inexact(self, axis: Axis) -> None:
        """Note that the node's result for the other channels changes when some of this axis go."""
        if not isinstance(axis, Pin):
            self.flow.inexact.append((axis, self.node))

    def read(self, port: int, axis: int, weight: int | None = None, weight_axis: int = 0) -> None:
        """Note that the node sums over an axis of an input, multiplied with an axis of input `weight`."""
        ids = self.axes(port)[axis]
        if isinstance(ids, Pin):
            return
        constant = None if weight is None else self.constant(weight)
        self.flow.reads.append(Read(self.node, port, axis, ids, constant, weight_axis))

    def read_itself(self, weight: int, weight_axis: int) -> None:
        """Note that the node sums over channels that it makes itself, by an axis of input `weight`.

        Raises:
            UnfollowedError: that input is computed.
        """
        constant, ids = self.constant(weight), self.axes(weight)[weight_axis]
        if constant is None:
            raise UnfollowedError(f"input {weight} is computed at run time")
        if not isinstance(ids, Pin):
            self.flow.reads.append(Read(self.node, ITSELF, weight_axis, ids, constant, weight_axis))

    def made(self, axis: int, ids: Axis, weight: int, weight_axis: int) -> None:
        """Note that the node makes channels: an axis of its output, by an axis of input `weight`."""
        if not isinstance(ids, Pin):
            self.flow.made.append(Made(self.node, axis, ids, self.constant(weight), weight_axis))

    def cost(self, *axes: Axis, share: float = 1.0) -> None:
        """Note that a share of the node's MACs is proportional to what is left of each of the axes."""
        arrays = tuple(a for a in axes if not isinstance(a, Pin))
        self.flow.costs.append(Cost(self.node, share, arrays, tuple(a for a in axes if isinstance(a, Pin))))

    def fix(self, fix: Fix) -> None:
        """Note what in the node must follow when channels are cut."""
        self.flow.fixes.append(fix)

    # Products.

    def merged(self, axes: Sequence[Axis], dims: Sequence[int]) -> Axis:
        """Return the axis that these axes make when they are laid out one after the other, the last fastest."""
        free = [i for i, axis in enumerate(axes) if not isinstance(axis, Pin)]
        if not free:
            return next((axis for axis in axes if isinstance(axis, Pin)), self.single())
        spread = [_spread(self.array(axes[i], dims[i]), i, dims) for i in free]
        if len(spread) == 1:
            return spread[0]
        flat = self.flow.fresh(math.prod(dims))
        self.flow.products.append(Product(flat, tuple(spread)))
        return flat

    def split(self, axis: Axis, dims: Sequence[int]) -> list[Axis]:
        """Return the axes into which an axis falls when it is cut up in a row-major way."""
        wide = [i for i, n in enumerate(dims) if n != 1]
        if isinstance(axis, Pin) or not wide:
            return [axis if isinstance(axis, Pin) else self.single()] * len(dims)
        parts: list[Axis] = [self.single()] * len(dims)
        if len(wide) == 1:
            parts[wide[0]] = axis
            return parts
        factors = [self.flow.fresh(dims[i]) for i in wide]
        self.flow.products.append(
            Product(axis, tuple(_spread(ids, i, dims) for ids, i in zip(factors, wide, strict=True)))
        )
        for i, ids in zip(wide, factors, strict=True):
            parts[i] = ids
        return parts


def _spread(ids: Ids, place: int, dims: Sequence[int]) -> Ids:
    """Return, for each index of the flat axis, the id of its part at `place`."""
    before, after = math.prod(dims[:place]), math.prod(dims[place + 1 :])
    if before == after == 1:
        return ids
    return np.tile(np.repeat(ids, after), before)
