"""Compute nodes in float16 as far as their values allow, with Casts between float16 and float32.

    x (float32) -> A -> B -> y (float32)      ->  Cast -> A -> B -> Cast

A value has one Cast at most, however many read it, right after the node that computes it. Bodies of If, Loop and Scan
have float32 inputs and outputs; their nodes are converted like all others and read outer values in either type.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import numpy as np
import onnx
import onnx_ir as ir

from ...activations import observe
from ...core import Change, Context, Feed
from ...data import synthetic
from ...errors import ModelError
from ...graph import edit, query
from ...io import model_io
from ...numerics.quantization import float16
from ...ops import table as ops
from ...runtime import session as runtime
from ...shapes import infer as shapes
from . import weights as float16_weights

_HALF, _SINGLE = ir.DataType.FLOAT16, ir.DataType.FLOAT
_MOST_FEEDS = 64
"""Most feeds on which ranges are observed. Chosen by judgement; not measured."""
_EXACT_INTEGERS = 2048.0
"""Largest integer up to which float16 holds every integer."""
_LEAST_NORMAL = 2.0**-14
"""Least normal number of float16."""
_CAST_BYTES = 70
"""Bytes of a Cast in the file besides its names. Estimated; not measured."""
_GROWTH_BYTES = 1024
"""Most bytes by which Casts may outweigh what the weights save. Chosen by judgement; not measured."""
_FEW = 16
"""Most elements of constants that are numbers of a formula, such as an epsilon: each of them counts. Chosen by
judgement; not measured."""
_KEPT = ops.NONDETERMINISTIC | {"QuantizeLinear", "DequantizeLinear", "DynamicQuantizeLinear"}


class _Range:
    """Peak magnitude of one value, and its signal and noise power in float16."""

    def __init__(self) -> None:
        self.peak = 0.0
        self.signal = self.noise = 0.0

    def update(self, array: np.ndarray) -> None:
        """Add the value of one run; infinities are exact in float16."""
        flat = array.reshape(1, -1)
        finite = np.isfinite(flat)
        if not finite.all():
            flat = flat[finite].reshape(1, -1)
        if flat.size:
            self.peak = max(self.peak, float(np.abs(flat).max()))
            signal, noise = float16.row_losses(flat, _HALF.numpy())
            self.signal += float(signal[0])
            self.noise += float(noise[0])

    @property
    def sqnr_db(self) -> float:
        """Signal-to-noise ratio of the value in float16, in decibels."""
        return float16.worst_db(np.array([self.signal]), np.array([self.noise]))


@dataclass(frozen=True)
class _Form:
    """Ports and outputs of a node that would be float16."""

    ports: tuple[int, ...]
    outputs: tuple[int, ...]


class Conversion:
    """Converts one model.

    Args:
        model: edited in place by `run`.
        context: ranges are observed on its feeds, on synthetic ones without any.
        pass_name: name of the pass in changes and for the gate.
        headroom: factor by which values must be smaller than the largest float16.
    """

    def __init__(self, model: ir.Model, context: Context, *, pass_name: str, headroom: float) -> None:
        self._model = model
        self._context = context
        self._pass_name = pass_name
        self._limit = float16.FLOAT16_MAX / headroom
        self._shapes = shapes.infer(model)
        self._names = edit.Names(model)
        self._forms: dict[ir.Node, _Form] = {}

    def run(self, *, least_sqnr_db: float) -> list[Change]:
        """Convert the nodes that may be converted; return them, and those that were refused for their values."""
        bodies = list(query.graphs_outside_functions(self._model))
        candidates = {node: form for body in bodies for node in body if (form := self._form(node)) is not None}
        for node in self._exact(candidates):
            candidates.pop(node, None)
        try:
            ranges = self._observed(candidates)
        except ModelError as error:
            reason = f"stays float32: its values can't be observed ({error.message})"
            return [Change.skipped(self._pass_name, reason)]
        changes: list[Change] = []
        scores: dict[ir.Node, float] = {}
        for node, form in candidates.items():
            if not self._context.selects(node):
                continue
            why, scores_db = self._unfit(node, form, ranges, least_sqnr_db)
            if why:
                changes.append(Change.skipped(self._pass_name, f"stays float32: {why}", target=query.label(node)))
            else:
                scores[node] = scores_db
        worthwhile = _with_products({node: candidates[node] for node in scores})
        casts, saved = self._balance(bodies, {node: candidates[node] for node in worthwhile})
        if casts > saved + _GROWTH_BYTES:
            reason = f"stays float32: Casts take {casts:,} bytes, weights that nodes read save {saved:,}"
            return [*changes, Change.skipped(self._pass_name, reason)]
        for node in sorted(worthwhile, key=lambda each: -scores[each]):
            if self._context.gate.admits(self._pass_name, query.label(node)):
                self._forms[node] = candidates[node]
                changes.append(Change.applied(self._pass_name, "computes in float16", target=query.label(node)))
        self._rewrite(bodies)
        return changes

    def _form(self, node: ir.Node) -> _Form | None:
        """Return the ports and outputs that could be float16 by the definition of the operator, None where none can."""
        if node.domain not in query.STANDARD_DOMAINS or node.op_type in _KEPT or query.bodies(node):
            return None
        if node.op_identifier() in self._model.functions or query.is_op(node, "Constant"):
            return None
        if query.attribute(node, "reduction", "none") != "none":  # onnxruntime's Scatter fails when it runs
            return None
        try:
            schema = onnx.defs.get_schema(node.op_type, query.opset(self._model), "")
        except onnx.defs.SchemaError:
            return None
        allowed = {c.type_param_str: c.allowed_type_strs for c in schema.type_constraints}
        bound: set[str] = set()
        ports, outputs = [], []
        for port, value in enumerate(node.inputs):
            if value is None:
                continue
            letter = schema.inputs[min(port, len(schema.inputs) - 1)].type_str
            dtype = self._shapes.dtype(value)
            if dtype is None:
                return None
            if dtype == _SINGLE and letter in allowed:
                if "tensor(float16)" not in allowed[letter]:
                    return None
                bound.add(letter)
                ports.append(port)
        for index, value in enumerate(node.outputs):
            letter = schema.outputs[min(index, len(schema.outputs) - 1)].type_str
            dtype = self._shapes.dtype(value)
            if dtype is None and value.name:
                return None
            if dtype == _SINGLE:
                if "tensor(float16)" not in allowed.get(letter, ()) or not (letter in bound or _names_its_type(node)):
                    return None
                outputs.append(index)
        return _Form(tuple(ports), tuple(outputs)) if ports or outputs else None

    def _exact(self, candidates: Mapping[ir.Node, _Form]) -> list[ir.Node]:
        """Return the nodes whose results become integers: sizes and positions, for which 10 bits are too few."""
        pending = [n for n in candidates if query.is_op(n, "Cast") and self._shapes.dtype(n.outputs[0]) != _SINGLE]
        found: dict[ir.Node, None] = {}
        while pending:
            node = pending.pop()
            if node in found or ops.spec(node).macs is not None:
                continue
            found[node] = None
            for value in node.inputs:
                producer = None if value is None else value.producer()
                if producer is not None and producer in candidates:
                    pending.append(producer)
        return list(found)

    def _observed(self, candidates: Mapping[ir.Node, _Form]) -> dict[str, _Range]:
        """Return the ranges of the values that would be float16."""
        values = {v.name: v for node, form in candidates.items() for v in _touched(node, form)}
        ranges = {name: _Range() for name, v in values.items() if name and query.constant_tensor(v) is None}
        if ranges:
            refused = observe.observe(self._model, self._feeds(), ranges)
            for name in refused:
                del ranges[name]
        return ranges

    def _feeds(self) -> list[Feed]:
        if self._context.feeds:
            return list(self._context.feeds[:_MOST_FEEDS])
        session = runtime.open_session(model_io.to_bytes(self._model), optimize=True)
        return [t.feed for t in synthetic.tried_feeds(self._model, session, seed=self._context.seed, count=2)]

    def _unfit(
        self, node: ir.Node, form: _Form, ranges: Mapping[str, _Range], least_sqnr_db: float
    ) -> tuple[str, float]:
        """Return why a node's values don't suit float16 ("" where they do), and the least of their ratios in dB."""
        least = float("inf")
        for value in _touched(node, form):
            tensor = query.constant_tensor(value)
            if tensor is not None:
                why, found = _constant(tensor)
            elif (seen := ranges.get(value.name or "")) is None:
                return f"{value.name} can't be observed", 0.0
            else:
                why, found = "", seen.sqnr_db
                if seen.peak > self._limit:
                    why = f"{value.name} reaches {seen.peak:.4g}"
                elif query.is_op(node, "Cast") and seen.peak > _EXACT_INTEGERS:
                    why = f"{value.name} counts up to {seen.peak:.4g}"
            if not why and found < least_sqnr_db:
                why = f"the smallest numbers of {value.name} would vanish ({found:.1f} dB)"
            if why:
                return why, 0.0
            least = min(least, found)
        return "", least

    def _balance(self, bodies: list[ir.Graph], forms: dict[ir.Node, _Form]) -> tuple[int, int]:
        """Return the bytes that Casts would add to the file, and those that constants would save."""
        self._forms = forms
        casts = saved = 0
        for value in (value for body in bodies for value in self._read_in_half(body)):
            tensor = query.constant_tensor(value)
            if tensor is not None:
                saved += tensor.nbytes // 2
            else:
                casts += _CAST_BYTES + 3 * len(value.name or "")
        for node, form in forms.items():
            for value in (node.outputs[index] for index in form.outputs):
                if value.is_graph_output() or len(self._half_uses(value)) < len(value.uses()):
                    casts += _CAST_BYTES + 3 * len(value.name or "")
        self._forms = {}
        return casts, saved

    # Edits.

    def _rewrite(self, bodies: list[ir.Graph]) -> None:
        """Convert the chosen nodes."""
        single = [value for body in bodies for value in self._read_in_half(body)]
        for node, form in self._forms.items():
            _retype(node)
            for index in form.outputs:
                self._keep_single(node, node.outputs[index])
        for value in single:
            self._copy_to_half(value)

    def _read_in_half(self, body: ir.Graph) -> Iterator[ir.Value]:
        """Yield the values of a graph that are float32 and that some chosen node reads."""
        outputs = [output for node in body for output in node.outputs if not self._is_half(output)]
        for value in dict.fromkeys([*body.inputs, *body.initializers.values(), *outputs]):
            if self._half_uses(value):
                yield value

    def _is_half(self, value: ir.Value) -> bool:
        node = value.producer()
        form = None if node is None else self._forms.get(node)
        return form is not None and value.index() in form.outputs

    def _half_uses(self, value: ir.Value) -> list[tuple[ir.Node, int]]:
        uses = [(use.node, use.idx) for use in value.uses()]
        return [(node, port) for node, port in uses if node in self._forms and port in self._forms[node].ports]

    def _keep_single(self, node: ir.Node, value: ir.Value) -> None:
        """Make a value float16, with a float32 copy under its name for other readers."""
        inside = self._half_uses(value)
        name = value.name or "value"
        if value.is_graph_output() or len(inside) < len(value.uses()):
            cast = edit.put_after(node, self._names, "Cast", [value], attributes={"to": int(_SINGLE)}, hint=name)
            copy = cast.outputs[0]
            value.replace_all_uses_with(copy, replace_graph_outputs=True)
            cast.replace_input_with(0, value)
            for reader, port in inside:
                reader.replace_input_with(port, value)
            copy.type, copy.shape = value.type or ir.TensorType(_SINGLE), value.shape
            value.name = self._names.fresh(f"{name}_float16")
            copy.name = name
        value.type = ir.TensorType(_HALF)

    def _copy_to_half(self, value: ir.Value) -> None:
        """Make a float16 copy of a value for the converted nodes."""
        uses = self._half_uses(value)
        name = value.name or "value"
        tensor = query.constant_tensor(value)
        producer = value.producer()
        home = value.graph if producer is None else producer.graph
        assert isinstance(home, ir.Graph)
        if tensor is not None:
            half = edit.add_initializer(home, self._names, f"{name}_float16", float16_weights.narrowed(tensor, _HALF))
            assert half.const_value is not None
            half.const_value.name = half.name
        else:
            attributes, hint = {"to": int(_HALF)}, f"{name}_float16"
            if producer is None:
                cast = edit.insert_before(
                    next(iter(home)), self._names, "Cast", [value], attributes=attributes, hint=hint
                )
            else:
                cast = edit.put_after(producer, self._names, "Cast", [value], attributes=attributes, hint=hint)
            half = cast.outputs[0]
            half.type, half.shape = ir.TensorType(_HALF), value.shape
        for reader, port in uses:
            reader.replace_input_with(port, half)
        if tensor is not None and not value.uses() and not value.is_graph_output():
            edit.remove_unread(value)


def _touched(node: ir.Node, form: _Form) -> list[ir.Value]:
    """Return the values of a node that would be float16."""
    read = [node.inputs[port] for port in form.ports]
    return [*(value for value in read if value is not None), *(node.outputs[index] for index in form.outputs)]


def _names_its_type(node: ir.Node) -> bool:
    """Say whether an attribute, which `_retype` changes, decides the type of a node's output."""
    return query.is_op(node, "Cast", "ConstantOfShape")


def _retype(node: ir.Node) -> None:
    """Change the attribute that names float32 as the type of a node's output."""
    if query.is_op(node, "Cast") and query.attribute(node, "to") == int(_SINGLE):
        node.attributes["to"] = ir.AttrInt64("to", int(_HALF))
    elif query.is_op(node, "ConstantOfShape"):
        given = query.attribute(node, "value")
        array = np.zeros(1, np.float32) if given is None else given.numpy()
        node.attributes["value"] = ir.AttrTensor("value", ir.tensor(float16.narrowed(array, _HALF.numpy())))


def _constant(tensor: ir.TensorProtocol) -> tuple[str, float]:
    """Return why a constant does not suit float16 ("" where it does), and its signal-to-noise ratio in dB."""
    if tensor.size <= _FEW:
        tiny = [x for x in np.abs(tensor.numpy()).reshape(-1) if 0 < x < _LEAST_NORMAL]
        if tiny:
            return f"it reads the constant {tiny[0]:.3g}", 0.0
    if not tensor.size:
        return "", float("inf")
    try:
        return "", float16_weights.loss_db(tensor, _HALF)
    except ValueError as error:
        return f"of a constant, {error}", 0.0


def _with_products(forms: Mapping[ir.Node, _Form]) -> list[ir.Node]:
    """Return the nodes of connected groups that contain a product: others would gain Casts and nothing else."""
    group = {node: index for index, node in enumerate(forms)}
    members = {index: [node] for node, index in group.items()}
    for node, form in forms.items():
        for index in form.outputs:
            for use in node.outputs[index].uses():
                other = use.node
                if other in forms and use.idx in forms[other].ports and group[other] != group[node]:
                    small, large = sorted((group[node], group[other]), key=lambda i: len(members[i]))
                    for moved in members[small]:
                        group[moved] = large
                    members[large] += members.pop(small)
    useful = {group[node] for node in forms if ops.spec(node).macs is not None}
    return [node for node in forms if group[node] in useful]
