"""Input of a derivative rule: the node, shapes and constants of what it reads, and the nodes that it adds.

Shapes are those of one batch and all known, so a rule computes what depends on them (padding, positions, counts) in
Python. A derivative has the shape of its value.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import onnx
from onnx import helper

Dims = tuple[int, ...]


class NoRuleError(Exception):
    """A rule does not cover a node, for the reason that the exception holds."""


class RuleNode:
    """A node whose derivative is computed.

    Args:
        node: the node.
        add: (operator, inputs, attributes) -> name of the output of a new node of the derivative.
        constant: (array) -> name of an initializer that holds it.
        shape_of: (name) -> shape of a value, None where it is not known.
        value_of: (name) -> a constant's array, None where it is none.
        wants: (name) -> whether a derivative by this value is wanted.
        replace: called with the node that the forward pass runs in place of this one.
    """

    def __init__(
        self,
        node: onnx.NodeProto,
        *,
        add: Callable[[str, Sequence[str], Mapping[str, Any]], str],
        constant: Callable[[np.ndarray], str],
        shape_of: Callable[[str], Dims | None],
        value_of: Callable[[str], np.ndarray | None],
        wants: Callable[[str], bool],
        replace: Callable[[onnx.NodeProto], None],
    ) -> None:
        self.node = node
        self._add = add
        self.constant = constant
        self._shape_of = shape_of
        self._value_of = value_of
        self._wants = wants
        self.replace = replace

    def add(self, op_type: str, *inputs: str, **attributes: Any) -> str:
        """Add a node with one output and return the output's name."""
        return self._add(op_type, inputs, attributes)

    def ints(self, values: Sequence[int]) -> str:
        """Return an initializer of int64 [n]."""
        return self.constant(np.asarray(values, np.int64).reshape(-1))

    def attribute(self, name: str, default: Any = None) -> Any:
        """Return an attribute's value, text decoded."""
        found = next((helper.get_attribute_value(a) for a in self.node.attribute if a.name == name), default)
        return found.decode() if isinstance(found, bytes) else found

    def has(self, port: int) -> bool:
        """Return whether the node has this input."""
        return port < len(self.node.input) and bool(self.node.input[port])

    def wants(self, port: int) -> bool:
        """Return whether the derivative by this input is wanted."""
        return self.has(port) and self._wants(self.node.input[port])

    def dims(self, name: str) -> Dims:
        """Return the shape of a value.

        Raises:
            NoRuleError: it is not known.
        """
        found = self._shape_of(name)
        if found is None:
            raise NoRuleError(f"the shape of {name!r} is not known")
        return found

    def integers(self, port: int) -> list[int] | None:
        """Return the numbers of a constant input, None where the node does not have it.

        Raises:
            NoRuleError: it is not constant.
        """
        if not self.has(port):
            return None
        found = self._value_of(self.node.input[port])
        if found is None:
            raise NoRuleError(f"its input {self.node.input[port]!r} is not constant")
        return [int(n) for n in np.reshape(found, -1)]

    def reshape(self, value: str, dims: Sequence[int]) -> str:
        """Reshape a value."""
        return self.add("Reshape", value, self.ints(dims))

    def total(self, value: str, axes: Sequence[int]) -> str:
        """Sum a value over axes, which go."""
        return self.add("ReduceSum", value, self.ints(axes), keepdims=0)

    def slice(
        self, value: str, starts: Sequence[int], ends: Sequence[int], axes: Sequence[int], steps: Any = None
    ) -> str:
        """Slice a value along axes."""
        extra = [] if steps is None else [self.ints(steps)]
        return self.add("Slice", value, self.ints(starts), self.ints(ends), self.ints(axes), *extra)

    def pad(self, value: str, before: Sequence[int], after: Sequence[int]) -> str:
        """Add zeros around a value."""
        if not any(before) and not any(after):
            return value
        return self.add("Pad", value, self.ints([*before, *after]), mode="constant")


Rule = Callable[[RuleNode, str], "dict[int, str]"]
"""(node, derivative by its first output) -> derivative by the inputs that are wanted, by port."""
