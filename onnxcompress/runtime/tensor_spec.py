"""Inputs and outputs of models as the runtime declares them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

ARRAY_TYPES: Mapping[str, np.dtype[Any]] = {
    "tensor(float)": np.dtype(np.float32),
    "tensor(double)": np.dtype(np.float64),
    "tensor(float16)": np.dtype(np.float16),
    "tensor(bool)": np.dtype(np.bool_),
    **{f"tensor({sign}int{bits})": np.dtype(f"{sign}int{bits}") for sign in ("", "u") for bits in (8, 16, 32, 64)},
}
"""Type of the runtime -> that of arrays."""


@dataclass(frozen=True)
class TensorSpec:
    """Name, type and shape that a model declares for one of its inputs or outputs.

    `dtype` is None for what the runtime's Python interface has no number array for: strings, sequences,
    optionals, maps, bfloat16, float8 and 4-bit integers; `type` is the runtime's name for it in every case
    ("tensor(float)"). A dimension is a size, a symbol, or None where nothing is known. A tensor of unknown
    rank can't be told from a scalar here. An input that `is_optional` has a default, which a feed may override.
    """

    name: str
    dtype: np.dtype[Any] | None
    shape: tuple[int | str | None, ...]
    type: str
    is_optional: bool = False

    def __str__(self) -> str:
        dims = ", ".join("?" if dim is None else str(dim) for dim in self.shape)
        return f"'{self.name}' {self.dtype or self.type} [{dims}]"


def array_type(text: str) -> np.dtype[Any] | None:
    """Return the type of the arrays for what the runtime calls "tensor(float)", None where there are none."""
    return np.dtype(object) if text == "tensor(string)" else ARRAY_TYPES.get(text)
