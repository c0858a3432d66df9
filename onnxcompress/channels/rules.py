"""The registry of channel rules: operator -> function that relates the channels of what a node reads and makes.

Its keys are those of `ops.table.OPS`, which holds the facts that are no functions of the channel engine.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from types import MappingProxyType

import onnx_ir as ir

from ..graph import query
from ..ops.table import MICROSOFT
from . import rules_blocks as blocks
from . import rules_layout as layout
from . import rules_linear as linear
from . import rules_norms as norms
from .relations import NodeContext
from .types import Axis

Links = Callable[[NodeContext], list[list[Axis]]]
"""Relates the channels of what a node reads and makes; returns, for each output, the channels of each axis."""


def _standard(links: Links, names: str) -> dict[tuple[str, str], Links]:
    """Return rows of operators of the standard domain that share a rule."""
    return {("", name): links for name in names.split()}


LINKS: Mapping[tuple[str, str], Links] = MappingProxyType(
    {
        **_standard(linear.conv, "Conv"),
        **_standard(linear.conv_transpose, "ConvTranspose"),
        **_standard(linear.gemm, "Gemm"),
        **_standard(linear.matmul, "MatMul"),
        **_standard(layout.gather, "Gather"),
        **_standard(norms.einsum, "Einsum"),
        **_standard(
            linear.unary,
            "Abs Acos Acosh Asin Asinh Atan Atanh BitwiseNot Cast Ceil Celu Clip Cos Cosh Dropout Elu Erf Exp Floor "
            "Gelu HardSigmoid HardSwish Identity IsInf IsNaN LeakyRelu Log Mish Neg Not Reciprocal Relu Round Selu "
            "Shrink Sigmoid Sign Sin Sinh Softplus Softsign Sqrt Swish Tan Tanh ThresholdedRelu",
        ),
        **_standard(
            linear.elementwise,
            "Add And BitShift BitwiseAnd BitwiseOr BitwiseXor Div Equal Greater GreaterOrEqual Less LessOrEqual Max "
            "Mean Min Mod Mul Or PRelu Pow Sub Sum Where Xor",
        ),
        **_standard(linear.batch_statistics, "BatchNormalization"),
        **_standard(norms.layer_norm, "LayerNormalization RMSNormalization SimplifiedLayerNormalization"),
        **_standard(norms.instance_norm, "InstanceNormalization"),
        **_standard(norms.group_norm, "GroupNormalization"),
        **_standard(norms.unit_norm, "LpNormalization"),
        **_standard(norms.mean_variance_norm, "MeanVarianceNormalization"),
        **_standard(norms.neighbours, "LRN"),
        **_standard(norms.softmax, "Hardmax LogSoftmax Softmax"),
        **_standard(norms.along_axis, "CumSum TopK"),
        **_standard(norms.arg_extreme, "ArgMax ArgMin"),
        **_standard(norms.keep_matrix, "Trilu"),
        **_standard(norms.pool, "AveragePool GlobalAveragePool GlobalLpPool GlobalMaxPool GridSample LpPool MaxPool"),
        **_standard(norms.reduce_sum, "ReduceL1 ReduceL2 ReduceSum ReduceSumSquare"),
        **_standard(norms.reduce_mean, "ReduceMean"),
        **_standard(norms.reduce_other, "ReduceLogSum ReduceLogSumExp ReduceMax ReduceMin ReduceProd"),
        **_standard(norms.quantized, "DequantizeLinear QuantizeLinear"),
        **_standard(layout.concat, "Concat"),
        **_standard(layout.constant_of_shape, "ConstantOfShape"),
        **_standard(layout.depth_to_space, "DepthToSpace"),
        **_standard(layout.expand, "Expand"),
        **_standard(layout.flatten, "Flatten"),
        **_standard(layout.pad, "Pad"),
        **_standard(layout.regions, "RoiAlign"),
        **_standard(layout.reshape, "Reshape"),
        **_standard(layout.resize, "Resize Upsample"),
        **_standard(layout.shape, "Shape"),
        **_standard(layout.slice_, "Slice"),
        **_standard(layout.space_to_depth, "SpaceToDepth"),
        **_standard(layout.split, "Split"),
        **_standard(layout.squeeze, "Squeeze"),
        **_standard(layout.tile, "Tile"),
        **_standard(layout.transpose, "Transpose"),
        **_standard(layout.unsqueeze, "Unsqueeze"),
        **_standard(blocks.attention, "Attention"),
        **_standard(blocks.rotary, "RotaryEmbedding"),
        **_standard(blocks.recurrent(4), "LSTM"),
        **_standard(blocks.recurrent(3), "GRU"),
        **_standard(blocks.recurrent(1), "RNN"),
        (MICROSOFT, "FusedConv"): blocks.fused_conv,
        (MICROSOFT, "FusedGemm"): linear.gemm,
        (MICROSOFT, "MultiHeadAttention"): blocks.multi_head_attention,
        (MICROSOFT, "RotaryEmbedding"): blocks.rotary,
        (MICROSOFT, "SkipLayerNormalization"): norms.skip_layer_norm,
        (MICROSOFT, "SkipSimplifiedLayerNormalization"): norms.skip_layer_norm,
        (MICROSOFT, "Attention"): blocks.packed_attention,
        (MICROSOFT, "FusedMatMul"): linear.fused_matmul,
        **{(MICROSOFT, name): linear.unary for name in ("Gelu", "QuickGelu")},
        **{(MICROSOFT, name): linear.elementwise for name in ("BiasGelu", "FastGelu")},
    }
)
"""(domain, operator) -> rule; the standard domain is ""."""


def rule(node: ir.Node) -> Links | None:
    """Return the rule of a node's operator, None where its channels are not followed."""
    domain = "" if node.domain in query.STANDARD_DOMAINS else node.domain
    return LINKS.get((domain, node.op_type))
