"""THE operator table: the one place that holds what is true of an operator.

A row says where the weights are, which axes of them are output and input channels, where the bias is, and how many
multiply-accumulates (MACs) one run costs. The named sets below the rows are the columns of yes and no; all are of the
standard domain. Elsewhere operator names appear only inside a pattern.
"""

from __future__ import annotations

import enum
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType
from typing import TYPE_CHECKING

from ..graph import query
from . import equations, macs

if TYPE_CHECKING:
    import onnx_ir as ir

Dims = tuple[int, ...]
AxisOf = Callable[["ir.Node", int], int]
"""(node, rank of the weight) -> axis of the weight."""
MacsOf = Callable[["ir.Node", Sequence[Dims | None], Sequence[Dims | None]], int | None]
"""(node, shapes of its inputs, of its outputs; None for one that is absent or unknown) -> MACs, None if unknown."""

MICROSOFT = "com.microsoft"


class Sums(enum.Enum):
    """Elements of its data that a linear operator sums over: they tell which axis of its output numbers channels."""

    WINDOWS = "windows"
    """Those under a window that moves over the axes behind the channels; channels are axis 1 of data and output."""
    LAST = "last"
    """The last axis of data and output."""
    SECOND_LAST = "second last"
    """The last axis but one of data and output: a product of matrices with the weight on the left."""


@dataclass(frozen=True, kw_only=True)
class Weight:
    """One port that takes a weight.

    Args:
        port: the input's index.
        out_axis: the axis of the weight that numbers output channels.
        in_axis: the axis that is summed over (None: no axis is; the weight is a table that is looked up).
        bias: the input's index of the bias with the same output channels, if the operator has one.
        is_matrix: the operator is a matrix product with the weight on the right, so that a weight of two axes can
            be stored with output channels last; `transpose_flag` names the attribute that swaps them, "" for none.
        data: the input's index of what is multiplied by the weight.
        sums: what each output sums over, if the operator is one plain sum of products (of `alpha` times the weight,
            and `beta` times the bias, where it has such attributes); None for all others.
    """

    port: int
    out_axis: AxisOf
    in_axis: AxisOf | None
    bias: int | None = None
    is_matrix: bool = False
    transpose_flag: str = ""
    data: int = 0
    sums: Sums | None = None

    @property
    def is_table(self) -> bool:
        """True where rows of the weight are looked up and nothing is summed."""
        return self.in_axis is None


@dataclass(frozen=True, kw_only=True)
class OpSpec:
    """A row of the table: one operator.

    `macs` is None for operators that multiply nothing worth counting: they cost 0. `integers` are the ports that take
    weights of 8 bits or fewer as they are stored; `packed_bits` is the usual number of bits of one, where several are
    packed in a byte and an attribute `bits` may say another (0: they are not).
    """

    weights: tuple[Weight, ...] = ()
    macs: MacsOf | None = None
    integers: tuple[int, ...] = ()
    packed_bits: int = 0

    def weight(self, port: int) -> Weight | None:
        """Return the weight that is read through `port`, None where that is not a weight port."""
        return next((w for w in self.weights if w.port == port), None)


def spec(node: ir.Node) -> OpSpec:
    """Return the row for a node; an operator without one has an empty row."""
    domain = "" if node.domain in query.STANDARD_DOMAINS else node.domain
    return OPS.get((domain, node.op_type), _NOTHING)


def is_nondeterministic(node: ir.Node) -> bool:
    """Say whether two runs of the node, or two equal nodes, may give different results."""
    return node.domain in query.STANDARD_DOMAINS and node.op_type in NONDETERMINISTIC


def is_generator(node: ir.Node) -> bool:
    """Say whether the node can make a big tensor out of small ones, so that folding it may blow up the file."""
    return node.domain in query.STANDARD_DOMAINS and node.op_type in GENERATORS


def moves_data(node: ir.Node, port: int) -> bool:
    """Say whether the node only rearranges, slices or joins what it reads through `port`."""
    return query.is_op(node, "Concat") or (port == 0 and query.is_op(node, *DATA_MOVEMENT))


def carries(node: ir.Node, port: int) -> bool:
    """Say whether the elements that the node reads through `port` are elements of its outputs, as `CARRIES` says."""
    return query.is_op(node, *CARRIES) and port in data_ports(node)


ShapeOf = Callable[["ir.Value"], Dims | None]


@dataclass(frozen=True)
class Macs:
    """Multiply-accumulates of a model, and the nodes whose shapes are not known and which are therefore not in it."""

    total: int
    uncounted: tuple[str, ...]


def data_ports(node: ir.Node) -> tuple[int, ...]:
    """Return the inputs that a node of the standard domain computes with; others are shapes, axes, conditions."""
    first, end = DATA_PORTS.get(node.op_type, (0, None))
    return tuple(port for port, value in enumerate(node.inputs[:end]) if port >= first and value is not None)


def total_macs(model: ir.Model, shape_of: ShapeOf) -> Macs:
    """Count the MACs of one run at the shapes that `shape_of` gives.

    Sub-graphs are included as they stand: each body once, whatever the number of a loop's rounds, and both branches
    of an If. A local function's body counts once for all its calls, where its shapes are known.
    """
    total, uncounted = 0, []
    for node, count in node_macs(model, shape_of):
        if count is None:
            uncounted.append(query.label(node))
        else:
            total += count
    return Macs(total, tuple(uncounted))


def node_macs(model: ir.Model, shape_of: ShapeOf) -> Iterator[tuple[ir.Node, int | None]]:
    """Yield the nodes that cost MACs with their number, None where it is not known; see `total_macs`."""
    for node in query.nodes(model):
        count = spec(node).macs
        if count is not None:
            inputs = [None if v is None else shape_of(v) for v in node.inputs]
            yield node, count(node, inputs, [shape_of(v) for v in node.outputs])


def weight_reads(model: ir.Model) -> Iterator[tuple[ir.Node, Weight, ir.Value]]:
    """Yield every (node, weight port, value) of the model, in the order of its nodes, constant or not."""
    for node in query.nodes(model):
        for weight in spec(node).weights:
            value = node.inputs[weight.port] if weight.port < len(node.inputs) else None
            if value is not None:
                yield node, weight, value


# Axes.


def _axis(number: int) -> AxisOf:
    return lambda _node, rank: number % rank


def _gemm_out(node: ir.Node, _rank: int) -> int:
    return 0 if query.attribute(node, "transB", 0) else 1


def _gemm_in(node: ir.Node, _rank: int) -> int:
    return 1 if query.attribute(node, "transB", 0) else 0


def _flipped(attribute: str, axis: int) -> AxisOf:
    """Return `axis`, -1 or -2, of a matrix in the last two axes, or the other one where `attribute` transposes it."""
    return lambda node, rank: rank + (-3 - axis if query.attribute(node, attribute, 0) else axis)


def _gather_row(node: ir.Node, rank: int) -> int:
    return int(query.attribute(node, "axis", 0)) % rank


def _einsum(port: int) -> Weight:
    return Weight(
        port=port,
        out_axis=lambda node, rank: equations.result_axis(node, port, rank),
        in_axis=lambda node, rank: equations.summed_axis(node, port, rank),
        data=1 - port,
    )


# Rows.

_CONV = Weight(port=1, out_axis=_axis(0), in_axis=_axis(1), bias=2, sums=Sums.WINDOWS)
_GEMM = Weight(
    port=1, out_axis=_gemm_out, in_axis=_gemm_in, bias=2, is_matrix=True, transpose_flag="transB", sums=Sums.LAST
)
_MATMUL_RIGHT = Weight(port=1, out_axis=_axis(-1), in_axis=_axis(-2), is_matrix=True, sums=Sums.LAST)
_MATMUL_LEFT = Weight(port=0, out_axis=_axis(-2), in_axis=_axis(-1), data=1, sums=Sums.SECOND_LAST)

_RECURRENT = OpSpec(
    weights=(Weight(port=1, out_axis=_axis(1), in_axis=_axis(2)), Weight(port=2, out_axis=_axis(1), in_axis=_axis(2))),
    macs=macs.recurrent_macs,
)
_FUSED_MATMUL = OpSpec(
    weights=(
        Weight(
            port=1,
            out_axis=_flipped("transB", -1),
            in_axis=_flipped("transB", -2),
            is_matrix=True,
            transpose_flag="transB",
        ),
        Weight(port=0, out_axis=_flipped("transA", -2), in_axis=_flipped("transA", -1)),
    ),
    macs=macs.matmul_macs,
)
_NOTHING = OpSpec()

OPS: Mapping[tuple[str, str], OpSpec] = MappingProxyType(
    {
        ("", "Conv"): OpSpec(weights=(_CONV,), macs=macs.conv_macs),
        # A grouped ConvTranspose numbers its output channels within the group: axis 1 has channels / groups entries.
        ("", "ConvTranspose"): OpSpec(
            weights=(Weight(port=1, out_axis=_axis(1), in_axis=_axis(0), bias=2),), macs=macs.conv_transpose_macs
        ),
        ("", "Gemm"): OpSpec(weights=(_GEMM,), macs=macs.gemm_macs),
        ("", "MatMul"): OpSpec(weights=(_MATMUL_RIGHT, _MATMUL_LEFT), macs=macs.matmul_macs),
        ("", "Gather"): OpSpec(weights=(Weight(port=0, out_axis=_gather_row, in_axis=None),)),
        ("", "LSTM"): _RECURRENT,
        ("", "GRU"): _RECURRENT,
        ("", "RNN"): _RECURRENT,
        ("", "Einsum"): OpSpec(weights=(_einsum(1), _einsum(0)), macs=macs.einsum_macs),
        ("", "ConvInteger"): OpSpec(macs=macs.conv_macs, integers=(1,)),
        ("", "MatMulInteger"): OpSpec(macs=macs.matmul_macs, integers=(0, 1)),
        ("", "QLinearConv"): OpSpec(integers=(3,)),
        ("", "QLinearMatMul"): OpSpec(integers=(0, 3)),
        (MICROSOFT, "FusedConv"): OpSpec(weights=(_CONV,), macs=macs.conv_macs),
        (MICROSOFT, "FusedGemm"): OpSpec(weights=(_GEMM,), macs=macs.gemm_macs),
        (MICROSOFT, "FusedMatMul"): _FUSED_MATMUL,
        (MICROSOFT, "Attention"): OpSpec(
            weights=(Weight(port=1, out_axis=_axis(1), in_axis=_axis(0), bias=2),), macs=macs.attention_macs
        ),
        (MICROSOFT, "DynamicQuantizeLSTM"): OpSpec(macs=macs.recurrent_macs, integers=(1, 2)),
        (MICROSOFT, "DynamicQuantizeMatMul"): OpSpec(macs=macs.matmul_macs, integers=(1,)),
        (MICROSOFT, "MatMulIntegerToFloat"): OpSpec(macs=macs.matmul_macs, integers=(0, 1)),
        (MICROSOFT, "MatMulNBits"): OpSpec(macs=macs.matmul_nbits_macs, integers=(1,), packed_bits=4),
        (MICROSOFT, "MatMulBnb4"): OpSpec(integers=(1,), packed_bits=4),
        (MICROSOFT, "GatherBlockQuantized"): OpSpec(integers=(0,), packed_bits=4),
        (MICROSOFT, "QGemm"): OpSpec(integers=(3,)),
        (MICROSOFT, "QAttention"): OpSpec(integers=(1,)),
        (MICROSOFT, "QLinearConv"): OpSpec(integers=(3,)),
        (MICROSOFT, "QEmbedLayerNormalization"): OpSpec(integers=(2, 3, 4)),
    }
)
"""(domain, operator) -> row; the standard domain is ""."""
NONDETERMINISTIC = frozenset(
    {"Bernoulli", "Multinomial", "RandomNormal", "RandomNormalLike", "RandomUniform", "RandomUniformLike"}
)
"""Operators that draw random numbers: neither two runs nor two equal nodes give the same result."""
STOCHASTIC = NONDETERMINISTIC | {"Dropout"}
"""Operators that draw random numbers in some mode: two equal nodes may differ even where one is left out of runs.

Dropout draws them in training only, so that it is deterministic in the runs of a proof and yet never shared.
"""
RESHAPES = frozenset({"Flatten", "Reshape", "Squeeze", "Unsqueeze"})
"""Operators that keep all elements of their first input and their order: only the dimensions are others."""
REARRANGES = RESHAPES | {"Identity", "Transpose"}
"""Operators that keep all elements of their first input, in any order: each exactly once."""
MOVES = REARRANGES | {"Slice"}
"""Operators whose one output consists of elements of their first input, each once at most."""
DATA_MOVEMENT = MOVES | {"Concat", "Split"}
"""Operators whose outputs consist of elements of their first input (Concat: all inputs), each once at most."""
KEEPS_FILL = MOVES | {"Expand", "Tile"}
"""Operators that move or repeat elements of their first input: a tensor of one number stays one."""
CARRIES = DATA_MOVEMENT | KEEPS_FILL | {"Cast", "CastLike", "Gather", "Where"}
"""Operators whose outputs consist of elements of their data ports, of another type at most; see `data_ports`."""
STORAGE = frozenset({"Cast", "DequantizeLinear", "Identity", "Reshape", "Transpose"})
"""Operators that exporters and quantizers put between a stored weight and the node that computes with it.

Squeeze, Unsqueeze and Flatten are left out: there they are the first step of a computation.
"""
ELEMENTWISE = frozenset(
    {*("Abs", "Cast", "Ceil", "Clip", "Elu", "Erf", "Exp", "Floor", "Gelu", "HardSigmoid", "HardSwish", "Identity")}
    | {*("LeakyRelu", "Log", "Neg", "Not", "Reciprocal", "Relu", "Round", "Sigmoid", "Sign", "Softplus", "Sqrt")}
    | {"Tanh"}
)
"""Operators that map each element of one operand; further inputs are numbers (limits)."""
SAME_SHAPE = ELEMENTWISE | frozenset(
    {*("Acos", "Asin", "Atan", "BatchNormalization", "CastLike", "Celu", "Cos", "CumSum", "DequantizeLinear")}
    | {*("Dropout", "GroupNormalization", "HardTanh", "InstanceNormalization", "IsInf", "IsNaN", "LRN")}
    | {*("LayerNormalization", "LogSoftmax", "LpNormalization", "Mish", "QuantizeLinear", "RMSNormalization")}
    | {*("Selu", "Shrink", "Sin", "Sinh", "Softmax", "Softsign", "Tan", "ThresholdedRelu", "Trilu")}
)
"""Operators whose first result has the shape of their first input."""
CACHES = frozenset({"Attention", "DecoderMaskedMultiHeadAttention", "GroupQueryAttention", "MultiHeadAttention"})
"""Operators, of any domain, whose results after the first are caches of keys and values."""
BROADCASTING = frozenset(
    {*("Add", "And", "Div", "Equal", "Greater", "GreaterOrEqual", "Less", "LessOrEqual", "Max", "Mean", "Min", "Mul")}
    | {*("Or", "Pow", "Sub", "Sum", "Where", "Xor")}
)
"""Operators that join elements at the same place of all their inputs, which broadcast."""
PARAMETRIC = frozenset(
    {*("BatchNormalization", "BiasGelu", "EmbedLayerNormalization", "GroupNormalization", "InstanceNormalization")}
    | {*("LayerNormalization", "PRelu", "RMSNormalization", "SimplifiedLayerNormalization")}
    | {*("SkipLayerNormalization", "SkipSimplifiedLayerNormalization")}
)
"""Operators, of any domain, whose constants of one number per channel are learnt: scales, shifts and slopes."""
NON_NEGATIVE = frozenset({"Abs", "Exp", "HardSigmoid", "Relu", "Sigmoid", "Softmax", "Softplus"})
"""Operators whose results are never below zero."""
SELECT = DATA_MOVEMENT | KEEPS_FILL | {"Cast", "Gather", "GlobalAveragePool", "GlobalMaxPool", "MaxPool"}
"""Operators whose results lie between elements of their first input (Concat: all inputs)."""
DATA_PORTS: Mapping[str, tuple[int, int]] = MappingProxyType(
    {
        **dict.fromkeys(
            (
                *("ArgMax", "ArgMin", "CastLike", "Clip", "Expand", "Gather", "GatherElements", "GatherND", "Pad"),
                *("ReduceMax", "ReduceMean", "ReduceMin", "ReduceSum", "Reshape", "Resize", "Slice", "Split"),
                *("Squeeze", "Tile", "TopK", "Unsqueeze"),
            ),
            (0, 1),
        ),
        "Where": (1, 3),
    }
)
"""Operator -> its first input with data, and the one after the last; absent: all are."""
RANGES: Mapping[str, tuple[float, float]] = MappingProxyType(
    {
        **dict.fromkeys(("HardSigmoid", "Sigmoid", "Softmax"), (0.0, 1.0)),
        **dict.fromkeys(("Softsign", "Tanh"), (-1.0, 1.0)),
    }
)
"""Operators of the standard domain -> the range that their results are within, whatever they read."""
HOMOGENEOUS = frozenset({"Abs", "Identity", "LeakyRelu", "PRelu", "Relu"})
"""Operators with f(a x) = a f(x) for every a > 0, element by element of their first input."""
HOMOGENEOUS_POOLS = frozenset({"AveragePool", "GlobalAveragePool", "GlobalMaxPool", "MaxPool"})
"""The same, channel by channel: channels are axis 1."""
ZERO_BY_DEFAULT: Mapping[str, tuple[int, ...]] = MappingProxyType(
    {"Conv": (2,), "ConvTranspose": (2,), "Gemm": (2,), "GRU": (3, 5), "LSTM": (3, 5, 6, 7), "RNN": (3, 5)}
)
"""Operator -> optional inputs (bias, initial state) that count as zeros where absent."""
GENERATORS = frozenset({"ConstantOfShape", "Expand", "EyeLike", "OneHot", "Range", "Tile"})
"""Operators whose output can be far bigger than everything they read."""
