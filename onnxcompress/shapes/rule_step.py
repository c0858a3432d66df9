"""View of a node for shape rules, and the helpers that they build facts with."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence

import numpy as np
import onnx_ir as ir

from ..graph import query
from ..numerics.polynomials import Size
from .facts import MOST_ELEMENTS, Content, Dims, Fact, Facts, ImpossibleError


class RuleContext:
    """A node and what is known of its inputs, for the rules."""

    def __init__(self, node: ir.Node, facts: Facts) -> None:
        self.node = node
        self.fresh = facts.fresh
        self._facts = facts

    def has(self, port: int) -> bool:
        """Say whether an optional input is there."""
        return port < len(self.node.inputs) and self.node.inputs[port] is not None

    def dims(self, port: int = 0) -> Dims | None:
        """Return the dimensions of an input."""
        return self._facts.dims(self.node.inputs[port]) if self.has(port) else None

    def content(self, port: int = 0) -> Content | None:
        """Return the elements of an input."""
        return self._facts.content(self.node.inputs[port]) if self.has(port) else None

    def integers(self, name: str, port: int, *, default: Sequence[int] | None = None) -> list[int] | None:
        """Return numbers that are an attribute in older opsets and an input in newer ones; None: not known."""
        if name in self.node.attributes or not self.has(port):
            return query.integers(self.node, name, default=default)
        content = self.content(port)
        return None if content is None else content.numbers()

    def attribute(self, name: str, default: int) -> int:
        """Return a number that is an attribute."""
        return int(query.attribute(self.node, name, default))

    @property
    def contents(self) -> list[Content | None]:
        """The elements of every input."""
        return [self.content(port) for port in range(len(self.node.inputs))]


Rule = Callable[[RuleContext], list[Fact]]
"""Facts of a node's inputs -> facts of its outputs."""


def from_front(axis: int, rank: int) -> int:
    """Return the axis counted from the front.

    Raises:
        ImpossibleError: there is no such axis.
    """
    if not -rank <= axis < rank:
        raise ImpossibleError
    return axis % rank if rank else 0


def vector(elements: Iterable[Size | None], dtype: ir.DataType = ir.DataType.INT64) -> Content:
    """Return a vector of these elements."""
    items = tuple(elements)
    return Content(dtype, (len(items),), items)


def attribute_vector(node: ir.Node, name: str) -> Content | None:
    """Return an attribute of whole numbers as a vector, None where it is absent."""
    numbers = query.integers(node, name)
    return None if numbers is None else vector(Size.number(n) for n in numbers)


def with_content(content: Content | None, dims: Dims | None = None) -> list[Fact]:
    """Return the facts of one output: its elements, or its dimensions where those are too many or unknown."""
    if content is None or len(content.elements) > MOST_ELEMENTS:
        return [Fact(dims)]
    return [Fact(tuple(Size.number(n) for n in content.shape), content)]


def spread(content: Content, shape: tuple[int, ...]) -> list[Size | None]:
    """Return the elements of a tensor that is stretched to `shape`."""
    indices = np.arange(len(content.elements)).reshape(content.shape)
    return [content.elements[i] for i in np.broadcast_to(indices, shape).reshape(-1)]


def as_int(size: Size | None) -> int | None:
    """Return a size as a number, None where it is none."""
    return None if size is None else size.as_int()


def as_it_came(step: RuleContext) -> list[Fact]:
    """Return what is known of the first input, for its output."""
    return [Fact(step.dims(), step.content())]
