"""Fixes beside the weights when channels are removed: numbers in attributes; sizes, positions, counts in small inputs.

Link functions leave fixes as data; `channels.remove` carries them out.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np
import onnx_ir as ir

from ..graph import edit, query

if TYPE_CHECKING:
    from .types import Ids

Keeps = Callable[["Ids"], np.ndarray]
"""ids int64 [n] -> bool [n]: whether each index is kept."""


@dataclass(frozen=True)
class Edits:
    """Tools of a fix: which ids are kept, and unique names for what it adds."""

    keeps: Keeps
    names: edit.Names

    def is_cut(self, ids: Ids) -> bool:
        """Say whether one of the ids is removed."""
        return not bool(self.keeps(ids).all())

    def left(self, ids: Ids) -> int:
        """Return how many of the ids stay."""
        return int(self.keeps(ids).sum())

    def set_input(self, node: ir.Node, port: int, numbers: np.ndarray) -> None:
        """Give a node whole numbers of its own as a constant input; others may read what it read before."""
        hint = f"{query.label(node)}_{port}"
        _set_input(node, port, edit.add_initializer(query.home(node), self.names, hint, numbers))

    def overwrite(self, node: ir.Node, port: int, numbers: Mapping[int, int], length: int) -> None:
        """Put numbers into places of a vector of `length` that a node reads: a constant of its own, or a Where."""
        value = node.inputs[port]
        known = query.constant(value)
        if known is not None:
            vector = known.copy()
            vector[list(numbers)] = list(numbers.values())
            self.set_input(node, port, vector)
        elif length == len(numbers):
            self.set_input(node, port, np.array([numbers[place] for place in range(length)], np.int64))
        else:
            where = edit.insert_before(node, self.names, "Where", [*_overwrite(node, numbers, length, self), value])
            _set_input(node, port, where.outputs[0])


def _set_input(node: ir.Node, port: int, value: ir.Value | None) -> None:
    """Replace an input; what nobody reads any more is removed."""
    while len(node.inputs) <= port:
        node.resize_inputs(port + 1)
    old = node.inputs[port]
    node.replace_input_with(port, value)
    if old is not None:
        edit.remove_unread(old)


class Fix(Protocol):
    """Something in a node that follows a cut."""

    @property
    def node(self) -> ir.Node:
        """The node that is changed."""
        ...

    def apply(self, edits: Edits) -> None:
        """Change the node; does nothing where none of its ids go."""
        ...


@dataclass(frozen=True, eq=False)
class Count:
    """An attribute holds the number of ids: `group`, `num_heads`, `hidden_size`."""

    node: ir.Node
    name: str
    ids: Ids

    def apply(self, edits: Edits) -> None:
        """Write the number of those that stay."""
        if edits.is_cut(self.ids):
            self.node.attributes[self.name] = ir.AttrInt64(self.name, edits.left(self.ids))


@dataclass(frozen=True, eq=False)
class Default:
    """An attribute that is absent, and whose default depends on how many ids there are."""

    node: ir.Node
    name: str
    value: float
    ids: Ids

    def apply(self, edits: Edits) -> None:
        """Write down what the default was."""
        if edits.is_cut(self.ids):
            self.node.attributes[self.name] = ir.AttrFloat32(self.name, self.value)


@dataclass(frozen=True, eq=False)
class Sizes:
    """A small input holds sizes; `entries` says which of them are the number of which ids.

    Entries that the operator works out by itself (-1, 0 and 1 where they have that meaning) are not listed.
    """

    node: ir.Node
    port: int
    entries: Sequence[tuple[int, Ids]]
    length: int

    def apply(self, edits: Edits) -> None:
        """Write the numbers of those that stay; into a computed input, by a Where behind it."""
        cut = {place: edits.left(ids) for place, ids in self.entries if edits.is_cut(ids)}
        if cut:
            edits.overwrite(self.node, self.port, cut, self.length)


def _overwrite(node: ir.Node, numbers: Mapping[int, int], length: int, edits: Edits) -> list[ir.Value]:
    """Return the first two inputs of a Where that puts numbers in some places of an int64 vector."""
    mask, others = np.zeros(length, bool), np.zeros(length, np.int64)
    for place, number in numbers.items():
        mask[place], others[place] = True, number
    hint, owner = query.label(node), query.home(node)
    return [
        edit.add_initializer(owner, edits.names, f"{hint}_{name}", array)
        for name, array in (("is_cut", mask), ("sizes", others))
    ]


@dataclass(frozen=True, eq=False)
class Frozen:
    """A Shape: what is computed from its result stays as it was, since `Sizes` write what has to follow."""

    node: ir.Node
    sizes: Sequence[tuple[int, Ids]]
    """(place in the result, ids of that axis)."""
    length: int

    def apply(self, edits: Edits) -> None:
        """Put the sizes that were into the result."""
        cut = {place: len(ids) for place, ids in self.sizes if edits.is_cut(ids)}
        output = self.node.outputs[0]
        uses = list(output.uses())
        if not cut or not uses:
            return
        inputs = [*_overwrite(self.node, cut, self.length, edits), output]
        where = edit.put_after(self.node, edits.names, "Where", inputs)
        for use in uses:
            use.node.replace_input_with(use.idx, where.outputs[0])


@dataclass(frozen=True, eq=False)
class PartSizes:
    """A Split: the lengths of its outputs."""

    node: ir.Node
    parts: Sequence[Ids | int]
    """ids of each output, or its length where they are pinned."""
    as_attribute: bool

    def apply(self, edits: Edits) -> None:
        """Write the lengths that are left."""
        if not any(not isinstance(ids, int) and edits.is_cut(ids) for ids in self.parts):
            return
        lengths = [ids if isinstance(ids, int) else edits.left(ids) for ids in self.parts]
        if self.as_attribute:
            self.node.attributes["split"] = ir.AttrInt64s("split", lengths)
            return
        self.node.attributes.pop("num_outputs", None)
        edits.set_input(self.node, 1, np.array(lengths, np.int64))


@dataclass(frozen=True, eq=False)
class WindowSizes:
    """A Slice takes the indices from `start` to `stop` of an axis; `place` of `count` in its vectors is that axis's."""

    node: ir.Node
    place: tuple[int, int]
    ids: Ids
    start: int
    stop: int

    def apply(self, edits: Edits) -> None:
        """Let start and end count what is left."""
        stays = edits.keeps(self.ids)
        if stays.all():
            return
        place, count = self.place
        for port, (name, until) in enumerate({"starts": self.start, "ends": self.stop}.items(), start=1):
            number = int(stays[:until].sum())
            if name in self.node.attributes:
                old = query.integers(self.node, name) or []
                self.node.attributes[name] = ir.AttrInt64s(name, [*old[:place], number, *old[place + 1 :]])
            else:
                edits.overwrite(self.node, port, {place: number}, count)


@dataclass(frozen=True, eq=False)
class Picks:
    """A Gather with constant positions, or a Slice with a stride, which becomes one: positions in an axis."""

    node: ir.Node
    axis: int
    ids: Ids
    picks: np.ndarray

    def apply(self, edits: Edits) -> None:
        """Let the positions count what is left."""
        stays = edits.keeps(self.ids)
        if stays.all():
            return
        position = np.cumsum(stays) - 1
        left = position[self.picks[stays[self.picks]]] if self.picks.ndim else position[self.picks]
        if query.is_op(self.node, "Gather"):
            edits.set_input(self.node, 1, np.asarray(left, np.int64))
            return
        hint = f"{query.label(self.node)}_indices"
        indices = edit.add_initializer(query.home(self.node), edits.names, hint, np.asarray(left, np.int64))
        edit.turn_into(self.node, "Gather", [self.node.inputs[0], indices], {"axis": self.axis})


@dataclass(frozen=True, eq=False)
class Attribute:
    """An attribute that is worked out anew from what is left of several axes."""

    node: ir.Node
    name: str
    ids: Sequence[Ids]
    value: Callable[[Sequence[int]], Any]

    def apply(self, edits: Edits) -> None:
        """Write the attribute."""
        if any(edits.is_cut(ids) for ids in self.ids):
            [attr] = ir.convenience.convert_attributes({self.name: self.value([edits.left(i) for i in self.ids])})
            self.node.attributes[self.name] = attr
