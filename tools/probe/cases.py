"""The operators that are probed, and the small patterns around them."""

from __future__ import annotations

import numpy as np

from .build import Case

_MAP = (1, 64, 28, 28)
_ROWS = (1, 128, 384)


def _conv(key: str, weight: tuple[int, ...], data: tuple[int, ...], *, group: int = 1) -> Case:
    spatial = len(weight) - 2
    pads = [w // 2 for w in weight[2:]] * 2
    macs = int(np.prod(weight)) * int(np.prod(data[2:]))
    return Case(
        key=key,
        op_type="Conv",
        inputs=(data,),
        weight=weight,
        bias=(weight[0],),
        attributes={"group": group, "pads": pads, "kernel_shape": list(weight[2 : 2 + spatial])},
        macs=macs,
    )


COMPUTE = (
    _conv("Conv", (64, 64, 3, 3), _MAP),
    _conv("Conv.pointwise", (64, 64, 1, 1), _MAP),
    _conv("Conv.depthwise", (64, 1, 3, 3), _MAP, group=64),
    _conv("Conv.line", (64, 64, 3), (1, 64, 200)),
    _conv("Conv.volume", (16, 16, 3, 3, 3), (1, 16, 8, 14, 14)),
    Case(
        key="ConvTranspose",
        op_type="ConvTranspose",
        inputs=(_MAP,),
        weight=(64, 64, 3, 3),
        weight_axis=1,
        bias=(64,),
        macs=64 * 64 * 9 * 784,
    ),
    Case(
        key="Gemm",
        op_type="Gemm",
        inputs=((128, 384),),
        weight=(384, 384),
        weight_axis=0,
        bias=(384,),
        attributes={"transB": 1},
        macs=128 * 384 * 384,
    ),
    Case(
        key="MatMul",
        op_type="MatMul",
        inputs=(_ROWS,),
        weight=(384, 384),
        weight_axis=1,
        macs=128 * 384 * 384,
    ),
    Case(key="MatMul.activations", op_type="MatMul", inputs=((12, 128, 64), (12, 64, 128)), macs=12 * 128 * 128 * 64),
)
"""Multiply-accumulates: with and without a quantizer behind them."""


def _one(op_type: str, *shapes: tuple[int, ...], constants: tuple[object, ...] = (), **attributes: object) -> Case:
    return Case(key=op_type, op_type=op_type, inputs=shapes or (_MAP,), constants=constants, attributes=attributes)


POINTWISE = (
    _one("Add", _MAP, _MAP),
    _one("Sub", _MAP, _MAP),
    _one("Mul", _MAP, _MAP),
    _one("Div", _MAP, _MAP),
    _one("Pow", _MAP, _MAP),
    _one("Max", _MAP, _MAP),
    _one("Min", _MAP, _MAP),
    Case(key="Where", op_type="Where", inputs=(_MAP, _MAP), leading=True),
    _one("Concat", _MAP, _MAP, axis=1),
    _one("Relu"),
    _one("Clip", constants=(np.float32(0), np.float32(6))),
    _one("Sigmoid"),
    _one("LeakyRelu", alpha=0.1),
    _one("PRelu", _MAP, (64, 1, 1)),
    _one("Elu"),
    _one("Tanh"),
    _one("Erf"),
    _one("Exp"),
    _one("Sqrt"),
    _one("Abs"),
    _one("Neg"),
    _one("Softplus"),
    _one("Softmax", (12, 128, 128), axis=-1),
    _one("LogSoftmax", (12, 128, 128), axis=-1),
    _one("AveragePool", kernel_shape=[2, 2], strides=[2, 2]),
    _one("GlobalAveragePool"),
    _one("GlobalMaxPool"),
    _one("ReduceMean", axes=[2, 3]),
    Case(key="LayerNormalization", op_type="LayerNormalization", inputs=(_ROWS, (384,))),
    Case(key="BatchNormalization", op_type="BatchNormalization", inputs=(_MAP, (64,), (64,), (64,), (64,))),
    Case(key="InstanceNormalization", op_type="InstanceNormalization", inputs=(_MAP, (64,), (64,))),
)
"""Operators whose inputs and outputs may have scales of their own."""

SATURATING = (_one("HardSigmoid", alpha=1 / 6), _one("HardSwish"))
"""Operators that are a saturating quantizer, or have one in them."""

_INDEX = np.arange(32, dtype=np.int64)

MOVES = (
    _one("Reshape", constants=(np.asarray([1, 64, 784]),)),
    _one("Flatten"),
    _one("Squeeze", constants=(np.asarray([0]),)),
    _one("Unsqueeze", constants=(np.asarray([0]),)),
    _one("Transpose", perm=[0, 2, 3, 1]),
    _one("Slice", constants=(np.asarray([0]), np.asarray([32]), np.asarray([1]))),
    _one("Expand", constants=(np.asarray([2, 64, 28, 28]),)),
    _one("Tile", constants=(np.asarray([1, 2, 1, 1]),)),
    _one("Gather", constants=(_INDEX,), axis=1),
    _one("MaxPool", kernel_shape=[2, 2], strides=[2, 2]),
    _one("DepthToSpace", blocksize=2),
    _one("SpaceToDepth", blocksize=2),
    _one("Pad", constants=(np.asarray([0, 0, 1, 1, 0, 0, 1, 1]), np.float32(0))),
    _one("ReduceMax", axes=[2, 3]),
    _one("ReduceMin", axes=[2, 3]),
    Case(key="Split", op_type="Split", inputs=(_MAP,), attributes={"axis": 1}, outputs=2),
    _one("Identity"),
    Case(
        key="Resize",
        op_type="Resize",
        inputs=(_MAP,),
        constants=(None, np.asarray([1, 1, 2, 2], np.float32)),
        attributes={"mode": "nearest", "coordinate_transformation_mode": "asymmetric", "nearest_mode": "floor"},
    ),
    Case(
        key="Resize.linear",
        op_type="Resize",
        inputs=(_MAP,),
        constants=(None, np.asarray([1, 1, 2, 2], np.float32)),
        attributes={"mode": "linear", "coordinate_transformation_mode": "half_pixel"},
    ),
)
"""Operators that hand elements on: with the same scale before and after."""

ABSORBED = ("Relu", "Clip")
"""Activation functions that a kernel may do by saturating, where the zero point is the least integer."""
