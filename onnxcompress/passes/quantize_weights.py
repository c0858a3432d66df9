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

import functools
from collections.abc import Iterator
from dataclasses import dataclass as plain_dataclass
from typing import Annotated, Any, ClassVar, Literal

import numpy as np
import onnx_ir as ir
from pydantic import AfterValidator, Field
from pydantic.dataclasses import dataclass

from .. import graph, model_io, schemes, shapes, targets
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
        scene = _Scene(model)
        for decision in decisions:
            if decision.rounding is None or context.gate.admits(self.name, decision.target):
                changes.append(self._apply(scene, decision))
        return changes

    def decide(self, model: ir.Model, context: Context) -> list[Decision]:
        """Return what `run` does if the opset can be raised, the least harmful first, refusals last."""
        return self._decide(model, context, max(graph.opset(model), self._needed_opset(model, context)))

    def apply(self, model: ir.Model, decision: Decision) -> Change:
        """Carry out one decision that was made on this model at its present opset."""
        return self._apply(_Scene(model), decision)

    def _decide(self, model: ir.Model, context: Context, opset: int) -> list[Decision]:
        found: list[Decision] = []
        small = 0
        for site, refusal in context.progress("Quantizing weights", list(self._sites(model, context))):
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
        scene = _Scene(model)
        for value in _constants(model):
            tensor = graph.constant_tensor(value)
            if tensor is None or not tensor.dtype.is_floating_point() or tensor.dtype.bitwidth < 16 or not tensor.size:
                continue
            found, others = readers(value)
            if not found:
                continue
            site = _site(scene, value, tensor, found, channelwise=channelwise)
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
            site.tensor.size + scales * site.tensor.dtype.bitwidth // 8 + new_nodes * (_NODE_BYTES + 2 * len(site.name))
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

    def _apply(self, scene: _Scene, decision: Decision) -> Change:
        details: dict[str, Any] = {}
        action = Action.SKIPPED
        if decision.rounding is not None and decision.site is not None:
            _Writer(scene, decision.site, decision.rounding).write()
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


class _Scene:
    """What is asked of a model while its weights are replaced; inferred or numbered on first use."""

    def __init__(self, model: ir.Model) -> None:
        self._model = model

    @functools.cached_property
    def names(self) -> graph.Names:
        """Fresh names."""
        return graph.Names(self._model)

    @functools.cached_property
    def shapes(self) -> shapes.Shapes:
        """Inferred shapes."""
        return shapes.infer(self._model)

    @functools.cached_property
    def order(self) -> dict[int, int]:
        """The place of every node, by its id, in the order of its graph."""
        return {id(node): place for place, node in enumerate(graph.nodes(self._model))}


class _Writer:
    """Writes one weight as integers: the initializers once, the nodes at every reader."""

    def __init__(self, scene: _Scene, site: _Site, rounding: Rounding) -> None:
        self.scene = scene
        self.site = site
        self.rounding = rounding
        self.rank = len(graph.dims(site.tensor))
        self.owner = _owner(site.value)
        self.integers = self._store("int8", rounding.integers(transposed=site.transposed))
        self._scale: ir.Value | None = None
        self._floats: dict[int, ir.Value] = {}

    def write(self) -> None:
        """Let every reader read the integers, and take the floats out."""
        site = self.site
        for reader in site.readers:
            if not reader.weight.is_table:
                self._replace_weight(reader)
            elif self.rounding.axis == reader.out_axis(self.rank):
                self._replace_rows(reader)
            elif self.rounding.axis is None and reader.transposed == site.transposed:
                self._replace_lookup(reader)
            else:
                self._replace_weight(reader)
        for via in {id(r.via): r.via for r in site.readers if r.via is not None}.values():
            graph.remove_unread(via.outputs[0])
        name = site.value.name
        graph.remove_unread(site.value)
        if len(self._floats) == 1 and not site.transposed:  # it means what the weight meant, and keeps its name
            next(iter(self._floats.values())).name = name

    def _replace_weight(self, reader: Reader) -> None:
        """Let a node read the dequantized weight, the way round that it needs."""
        node, floats, flag = reader.node, self._dequantized(reader), reader.weight.transpose_flag
        if reader.transposed == self.site.transposed:
            node.replace_input_with(reader.port, floats)
        elif flag:
            node.attributes[flag] = ir.AttrInt64(flag, 0 if graph.attribute(node, flag, 0) else 1)
            node.replace_input_with(reader.port, floats)
        else:
            node.replace_input_with(reader.port, self._insert(node, "Transpose", [floats], {"perm": [1, 0]}))

    def _dequantized(self, reader: Reader) -> ir.Value:
        """Return the weight in floats, made once in each graph, before its first reader there."""
        home = graph.home(reader.node)
        if id(home) not in self._floats:
            here = [r.node for r in self.site.readers if r.node.graph is home]
            first = min(here, key=lambda node: self.scene.order[id(node)])
            axis = self.rounding.axis
            attributes = {} if axis is None else {"axis": 1 - axis if self.site.transposed else axis}
            self._floats[id(home)] = self._insert(
                first, "DequantizeLinear", [self.integers, self._scales()], attributes
            )
        return self._floats[id(home)]

    def _scales(self) -> ir.Value:
        if self._scale is None:
            self._scale = self._store("scale", self.rounding.scale)
        return self._scale

    def _replace_lookup(self, reader: Reader) -> None:
        """Look integers up in a table with one scale, then dequantize them."""
        node = reader.node
        axis = reader.weight.out_axis(node, self.rank)
        looked_up = self._insert(node, "Gather", [self.integers, node.inputs[1]], {"axis": axis})
        made = self._insert(node, "DequantizeLinear", [looked_up, self._scales()])
        graph.take_over(node.outputs[0], made)

    def _replace_rows(self, reader: Reader) -> None:
        """Look integers and their scales up, then multiply."""
        node, ids = reader.node, reader.node.inputs[1]
        axis = reader.weight.out_axis(node, self.rank)
        if reader.transposed == self.site.transposed:
            looked_up = self._insert(node, "Gather", [self.integers, ids], {"axis": axis})
        else:
            turned = self._insert(node, "Gather", [self.integers, ids], {"axis": 1 - axis})
            ids_rank = self.scene.shapes.rank(ids)
            assert ids_rank is not None, "a table is stored transposed only where the rank of its indices is known"
            last = list(range(ids_rank + 1))
            order = [*last[1:], 0] if axis == 0 else [ids_rank, *last[:-1]]
            looked_up = self._insert(node, "Transpose", [turned], {"perm": order})
        floats = self._insert(node, "Cast", [looked_up], {"to": int(self.site.tensor.dtype)})
        spread = [1] * self.rank
        spread[axis] = -1
        scales = self._store("row_scale", self.rounding.scale.reshape(spread))
        factors = self._insert(node, "Gather", [scales, ids], {"axis": axis})
        graph.take_over(node.outputs[0], self._insert(node, "Mul", [floats, factors]))

    def _store(self, kind: str, array: np.ndarray | ir.TensorProtocol) -> ir.Value:
        value = graph.add_initializer(self.owner, self.scene.names, f"{self.site.name}_{kind}", array)
        assert value.const_value is not None
        value.const_value.name = value.name
        return value

    def _insert(
        self,
        anchor: ir.Node,
        op_type: str,
        inputs: list[ir.Value | None],
        attributes: dict[str, Any] | None = None,
    ) -> ir.Value:
        made = graph.insert_before(
            anchor,
            self.scene.names,
            op_type,
            inputs,
            attributes=attributes,
            hint=f"{self.site.name}_{op_type}",
        )
        return made.outputs[0]


def _site(
    scene: _Scene, value: ir.Value, tensor: ir.TensorProtocol, found: list[Reader], *, channelwise: bool
) -> _Site:
    """Choose how a weight is stored: products want [in, out], and the first reader that is no table its scales."""
    rank = len(graph.dims(tensor))
    tables = [r for r in found if r.weight.is_table]
    others = [r for r in found if not r.weight.is_table]
    transposed = (
        rank == 2
        and bool(others)
        and all(r.is_product and r.wants_transpose for r in others)
        and all(scene.shapes.rank(r.node.inputs[1]) is not None for r in tables)
    )
    axis = (others or tables)[0].out_axis(rank) if channelwise else None
    return _Site(value, tensor, tuple(found), transposed, axis)


def _owner(value: ir.Value) -> ir.Graph:
    """Return the graph that a constant belongs to."""
    node = value.producer()
    owner = value.graph if node is None else node.graph
    assert isinstance(owner, ir.Graph)
    return owner


def _constants(model: ir.Model) -> Iterator[ir.Value]:
    """Yield the initializers and the outputs of Constant nodes; local functions can't hold initializers."""
    for body in graph.graphs_outside_functions(model):
        yield from body.initializers.values()
        yield from (node.outputs[0] for node in body if graph.is_op(node, "Constant"))


def _refusal(site: _Site, reason: str) -> Decision:
    size = site.tensor.nbytes
    return Decision(target=site.name, reason=reason, bytes_before=size, bytes_after=size)


def _reason(site: _Site, rounding: Rounding, target: str) -> str:
    """Say how a weight is stored and what that does to speed."""
    dims = graph.dims(site.tensor)
    if rounding.axis is None:
        scales = "one scale"
    else:
        kind = "output channels" if site.others else "rows"
        scales = f"a scale for each of {dims[rounding.axis]} {kind}"
    if not site.others:
        kind = "lookup"
    elif len(dims) == 2 and all(r.is_product for r in site.others):
        kind = "product"
    else:
        kind = "dequantized"
    note = targets.weight_only_note(target, kind)
    return f"int8 with {scales}" + (f"; {note}" if note else "")


def _listed(names: list[str], most: int = 3) -> str:
    more = f" and {len(names) - most} more" if len(names) > most else ""
    return ", ".join(names[:most]) + more
