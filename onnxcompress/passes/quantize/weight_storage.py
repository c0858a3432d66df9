"""A constant that nodes read as their weight: which one it is, and how its integers are written into the graph.

A weight is stored once however many read it, with the scales of the first reader that is not a table.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx_ir as ir

from ...core import DESELECTED
from ...graph import constants as float_constants
from ...graph import edit, query
from ...targets import facts as targets
from .weight_rounding import Rounding
from .weight_uses import WeightUse, readers

NODE_BYTES = 100
"""Bytes that a new node or initializer takes in the file beside its data and the names in it. Chosen by judgement; not
measured."""
_DEQUANTIZE_OPSET = 10
"""Opset from which on DequantizeLinear exists."""
_CHANNEL_OPSET = 13
"""The same with scales by channel."""
_FLOAT16_OPSET = 19
"""The same for float16."""
_UNSUPPORTED = {ir.DataType.DOUBLE: "float64", ir.DataType.BFLOAT16: "bfloat16"}


@dataclass(frozen=True, kw_only=True)
class StoredWeight:
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
    readers: tuple[WeightUse, ...]
    axis: int | None
    home: ir.Graph
    is_product: bool
    transposed: bool

    @property
    def name(self) -> str:
        """The constant's name."""
        return self.value.name or "?"

    @property
    def rank(self) -> int:
        """The number of its axes."""
        return len(query.dims(self.tensor))

    @property
    def stored_bytes(self) -> int:
        """Bytes in the file."""
        return float_constants.stored_bytes(self.value)

    @property
    def tables(self) -> list[WeightUse]:
        """Those that look rows up."""
        return [r for r in self.readers if r.weight.is_table]

    @property
    def others(self) -> list[WeightUse]:
        """Those that compute with it."""
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


class WeightContext:
    """Names and order of a model while its weights are replaced; made on first use."""

    def __init__(self, model: ir.Model) -> None:
        self.model = model

    @functools.cached_property
    def names(self) -> edit.Names:
        """Fresh names."""
        return edit.Names(self.model)

    @functools.cached_property
    def order(self) -> dict[ir.Node, int]:
        """The place of every node in the order of its graph, before anything was inserted."""
        return {node: place for place, node in enumerate(query.nodes(self.model))}


class SiteWriter:
    """Base of writers of weights: names, initializers, nodes, the position of the first reader."""

    def __init__(self, scene: WeightContext, site: StoredWeight) -> None:
        scene.order  # noqa: B018  before anything is inserted
        self.scene = scene
        self.site = site
        self.home = site.home

    def store(self, kind: str, array: np.ndarray | ir.TensorProtocol) -> ir.Value:
        """Add an initializer beside the weight."""
        value = edit.add_initializer(self.home, self.scene.names, f"{self.site.name}_{kind}", array)
        if isinstance(array, ir.TensorProtocol):
            array.name = value.name
        return value

    def insert(
        self,
        anchor: ir.Node,
        op_type: str,
        inputs: list[ir.Value | None],
        attributes: dict[str, Any] | None = None,
        *,
        domain: str = "",
    ) -> ir.Value:
        """Insert a node with one output before `anchor`."""
        hint = f"{self.site.name}_{op_type}"
        made = edit.insert_before(
            anchor, self.scene.names, op_type, inputs, attributes=attributes, domain=domain, hint=hint
        )
        return made.outputs[0]

    def first_reader(self) -> ir.Node:
        """Return the node before which all readers can be served: at the start where all are in bodies."""
        here = [r.node for r in self.site.readers if r.node.graph is self.home]
        return min(here, key=lambda n: self.scene.order[n]) if here else next(iter(self.home))

    def replace_by(self, floats: ir.Value) -> None:
        """Let every reader read a value of the weight's own shape, which takes its name, and remove the weight."""
        for reader in self.site.readers:
            node, read = reader.node, floats
            if reader.transposed:
                read = self.insert(node, "Transpose", [floats], {"perm": [1, 0]})
            node.replace_input_with(reader.port, read)
        name = self.site.value.name
        self.remove_floats()
        floats.name = name  # it means what the weight meant

    def remove_floats(self) -> None:
        """Take the weight out, and the Transposes between it and its readers, as far as nobody reads them."""
        for via in {id(r.via): r.via for r in self.site.readers if r.via is not None}.values():
            edit.remove_unread(via.outputs[0])
        edit.remove_unread(self.site.value)


class WeightWriter(SiteWriter):
    """Writes one weight as int8: the initializers once, the nodes at every reader."""

    def __init__(self, scene: WeightContext, site: StoredWeight, rounding: Rounding, form: targets.WeightForm) -> None:
        super().__init__(scene, site)
        self.rounding = rounding
        self.form = form
        self.integers = self.store("int8", rounding.integers(transposed=site.transposed))
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
        name = site.value.name
        self.remove_floats()
        if self._floats is not None and not site.transposed:
            self._floats.name = name  # it means what the weight meant

    def _replace_weight(self, reader: WeightUse) -> None:
        """Let a node read the weight in floats, the way round that it needs."""
        node, floats, flag = reader.node, self._weight(), reader.weight.transpose_flag
        if reader.transposed == self.site.transposed:
            node.replace_input_with(reader.port, floats)
        elif flag:
            node.attributes[flag] = ir.AttrInt64(flag, 0 if query.attribute(node, flag, 0) else 1)
            node.replace_input_with(reader.port, floats)
        else:
            node.replace_input_with(reader.port, self.insert(node, "Transpose", [floats], {"perm": [1, 0]}))

    def _weight(self) -> ir.Value:
        """Return the weight in floats, made once, before its first reader."""
        if self._floats is None:
            first = self.first_reader()
            axis = self.site.axis
            if axis is not None and self.site.transposed:
                axis = 1 - axis
            if self.form == "dequantize":
                scale = self.store("scale", self.rounding.scale)
                attributes = {} if axis is None else {"axis": axis}
                self._floats = self.insert(first, "DequantizeLinear", [self.integers, scale], attributes)
            else:
                cast = self._cast(first, self.integers)
                scale = self.store("scale", self._spread_scale(axis))
                self._floats = self.insert(first, "Mul", [cast, scale])
        return self._floats

    def _replace_lookup(self, reader: WeightUse) -> None:
        """Look integers up in a table with one scale, then make floats of them."""
        node = reader.node
        axis = reader.weight.out_axis(node, self.site.rank)
        looked_up = self.insert(node, "Gather", [self.integers, node.inputs[1]], {"axis": axis})
        scale = self.store("scale", self.rounding.scale)
        edit.take_over(node.outputs[0], self.insert(node, "Mul", [self._cast(node, looked_up), scale]))

    def _replace_rows(self, reader: WeightUse) -> None:
        """Look integers and their scales up, then multiply."""
        node, ids = reader.node, reader.node.inputs[1]
        axis = reader.weight.out_axis(node, self.site.rank)
        looked_up = self.insert(node, "Gather", [self.integers, ids], {"axis": axis})
        scales = self.store("row_scale", self._spread_scale(axis))
        factors = self.insert(node, "Gather", [scales, ids], {"axis": axis})
        edit.take_over(node.outputs[0], self.insert(node, "Mul", [self._cast(node, looked_up), factors]))

    def _spread_scale(self, axis: int | None) -> np.ndarray:
        """Return the scales in a shape that broadcasts along `axis` of the weight."""
        if axis is None:
            return self.rounding.scale
        return self.rounding.scale.reshape([-1 if i == axis else 1 for i in range(self.site.rank)])

    def _cast(self, anchor: ir.Node, integers: ir.Value) -> ir.Value:
        return self.insert(anchor, "Cast", [integers], {"to": int(self.site.tensor.dtype)})


def sites(
    model: ir.Model, selects: Callable[[ir.Node], bool], *, channelwise: bool
) -> Iterator[tuple[StoredWeight, str]]:
    """Yield every float constant that a node reads as its weight, with the reason for leaving it alone or "".

    Args:
        model: all its graphs are searched, but for local functions.
        selects: the nodes that may be touched.
        channelwise: scales are to belong to an axis.
    """
    for value in _constants(model):
        tensor = float_constants.tensor(value)
        if tensor is None or not tensor.dtype.is_floating_point() or tensor.dtype.bitwidth < 16 or not tensor.size:
            continue
        found, others = readers(value)
        if not found:
            continue
        site = _site(value, tensor, found, channelwise=channelwise)
        others += _others_of_stored(value)
        users = [node for r in found for node in r.users]
        left_out = [query.label(node) for node in users if not selects(node)]
        if tensor.dtype in _UNSUPPORTED:
            yield site, f"{_UNSUPPORTED[tensor.dtype]} weights can't be dequantized to their type"
        elif others:
            yield site, f"also read by {_listed(others)}, which would see rounded values"
        elif left_out:
            shared = "" if len(left_out) == len(users) else f" for {_listed(left_out)}, which reads it too"
            yield site, f"{DESELECTED}{shared}"
        elif site.tables and site.others and site.rank != 2:
            yield site, "read both as a table and as a weight, and not a matrix"
        else:
            yield site, ""


def _site(value: ir.Value, tensor: ir.TensorProtocol, found: list[WeightUse], *, channelwise: bool) -> StoredWeight:
    """Choose the axis of the scales: the output channels of the first reader that is no table, or else rows."""
    rank = len(query.dims(tensor))
    first = next((r for r in found if not r.weight.is_table), found[0])
    homes = {id(query.home(r.node)): query.home(r.node) for r in found}
    # DequantizeLinear in a body that reads integers outside of it makes onnxruntime fail to load the model
    home = next(iter(homes.values())) if len(homes) == 1 else owner(value)
    is_product = rank == 2 and all(r.is_product for r in found) and list(homes) == [id(home)]
    return StoredWeight(
        value=value,
        tensor=tensor,
        readers=tuple(found),
        axis=first.out_axis(rank) if channelwise else None,
        home=home,
        is_product=is_product,
        transposed=is_product and all(r.wants_transpose for r in found),
    )


def _others_of_stored(value: ir.Value) -> list[str]:
    """Return who reads the constant that a Cast makes a weight of, beside the Cast."""
    node = value.producer() if float_constants.is_cast(value) else None
    stored = None if node is None else node.inputs[0]
    if stored is None:
        return []
    outputs = ["a graph output"] if stored.is_graph_output() else []
    return outputs + [query.label(use.node) for use in stored.uses() if use.node is not node]


def owner(value: ir.Value) -> ir.Graph:
    """Return the graph that a constant belongs to."""
    node = value.producer()
    owner = value.graph if node is None else node.graph
    assert isinstance(owner, ir.Graph)
    return owner


def _constants(model: ir.Model) -> Iterator[ir.Value]:
    """Yield initializers, outputs of Constant nodes and casts of both; local functions can't hold initializers."""
    for body in query.graphs_outside_functions(model):
        yield from body.initializers.values()
        for node in body:
            if query.is_op(node, "Constant") or (
                query.is_op(node, "Cast") and float_constants.is_cast(node.outputs[0])
            ):
                yield node.outputs[0]


def _listed(names: list[str], most: int = 3) -> str:
    more = f" and {len(names) - most} more" if len(names) > most else ""
    return ", ".join(names[:most]) + more
