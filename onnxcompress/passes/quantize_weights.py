"""Weights become int8 and are turned back into floats where they are read; the arithmetic stays float.

For a matrix product, convolution or recurrent layer, one scale for each output channel, in one of two forms. The
target's facts say which is the faster one; the second also suits opsets without scales by channel.

    Op(x, w)         ->  Op(x, DequantizeLinear(w_int8, w_scale, axis))
    Op(x, w)         ->  Op(x, Mul(Cast(w_int8), w_scale))

For a table, one scale for each row, and only the rows that are looked up become floats:

    Gather(w, ids)   ->  Mul(Cast(Gather(w_int8, ids)), Gather(w_scale, ids))

Matrices are stored [in, out], since runtimes have fast kernels for that: Gemm loses its transB. A weight is stored
once however many read it, with the scales of the first reader that is not a table.
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

from .. import graph, model_io, schemes, targets
from ..core import Action, Change, Context, Need
from ..errors import ModelError
from ..weight_rounding import Rounding, round_weight
from .weight_readers import Reader, readers

_MULTIPLY_OPSET = 7
"""From here on Mul broadcasts as numpy does."""
_DEQUANTIZE_OPSET = 10
_CHANNEL_OPSET = 13
_FLOAT16_OPSET = 19
_NODE_BYTES = 100
"""What a new node or initializer takes in the file beside its data and the names in it, at least."""
_UNSUPPORTED = {ir.DataType.DOUBLE: "float64", ir.DataType.BFLOAT16: "bfloat16"}


@plain_dataclass(frozen=True, kw_only=True)
class _Site:
    """A constant that nodes read as their weight, and how it is to be stored.

    Args:
        value: the constant.
        tensor: its data.
        readers: who reads it.
        axis: the axis of the constant that scales belong to, None for one scale.
        home: the graph that the integers and what is made of them go to.
        is_product: it is the right-hand matrix of products and nothing else, all of them in `home`.
        transposed: it is stored transposed, which is how all its readers, products, want it.
    """

    value: ir.Value
    tensor: ir.TensorProtocol
    readers: tuple[Reader, ...]
    axis: int | None
    home: ir.Graph
    is_product: bool
    transposed: bool

    @property
    def name(self) -> str:
        return self.value.name or "?"

    @property
    def rank(self) -> int:
        return len(graph.dims(self.tensor))

    @property
    def tables(self) -> list[Reader]:
        return [r for r in self.readers if r.weight.is_table]

    @property
    def others(self) -> list[Reader]:
        return [r for r in self.readers if not r.weight.is_table]

    def fact(self, target: str) -> targets.WeightOnly:
        """Return what is known of such a weight on a target."""
        if not self.others:
            return targets.weight_only(target, "lookup")
        return targets.weight_only(target, "product" if self.is_product else "other")

    @property
    def dequantize_opset(self) -> int:
        """The opset from which on DequantizeLinear can write it."""
        if self.tensor.dtype == ir.DataType.FLOAT16:
            return _FLOAT16_OPSET
        return _DEQUANTIZE_OPSET if self.axis is None else _CHANNEL_OPSET


@plain_dataclass(frozen=True, kw_only=True)
class Decision:
    """What is to become of one weight. `rounding` is None where it is left alone, for the reason given."""

    target: str
    reason: str
    bytes_before: int
    bytes_after: int
    site: _Site | None = None
    rounding: Rounding | None = None
    form: targets.WeightForm = "dequantize"

    @property
    def predicted_loss(self) -> float:
        """Noise to signal of the weight: that of the layer's output where inputs are uncorrelated."""
        if self.rounding is None:
            return float("inf")
        return self.rounding.noise / max(self.rounding.signal, float(np.finfo(float).tiny))


@dataclass(frozen=True, kw_only=True)
class QuantizeWeights:
    """Store float weights as int8 with a scale for each output channel or row, the arithmetic stays float."""

    name: ClassVar[str] = "quantize-weights"
    lossless: ClassVar[bool] = False
    needs: ClassVar[frozenset[Need]] = frozenset()

    scheme: Annotated[str, AfterValidator(schemes.checked)] = "int8/channel/sym"
    """type/group/symmetry: int8/channel/sym, or int8/tensor/sym for runtimes without scales by channel."""
    min_elements: Annotated[int, Field(ge=1)] = 256
    """Smaller weights stay as they are; so do those that would not become smaller, their scales and nodes counted."""
    form: Literal["auto", "multiply", "dequantize"] = "auto"
    """How weights become float again. multiply: Cast and Mul, exactly the int8 weights, folded at load by runtimes.
    dequantize: DequantizeLinear, which runtimes may replace by int8 kernels. auto: what is best on the target."""
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
        for value in _constants(model):
            tensor = graph.constant_tensor(value)
            if tensor is None or not tensor.dtype.is_floating_point() or tensor.dtype.bitwidth < 16 or not tensor.size:
                continue
            found, others = readers(value)
            if not found:
                continue
            site = _site(value, tensor, found, channelwise=channelwise)
            users = [node for r in found for node in r.users]
            left_out = [graph.label(node) for node in users if not context.selects(node)]
            if tensor.dtype in _UNSUPPORTED:
                yield site, f"{_UNSUPPORTED[tensor.dtype]} weights can't be dequantized to their type"
            elif others:
                yield site, f"also read by {_listed(others)}, which would see rounded values"
            elif left_out:
                shared = "" if len(left_out) == len(users) else f" for {_listed(left_out)}, which reads it too"
                yield site, f"left out by --only/--skip{shared}"
            elif site.tables and site.others and site.rank != 2:
                yield site, "read both as a table and as a weight, and not a matrix"
            else:
                yield site, ""

    def _needed_opset(self, model: ir.Model, context: Context) -> int:
        """Return the opset that the target's favourite form needs for float32; float16 has the other form."""
        wanted = [
            site.dequantize_opset
            for site, refusal in self._sites(model, context)
            if not refusal
            and site.tensor.size >= self.min_elements
            and site.tensor.dtype == ir.DataType.FLOAT
            and site.others
            and self._form(site, context) == "dequantize"
        ]
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
        if opset < _MULTIPLY_OPSET:
            return _refusal(site, f"needs opset {_MULTIPLY_OPSET}, the model has {opset}")
        fact = site.fact(context.target)
        form = "multiply" if opset < site.dequantize_opset else self._form(site, context)
        scales = 1 if site.axis is None else graph.dims(site.tensor)[site.axis]
        new_nodes = 2 + sum(3 if r.weight.is_table else 1 for r in site.readers) + (form == "multiply")
        before = site.tensor.nbytes
        added = scales * site.tensor.dtype.bitwidth // 8 + new_nodes * (_NODE_BYTES + 2 * len(site.name))
        after = site.tensor.size + added
        if after >= before:
            return _refusal(site, f"would take {after} bytes with its scales and nodes instead of {before}")
        try:
            rounding = round_weight(site.tensor, site.axis, clip=self.clip == "mse")
        except ValueError as error:
            return _refusal(site, f"can't be rounded: {error}")
        return Decision(
            target=site.name,
            reason=_reason(site, fact.note if form == fact.form else ""),
            bytes_before=before,
            bytes_after=after,
            site=site,
            rounding=rounding,
            form=form,
        )

    def _form(self, site: _Site, context: Context) -> targets.WeightForm:
        return site.fact(context.target).form if self.form == "auto" else self.form

    def _apply(self, scene: _Scene, decision: Decision) -> Change:
        details: dict[str, Any] = {}
        action = Action.SKIPPED
        if decision.rounding is not None and decision.site is not None:
            _Writer(scene, decision.site, decision.rounding, decision.form).write()
            action = Action.APPLIED
            details = {"scheme": self.scheme, "form": decision.form, "scales": int(decision.rounding.scale.size)}
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
    """What is asked of a model while its weights are replaced; made on first use."""

    def __init__(self, model: ir.Model) -> None:
        self._model = model

    @functools.cached_property
    def names(self) -> graph.Names:
        """Fresh names."""
        return graph.Names(self._model)

    @functools.cached_property
    def order(self) -> dict[int, int]:
        """The place of every node, by its id, in the order of its graph."""
        return {id(node): place for place, node in enumerate(graph.nodes(self._model))}


class _Writer:
    """Writes one weight as integers: the initializers once, the nodes at every reader."""

    def __init__(self, scene: _Scene, site: _Site, rounding: Rounding, form: targets.WeightForm) -> None:
        scene.order  # noqa: B018  before anything is inserted
        self.scene = scene
        self.site = site
        self.rounding = rounding
        self.form = form
        self.home = site.home
        self.integers = self._store("int8", rounding.integers(transposed=site.transposed))
        self._floats: ir.Value | None = None

    def write(self) -> None:
        """Let every reader read the integers, and take the floats out."""
        site = self.site
        for reader in site.readers:
            if not reader.weight.is_table:
                self._replace_weight(reader)
            elif reader.transposed or (site.axis is not None and site.axis != reader.out_axis(site.rank)):
                self._replace_weight(reader)  # scales can't be looked up: the whole table becomes floats
            elif site.axis is None:
                self._replace_lookup(reader)
            else:
                self._replace_rows(reader)
        for via in {id(r.via): r.via for r in site.readers if r.via is not None}.values():
            graph.remove_unread(via.outputs[0])
        name = site.value.name
        graph.remove_unread(site.value)
        if self._floats is not None and not site.transposed:
            self._floats.name = name  # it means what the weight meant

    def _replace_weight(self, reader: Reader) -> None:
        """Let a node read the weight in floats, the way round that it needs."""
        node, floats, flag = reader.node, self._weight(), reader.weight.transpose_flag
        if reader.transposed == self.site.transposed:
            node.replace_input_with(reader.port, floats)
        elif flag:
            node.attributes[flag] = ir.AttrInt64(flag, 0 if graph.attribute(node, flag, 0) else 1)
            node.replace_input_with(reader.port, floats)
        else:
            node.replace_input_with(reader.port, self._insert(node, "Transpose", [floats], {"perm": [1, 0]}))

    def _weight(self) -> ir.Value:
        """Return the weight in floats, made once, before its first reader."""
        if self._floats is None:
            here = [r.node for r in self.site.readers if r.node.graph is self.home]
            # readers in bodies only: at the start, where it is behind no reader
            first = min(here, key=lambda n: self.scene.order[id(n)]) if here else next(iter(self.home))
            axis = self.site.axis
            if axis is not None and self.site.transposed:
                axis = 1 - axis
            if self.form == "dequantize":
                scale = self._store("scale", self.rounding.scale)
                attributes = {} if axis is None else {"axis": axis}
                self._floats = self._insert(first, "DequantizeLinear", [self.integers, scale], attributes)
            else:
                cast = self._cast(first, self.integers)
                scale = self._store("scale", self._spread_scale(axis))
                self._floats = self._insert(first, "Mul", [cast, scale])
        return self._floats

    def _replace_lookup(self, reader: Reader) -> None:
        """Look integers up in a table with one scale, then make floats of them."""
        node = reader.node
        axis = reader.weight.out_axis(node, self.site.rank)
        looked_up = self._insert(node, "Gather", [self.integers, node.inputs[1]], {"axis": axis})
        scale = self._store("scale", self.rounding.scale)
        graph.take_over(node.outputs[0], self._insert(node, "Mul", [self._cast(node, looked_up), scale]))

    def _replace_rows(self, reader: Reader) -> None:
        """Look integers and their scales up, then multiply."""
        node, ids = reader.node, reader.node.inputs[1]
        axis = reader.weight.out_axis(node, self.site.rank)
        looked_up = self._insert(node, "Gather", [self.integers, ids], {"axis": axis})
        scales = self._store("row_scale", self._spread_scale(axis))
        factors = self._insert(node, "Gather", [scales, ids], {"axis": axis})
        graph.take_over(node.outputs[0], self._insert(node, "Mul", [self._cast(node, looked_up), factors]))

    def _spread_scale(self, axis: int | None) -> np.ndarray:
        """Return the scales in a shape that broadcasts along `axis` of the weight."""
        if axis is None:
            return self.rounding.scale
        return self.rounding.scale.reshape([-1 if i == axis else 1 for i in range(self.site.rank)])

    def _cast(self, anchor: ir.Node, integers: ir.Value) -> ir.Value:
        return self._insert(anchor, "Cast", [integers], {"to": int(self.site.tensor.dtype)})

    def _store(self, kind: str, array: np.ndarray | ir.TensorProtocol) -> ir.Value:
        value = graph.add_initializer(self.home, self.scene.names, f"{self.site.name}_{kind}", array)
        assert value.const_value is not None
        value.const_value.name = value.name
        return value

    def _insert(
        self, anchor: ir.Node, op_type: str, inputs: list[ir.Value | None], attributes: dict[str, Any] | None = None
    ) -> ir.Value:
        hint = f"{self.site.name}_{op_type}"
        made = graph.insert_before(anchor, self.scene.names, op_type, inputs, attributes=attributes, hint=hint)
        return made.outputs[0]


def _site(value: ir.Value, tensor: ir.TensorProtocol, found: list[Reader], *, channelwise: bool) -> _Site:
    """Choose the axis of the scales: the output channels of the first reader that is no table, or else rows."""
    rank = len(graph.dims(tensor))
    first = next((r for r in found if not r.weight.is_table), found[0])
    homes = {id(graph.home(r.node)): graph.home(r.node) for r in found}
    # DequantizeLinear in a body that reads integers outside of it makes onnxruntime fail to load the model
    home = next(iter(homes.values())) if len(homes) == 1 else _owner(value)
    is_product = rank == 2 and all(r.is_product for r in found) and list(homes) == [id(home)]
    return _Site(
        value=value,
        tensor=tensor,
        readers=tuple(found),
        axis=first.out_axis(rank) if channelwise else None,
        home=home,
        is_product=is_product,
        transposed=is_product and all(r.wants_transpose for r in found),
    )


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


def _reason(site: _Site, note: str) -> str:
    """Say how a weight is stored and what that does to speed."""
    scales = "one scale" if site.axis is None else f"a scale for each {'output channel' if site.others else 'row'}"
    return f"int8 with {scales}" + (f"; {note}" if note else "")


def _listed(names: list[str], most: int = 3) -> str:
    more = f" and {len(names) - most} more" if len(names) > most else ""
    return ", ".join(names[:most]) + more
