"""Weights become int8 and are turned back into floats where they are read; the arithmetic stays float.

For a matrix product, convolution or recurrent layer, one scale for each output channel:

    Op(x, w)         ->  Op(x, DequantizeLinear(w_int8, w_scale, axis))

For a table, one scale for each row, and only the rows that are looked up become floats:

    Gather(w, ids)   ->  Mul(Cast(Gather(w_int8, ids)), Gather(w_scale, ids))

Matrices are stored [in, out], since runtimes have fast kernels for that: Gemm loses its transB. A weight is stored
once however many read it: an embedding that is tied to the output layer is stored [width, vocabulary], looked up
along its second axis, and has one scale for each word, which suits both.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass as plain_dataclass
from typing import Annotated, Any, ClassVar, Literal

import numpy as np
import onnx_ir as ir
from pydantic import AfterValidator, Field
from pydantic.dataclasses import dataclass

from .. import graph, model_io, ops, schemes, shapes, targets
from ..core import Action, Change, Context, Need
from ..errors import ModelError
from ..weight_rounding import Rounding, round_weight
from .weight_readers import Reader, readers

_DEQUANTIZE_OPSET = 10
_CHANNEL_OPSET = 13
_FLOAT16_OPSET = 19
_NODE_BYTES = 100
"""What a new node or initializer takes in the file beside its data and the names in it, at least."""
_UNSUPPORTED = {ir.DataType.DOUBLE: "float64", ir.DataType.BFLOAT16: "bfloat16"}


@plain_dataclass(frozen=True)
class _Site:
    """A constant that nodes read as their weight; `transposed` is how it is to be stored, `axis` its scales' axis."""

    value: ir.Value
    tensor: ir.TensorProtocol
    readers: tuple[Reader, ...]
    transposed: bool
    axis: int | None

    @property
    def name(self) -> str:
        return self.value.name or "?"

    @property
    def tables(self) -> list[Reader]:
        return [r for r in self.readers if r.weight.is_table]

    @property
    def others(self) -> list[Reader]:
        return [r for r in self.readers if not r.weight.is_table]

    @property
    def least_opset(self) -> int:
        """The opset that writing it needs with a scale for each channel."""
        if not self.others:
            return 1
        return _FLOAT16_OPSET if self.tensor.dtype == ir.DataType.FLOAT16 else _CHANNEL_OPSET


@plain_dataclass(frozen=True, kw_only=True)
class Decision:
    """What is to become of one weight. `rounding` is None where it is left alone, for the reason given."""

    target: str
    reason: str
    bytes_before: int
    bytes_after: int
    site: _Site | None = None
    rounding: Rounding | None = None

    @property
    def predicted_loss(self) -> float:
        """Noise to signal of the weight: that of the layer's output where inputs are uncorrelated."""
        if self.rounding is None:
            return np.inf
        return self.rounding.noise / max(self.rounding.signal, np.finfo(float).tiny)


@dataclass(frozen=True, kw_only=True)
class QuantizeWeights:
    """Store float weights as int8 with a scale for each output channel or row, the arithmetic stays float."""

    name: ClassVar[str] = "quantize-weights"
    lossless: ClassVar[bool] = False
    needs: ClassVar[frozenset[Need]] = frozenset()

    scheme: Annotated[str, AfterValidator(schemes.checked)] = "int8/channel/sym"
    """type/group/symmetry: int8/channel/sym, or int8/tensor/sym for runtimes without scales by channel."""
    min_elements: Annotated[int, Field(ge=1)] = 1024
    """Smaller weights stay as they are: each costs a node at each run."""
    clip: Literal["none", "mse"] = "none"
    """mse: clip the largest weights of a channel where that lowers the squared error."""

    def run(self, model: ir.Model, context: Context) -> list[Change]:
        """Quantize the weights of every graph of `model`, the least harmful first."""
        changes = self._raise_opset(model, context)
        decisions = self._decide(model, context, graph.opset(model))
        names = graph.Names(model)
        known = shapes.infer(model) if any(d.site is not None and d.site.tables for d in decisions) else None
        for decision in decisions:
            if decision.rounding is None or context.gate.admits(self.name, decision.target):
                changes.append(self._apply(decision, names, known))
        return changes

    def decide(self, model: ir.Model, context: Context) -> list[Decision]:
        """Return what `run` does if the opset can be raised, the least harmful first, refusals last."""
        return self._decide(model, context, max(graph.opset(model), self._needed_opset(model, context)))

    def apply(self, model: ir.Model, decision: Decision) -> Change:
        """Carry out one decision that was made on this model at its present opset."""
        return self._apply(decision, graph.Names(model), shapes.infer(model))

    def _decide(self, model: ir.Model, context: Context, opset: int) -> list[Decision]:
        found: list[Decision] = []
        small = 0
        for site, refusal in self._sites(model, context):
            if site.tensor.size < self.min_elements:
                small += 1
            elif refusal:
                found.append(_refusal(site, refusal))
            else:
                found.append(self._round(site, context, opset))
        found.sort(key=lambda d: d.predicted_loss)  # stable: equal ones and refusals stay in the graph's order
        if small:
            reason = f"{small} weights of fewer than {self.min_elements} elements stay as they are"
            found.append(Decision(target="graph", reason=reason, bytes_before=0, bytes_after=0))
        return found

    def _sites(self, model: ir.Model, context: Context) -> Iterator[tuple[_Site, str]]:
        """Yield every float constant that a node reads as its weight, with the reason for leaving it alone or ""."""
        channelwise = schemes.parse(self.scheme).group == "channel"
        for value in _constants(model):
            tensor = graph.constant_tensor(value)
            if tensor is None or not tensor.dtype.is_floating_point() or tensor.dtype.bitwidth < 16 or not tensor.size:
                continue
            found, others = readers(value)
            if not found:
                continue
            site = _site(value, tensor, found, channelwise=channelwise)
            left_out = [graph.label(r.node) for r in found if not context.selects(r.node)]
            if tensor.dtype in _UNSUPPORTED:
                yield site, f"{_UNSUPPORTED[tensor.dtype]} weights can't be dequantized to their type"
            elif others:
                yield site, f"also read by {_listed(others)}, which would see rounded values"
            elif left_out:
                shared = "" if len(left_out) == len(found) else f" for {_listed(left_out)}, which reads it too"
                yield site, f"left out by --only/--skip{shared}"
            elif site.tables and site.others and len(graph.dims(tensor)) != 2:
                yield site, "read both as a table and as a weight, and not a matrix"
            else:
                yield site, ""

    def _needed_opset(self, model: ir.Model, context: Context) -> int:
        wanted = [
            site.least_opset
            for site, refusal in self._sites(model, context)
            if not refusal and site.tensor.size >= self.min_elements
        ]
        if schemes.parse(self.scheme).group == "tensor":
            wanted = [_DEQUANTIZE_OPSET if opset == _CHANNEL_OPSET else opset for opset in wanted]
        return max(wanted, default=0)

    def _raise_opset(self, model: ir.Model, context: Context) -> list[Change]:
        """Raise the opset in place where a weight needs it; on failure say so, and coarser scales are used."""
        now, needed = graph.opset(model), self._needed_opset(model, context)
        if now >= needed or not now or not context.gate.admits(self.name, f"opset {needed}"):
            return []
        target, action = f"opset {needed}", Action.APPLIED
        reason = f"raised from {now}: DequantizeLinear with a scale for each channel needs it"
        try:
            graph.become(model, model_io.convert_opset(model, needed))
        except ModelError as error:
            action, reason = Action.SKIPPED, f"stays at {now}: {error.message}"
        return [Change(pass_name=self.name, target=target, action=action, reason=reason)]

    def _round(self, site: _Site, context: Context, opset: int) -> Decision:
        """Choose the scales of a weight and measure the error; refuse where it can't be written or saves nothing."""
        axis = site.axis
        if opset < site.least_opset:
            if opset < _DEQUANTIZE_OPSET or site.tensor.dtype == ir.DataType.FLOAT16:
                return _refusal(site, f"needs opset {site.least_opset}, the model has {opset}")
            axis = None
        scales = 1 if axis is None else graph.dims(site.tensor)[axis]
        new_nodes = 2 + sum(3 if r.weight.is_table else 1 for r in site.readers)
        before = site.tensor.nbytes
        after = (
            site.tensor.size
            + scales * site.tensor.dtype.itemsize
            + new_nodes * (_NODE_BYTES + 2 * len(site.name))
        )
        if after >= before:
            return _refusal(site, f"would take {after} bytes with its scales and nodes instead of {before}")
        try:
            rounding = round_weight(site.tensor, axis, clip=self.clip == "mse")
        except ValueError as error:
            return _refusal(site, f"can't be rounded: {error}")
        return Decision(
            target=site.name,
            reason=_reason(site, rounding, context.target),
            bytes_before=before,
            bytes_after=after,
            site=site,
            rounding=rounding,
        )

    def _apply(self, decision: Decision, names: graph.Names, known: shapes.Shapes | None) -> Change:
        details: dict[str, Any] = {}
        action = Action.SKIPPED
        if decision.rounding is not None and decision.site is not None:
            _Writer(decision.site, decision.rounding, names, known).write()
            action = Action.APPLIED
            group = "tensor" if decision.rounding.axis is None else "channel"
            details = {"scheme": f"int8/{group}/sym"}
            if np.isfinite(decision.rounding.sqnr_db):
                details["sqnr_db"] = round(decision.rounding.sqnr_db, 2)
        return Change(
            pass_name=self.name,
            target=decision.target,
            action=action,
            reason=decision.reason,
            bytes_before=decision.bytes_before,
            bytes_after=decision.bytes_after,
            details=details,
        )


class _Writer:
    """Writes one weight as integers: the initializers once, the nodes at every reader."""

    def __init__(self, site: _Site, rounding: Rounding, names: graph.Names, known: shapes.Shapes | None) -> None:
        self.site = site
        self.rounding = rounding
        self.names = names
        self.known = known
        owner = site.value.graph
        assert owner is not None
        self.owner: ir.Graph = owner
        self.axis = _flip(rounding.axis, flipped=site.transposed)
        integers = rounding.integers(names.fresh(f"{site.name}_int8"), transposed=site.transposed)
        self.values = graph.add_initializer(owner, names, integers.name or "", integers, is_fresh=True)
        self._flat_scale: ir.Value | None = None
        self._floats: dict[tuple[int, bool], ir.Value] = {}

    def write(self) -> None:
        """Let every reader read the integers, and take the floats out."""
        for reader in self.site.readers:
            if not reader.weight.is_table:
                self._replace_weight(reader)
            elif self.rounding.axis == reader.out_axis(len(graph.dims(self.site.tensor))):
                self._replace_rows(reader)
            elif self.rounding.axis is None and reader.transposed == self.site.transposed:
                self._replace_lookup(reader)
            else:
                self._replace_weight(reader)
        for via in {id(r.via): r.via for r in self.site.readers if r.via is not None}.values():
            graph.remove_unread(via.outputs[0])
        graph.remove_unread(self.site.value)

    def _scale(self) -> ir.Value:
        if self._flat_scale is None:
            self._flat_scale = graph.add_initializer(
                self.owner, self.names, f"{self.site.name}_scale", self.rounding.scale
            )
        return self._flat_scale

    def _float(self, reader: Reader) -> ir.Value:
        """Return the dequantized weight as stored, made once in each graph, before its first reader there."""
        home = graph.home(reader.node)
        key = id(home), False
        if key not in self._floats:
            first = _first([r.via or r.node for r in self.site.readers if graph.home(r.via or r.node) is home])
            attributes = {} if self.axis is None else {"axis": self.axis}
            made = graph.insert_before(
                first,
                self.names,
                "DequantizeLinear",
                [self.values, self._scale()],
                attributes=attributes,
                hint=f"{self.site.name}_dequantized",
            )
            output = made.outputs[0]
            output.type = ir.TensorType(self.site.tensor.dtype)
            self._floats[key] = output
        return self._floats[key]

    def _replace_weight(self, reader: Reader) -> None:
        """Let a node read the dequantized weight, the way round that it needs."""
        node, stored = reader.node, self._float(reader)
        if reader.transposed == self.site.transposed:
            node.replace_input_with(reader.port, stored)
        elif reader.weight.transpose_flag:
            flag = reader.weight.transpose_flag
            node.attributes[flag] = ir.AttrInt64(flag, 1 - int(graph.attribute(node, flag, 0)))
            node.replace_input_with(reader.port, stored)
        else:
            turned = graph.insert_before(node, self.names, "Transpose", [stored], attributes={"perm": [1, 0]})
            node.replace_input_with(reader.port, turned.outputs[0])

    def _replace_lookup(self, reader: Reader) -> None:
        """Look integers up in a table with one scale, then dequantize them."""
        node = reader.node
        looked_up = self._insert(node, "Gather", [self.values, node.inputs[1]], {"axis": _lookup_axis(node)})
        made = self._insert(node, "DequantizeLinear", [looked_up, self._scale()])
        graph.take_over(node.outputs[0], made)

    def _replace_rows(self, reader: Reader) -> None:
        """Look integers and their scales up, then multiply."""
        node, ids = reader.node, reader.node.inputs[1]
        rank = len(graph.dims(self.site.tensor))
        axis = reader.weight.out_axis(node, rank)
        flipped = reader.transposed != self.site.transposed
        looked_up = self._insert(node, "Gather", [self.values, ids], {"axis": 1 - axis if flipped else axis})
        if flipped:
            ids_rank = self.known.rank(ids) if self.known is not None else None
            assert ids_rank is not None, "sites with tables are only transposed where the rank of ids is known"
            order = list(range(ids_rank + 1))
            order = [*order[1:], 0] if axis == 0 else [ids_rank, *order[:-1]]
            looked_up = self._insert(node, "Transpose", [looked_up], {"perm": order})
        dtype = self.site.tensor.dtype
        floats = self._insert(node, "Cast", [looked_up], {"to": int(dtype)})
        spread = [1] * rank
        spread[axis] = -1
        scale = graph.add_initializer(
            self.owner, self.names, f"{self.site.name}_row_scale", self.rounding.scale.reshape(spread)
        )
        factors = self._insert(node, "Gather", [scale, ids], {"axis": axis})
        graph.take_over(node.outputs[0], self._insert(node, "Mul", [floats, factors]))

    def _insert(
        self, anchor: ir.Node, op_type: str, inputs: list[ir.Value | None], attributes: dict[str, Any] | None = None
    ) -> ir.Value:
        return graph.insert_before(anchor, self.names, op_type, inputs, attributes=attributes).outputs[0]
