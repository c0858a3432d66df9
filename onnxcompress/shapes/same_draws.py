"""Random operators of a copy of a model are replaced by numbers that depend on their place alone.

    RandomNormalLike(x)  ->  Reshape(Gather(table, (Range(Size(x)) + start) mod length), Shape(x))

The start follows from the name of the result, so that two models draw the same, in every run, in any order of runs,
and in bodies and functions too. A seed gives the same numbers in the same run of two fresh sessions only.
"""

from __future__ import annotations

import zlib
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import onnx_ir as ir

from ..graph import edit, query
from ..io import model_io
from ..ops import table

_LENGTH = 262_139
"""Numbers of a table, a prime: the start of another draw is never a whole number of its rows away. 1 MB."""
_SEED = 1
"""Of the tables."""
_RANGE_OPSET = 11
"""From here on there are Range and Mod."""
_LIKE_OPSET = 15
"""From here on there is CastLike."""
_ALLOWZERO_OPSET = 14
"""From here on a Reshape can give a dimension of 0 that its input lacks."""
_TRAINING_PORT = 2
"""Input of a Dropout that says whether it draws."""

Draw = tuple[str, str]
"""A random operator: its type and the name of its result."""


def draws(model: ir.Model) -> tuple[Draw, ...]:
    """Return the random operators of a model in order."""
    return tuple((node.op_type, node.outputs[0].name or "") for node in query.nodes(model) if _is_random(node))


def counterparts(ours: Sequence[Draw], original: Sequence[Draw]) -> dict[str, str]:
    """Return result of a random operator -> result of that in the original which draws the same.

    By name, else the first of the same type that has not been found by name; one without a counterpart keeps its own.
    """
    names = {name for _, name in original}
    made = {name for _, name in ours}
    left = [each for each in original if each[1] not in made]
    found: dict[str, str] = {}
    for op_type, name in ours:
        other = None if name in names else next((each for each in left if each[0] == op_type), None)
        if other is not None:
            left.remove(other)
        found[name] = name if other is None else other[1]
    return found


def with_same_draws(model: ir.Model, names: Mapping[str, str]) -> ir.Model:
    """Return a copy of a model in which nothing is random.

    Args:
        model: has random operators.
        names: result of a random operator -> name that its numbers follow from.

    Raises:
        ModelError: the model is of an opset before 11 and can't be converted.
    """
    copy = model_io.clone(model)
    if query.opset(copy) < _RANGE_OPSET:
        copy = model_io.convert_opset(copy, _RANGE_OPSET)
    fresh = edit.Names(copy)
    for node in [node for node in query.nodes(copy) if _is_random(node)]:
        name = node.outputs[0].name or ""
        _Replacement(node, fresh, query.opset(copy), names.get(name, name)).replace()
    return copy


def _is_random(node: ir.Node) -> bool:
    if node.domain not in query.STANDARD_DOMAINS or node.op_type not in table.STOCHASTIC:
        return False
    trains = len(node.inputs) > _TRAINING_PORT and node.inputs[_TRAINING_PORT] is not None
    return node.op_type != "Dropout" or trains


class _Replacement:
    """Nodes that take the place of one random operator."""

    def __init__(self, node: ir.Node, names: edit.Names, opset: int, key: str) -> None:
        self._node = node
        self._names = names
        self._opset = opset
        self._start = zlib.crc32(key.encode()) % _LENGTH

    def replace(self) -> None:
        made = {
            "Bernoulli": self._bernoulli,
            "Dropout": self._dropout,
            "Multinomial": self._multinomial,
        }.get(self._node.op_type, self._scaled)()
        edit.replace_node(self._node, made[: len(self._node.outputs)])

    def _scaled(self) -> list[ir.Value]:
        is_normal = "Normal" in self._node.op_type
        first, second = (("mean", 0.0), ("scale", 1.0)) if is_normal else (("low", 0.0), ("high", 1.0))
        shift, factor = (float(query.attribute(self._node, *each)) for each in (first, second))
        factor = factor if is_normal else factor - shift
        like = self._node.inputs[0] if self._node.inputs else None
        unit = self._drawn(_normal if is_normal else _uniform, like)
        scaled = self._op("Mul", unit, self._constant(np.float32(factor)))
        return [self._typed(self._op("Add", scaled, self._constant(np.float32(shift))), like)]

    def _bernoulli(self) -> list[ir.Value]:
        like = self._node.inputs[0]
        chance = self._op("Cast", like, to=int(ir.DataType.FLOAT))
        return [self._typed(self._op("Less", self._drawn(_uniform, like), chance), like)]

    def _dropout(self) -> list[ir.Value]:
        like, trains = self._node.inputs[0], self._node.inputs[_TRAINING_PORT]
        given = self._node.inputs[1]
        ratio = self._constant(np.float32(0.5)) if given is None else self._op("Cast", given, to=1)
        is_kept = self._op("Not", self._op("Less", self._drawn(_uniform, like), ratio))
        factor = self._op("Div", self._op("Cast", is_kept, to=1), self._op("Sub", self._constant(np.float32(1)), ratio))
        wide = self._op("Cast", like, to=1)
        chosen = self._op("Where", trains, self._op("Mul", wide, factor), wide)
        return [self._typed(chosen, like), self._op("Or", is_kept, self._op("Not", trains))]

    def _multinomial(self) -> list[ir.Value]:
        """Return the classes with the largest sum of log-probability and Gumbel noise."""
        count = int(query.attribute(self._node, "sample_size", 1))
        scores = self._op("Cast", self._node.inputs[0], to=1)
        rows = self._op("Reshape", scores, self._constant(np.array([0, 1, -1], np.int64)))
        spread = self._op("Expand", rows, self._constant(np.array([1, count, 1], np.int64)))
        noisy = self._op("Add", spread, self._drawn(_gumbel, spread))
        best = self._op("ArgMax", noisy, axis=2, keepdims=0)
        return [self._op("Cast", best, to=int(query.attribute(self._node, "dtype", int(ir.DataType.INT32))))]

    def _drawn(self, numbers: Any, like: ir.Value | None) -> ir.Value:
        """Return float32 numbers of the shape of a value, or of the operator's own."""
        if like is None:
            shape = np.array(query.attribute(self._node, "shape", ()), np.int64)
            count, dims = self._constant(np.int64(shape.prod())), self._constant(shape)
        else:
            count, dims = self._op("Size", like), self._op("Shape", like)
        zero, one = (self._constant(np.int64(number)) for number in (0, 1))
        places = self._op("Add", self._op("Range", zero, count, one), self._constant(np.int64(self._start)))
        within = self._op("Mod", places, self._constant(np.int64(_LENGTH)))
        flat = self._op("Gather", self._constant(numbers()), within)
        return self._op("Reshape", flat, dims, **({"allowzero": 1} if self._opset >= _ALLOWZERO_OPSET else {}))

    def _typed(self, value: ir.Value, like: ir.Value | None) -> ir.Value:
        """Return a value in the type of the operator's result."""
        dtype = query.attribute(self._node, "dtype")
        if dtype is None and like is not None:
            if self._opset >= _LIKE_OPSET:
                return self._op("CastLike", value, like)
            dtype = like.dtype
        return self._op("Cast", value, to=int(ir.DataType.FLOAT if dtype is None else dtype))

    def _constant(self, array: np.ndarray | np.generic) -> ir.Value:
        return self._op("Constant", value=ir.tensor(np.asarray(array)))

    def _op(self, op_type: str, *inputs: ir.Value | None, **attributes: Any) -> ir.Value:
        made = edit.insert_before(self._node, self._names, op_type, inputs, attributes=attributes)
        return made.outputs[0]


def _uniform() -> np.ndarray:
    return np.random.default_rng(_SEED).random(_LENGTH, np.float32)


def _normal() -> np.ndarray:
    return np.random.default_rng(_SEED).standard_normal(_LENGTH, np.float32)


def _gumbel() -> np.ndarray:
    return np.random.default_rng(_SEED).gumbel(size=_LENGTH).astype(np.float32)
