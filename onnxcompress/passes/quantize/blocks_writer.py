"""Writes a weight that has been rounded in blocks: the integers once, and what makes use of them at every reader.

Four forms. `kernel` is onnxruntime's own operators, which keep the integers in memory:

    MatMul(x, w), Gemm(x, w, b)  ->  MatMulNBits(x, q, s, z?, b?)
    Gather(w, ids)               ->  GatherBlockQuantized(q, ids, s, z?)

`integer` is the same with products that round the activations to 8 bits on their way (accuracy_level 4).

`multiply` is standard operators, which runtimes fold into floats when they load the model, for any reader:

    Op(x, w)  ->  Op(x, Transpose?(Reshape(Mul(Sub?(Cast(q), z), s))))

`dequantize` is the standard operator for it, which other runtimes have kernels for:

    Op(x, w)  ->  Op(x, Transpose?(Reshape?(DequantizeLinear(q, s, z?))))

Scales are stored as float16 where that is exact enough to be told from nothing: a Cast makes floats of them, folded at
load as well.
"""

from __future__ import annotations

import math
from typing import Literal

import numpy as np
import onnx_ir as ir

from ...graph import constants as float_constants
from ...graph import edit, query
from ...numerics.quantization.blocks import BlockGrid, Blocks
from ...ops.table import MICROSOFT
from .weight_storage import SiteWriter, StoredWeight, WeightContext
from .weight_uses import WeightUse

Form = Literal["kernel", "integer", "multiply", "dequantize"]

OPSETS = {2: 25, 4: 21, 8: 13}
"""Bits -> the opset from which on tensors of such integers can be cast."""

_SIGNED = {2: ir.DataType.INT2, 4: ir.DataType.INT4, 8: ir.DataType.INT8}
_UNSIGNED = {2: ir.DataType.UINT2, 4: ir.DataType.UINT4, 8: ir.DataType.UINT8}
_INT8_ACTIVATIONS = 4
"""The accuracy_level of products that may round activations to 8 bits."""
_FLOAT16_MIN, _FLOAT16_MAX = 6.2e-5, 65504.0


def kernel_fits(site: StoredWeight) -> bool:
    """Say whether the runtime's own operators can take the place of every reader."""
    return site.rank == 2 and all(_is_kernel_reader(site, reader) for reader in site.readers)


def _is_kernel_reader(site: StoredWeight, reader: WeightUse) -> bool:
    node = reader.node
    if reader.weight.is_table:
        return site.axis == 0 and not reader.transposed and int(query.attribute(node, "axis", 0)) == 0
    plain = reader.is_product and node.graph is site.home and site.axis == reader.out_axis(2)
    if query.is_op(node, "MatMul"):
        return plain
    unscaled = query.attribute(node, "alpha", 1.0) == 1 and query.attribute(node, "beta", 1.0) == 1
    return plain and query.is_op(node, "Gemm") and unscaled and not query.attribute(node, "transA", 0)


class BlockWriter(SiteWriter):
    """Writes one weight of a model."""

    def __init__(self, scene: WeightContext, site: StoredWeight, blocks: Blocks, form: Form) -> None:
        super().__init__(scene, site)
        self.blocks = blocks.as_stored()
        self.form = form

    def write(self) -> None:
        """Let every reader read the integers, and take the floats out."""
        if self.form in ("kernel", "integer"):
            self.scene.model.opset_imports.setdefault(MICROSOFT, 1)
            integers = _packed(self.blocks)
            if self.form == "kernel" and not self.site.tables:
                # not `integer`: with its optimizations off, onnxruntime 1.32 would pack such a constant together with
                # scales that have yet to become floats, and compute nonsense
                integers = integers.reshape(len(integers), self.blocks.scale.shape[1], -1)
            packed = self.store(f"int{self.blocks.grid.bits}", integers)
            scale = self._scale(self.first_reader(), self.blocks.scale)
            zero = None if self.blocks.grid.symmetric else self.store("zero", _packed_zeros(self.blocks))
            for reader in self.site.readers:
                if reader.weight.is_table:
                    self._look_up(reader, packed, scale, zero)
                else:
                    self._multiply(reader, packed, scale, zero)
            self.remove_floats()
            return
        self.replace_by(self._floats())

    def _multiply(self, reader: WeightUse, packed: ir.Value, scale: ir.Value, zero: ir.Value | None) -> None:
        node, grid = reader.node, self.blocks.grid
        outputs, inputs = self.blocks.integers.shape
        count = grid.count(inputs)
        bytes_per_block = grid.block * grid.bits // 8
        matrix = self._shaped(node, packed, [outputs, count, bytes_per_block])
        bias = node.inputs[2] if len(node.inputs) > 2 else None
        takes_bias = bias is not None and float_constants.tensor(bias) is not None and _size(bias) == outputs
        operands: list[ir.Value | None] = [node.inputs[0], matrix, scale, zero]
        if takes_bias and bias is not None:
            operands += [None, self._shaped(node, bias, [outputs])]
        while operands[-1] is None:
            operands.pop()
        attributes = {"K": inputs, "N": outputs, "bits": grid.bits, "block_size": grid.block}
        if self.form == "integer":
            attributes["accuracy_level"] = _INT8_ACTIVATIONS
        product = self.insert(node, "MatMulNBits", operands, attributes, domain=MICROSOFT)
        if bias is not None and not takes_bias:
            product = self.insert(node, "Add", [product, bias])
        edit.take_over(node.outputs[0], product)

    def _look_up(self, reader: WeightUse, packed: ir.Value, scale: ir.Value, zero: ir.Value | None) -> None:
        node, grid = reader.node, self.blocks.grid
        attributes = {"bits": grid.bits, "block_size": grid.block, "gather_axis": 0, "quantize_axis": 1}
        operands = [packed, node.inputs[1], scale] + ([] if zero is None else [zero])
        rows = self.insert(node, "GatherBlockQuantized", operands, attributes, domain=MICROSOFT)
        inputs = self.blocks.integers.shape[1]
        if inputs % grid.block:  # the last block was filled up
            rows = self._first(node, rows, inputs, axis=-1)
        edit.take_over(node.outputs[0], rows)

    @property
    def _is_turned(self) -> bool:
        """True where it is stored [in, out], as products take it, for which runtimes have fast kernels."""
        return self.site.rank == 2 and self.site.axis == 1

    def _floats(self) -> ir.Value:
        """Return the weight in floats, in its own shape, made before its first reader."""
        anchor = self.first_reader()
        if self.form == "multiply":
            floats = self._multiplied(anchor)
            if self._is_turned:
                return self._shaped(anchor, floats, list(query.dims(self.site.tensor)))
            return self._in_own_shape(anchor, floats)
        grid, blocks = self.blocks.grid, self.blocks
        types = _SIGNED if grid.symmetric else _UNSIGNED
        integers: np.ndarray = blocks.integers
        if grid.symmetric:
            integers = (integers.astype(np.int16) - grid.middle).astype(np.int8)
        turned = self._is_turned
        parts = [(f"int{grid.bits}", integers, types[grid.bits]), ("scale", blocks.scale, ir.DataType.FLOAT)]
        if not grid.symmetric:
            parts.append(("zero", blocks.zero, types[grid.bits]))
        stored = [self.store(kind, _tensor(array.T if turned else array, dtype)) for kind, array, dtype in parts]
        attributes = {"axis": 0 if turned else 1, "block_size": grid.block}
        floats = self.insert(anchor, "DequantizeLinear", [*stored], attributes)
        return floats if turned else self._in_own_shape(anchor, floats)

    def _multiplied(self, anchor: ir.Node) -> ir.Value:
        """Return the weight in floats by a Cast and a Mul: [out, in], or [in, out] where it is `_is_turned`."""
        grid, blocks = self.blocks.grid, self.blocks
        outputs, inputs = blocks.integers.shape
        count = grid.count(inputs)
        width = inputs if count == 1 else count * grid.block
        padded = np.full((outputs, width), grid.middle, np.uint8)
        padded[:, :inputs] = blocks.integers
        order = (1, 2, 0) if self._is_turned else (0, 1, 2)
        integers, scale, zero = (
            np.ascontiguousarray(array.reshape(outputs, count, -1).transpose(order))
            for array in (padded, blocks.scale, blocks.zero)
        )
        if grid.symmetric:
            values = (integers.astype(np.int16) - grid.middle).astype(np.int8)
            floats = self._cast(anchor, self.store(f"int{grid.bits}", _tensor(values, _SIGNED[grid.bits])))
        else:
            floats = self._cast(anchor, self.store(f"int{grid.bits}", _tensor(integers, _UNSIGNED[grid.bits])))
            zeros = self.store("zero", _tensor(zero, _UNSIGNED[grid.bits]))
            floats = self.insert(anchor, "Sub", [floats, self._cast(anchor, zeros)])
        floats = self.insert(anchor, "Mul", [floats, self._scale(anchor, scale)])
        if width == inputs:
            return floats
        floats = self._shaped(anchor, floats, [width, outputs] if self._is_turned else [outputs, width])
        return self._first(anchor, floats, inputs, axis=0 if self._is_turned else 1)

    def _first(self, anchor: ir.Node, value: ir.Value, count: int, *, axis: int) -> ir.Value:
        places = (("start", 0), ("end", count), ("axis", axis))
        ends: list[ir.Value | None] = [self.store(kind, np.array([at], np.int64)) for kind, at in places]
        return self.insert(anchor, "Slice", [value, *ends])

    def _in_own_shape(self, anchor: ir.Node, floats: ir.Value) -> ir.Value:
        """Return [out, in] in the shape of the weight, its output channels where they were."""
        dims, axis = query.dims(self.site.tensor), self.site.axis or 0
        moved = [dims[axis], *(d for i, d in enumerate(dims) if i != axis)]
        if self.form == "multiply" or moved != list(self.blocks.integers.shape):
            floats = self._shaped(anchor, floats, moved)
        if axis:
            back = [*range(1, axis + 1), 0, *range(axis + 1, len(dims))]
            floats = self.insert(anchor, "Transpose", [floats], {"perm": back})
        return floats

    def _scale(self, anchor: ir.Node, scale: np.ndarray) -> ir.Value:
        """Return the scales in floats: stored in half as many bytes where they are in the range of float16."""
        size = np.abs(scale)
        if size.min(initial=1.0) < _FLOAT16_MIN or size.max(initial=1.0) > _FLOAT16_MAX:
            return self.store("scale", scale.astype(np.float32))
        return self._cast(anchor, self.store("scale", scale.astype(np.float16)))

    def _shaped(self, anchor: ir.Node, value: ir.Value, dims: list[int]) -> ir.Value:
        tensor = float_constants.tensor(value)
        if tensor is not None and list(query.dims(tensor)) == dims:
            return value
        return self.insert(anchor, "Reshape", [value, self.store("shape", np.array(dims, np.int64))])

    def _cast(self, anchor: ir.Node, value: ir.Value) -> ir.Value:
        return self.insert(anchor, "Cast", [value], {"to": int(ir.DataType.FLOAT)})


def shape_of(site: StoredWeight) -> tuple[int, int]:
    """Return the shape of a weight as a matrix, [out, in]."""
    outputs = query.dims(site.tensor)[site.axis or 0]
    return outputs, site.tensor.size // outputs


def stored_bytes(outputs: int, inputs: int, grid: BlockGrid, *, is_padded: bool) -> int:
    """Return the bytes of integers, scales and zero points of a matrix; the last block of a row may be filled up."""
    count = grid.count(inputs)
    width = count * grid.block if is_padded or count > 1 else inputs
    integers = math.ceil(outputs * width * grid.bits / 8)
    return integers + outputs * count * 2 + (0 if grid.symmetric else outputs * math.ceil(count * grid.bits / 8))


def matrix_of(site: StoredWeight) -> np.ndarray:
    """Return a weight as float32 [out, in], its output channels (a table's rows) first."""
    array = site.tensor.numpy().astype(np.float32)
    axis = site.axis or 0
    return np.ascontiguousarray(np.moveaxis(array, axis, 0).reshape(array.shape[axis], -1))


def array_of(site: StoredWeight, matrix: np.ndarray) -> np.ndarray:
    """Return float32 [out, in] in the weight's own shape: undoes `matrix_of`."""
    dims, axis = query.dims(site.tensor), site.axis or 0
    moved = (dims[axis], *(d for i, d in enumerate(dims) if i != axis))
    return np.ascontiguousarray(np.moveaxis(matrix.reshape(moved), 0, axis))


def _packed(blocks: Blocks) -> np.ndarray:
    """Return the integers as the runtime's operators want them: uint8 [out, bytes], low bits first."""
    grid = blocks.grid
    outputs, inputs = blocks.integers.shape
    padded = np.full((outputs, grid.count(inputs) * grid.block), grid.middle, np.uint8)
    padded[:, :inputs] = blocks.integers
    return _joined(padded, grid.bits)


def _packed_zeros(blocks: Blocks) -> np.ndarray:
    """Return the zero points in the same way: uint8 [out, bytes], each row filled up to whole bytes."""
    per = 8 // blocks.grid.bits
    zeros = blocks.zero
    short = -zeros.shape[1] % per
    return _joined(np.pad(zeros, ((0, 0), (0, short))), blocks.grid.bits)


def _joined(values: np.ndarray, bits: int) -> np.ndarray:
    per = 8 // bits
    parts = values.reshape(len(values), -1, per)
    return np.asarray(np.bitwise_or.reduce(parts << (bits * np.arange(per, dtype=np.uint8)), axis=-1), np.uint8)


def _tensor(values: np.ndarray, dtype: ir.DataType) -> ir.TensorProtocol:
    return ir.tensor(values.astype(dtype.numpy()), dtype=dtype)


def _size(value: ir.Value) -> int:
    tensor = float_constants.tensor(value)
    return 0 if tensor is None else tensor.size
