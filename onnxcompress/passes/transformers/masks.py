"""Masks as attention operators take them: one sum, with as many rows as there are queries."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir

from ...graph import edit
from ...numerics.polynomials import Size
from ..rewriting import RewriteContext
from .attention import Attention, Mask
from .scene import Dims, Scene, is_one

_ONE = Size.number(1)

_SHAPE_SLICE_OPSET = 15
"""Opset from which on Shape takes a range of axes."""


def mask_problem(found: Attention, scene: Scene, ctx: RewriteContext) -> str | None:
    """Return why the masks of a block can't be given to an operator, None where they can."""
    for mask in found.masks:
        dims = scene.dims(mask.value, ctx)
        if (dims is None and not found.heads) or len(dims or ()) > (4 if found.heads else 3):
            return f"the rank of its mask {mask.value.name} is not known"
        if mask.fill is None and ctx.shapes.dtype(mask.value) != ir.DataType.FLOAT:
            return f"the type of its mask {mask.value.name} is not float32"
    return None


class MaskWriter:
    """Makes the mask of one block before a node; nodes that other blocks need too are made once."""

    def __init__(self, found: Attention, anchor: ir.Node, scene: Scene, ctx: RewriteContext, *, four: bool) -> None:
        self._found = found
        self._anchor = anchor
        self._scene = scene
        self._ctx = ctx
        self._four = four

    def written(self) -> ir.Value | None:
        """Return the mask, None where there is none. With `four` it has four axes."""
        if not self._found.masks:
            return None
        parts = [self._added(mask) for mask in self._found.masks]
        total, dims = parts[0]
        for other, sizes in parts[1:]:
            summed = self._shared((total, other), "Add", [total, other])
            total, dims = summed, _broadcast(dims, sizes)
        if dims is None:
            return self._with_rows(total, ())
        return self._with_rows(*self._in_axes(total, dims))

    def _shared(self, key: object, op_type: str, inputs: list[ir.Value | None], **attributes: int) -> ir.Value:
        def make() -> ir.Value:
            made = edit.insert_before(self._anchor, self._ctx.names, op_type, inputs, attributes=attributes)
            return made.outputs[0]

        return self._scene.shared(self._anchor, (op_type, key), make)

    def _number(self, number: object, dtype: type) -> ir.Value:
        array: np.ndarray = np.array(number, dtype)
        key = (str(array.dtype), array.tobytes(), array.shape)

        def make() -> ir.Value:
            zero = edit.insert_before(self._anchor, self._ctx.names, "Constant", [], hint="mask_constant")
            zero.attributes["value"] = ir.AttrTensor("value", ir.tensor(array))
            return zero.outputs[0]

        return self._scene.shared(self._anchor, ("constant", key), make)

    def _added(self, mask: Mask) -> tuple[ir.Value, Dims | None]:
        """Return a mask as numbers to be added, with its dimensions."""
        dims = self._scene.dims(mask.value, self._ctx)
        if mask.fill is None:
            return mask.value, dims
        fill, none = self._number(mask.fill, np.float32), self._number(0.0, np.float32)
        choice = [mask.value, fill, none] if mask.when else [mask.value, none, fill]
        return self._shared((mask.value, mask.fill, mask.when), "Where", [*choice]), dims

    def _in_axes(self, mask: ir.Value, dims: Dims) -> tuple[ir.Value, Dims]:
        """Return a mask with four axes, where it has three or is wanted so, and its dimensions."""
        if len(dims) == 4 or (len(dims) == 2 and not self._four):
            return mask, dims
        missing = 4 - len(dims)
        places = [1] if self._found.heads is None and missing == 1 else list(range(missing))
        wide = self._shared((mask, tuple(places)), "Unsqueeze", [mask, self._number(places, np.int64)])
        if places == [1]:
            return wide, (dims[0], _ONE, *dims[1:])
        return wide, (*[_ONE] * missing, *dims)

    def _with_rows(self, mask: ir.Value, dims: Dims) -> ir.Value:
        """Return a mask that has a row for every query: the runtime's operators don't repeat one row.

        One of unknown rank (no dimensions) gets four axes by the same Expand.
        """
        queries = self._found.query.split
        sizes = self._scene.dims(queries, self._ctx)
        assert queries is not None
        assert sizes is not None
        if len(dims) > 1 and dims[-2] == sizes[-2]:
            return mask
        if len(dims) == 2:
            mask, dims = self._unsqueezed(mask, dims)
        rows = self._rows(queries, sizes)
        one = self._number([1], np.int64)
        shape = self._shared((rows, "shape"), "Concat", [one, one, rows, one], axis=0)
        return self._shared((mask, shape), "Expand", [mask, shape])

    def _unsqueezed(self, mask: ir.Value, dims: Dims) -> tuple[ir.Value, Dims]:
        wide = self._shared((mask, (0, 1)), "Unsqueeze", [mask, self._number([0, 1], np.int64)])
        return wide, (_ONE, _ONE, *dims)

    def _rows(self, queries: ir.Value, sizes: Dims) -> ir.Value:
        """Return the number of queries as a tensor [1]."""
        axis = len(sizes) - 2
        known = sizes[axis].as_int()
        if known is not None:
            return self._number([known], np.int64)
        source = self._found.query.joined or queries
        place = 1 if self._found.query.joined is not None else axis
        key = ("rows", str(sizes[axis]))
        if self._ctx.opset >= _SHAPE_SLICE_OPSET:
            return self._shared(key, "Shape", [source], start=place, end=place + 1)
        shape = self._shared((*key, "all"), "Shape", [source])
        return self._shared(key, "Gather", [shape, self._number([place], np.int64)], axis=0)


def _broadcast(a: Dims | None, b: Dims | None) -> Dims | None:
    """Return the dimensions of a sum, as far as they decide anything here: those that are not 1."""
    if a is None or b is None:
        return None
    longest = max(len(a), len(b))
    wide = [(*[_ONE] * (longest - len(d)), *d) for d in (a, b)]
    return tuple(y if is_one(x) else x for x, y in zip(*wide, strict=True))
