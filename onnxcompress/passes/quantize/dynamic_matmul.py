"""Matrix products on integers, in the form that onnxruntime makes one or two kernels of.

    q, s, z = DynamicQuantizeLinear(x)
    y = Mul(Cast(MatMulInteger(q, w_int8, z)), Mul(s, w_scale))     and Add(y, bias) where there is one

becomes DynamicQuantizeMatMul. Products that read the same x share its first node and become MatMulIntegerToFloat.
A bias of [N], [1, N] or [1, 1, N] is taken in. No zero point is written for the weight: it is 0.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import onnx_ir as ir

from ...graph import constants as float_constants
from ...graph import edit, query
from ...ops import table as ops
from ...shapes.infer import Shapes
from ...targets import facts as targets
from .weight_rounding import Rounding
from .weight_storage import StoredWeight, WeightContext, WeightWriter
from .weight_uses import WeightUse

OPSET = 11
"""The opset from which on there is DynamicQuantizeLinear."""
_MOST_DEPTH = (2**31 - 1) // (255 * 128)
"""Products of uint8 and int8 that an int32 can always sum up."""
_MOST_STEPS = 4
"""Nodes between a product and the integers of its weight."""


@dataclass(frozen=True)
class DynamicProduct:
    """A weight and those of its readers that multiply by it on integers; the others get it back as floats."""

    site: StoredWeight
    nodes: frozenset[ir.Node]


def product(site: StoredWeight, nodes: Sequence[ir.Node]) -> DynamicProduct:
    """Return a weight to be written, stored the other way round where all its readers are products that want that."""
    turned = len(nodes) == len(site.readers) and all(r.wants_transpose for r in site.readers)
    return DynamicProduct(replace(site, transposed=True) if turned else site, frozenset(nodes))


def faults(site: StoredWeight, shapes: Shapes, facts: targets.DynamicFacts) -> dict[ir.Node, str]:
    """Return for each matrix product that reads a weight why it stays float, "" where it may run on integers."""
    return {
        r.node: _fault(r, site, facts, _rows(r.node, shapes)) or _bias_fault(r.node, shapes)
        for r in site.readers
        if _is_written(r.node) or _is_microsoft(r.node, "FusedGemm", "Attention")
    }


def has_rounded_weight(node: ir.Node) -> bool:
    """Say whether a product reads a weight that is made of constant integers in each run."""
    value = node.inputs[1] if _is_written(node) and len(node.inputs) > 1 else None
    for _ in range(_MOST_STEPS):
        maker = None if value is None else value.producer()
        if maker is None or not maker.inputs:
            return False
        value = maker.inputs[0]
        if query.is_op(maker, "DequantizeLinear"):
            return True
        if query.is_op(maker, "Cast"):
            tensor = query.constant_tensor(value)
            return tensor is not None and tensor.dtype.is_integer()
        if not query.is_op(maker, "Mul", "Transpose"):
            return False
    return False


def _fault(reader: WeightUse, site: StoredWeight, facts: targets.DynamicFacts, rows: int) -> str:
    node = reader.node
    if site.tensor.dtype != ir.DataType.FLOAT:
        return f"{site.tensor.dtype.name.lower()}: DynamicQuantizeLinear reads float32 only"
    if not _is_written(node):
        return f"{node.op_type} of {node.domain} has no form on integers whose ranges are found in each run"
    if reader.port != 1:
        return "its weight stands on the left; scales of an integer product belong to columns of the right side"
    if site.rank != 2:
        return f"its weight has {site.rank} axes, a matrix has 2"
    if site.axis is not None and site.axis != reader.out_axis(2):
        return "others read the weight the other way round: its scales don't belong to the columns"
    if _is_microsoft(node, "FusedMatMul") and any(
        query.attribute(node, name, 0) for name in ("transA", "transBatchA", "transBatchB")
    ):
        return "it transposes its activations"
    depth, columns = _depth_and_columns(reader, site)
    if depth > _MOST_DEPTH:
        return f"sums of {depth} products may leave the range of int32"
    if not facts.product_pays(rows, depth, columns):
        return f"too small to be faster on integers: {rows} x {depth} x {columns}"
    return ""


def _bias_fault(node: ir.Node, shapes: Shapes) -> str:
    """Return a reason where a constant of more axes than a product has is added to it.

    onnxruntime takes it in as a bias and loses the axes: [5, 256] x [256, 384] + [1, 1, 384] comes out as [5, 384].
    """
    rank = shapes.rank(node.outputs[0])
    for use in node.outputs[0].uses():
        if query.is_op(use.node, "Add"):
            tensor = float_constants.tensor(use.node.inputs[1 - use.idx])
            axes = 0 if tensor is None else len(query.dims(tensor))
            if axes > (1 if rank is None else rank):
                return f"a constant of {axes} axes is added, which onnxruntime would add without those"
    return ""


def _depth_and_columns(reader: WeightUse, site: StoredWeight) -> tuple[int, int]:
    """Return how many products a sum has, and how many columns the weight, as a product sees it."""
    dims, out = query.dims(site.tensor), reader.out_axis(2)
    return dims[1 - out], dims[out]


def _rows(node: ir.Node, shapes: Shapes) -> int:
    """Return the rows of activations that a product reads in a run, dynamic dimensions counted as 1."""
    dims = shapes.shape(node.inputs[0]) or ()
    columns_first = query.is_op(node, "Gemm") and query.attribute(node, "transA", 0)
    dims = dims[1:] if columns_first else dims[:-1]
    return int(np.prod([d if isinstance(d, int) else 1 for d in dims], dtype=np.int64))


class QuantizedInputs:
    """The DynamicQuantizeLinear of each value that products read, one in each graph."""

    def __init__(self, scene: WeightContext) -> None:
        self._scene = scene
        self._made: dict[tuple[ir.Graph, ir.Value], tuple[ir.Value, ...]] = {}

    def get(self, node: ir.Node, value: ir.Value) -> tuple[ir.Value, ...]:
        """Return the integers, the scale and the zero point of what `node` reads, before its first reader there."""
        home = query.home(node)
        if (home, value) not in self._made:
            order = self._scene.order
            here = [node] + [use.node for use in value.uses() if use.node.graph is home and use.node in order]
            first = min(here, key=lambda reader: order[reader])
            name = f"{value.name}_DynamicQuantizeLinear"
            made = edit.insert_before(first, self._scene.names, "DynamicQuantizeLinear", [value], outputs=3, hint=name)
            self._made[home, value] = tuple(made.outputs)
        return self._made[home, value]


class ProductWriter(WeightWriter):
    """Writes one weight: as integers for the products among its readers that are given, as floats for the others."""

    def __init__(
        self,
        scene: WeightContext,
        product: DynamicProduct,
        rounding: Rounding,
        form: targets.WeightForm,
        inputs: QuantizedInputs,
    ) -> None:
        super().__init__(scene, product.site, rounding, form)
        self._products = product.nodes
        self._inputs = inputs
        self._scales: dict[float, ir.Value] = {}

    def _replace_weight(self, reader: WeightUse) -> None:
        if reader.node not in self._products:
            super()._replace_weight(reader)
            return
        node, weight = reader.node, self.integers
        if (reader.out_axis(2) == 0) != self.site.transposed:
            weight = self.insert(node, "Transpose", [weight], {"perm": [1, 0]})
        integers, scale, zero_point = self._inputs.get(node, self._activations(node))
        summed = self.insert(node, "MatMulInteger", [integers, weight, zero_point])
        floats = self.insert(node, "Cast", [summed], {"to": int(ir.DataType.FLOAT)})
        factor = self.insert(node, "Mul", [scale, self._scale(float(query.attribute(node, "alpha", 1.0)))])
        result = self.insert(node, "Mul", [floats, factor])
        bias = self._bias(reader)
        if bias is not None:
            result = self.insert(node, "Add", [result, bias])
        edit.take_over(node.outputs[0], result)

    def _activations(self, node: ir.Node) -> ir.Value:
        """Return what a product multiplies, rows first."""
        value = node.inputs[0]
        assert value is not None
        if query.is_op(node, "Gemm") and query.attribute(node, "transA", 0):
            return self.insert(node, "Transpose", [value], {"perm": [1, 0]})
        return value

    def _scale(self, alpha: float) -> ir.Value:
        """Return the scales of the weight times a factor."""
        if alpha not in self._scales:
            self._scales[alpha] = self.store("scale", np.asarray(self.rounding.scale * np.float32(alpha)))
        return self._scales[alpha]

    def _bias(self, reader: WeightUse) -> ir.Value | None:
        """Return what is added, as [N] where it is a constant that is the same for all rows, None where nothing is."""
        node, columns = reader.node, _depth_and_columns(reader, self.site)[1]
        value = node.inputs[2] if query.is_op(node, "Gemm") and len(node.inputs) > 2 else None
        beta = float(query.attribute(node, "beta", 1.0))
        if value is None or beta == 0:
            return None
        tensor = float_constants.tensor(value)
        dims = None if tensor is None else query.dims(tensor)
        if dims == (columns,) and beta == 1:
            return value
        if tensor is not None and dims is not None and tensor.size in (1, *dims[-1:]):
            spread = np.broadcast_to(tensor.numpy().reshape(-1) * np.float32(beta), (columns,))
            return self.store("bias", np.ascontiguousarray(spread))
        return (
            value if beta == 1 else self.insert(node, "Mul", [value, self.store("beta", np.asarray(beta, np.float32))])
        )


def _is_written(node: ir.Node) -> bool:
    return query.is_op(node, "MatMul", "Gemm") or _is_microsoft(node, "FusedMatMul")


def _is_microsoft(node: ir.Node, *op_types: str) -> bool:
    return node.domain == ops.MICROSOFT and node.op_type in op_types
