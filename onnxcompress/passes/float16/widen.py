"""Compute in float32 what a model computes in float16 or bfloat16; its weights stay stored as they are.

    x (float16) -> Op(x, w) -> y (float16)    ->    Cast -> Op(x, Cast(w)) -> Cast -> y

onnxruntime's CPU has hardly any kernel for float16: it runs such a model through Casts, and its integer kernels read
float32 only. Inputs and outputs of the model keep their type. Bodies of If, Loop and Scan and local functions are
widened with the graph around them; only whole models are, so no node is left between two types.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass as plain_dataclass
from typing import ClassVar

import numpy as np
import onnx_ir as ir
from pydantic.dataclasses import dataclass

from ...core import GRAPH, Action, Change, Context, Need
from ...errors import ModelError
from ...graph import edit, query
from ...io import model_io
from ...runtime import session as runtime
from ...shapes import infer as shapes
from ...targets import facts as targets
from .weights import cast_bytes

_HALVES = frozenset({ir.DataType.FLOAT16, ir.DataType.BFLOAT16})
_SINGLE = ir.DataType.FLOAT
_TYPE_ATTRIBUTES = frozenset(
    {"to", "dtype", "output_dtype", "output_datatype", "precision", "softmax_precision", "stash_type"}
)
"""Attributes of ONNX's operators that name a type."""
_KNOWN_DOMAINS = frozenset({*query.STANDARD_DOMAINS, "com.microsoft", "ai.onnx.ml"})


@dataclass(frozen=True, kw_only=True)
class WidenFloat16:
    """Compute in float32 what is float16 or bfloat16, where the target is faster so; weights stay as stored."""

    name: ClassVar[str] = "widen-float16"
    lossless: ClassVar[bool] = False
    needs: ClassVar[frozenset[Need]] = frozenset()

    def run(self, model: ir.Model, context: Context) -> list[Change]:
        """Widen every graph of `model`, or none."""
        base = widened_for(model, context)
        if base.model is not None and context.gate.admits(self.name, GRAPH):
            edit.become(model, base.model)
            return base.changes
        return base.refusals


@plain_dataclass(frozen=True)
class Widened:
    """A widened copy of a model, None where there is none; what was done, or why nothing was."""

    model: ir.Model | None
    changes: list[Change]
    refusals: list[Change]

    def undone(self, why: str) -> list[Change]:
        """Return what was done as undone, and why."""
        return [Change.skipped(c.pass_name, f"{c.reason}; undone: {why}") for c in self.changes]


def widened_for(model: ir.Model, context: Context, *, for_integers: bool = False) -> Widened:
    """Return a copy of a model that computes in float32, where it computes in 16 bits and the target gains by it.

    Args:
        model: not changed.
        context: its target is asked; `selects` is not, since what is widened becomes more exact.
        for_integers: the copy is wanted for kernels on integers, which read float32 on every target.
    """
    name = WidenFloat16.name
    if not (kinds := computed_types(model)):
        return Widened(None, [], [])
    kind = " and ".join(sorted(dtype.name.lower() for dtype in kinds))
    unfed = [value.name for value in model.graph.inputs if value.dtype is ir.DataType.BFLOAT16]
    if for_integers and unfed:
        why = f"stays {kind}: onnxruntime takes no bfloat16 from samples, as {unfed[0]} wants it"
        return Widened(None, [], [Change.skipped(name, why)])
    if not for_integers and targets.half_compute(context.target):
        return Widened(None, [], [Change.skipped(name, f"computes in {kind}, which is fast on {context.target}")])
    try:
        found = widened(model)
    except ModelError as error:
        return Widened(None, [], [Change.skipped(name, f"stays {kind}: {error.message}")])
    why = "integer kernels read float32" if for_integers else "the target has hardly any kernel for it"
    added = model_io.model_bytes(found) - model_io.model_bytes(model)
    change = Change.applied(
        name,
        f"computes in float32 instead of {kind}: {why}",
        bytes_before=max(0, -added),
        bytes_after=max(0, added),
    )
    return Widened(found, [change], [])


def run_widened(model: ir.Model, context: Context, run: Callable[[ir.Model], list[Change]]) -> list[Change]:
    """Run a pass that makes stored weights smaller, on a widened copy where the model computes in 16 bits.

    The copy becomes the model where the pass changes something; else the model stays as it is. Where integers are
    stored, onnxruntime's CPU would turn them back into float16 in each run, and into float32 after that.

    Args:
        model: edited in place.
        context: its gate is asked.
        run: edits the model that it gets, and returns what it did.
    """
    wide = widened_for(model, context)
    if wide.model is None or not context.gate.admits(WidenFloat16.name, GRAPH):
        return [*wide.refusals, *run(model)]
    changes = run(wide.model)
    if not any(change.action is Action.APPLIED for change in changes):
        return [*changes, *wide.undone("no weight would become smaller")]
    edit.become(model, wide.model)
    return [*wide.changes, *changes]


def computed_types(model: ir.Model) -> set[ir.DataType]:
    """Return the 16-bit float types that nodes compute in; none where such types are only stored or cast."""
    if not _mentions_half(model):
        return set()
    known = shapes.infer(model)
    found: set[ir.DataType] = set()
    for node in query.nodes(model):
        if not query.is_op(node, "Constant", "Cast"):
            found |= {_dtype(value, known) for value in (*node.inputs, *node.outputs)} & _HALVES  # type: ignore[arg-type]
    return found


def widened(model: ir.Model) -> ir.Model:
    """Return a copy of a model that computes in float32 wherever it computes in float16 or bfloat16.

    Raises:
        ModelError: an operator of an unknown domain computes in 16 bits, an input or output holds a sequence of such
            tensors, a value would keep its type, or the runtime can't load the result.
    """
    copy = model_io.clone(model)
    _refuse(copy)
    _Widening(copy).run()
    known = shapes.infer(copy)
    _drop_casts(copy, known)
    allowed = {*copy.graph.inputs, *copy.graph.outputs}
    for node in query.nodes(copy):
        for value in node.outputs:
            stored = query.constant_tensor(value) is not None
            if known.dtype(value) in _HALVES and not stored and value not in allowed:
                raise ModelError(f"{value.name} of {query.label(node)} would still be {known.dtype(value)}")
    runtime.open_session(model_io.to_bytes(copy), optimize=False)
    return copy


def _refuse(model: ir.Model) -> None:
    """Refuse what can't be widened."""
    known = shapes.infer(model)
    for value in (*model.graph.inputs, *model.graph.outputs):
        if not isinstance(value.type, ir.TensorType | None) and _is_half(value.type):
            raise ModelError(f"{value.name} is no tensor, and a Cast takes nothing else")
    for node in query.nodes(model):
        if node.domain in _KNOWN_DOMAINS or node.op_identifier() in model.functions:
            continue
        if any(_dtype(value, known) in _HALVES for value in (*node.inputs, *node.outputs)):
            raise ModelError(f"{query.label(node)} of {node.domain} may have no other type")


class _Widening:
    """Widens one model in place."""

    def __init__(self, model: ir.Model) -> None:
        self._model = model
        self._names = edit.Names(model)

    def run(self) -> None:
        """Widen every graph, node, and value."""
        self._keep_outputs()
        parameters = _type_parameters(self._model)
        bodies = list(query.graphs(self._model))
        for body in bodies:
            for node in list(body):
                self._retype(node, parameters.get(node.op_identifier(), frozenset()))
        for identifier, function in self._model.functions.items():
            for attribute in list(function.attributes.values()):
                if attribute.name in parameters[identifier]:
                    function.attributes.add(_widened_number(attribute))
        for body in bodies:
            self._widen_values(body)

    def _keep_outputs(self) -> None:
        """Let outputs of the model keep their type, behind a Cast to it."""
        graph = self._model.graph
        for index, value in enumerate(list(graph.outputs)):
            maker = value.producer()
            if value.dtype not in _HALVES or maker is None:
                continue  # an input or a constant is the output itself: `_cast_from` leaves it so
            assert value.dtype is not None
            name, dtype, shape = value.name or "output", value.dtype, value.shape
            value.name = self._names.fresh(f"{name}_float32")
            cast = ir.node("Cast", [value], {"to": int(dtype)}, name=self._names.fresh(f"{name}_Cast"))
            graph.append(cast)
            new = cast.outputs[0]
            new.name, new.type, new.shape = name, ir.TensorType(dtype), shape
            graph.outputs[index] = new
        self._kept = {id(value.producer()) for value in graph.outputs if value.dtype in _HALVES}

    def _retype(self, node: ir.Node, parameters: frozenset[str]) -> None:
        """Widen what attributes say of types, and small constants; others get a Cast."""
        if id(node) in self._kept:
            return
        for attribute in list(node.attributes.values()):
            if attribute.is_ref():
                continue
            names_type = attribute.name in parameters or (
                node.domain in _KNOWN_DOMAINS and attribute.name in _TYPE_ATTRIBUTES
            )
            if attribute.type == ir.AttributeType.INT and names_type:
                node.attributes.add(_widened_number(attribute))
            elif attribute.type == ir.AttributeType.TENSOR and attribute.as_tensor().dtype in _HALVES:
                if query.is_op(node, "Constant") and _is_large(node.outputs[0], attribute.as_tensor()):
                    self._cast_from(node.outputs[0], node)
                else:
                    node.attributes.add(ir.AttrTensor(attribute.name, _single(attribute.as_tensor())))
            elif attribute.type == ir.AttributeType.TYPE_PROTO:
                given = attribute.value
                made = ir.TypeAndShape(_wide(given.type), given.shape)
                node.attributes.add(ir.Attr(attribute.name, attribute.type, made))

    def _widen_values(self, body: ir.Graph) -> None:
        """Widen the declared types of a graph's values, and its initializers."""
        is_main = body is self._model.graph
        for value in list(body.inputs):
            if not is_main:
                value.type = _wide(value.type)
            elif value.dtype in _HALVES:
                self._cast_from(value, None)
        for value in list(body.initializers.values()):
            tensor = value.const_value
            if tensor is None or tensor.dtype not in _HALVES or value.is_graph_input():
                continue
            if _is_large(value, tensor) or value.is_graph_output():
                self._cast_from(value, None)
            else:
                edit.set_weight(value, _single(tensor))
        for node in body:
            for value in node.outputs:
                is_stored = query.constant_tensor(value) is not None
                if not is_stored and id(node) not in self._kept:
                    value.type = _wide(value.type)

    def _cast_from(self, value: ir.Value, maker: ir.Node | None) -> None:
        """Let the readers of a value read a float32 copy; it stays as it is, and so does an output of the model."""
        readers = list(value.uses())
        inner = value.is_graph_output() and value not in self._model.graph.outputs
        if not readers and not inner:
            return
        home = value.graph if maker is None else maker.graph
        assert isinstance(home, ir.Graph)
        cast = ir.node("Cast", [value], {"to": int(_SINGLE)}, name=self._names.fresh(f"{value.name}_Cast"))
        if maker is not None:
            home.insert_after(maker, cast)
        elif len(home):
            home.insert_before(next(iter(home)), cast)
        else:
            home.append(cast)
        new = cast.outputs[0]
        new.name = self._names.fresh(f"{value.name}_float32")
        new.type, new.shape = ir.TensorType(_SINGLE), value.shape
        for reader, port in readers:
            if id(reader) not in self._kept or reader.inputs[port] is not value:
                reader.replace_input_with(port, new)
        if inner:
            value.replace_all_uses_with(new, replace_graph_outputs=True)
            cast.replace_input_with(0, value)


def _drop_casts(model: ir.Model, known: shapes.Shapes) -> None:
    """Remove the Casts from float32 to float32 that are left."""
    for body in query.graphs(model):
        for node in list(body):
            if not query.is_op(node, "Cast") or query.attribute(node, "to") != int(_SINGLE):
                continue
            read, made = node.inputs[0], node.outputs[0]
            if read is not None and known.dtype(read) == _SINGLE and edit.can_replace(made, read):
                edit.replace_node(node, [read])


def _type_parameters(model: ir.Model) -> dict[ir.OperatorIdentifier, frozenset[str]]:
    """Return for each local function those of its parameters that name a type, calls in other functions followed."""
    found: dict[ir.OperatorIdentifier, frozenset[str]] = {name: frozenset() for name in model.functions}
    while True:
        before = dict(found)
        for identifier, function in model.functions.items():
            for node in (*function, *query.inner_nodes(function)):
                own = found.get(node.op_identifier(), frozenset())
                names = _TYPE_ATTRIBUTES if node.domain in _KNOWN_DOMAINS else own
                refs = {a.ref_attr_name for a in node.attributes.values() if a.is_ref() and a.name in names}
                found[identifier] |= {name for name in refs if name is not None}
        if found == before:
            return found


def _widened_number(attribute: ir.Attr) -> ir.Attr:
    """Return an attribute that names a type, with float32 in place of 16-bit floats."""
    if attribute.value is None or ir.DataType(attribute.as_int()) not in _HALVES:
        return attribute
    return ir.AttrInt64(attribute.name, int(_SINGLE))


def _is_large(value: ir.Value, tensor: ir.TensorProtocol) -> bool:
    """Say whether a constant would take more bytes as float32 than with a Cast."""
    return tensor.nbytes > cast_bytes(value.name or "")


def _single(tensor: ir.TensorProtocol) -> ir.TensorProtocol:
    return ir.tensor(np.asarray(tensor.numpy().astype(np.float32)), name=tensor.name)


def _wide(kind: ir.TypeProtocol | None) -> ir.TypeProtocol | None:
    """Return a type with float32 in place of 16-bit floats, sequences and optionals of them included."""
    if not _is_half(kind):
        return kind
    if isinstance(kind, ir.SequenceType | ir.OptionalType):
        inner = _wide(kind.elem_type)
        assert inner is not None
        return type(kind)(inner)
    return type(kind)(_SINGLE)  # type: ignore[call-arg, misc]  # tensors, dense and sparse


def _is_half(kind: ir.TypeProtocol | None) -> bool:
    return kind is not None and kind.dtype in _HALVES


def _mentions_half(model: ir.Model) -> bool:
    """Say whether anything in a model that decides a type is of a 16-bit float type; inference takes longer."""
    if any(_is_half(v.type) for body in query.graphs(model) for v in (*body.inputs, *body.initializers.values())):
        return True
    return any(
        (attribute.type == ir.AttributeType.INT and attribute.value in _HALVES)
        or (attribute.type == ir.AttributeType.TENSOR and attribute.value.dtype in _HALVES)
        or (attribute.type == ir.AttributeType.TYPE_PROTO and _is_half(attribute.value.type))
        for node in query.nodes(model)
        for attribute in node.attributes.values()
        if not attribute.is_ref()
    )


def _dtype(value: ir.Value | None, known: shapes.Shapes) -> ir.DataType | None:
    """Return the type of a value: the inferred one, or else the declared one."""
    if value is None:
        return None
    return known.dtype(value) or value.dtype
