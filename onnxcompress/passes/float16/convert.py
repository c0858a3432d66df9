"""Convert weights, and on request the arithmetic, from float32 to 16 bits.

Storage only (`compute = "float32"`): a runtime that folds constants converts the weights back when it loads the model.

    Op(x, w)        ->  Op(x, Cast(w_float16))
    Gather(w, ids)  ->  Cast(Gather(w_float16, ids))

Arithmetic too (`compute = "float16"`): see `compute`. Nodes whose values would overflow, or whose operator has no
float16 form, keep float32, with Casts around them.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass as plain_dataclass
from typing import Annotated, ClassVar, Literal

import onnx_ir as ir
from pydantic import Field
from pydantic.dataclasses import dataclass

from ...core import DESELECTED, Change, Context, Need
from ...graph import edit, query
from ...ops.weight_layers import WeightedLayer
from ...targets import facts as targets
from ..raise_opset import raise_opset
from . import weights as float16_weights
from .compute import Conversion

_OPSETS = {"float16": 6, "bfloat16": 13}
"""Storage type -> the first opset whose Cast has it."""
_TYPES = {"float16": ir.DataType.FLOAT16, "bfloat16": ir.DataType.BFLOAT16}
_KNOWN_DOMAINS = frozenset({*query.STANDARD_DOMAINS, "com.microsoft"})
_EXACT = frozenset({"QuantizeLinear", "DequantizeLinear", "Resize", "Upsample"})
"""Operators whose constants are scales, by which a small error is multiplied."""


@plain_dataclass(frozen=True, kw_only=True)
class Float16Decision:
    """Decision about one weight: stored in 16 bits, or kept (`keep`) for the reason given."""

    value: ir.Value
    tensor: ir.TensorProtocol
    reason: str
    keep: bool
    sqnr_db: float = float("inf")

    @property
    def target(self) -> str:
        """Name of the weight."""
        return self.value.name or "?"


@dataclass(frozen=True, kw_only=True)
class ConvertFloat16:
    """Store float32 weights in 16 bits, and let nodes compute in float16 where the target is faster so."""

    name: ClassVar[str] = "convert-float16"
    lossless: ClassVar[bool] = False
    covers_layers: ClassVar[bool] = True
    needs: ClassVar[frozenset[Need]] = frozenset()

    compute: Literal["auto", "float32", "float16"] = "auto"
    """float32: 16 bits in the file only, Casts turn weights back. float16: the arithmetic too. auto: what is faster
    on the target (cpu: float32, for which onnxruntime has kernels)."""
    storage: Literal["float16", "bfloat16"] = "float16"
    """The type of weights in the file where the arithmetic stays float32. bfloat16 has the range of float32 and three
    bits less."""
    least_sqnr_db: Annotated[float, Field(ge=0)] = 40
    """Weights stay float32 where a row of them would lose more (tiny numbers vanish in float16)."""
    headroom: Annotated[float, Field(ge=1)] = 4
    """Nodes stay float32 where observed values, times this, exceed what float16 can hold."""

    def run(self, model: ir.Model, context: Context) -> list[Change]:
        """Convert every graph of `model`."""
        computes = targets.half_compute(context.target) if self.compute == "auto" else self.compute == "float16"
        storage = "float16" if computes else self.storage
        changes = raise_opset(model, context, self.name, _OPSETS[storage], f"Cast knows {storage} from there on")
        if query.opset(model) < _OPSETS[storage]:
            return changes
        if computes:
            conversion = Conversion(model, context, pass_name=self.name, headroom=self.headroom)
            changes += conversion.run(least_sqnr_db=self.least_sqnr_db)
        return changes + self._store(model, context, _TYPES[storage])

    def why_left(self, layer: WeightedLayer, changes: Sequence[Change]) -> str | None:  # noqa: ARG002 - as its signature is wanted
        """Return why a layer that `run` did not look at keeps its weights as they are."""
        kept = [weight for weight in layer.main if weight.dtype != ir.DataType.FLOAT]
        if kept and not layer.form:
            return f"its weights are {kept[0].dtype.name.lower()} already, not float32"
        if not kept and all(weight.bytes // 2 <= float16_weights.cast_bytes(weight.name) for weight in layer.main):
            return "its weights would not become smaller, a Cast for each counted"
        return None

    def decide(self, model: ir.Model, context: Context) -> list[Float16Decision]:
        """Return the decision about each float32 weight in the file, the least harmful first, refusals last."""
        return self._decide(model, context, _TYPES[self.storage])

    def apply(self, model: ir.Model, decision: Float16Decision) -> Change:
        """Apply one decision about this model."""
        return self._apply(edit.Names(model), decision, _TYPES[self.storage])

    def _store(self, model: ir.Model, context: Context, dtype: ir.DataType) -> list[Change]:
        names = edit.Names(model)
        return [
            self._apply(names, decision, dtype)
            for decision in self._decide(model, context, dtype)
            if decision.keep or context.gate.admits(self.name, decision.target)
        ]

    def _decide(self, model: ir.Model, context: Context, dtype: ir.DataType) -> list[Float16Decision]:
        weights = context.progress("Rounding weights", list(_weights(model)))
        found = [self._decided(value, tensor, context, dtype) for value, tensor in weights]
        return sorted(found, key=lambda decision: (decision.keep, -decision.sqnr_db))

    def _decided(
        self, value: ir.Value, tensor: ir.TensorProtocol, context: Context, dtype: ir.DataType
    ) -> Float16Decision:
        refusal, sqnr_db = _obstacle(value, context), float("inf")
        if not refusal:
            try:
                sqnr_db = float16_weights.loss_db(tensor, dtype)
            except ValueError as error:
                refusal = f"stays float32: {error}"
        if not refusal and sqnr_db < self.least_sqnr_db:
            refusal = f"stays float32: its smallest numbers would vanish, a row is left with {sqnr_db:.1f} dB"
        name = dtype.name.lower()
        reason = refusal or f"{name} in the file, float32 again when it is read"
        return Float16Decision(value=value, tensor=tensor, reason=reason, keep=bool(refusal), sqnr_db=sqnr_db)

    def _apply(self, names: edit.Names, decision: Float16Decision, dtype: ir.DataType) -> Change:
        before = decision.tensor.nbytes
        target = decision.target
        if decision.keep:
            return Change.skipped(self.name, decision.reason, target=target, bytes_before=before)
        _narrow(names, decision.value, decision.tensor, dtype)
        after = before // 2 + float16_weights.cast_bytes(target)
        return Change.applied(self.name, decision.reason, target=target, bytes_before=before, bytes_after=after)


def _weights(model: ir.Model) -> Iterator[tuple[ir.Value, ir.TensorProtocol]]:
    """Yield the float32 constants that take more bytes than their Cast would."""
    for body in query.graphs_outside_functions(model):
        constants = [node.outputs[0] for node in body if query.is_op(node, "Constant")]
        for value in [*body.initializers.values(), *constants]:
            tensor = query.constant_tensor(value)
            if tensor is None or tensor.dtype != ir.DataType.FLOAT or not value.uses():
                continue
            if tensor.nbytes // 2 > float16_weights.cast_bytes(value.name or ""):
                yield value, tensor


def _obstacle(value: ir.Value, context: Context) -> str:
    """Return why a weight is kept in float32, "" where it may be stored in 16 bits."""
    if value.is_graph_output():
        return "is an output itself"
    for use in value.uses():
        label = query.label(use.node)
        if use.node.domain not in _KNOWN_DOMAINS:
            return f"read by {label}, an operator of another domain that may want a constant"
        if use.node.op_type in _EXACT:
            return f"holds scales of {label}, which must be exact"
        if not context.selects(use.node):
            return f"{DESELECTED} for {label}"
    return ""


def _narrow(names: edit.Names, value: ir.Value, tensor: ir.TensorProtocol, dtype: ir.DataType) -> None:
    """Store a weight in 16 bits and let its readers read it in float32."""
    name = value.name or "weight"
    producer = value.producer()
    home = value.graph if producer is None else producer.graph
    assert isinstance(home, ir.Graph)
    half = edit.add_initializer(home, names, f"{name}_{dtype.name.lower()}", float16_weights.narrowed(tensor, dtype))
    assert half.const_value is not None
    half.const_value.name = half.name
    users = [use.node for use in value.uses()]
    if all(query.is_op(node, "Gather") and node.inputs[1] is not value for node in users):
        for node in users:
            inputs = [half, node.inputs[1]]
            attributes = {"axis": query.attribute(node, "axis", 0)}
            looked_up = edit.insert_before(node, names, "Gather", inputs, attributes=attributes)
            edit.take_over(node.outputs[0], _cast(node, names, looked_up.outputs[0], name))
        return
    floats = _cast(next(iter(home)), names, half, name)
    floats.type, floats.shape = ir.TensorType(ir.DataType.FLOAT), ir.Shape(query.dims(tensor))
    value.replace_all_uses_with(floats)
    edit.remove_unread(value)
    floats.name = name  # readers get the same values under the same name


def _cast(anchor: ir.Node, names: edit.Names, value: ir.Value, name: str) -> ir.Value:
    attributes = {"to": int(ir.DataType.FLOAT)}
    return edit.insert_before(anchor, names, "Cast", [value], attributes=attributes, hint=f"{name}_Cast").outputs[0]
