"""Values for the inputs of a model by a plan: sizes of dynamic dimensions, a seed, the kind of numbers."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, cast

import numpy as np
import onnx_ir as ir

from ..core import Feed
from ..errors import ModelError
from .input_semantics import Role, roles

SHAPES_OF_UNKNOWN_RANK: tuple[tuple[int, ...], ...] = ((3,), (2, 3), (2, 3, 4), (2, 3, 8, 8), ())
"""Shapes that are tried, in this order, where a model declares none. Chosen by judgement; not measured."""

_MOST_ELEMENTS = 1 << 25
"""An input of more elements, 128 MiB of floats, is refused. Chosen by judgement; not measured."""

PlanKey = tuple[Any, ...]

WholeNumbers = Literal["guess", "ones", "zeros"]


@dataclass(frozen=True, kw_only=True)
class FreeInput:
    """One input to fill: its type, and its dimensions as sizes or as keys of dynamic dimensions."""

    name: str
    type: ir.TypeProtocol | None
    dims: tuple[int | str, ...] | None
    role: Role


@dataclass(frozen=True, kw_only=True)
class InputPlan:
    """Everything that determines a feed."""

    sizes: Mapping[str, int]
    seed: int
    numbers: WholeNumbers = "guess"
    positive_floats: bool = False
    other_branch: str = ""
    """The input whose value is to make If nodes take their other branch."""
    unknown_rank: tuple[int, ...] = SHAPES_OF_UNKNOWN_RANK[0]

    @property
    def key(self) -> PlanKey:
        """The same for plans that give the same feed."""
        rest = (self.seed, self.numbers, self.positive_floats, self.other_branch, self.unknown_rank)
        return (*sorted(self.sizes.items()), rest)


def free_inputs(model: ir.Model) -> list[FreeInput]:
    """Return the inputs that a feed must hold; those with a default value are left to it."""
    known = roles(model)
    return [
        FreeInput(name=value.name or "", type=value.type, dims=_dims(value), role=known.get(value.name or "", Role()))
        for value in model.graph.inputs
        if not value.is_initializer()
    ]


def _dims(value: ir.Value) -> tuple[int | str, ...] | None:
    """Return sizes, and keys of dynamic dimensions: the same key wherever the size must be the same.

    A dimension without a name gets the key "NAME#AXIS"; the first axes of all inputs share "#batch".
    """
    if value.shape is None:
        return None
    dims: list[int | str] = []
    for axis, dim in enumerate(value.shape):
        if isinstance(dim, int):
            dims.append(dim if dim >= 0 else f"{value.name}#{axis}")
        elif dim.value and dim.value != "?":
            dims.append(str(dim.value))
        else:
            dims.append("#batch" if axis == 0 else f"{value.name}#{axis}")
    return tuple(dims)


def filled(inputs: Sequence[FreeInput], plan: InputPlan) -> Feed:
    """Make the values of all inputs.

    Raises:
        ModelError: one is too large, or of a type that has no synthetic values.
    """
    rng = np.random.default_rng([plan.seed, 0x0C])
    for item in inputs:
        shape = () if item.dims is None else _shape(item.dims, plan)
        if math.prod(shape) > _MOST_ELEMENTS:
            text = f"input {item.name!r} {list(shape)} has {math.prod(shape):,} elements, too many for synthetic ones"
            raise ModelError(text, hint="Give real ones with --data, or check the shape that the model declares")
    return {item.name: cast("np.ndarray", _value(item, plan, rng)) for item in inputs}


def _value(item: FreeInput, plan: InputPlan, rng: np.random.Generator) -> Any:
    """Return a value for one input: an array, or a list of two arrays where a sequence is wanted."""
    shape = plan.unknown_rank if item.dims is None else _shape(item.dims, plan)
    kind = item.type
    while isinstance(kind, ir.OptionalType):
        kind = kind.elem_type
    if isinstance(kind, ir.SequenceType):
        element = kind.dtype
        return [_array(element, shape, item, plan, rng) for _ in range(2)]
    return _array(ir.DataType.FLOAT if kind is None else kind.dtype, shape, item, plan, rng)


def _shape(dims: Sequence[int | str], plan: InputPlan) -> tuple[int, ...]:
    return tuple(plan.sizes[dim] if isinstance(dim, str) else dim for dim in dims)


def _array(
    dtype: ir.DataType, shape: tuple[int, ...], item: FreeInput, plan: InputPlan, rng: np.random.Generator
) -> np.ndarray:
    if dtype == ir.DataType.STRING:
        words = np.array(["a", "ab", "b", "some words"], dtype=object)
        return words[rng.integers(0, len(words), shape)] if shape else words[:1].reshape(())
    if dtype == ir.DataType.UNDEFINED:
        raise ModelError(
            f"input {item.name!r} of type {item.type} has no synthetic values", hint="Give --data with real ones"
        )
    numpy_dtype = np.dtype(dtype.numpy())
    if dtype == ir.DataType.BOOL:
        return np.full(shape, _truth(item, plan))
    if dtype.is_floating_point():
        return _floats(shape, item, plan, rng).astype(numpy_dtype)
    return _whole(shape, numpy_dtype, item, plan, rng).astype(numpy_dtype)


def _truth(item: FreeInput, plan: InputPlan) -> bool:
    value = True if item.role.value is None else bool(item.role.value.flat[0])
    return not value if plan.other_branch == item.name else value


def _floats(shape: tuple[int, ...], item: FreeInput, plan: InputPlan, rng: np.random.Generator) -> np.ndarray:
    """Return float64 of `shape`: standard normal, or in [0.05, 1) where only positive ones make sense."""
    if item.role.mask:
        return np.ones(shape)
    needed = _broadcast(item.role.value, shape)
    if needed is not None:
        return needed.astype(np.float64)
    if item.role.positive or plan.positive_floats:
        return rng.uniform(0.05, 1.0, shape)
    return np.asarray(rng.standard_normal(shape))


def _whole(
    shape: tuple[int, ...], dtype: np.dtype[Any], item: FreeInput, plan: InputPlan, rng: np.random.Generator
) -> np.ndarray:
    """Return whole numbers of `shape` that fit what the input is used for."""
    role = item.role
    if role.compared and role.limit is None:
        return np.full(shape, _compared_value(role.compared, other=plan.other_branch == item.name))
    if plan.numbers != "guess":
        return np.full(shape, 1 if plan.numbers == "ones" else 0)
    if role.mask:
        return np.ones(shape, np.int64)
    if role.limit is not None:
        return np.asarray(rng.integers(0, max(role.limit, 1), shape))
    needed = _broadcast(role.value, shape)
    if needed is not None:
        return needed
    if dtype.itemsize == 1:
        info = np.iinfo(dtype) if dtype.kind in "iu" else np.iinfo(np.int8)
        return np.asarray(rng.integers(max(info.min, -100), info.max, shape))
    return np.asarray(rng.integers(1, 4, shape))


def _compared_value(constants: Sequence[float], *, other: bool) -> int:
    """Return the constant that an input is compared with, or one that the comparison tells apart from it."""
    first = int(constants[0])
    if not other:
        return first
    further = [int(constant) for constant in constants if int(constant) != first]
    return further[0] if further else first // 2 if abs(first) > 1 else first + 1


def _broadcast(value: np.ndarray | None, shape: tuple[int, ...]) -> np.ndarray | None:
    """Return `value` in `shape`, None where it doesn't fit."""
    if value is None:
        return None
    if value.size == math.prod(shape):
        return value.reshape(shape)
    return np.broadcast_to(value, shape).copy() if value.size == 1 else None
