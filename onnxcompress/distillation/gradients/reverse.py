"""Reverse-mode differentiation of a model with a scalar loss: the door to onnx-ad, with rules of our own beside its.

    loss --walk over the nodes, last first: rule of ours, else of onnx-ad--> derivative by every weight

Where an operator has no rule, or its rule refuses a node, the derivative ends there: weights before it are not trained,
all others are. onnx-ad carries derivatives with a trailing axis of seeds; here it has one element, and rules of our own
don't see it.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx
from onnx import helper, numpy_helper
from onnx_ad import (
    UnsupportedOperator,
    _build,
    _graph,
    _passes,
    control,  # noqa: F401 -- registers the rules of If, Loop and Scan
    recurrent,
)
from onnx_ad.expand import expand_functions
from onnx_ad.lower import lower
from onnx_ad.rules import DERIVATIVE
from onnx_ad.unroll import inline_constant_ifs

from ...core import Feed
from ...io import model_io
from ...runtime import error_text
from ...shapes import resolve
from . import arithmetic, convolution, indexing, normalization, pooling
from .rule import NoRuleError, Rule, RuleNode

RULES: Mapping[str, Rule] = {
    "Add": arithmetic.add,
    "AveragePool": pooling.average_pool,
    "BatchNormalization": normalization.batch_normalization,
    "Clip": arithmetic.clip,
    "Conv": convolution.conv,
    "ConvTranspose": convolution.conv_transpose,
    "Div": arithmetic.div,
    "InstanceNormalization": normalization.instance_normalization,
    "LayerNormalization": normalization.layer_normalization,
    "LogSoftmax": arithmetic.log_softmax,
    "MatMul": arithmetic.matmul,
    "MaxPool": pooling.max_pool,
    "Mul": arithmetic.mul,
    "Pad": indexing.pad,
    "Slice": indexing.slice_,
    "Softmax": arithmetic.softmax,
    "Sub": arithmetic.sub,
    "Sum": arithmetic.add,
}
"""Operator of the standard domain -> rule of our own."""
_FAILURES = (
    UnsupportedOperator,
    ArithmeticError,
    AssertionError,
    AttributeError,
    LookupError,
    NotImplementedError,
    RuntimeError,
    TypeError,
    ValueError,
)
"""What rules of onnx-ad raise for nodes that they don't cover, by design or not."""
_OTHERS = frozenset({"MatMul"})
"""Operators of which onnx-ad's rule covers what ours does not."""
_STANDARD = ("", "ai.onnx")
_GRADIENT = "onnxcompress_gradient_"


class NoDerivativeError(Exception):
    """No weight has a derivative, for the reason that the exception holds."""


@dataclass(frozen=True, kw_only=True)
class DerivativeGap:
    """A node that the derivative does not pass.

    Args:
        operator: its operator.
        label: its name, or that of its first output.
        reason: why there is no derivative.
        weights: the weights that are lost with it.
    """

    operator: str
    label: str
    reason: str
    weights: frozenset[str]


@dataclass(frozen=True, kw_only=True)
class Gradient:
    """The derivative of a loss.

    Args:
        model: a model of the same inputs whose outputs are the derivatives alone, float32 of the weights' shapes.
        outputs: weight -> output; without those that no derivative reaches.
        blocked: nodes that the derivative does not pass.
    """

    model: onnx.ModelProto
    outputs: Mapping[str, str]
    blocked: Sequence[DerivativeGap]

    def gaps(self) -> str:
        """Return which operators have no derivative and what it costs, "" for none."""
        lost = len(frozenset().union(*(each.weights for each in self.blocked)))
        if not lost:
            return ""
        first = self.blocked[0]
        more = f" and {len(self.blocked) - 1} more nodes" if len(self.blocked) > 1 else ""
        return (
            f"{lost} of {lost + len(self.outputs)} weights are not trained: {first.operator} {first.label!r}{more} has "
            f"no derivative: {first.reason}"
        )


def reverse(proto: onnx.ModelProto, feeds: Sequence[Feed], weights: Iterable[str], loss: str) -> Gradient:
    """Return the derivative of a scalar output by inputs that hold weights.

    Args:
        proto: the model with the loss, its shapes those of one batch.
        feeds: complete feeds, weights included: they show shapes that can't be inferred, where all have the same.
        weights: names of the inputs.
        loss: name of the output, a scalar.

    Raises:
        NoDerivativeError: no weight has one.
    """
    try:
        return _derived(proto, feeds, list(weights), loss)
    except _FAILURES as error:
        raise NoDerivativeError(f"onnx-ad fails: {error_text.reason(error)}") from error


def _derived(proto: onnx.ModelProto, feeds: Sequence[Feed], weights: list[str], loss: str) -> Gradient:
    """Do as `reverse` does; what onnx-ad raises beside its rules comes out of it."""
    seen, _ = _seen(proto, feeds)
    shown = onnx.ModelProto()
    shown.CopyFrom(proto)
    known = {info.name for info in shown.graph.value_info}
    shown.graph.value_info.extend(
        helper.make_tensor_value_info(name, helper.np_dtype_to_tensor_dtype(array.dtype), array.shape)
        for name, array in seen.items()
        if name not in known
    )
    prepared, refused = _prepared(shown)
    walk = _Walk(prepared, weights, loss, refused)
    walk.learn(*_seen(prepared, feeds))
    return walk.run()


def _prepared(proto: onnx.ModelProto) -> tuple[onnx.ModelProto, str]:
    """Return a model in which what onnx-ad can expand or lower to simpler operators is, and why others are not."""
    refused = ""
    for turn in range(2):
        if turn and not any(node.op_type in recurrent.RECURRENT for node in proto.graph.node):
            break  # the second turn is for those that were in a branch
        for step in (recurrent.expand_recurrent, lower, expand_functions, inline_constant_ifs):
            try:
                proto = step(proto)
            except _FAILURES as error:
                refused = refused or error_text.reason(error)
    return proto, refused


def _seen(proto: onnx.ModelProto, feeds: Sequence[Feed]) -> tuple[dict[str, np.ndarray], set[str]]:
    """Return what runs show of values whose shape is not inferred and is the same for all feeds, and the fixed values.

    Fixed ones depend on shapes and constants alone.
    """
    shapes = _build.Shapes(proto)
    made = [name for node in proto.graph.node for name in node.output if name]
    unknown = [name for name in made if shapes.static(name) is None]
    if not unknown:
        return {}, set()
    model = model_io.load(proto)
    runs = [resolve.look(model, feed, unknown) for feed in feeds]
    seen = {}
    for name in unknown:
        found = [run[name] for run in runs if isinstance(run.get(name), np.ndarray)]
        if len(found) == len(runs) and len({array.shape for array in found}) == 1:
            seen[name] = found[0]
    live = {spec.name for spec in proto.graph.input}
    fixed: set[str] = set()
    for node in proto.graph.node:
        moves = node.op_type not in ("Shape", "Size") and bool(_graph.node_reads(node) & live)
        (live if moves else fixed).update(node.output)
    return seen, fixed


class _Walk:
    """The walk over the nodes of one model.

    Args:
        proto: the model.
        weights: names of the inputs to differentiate by.
        loss: name of the scalar output.
        refused: why an operator without a rule was not expanded, "" where nothing was refused.
    """

    def __init__(self, proto: onnx.ModelProto, weights: Sequence[str], loss: str, refused: str) -> None:
        self._proto = proto
        self._refused = refused
        self._nodes = list(proto.graph.node)
        self._weights = list(weights)
        self._loss = loss
        self._context: Any = _build.Context(proto)
        self._pending: dict[str, list[str]] = {}
        self._blocked: list[DerivativeGap] = []

    def learn(self, seen: Mapping[str, np.ndarray], fixed: set[str]) -> None:
        """Take shapes, and numbers of fixed values, from what a run showed."""
        for name, array in seen.items():
            self._context.shapes.declare(name, array.shape, helper.np_dtype_to_tensor_dtype(array.dtype))
            if name in fixed and array.dtype.kind in "iub":
                self._context.values.setdefault(name, array)

    def run(self) -> Gradient:
        """Walk and return the derivative.

        Raises:
            NoDerivativeError: no weight has one.
        """
        context = self._context
        depends = _graph.reachable(self._nodes, self._weights, keep=context.is_float)
        context.depends, context._replacements, context.b.nodes = depends, {}, []  # noqa: SLF001 -- as onnx-ad's walk
        context.b.initializers.append(numpy_helper.from_array(np.ones(1, np.float32), context.b.name("seed")))
        seed = context.b.initializers[-1].name
        context.add_seed(seed)
        self._pending[self._loss] = [seed]
        for node in reversed(self._nodes):
            grads = [context.sum(self._pending.pop(name, [])) if name else None for name in node.output]
            if _graph.node_reads(node) & depends and any(grad is not None for grad in grads):
                self._pass(node, grads)
        return self._assembled()

    def _pass(self, node: onnx.NodeProto, grads: Sequence[str | None]) -> None:
        """Hand the derivative by a node's outputs on to what it reads."""
        context, reads = self._context, _graph.node_reads(node)
        own = reads & set(self._weights)
        wanted = reads & context.depends
        reason = ""
        for skipped in [set(), own] if own and wanted - own else [set()]:
            context.wanted = wanted - skipped
            try:
                contributions = self._contributions(node, grads)
            except (*_FAILURES, NoRuleError) as error:
                reason = reason or error_text.reason(error)
                continue
            finally:
                context.wanted = None
            if skipped:
                self._block(node, reason, own)
            for name, value in contributions:
                if name in wanted - skipped and value is not None:
                    self._pending.setdefault(name, []).append(value)
            return
        self._block(node, reason, self._weights_before(node))

    def _contributions(self, node: onnx.NodeProto, grads: Sequence[str | None]) -> list[tuple[str, str | None]]:
        """Return (input, derivative) of a node.

        Raises:
            NoRuleError: there is no rule, or that of ours does not cover the node.
        """
        if node.domain not in _STANDARD:
            raise NoRuleError(f"it is of the domain {node.domain!r}")
        if node.op_type in RULES or node.op_type in DERIVATIVE:
            try:
                return self._by_own_rule(node, grads)
            except NoRuleError:
                if node.op_type not in _OTHERS:
                    raise
        if node.op_type not in _passes.REVERSE:
            raise NoRuleError(self._refused or "there is no rule for it")
        found = _passes.REVERSE[node.op_type](self._context, node, list(grads))
        return list(found) if isinstance(found, _passes.Pairs) else list(zip(node.input, found, strict=False))

    def _by_own_rule(self, node: onnx.NodeProto, grads: Sequence[str | None]) -> list[tuple[str, str | None]]:
        context, builder = self._context, self._context.b
        if grads[0] is None or any(grads[1:]):
            raise NoRuleError("its second output is differentiated")

        def add(op_type: str, inputs: Sequence[str], attributes: Mapping[str, Any]) -> str:
            return str(builder.op(op_type, inputs, **attributes))

        def constant(array: np.ndarray) -> str:
            return str(builder.constant(array, helper.np_dtype_to_tensor_dtype(array.dtype)))

        step = RuleNode(
            node,
            add=add,
            constant=constant,
            shape_of=context.shapes.static,
            value_of=context.values.get,
            wants=context.asked_for,
            replace=lambda other: context.replace_primal(node, other),
        )
        full = context.full(grads[0], node.output[0])
        dy = step.reshape(full, step.dims(node.output[0]))
        if node.op_type in RULES:
            found = RULES[node.op_type](step, dy)
        else:
            x, y = node.input[0], node.output[0]
            slope = DERIVATIVE[node.op_type](context, node, x, y, context.dtype(x, y))
            found = {0: step.add("Mul", dy, slope)}
        return [
            (node.input[port], step.reshape(value, [*step.dims(node.input[port]), 1])) for port, value in found.items()
        ]

    def _block(self, node: onnx.NodeProto, reason: str, weights: Iterable[str]) -> None:
        label = node.name or node.output[0]
        self._blocked.append(
            DerivativeGap(operator=node.op_type, label=label, reason=reason, weights=frozenset(weights))
        )

    def _weights_before(self, last: onnx.NodeProto) -> set[str]:
        """Return the weights that a node depends on."""
        reads = _graph.node_reads(last)
        for node in reversed(self._nodes):
            if reads & set(node.output):
                reads |= _graph.node_reads(node)
        return {name for name in self._weights if name in reads}

    def _assembled(self) -> Gradient:
        context = self._context
        lost = frozenset().union(*(each.weights for each in self._blocked))
        outputs, specs = {}, []
        for number, name in enumerate(self._weights):
            value = None if name in lost else context.sum(self._pending.get(name, []))
            if value is None:
                continue
            dims = context.shapes.static(name)
            outputs[name] = context.b.name(f"{_GRADIENT}{number}")
            full = context.full(value, name)
            context.b.nodes.append(helper.make_node("Reshape", [full, context.b.ints(dims)], [outputs[name]]))
            specs.append(helper.make_tensor_value_info(outputs[name], onnx.TensorProto.FLOAT, dims))
        if not outputs:
            blocked = [f"{each.operator} {each.label!r}: {each.reason}" for each in self._blocked]
            raise NoDerivativeError(blocked[0] if blocked else "no weight changes the loss")
        primal = [_replaced(context, node) for node in self._nodes]
        model = onnx.ModelProto()
        model.CopyFrom(self._proto)
        graph = model.graph
        del graph.node[:], graph.output[:], graph.value_info[:]
        graph.node.extend(_needed([*primal, *map(_unnamed, context.b.nodes)], outputs.values()))
        graph.initializer.extend(context.b.initializers)
        graph.output.extend(specs)
        read = set().union(*(_graph.node_reads(node) for node in graph.node))
        kept = [tensor for tensor in graph.initializer if tensor.name in read]
        del graph.initializer[:]
        graph.initializer.extend(kept)
        return Gradient(model=model, outputs=outputs, blocked=self._blocked)


def _replaced(context: Any, node: onnx.NodeProto) -> onnx.NodeProto:
    """Return what the forward pass runs in place of a node."""
    original, other = context._replacements.get(id(node), (None, None))  # noqa: SLF001 -- as onnx-ad's walk reads it
    return other if original is node else node


def _unnamed(node: onnx.NodeProto) -> onnx.NodeProto:
    """Return a node of the derivative without its name, and without those of nodes in it: the original has them."""
    node.name = ""
    for body in _graph.subgraphs(node):
        for inner in body.node:
            _unnamed(inner)
    return node


def _needed(nodes: Sequence[onnx.NodeProto], outputs: Iterable[str]) -> list[onnx.NodeProto]:
    """Return the nodes that outputs depend on, in order."""
    wanted, found = set(outputs), []
    for node in reversed(nodes):
        if wanted & set(node.output):
            wanted |= _graph.node_reads(node)
            found.append(node)
    return found[::-1]
