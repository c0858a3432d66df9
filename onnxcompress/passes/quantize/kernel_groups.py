"""Kernel groups: an operator, its bias and the activation function it absorbs, run as one integer kernel."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import onnx_ir as ir

from ...graph import constants as float_constants
from ...graph import query
from ...ops import table as ops
from ...shapes.infer import Shapes
from ...targets.facts import OperatorFacts, StaticFacts

_LEVELS = 256
"""Integers of 8 bits."""
_CLOSE = 1e-4
"""Distance to a whole number that counts as none: above the rounding of attributes."""


@dataclass(frozen=True, kw_only=True)
class Saturation:
    """min(max(slope x + offset, 0), 1) as a quantizer: its integers count steps of 1/256 of the result.

        q = clip(round(x / s) + z, 0, 255),  s = 1 / (256 slope),  z = 256 offset;  result = q / 256

    Args:
        slope: the slope.
        zero_point: z, for unsigned integers.
        multiplies_input: the result is multiplied by x afterwards (HardSwish).
    """

    slope: float
    zero_point: int
    multiplies_input: bool

    @property
    def scale(self) -> float:
        """The step of x."""
        return 1 / (_LEVELS * self.slope)

    @property
    def result_scale(self) -> float:
        """The step of the result, whose zero point is the least integer."""
        return 1 / _LEVELS


@dataclass(frozen=True, kw_only=True, eq=False)
class KernelGroup:
    """Nodes that become one kernel.

    Args:
        node: the operator.
        label: its name in reports, which for one without a name is no longer that of its output when it is written.
        facts: how the target runs it.
        reads: its inputs that are activations.
        constants: its inputs that are constants beside them, to be stored as integers.
        weight: its input that is a weight, None where there is none.
        axis: the axis of the weight's output channels, None for one scale.
        bias: the constant that is added, and the node and input that read it.
        behind: the nodes after the operator that belong to it, in order.
        least: the lower bound of the absorbed activation function, None without one.
        saturation: the hard sigmoid that is written as a quantizer.
    """

    node: ir.Node
    label: str
    facts: OperatorFacts
    reads: tuple[int, ...]
    constants: tuple[int, ...] = ()
    weight: int | None = None
    axis: int | None = None
    bias: tuple[ir.Node, int] | None = None
    behind: tuple[ir.Node, ...] = ()
    least: float | None = None
    saturation: Saturation | None = None

    @property
    def multiplies(self) -> bool:
        """True for a product or a convolution, with a weight or of activations."""
        return self.facts.form == "compute"

    @property
    def nodes(self) -> tuple[ir.Node, ...]:
        """All nodes of the group."""
        return (self.node, *self.behind)

    @property
    def outputs(self) -> tuple[ir.Value, ...]:
        """The values that the group outputs."""
        return tuple(self.nodes[-1].outputs)

    @property
    def inputs(self) -> tuple[ir.Value, ...]:
        """The activations that it reads."""
        return tuple(value for port in self.reads if (value := self.node.inputs[port]) is not None)


def units(body: ir.Graph, facts: StaticFacts, shapes: Shapes) -> tuple[list[KernelGroup], dict[ir.Node, str]]:
    """Return what can run on integers in one graph, and for each other layer with a weight the reason.

    Args:
        body: the main graph, or the body of an If, Loop or Scan.
        facts: the target's.
        shapes: of the model.
    """
    found: list[KernelGroup] = []
    refused: dict[ir.Node, str] = {}
    taken: set[ir.Node] = set()
    for node in body:
        if node in taken:
            continue
        unit = _unit(node, facts, shapes)
        if isinstance(unit, KernelGroup):
            found.append(unit)
            taken.update(unit.behind)
        elif unit and has_weight(node):
            refused[node] = unit
    return found, refused


def has_weight(node: ir.Node) -> bool:
    """Return True where a node multiplies with a constant float matrix or kernel."""
    return any(
        not weight.is_table and _float_constant(_port(node, weight.port), 2) is not None
        for weight in ops.spec(node).weights
    )


def _unit(node: ir.Node, facts: StaticFacts, shapes: Shapes) -> KernelGroup | str:
    """Return the unit of a node, or why it has none."""
    if node.domain not in query.STANDARD_DOMAINS:
        return f"{node.domain}'s {node.op_type} has no integer kernel that is known"
    if has_weight(node):
        return _weighted(node, facts, shapes)
    multiplies = any(not weight.is_table for weight in ops.spec(node).weights)
    row = facts.operators.get(f"{node.op_type}.activations") if multiplies else facts.operator(node.op_type)
    if row is None or any(query.attribute(node, name) != v for name, v in row.requires.items()):
        return f"{node.op_type} runs on floats"
    if _is_quantized(node):
        return "quantized already"
    ports = ops.data_ports(node)
    constants = tuple(p for p in ports if _float_constant(node.inputs[p]) is not None)
    reads = tuple(p for p in ports if p not in constants)
    if not reads or (constants and not row.constant) or (constants and row.form != "pointwise"):
        return "a constant operand"
    values = [*(node.inputs[p] for p in reads), *node.outputs]
    if any(shapes.dtype(value) is not ir.DataType.FLOAT for value in values):
        return "not float32"
    if row.form != "moves" and len(node.outputs) != 1:
        return "several outputs"
    if row.form == "moves" and any(not o.uses() and not o.is_graph_output() for o in node.outputs):
        return "an output that nobody reads"
    saturation = _saturation(node) if row.saturates else None
    if row.saturates and (saturation is None or facts.symmetric):
        return f"a {node.op_type} that no zero point represents"
    behind, least = _absorbed(node, row)
    return KernelGroup(
        node=node,
        label=query.label(node),
        facts=row,
        reads=reads,
        constants=constants,
        behind=behind,
        least=least,
        saturation=saturation,
    )


def _saturation(node: ir.Node) -> Saturation | None:
    """Return the hard sigmoid in a node, None where 8-bit integers can't represent it."""
    if query.is_op(node, "HardSwish"):
        return Saturation(slope=1 / 6, zero_point=_LEVELS // 2, multiplies_input=True)
    slope, zero = query.attribute(node, "alpha", 0.2), _LEVELS * query.attribute(node, "beta", 0.5)
    if slope <= 0 or not 0 <= zero < _LEVELS or abs(zero - round(zero)) > _CLOSE:
        return None
    return Saturation(slope=float(slope), zero_point=round(zero), multiplies_input=False)


def _weighted(node: ir.Node, facts: StaticFacts, shapes: Shapes) -> KernelGroup | str:
    """Return the unit of a node with a weight, or why it has none."""
    row = facts.operator(node.op_type, _kind(node))
    if row is None or row.form != "compute":
        return f"{node.op_type} has no integer kernel on the target"
    weight = next(w for w in ops.spec(node).weights if _float_constant(_port(node, w.port), 2) is not None)
    tensor = float_constants.tensor(_port(node, weight.port))
    assert tensor is not None
    rank = len(query.dims(tensor))
    if _is_quantized(node):
        return "its activations are quantized already"
    if weight.port != 1:
        return "the weight is its left operand"
    if weight.is_matrix and rank != 2:
        return f"a weight of {rank} axes"
    if tensor.dtype is not ir.DataType.FLOAT:
        return f"a weight of {tensor.dtype.name.lower()}"
    data = node.inputs[0]
    if shapes.dtype(data) is not ir.DataType.FLOAT or float_constants.tensor(data) is not None:
        return "its input is not float32 or not an activation"
    if query.attribute(node, "transA", 0) or query.attribute(node, "alpha", 1.0) != 1.0:
        return "transA or alpha"
    if query.attribute(node, "beta", 1.0) != 1.0 and _port(node, 2) is not None:
        return "a beta other than 1"
    bias: tuple[ir.Node, int] | None = None
    behind: tuple[ir.Node, ...] = ()
    channels = query.dims(tensor)[weight.out_axis(node, rank)]
    if weight.bias is not None and _port(node, weight.bias) is not None:
        stored = _float_constant(node.inputs[weight.bias])
        if stored is None or stored.size != channels:
            return "its bias is no constant with a value for each channel"
        bias = (node, weight.bias)
    elif weight.bias is None:
        adder = query.sole_consumer(node.outputs[0])
        port = None if adder is None else _bias_port(adder, node.outputs[0], channels)
        if adder is not None and port is not None:
            bias, behind = (adder, port), (adder,)
    further, least = _absorbed(behind[-1] if behind else node, row)
    return KernelGroup(
        node=node,
        label=query.label(node),
        facts=row,
        reads=(0,),
        weight=1,
        axis=weight.out_axis(node, rank) if row.channels else None,
        bias=bias,
        behind=(*behind, *further),
        least=least,
    )


def _kind(node: ir.Node) -> str:
    """Return which of an operator's kernels a node with a weight uses."""
    if not query.is_op(node, "Conv"):
        return ""
    tensor = float_constants.tensor(node.inputs[1])
    assert tensor is not None
    dims = query.dims(tensor)
    if len(dims) != 4:
        return {3: "line", 5: "volume"}.get(len(dims), "")
    if query.attribute(node, "group", 1) > 1:
        return "depthwise" if dims[1] == 1 else ""
    return "pointwise" if dims[2:] == (1, 1) else ""


def _absorbed(node: ir.Node, row: OperatorFacts) -> tuple[tuple[ir.Node, ...], float | None]:
    """Return the activation function behind a node that its kernel does by saturating, and its lower bound."""
    after = query.sole_consumer(node.outputs[0]) if len(node.outputs) == 1 else None
    if after is None or after.op_type not in row.absorbs or after.graph is not node.graph:
        return (), None
    if query.is_op(after, "Relu"):
        return (after,), 0.0
    if query.is_op(after, "Clip") and _clip_low(after) == 0 and after.inputs[0] is node.outputs[0]:
        return (after,), 0.0
    return (), None


def _clip_low(node: ir.Node) -> float | None:
    """Return the lower limit of a Clip whose limits are both constants, None for others."""
    if any(query.scalar(value) is None for value in node.inputs[1:3] if value is not None):
        return None
    low = _port(node, 1)
    return query.attribute(node, "min") if low is None else query.scalar(low)


def _bias_port(adder: ir.Node, summand: ir.Value, channels: int) -> int | None:
    """Return the input through which an Add takes a bias with a value for each channel of the other summand."""
    if not query.is_op(adder, "Add"):
        return None
    port = 1 - next(i for i, v in enumerate(adder.inputs) if v is summand)
    stored = _float_constant(adder.inputs[port], 1)
    dims = () if stored is None else query.dims(stored)
    return port if dims and dims[-1] == channels and int(np.prod(dims)) == channels else None


def _is_quantized(node: ir.Node) -> bool:
    """Return True where a quantizer or dequantizer is next to a node."""
    before = (value.producer() for value in node.inputs if value is not None)
    after = (use.node for output in node.outputs for use in output.uses())
    return any(query.is_op(n, "DequantizeLinear") for n in before) or any(
        query.is_op(n, "QuantizeLinear") for n in after
    )


def _float_constant(value: ir.Value | None, least_rank: int = 0) -> ir.TensorProtocol | None:
    tensor = float_constants.tensor(value)
    if tensor is None or not tensor.dtype.is_floating_point() or len(tensor.shape) < least_rank:
        return None
    return tensor


def _port(node: ir.Node, port: int) -> ir.Value | None:
    return node.inputs[port] if port < len(node.inputs) else None
