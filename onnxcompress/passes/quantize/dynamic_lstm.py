"""LSTMs on integers: com.microsoft's DynamicQuantizeLSTM, with the weights of an LSTM, [input, 4 x hidden], as int8.

    LSTM(x, w, r, ...)  ->  DynamicQuantizeLSTM(x, w_int8, r_int8, ..., w_scale, w_zero, r_scale, r_zero)

Input and hidden state are quantized in every step with the range that they have then; bias, peepholes, lengths and
initial states stay floats.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import onnx_ir as ir

from ...graph import constants as float_constants
from ...graph import edit, query
from ...ops import table as ops
from ...shapes.infer import Shapes
from ...targets import facts as targets
from .weight_rounding import Rounding, round_weight
from .weight_storage import WeightContext, owner

_WEIGHTS = (1, 2)
"""Inputs that hold weights: float32 [directions, 4 x hidden, input or hidden]."""
_FLOAT_INPUTS = 8
"""Inputs that an LSTM has; those of the scales come behind them."""


@dataclass(frozen=True)
class RoundedLstm:
    """An LSTM and the rounding of its two weights, each seen as [directions x 4 x hidden, ...]."""

    node: ir.Node
    roundings: tuple[Rounding, Rounding]

    @property
    def noise(self) -> float:
        """The sum of squared differences that rounding makes in both."""
        return sum(r.noise for r in self.roundings)

    @property
    def signal(self) -> float:
        """The sum of squares of both weights."""
        return sum(r.signal for r in self.roundings)


def fault(node: ir.Node, shapes: Shapes, selects: Callable[[ir.Node], bool], facts: targets.DynamicFacts) -> str:
    """Return why an LSTM stays float, "" where nothing speaks against integers."""
    for port in _WEIGHTS:
        value = node.inputs[port]
        tensor = float_constants.tensor(value)
        if value is None or tensor is None:
            return f"its weight {'?' if value is None else value.name} is computed when the model runs"
        if tensor.dtype != ir.DataType.FLOAT:
            return f"{tensor.dtype.name.lower()}: DynamicQuantizeLSTM reads float32 only"
        if value.is_graph_output() or not all(
            query.is_op(use.node, "LSTM") and use.idx == port and selects(use.node) for use in value.uses()
        ):
            return f"its weight {value.name} has readers that need floats"
    if query.attribute(node, "layout", 0):
        return "its batch comes first (layout 1), which onnxruntime doesn't run"
    steps, step_macs = _steps(node, shapes)
    if not facts.lstm_pays(steps, step_macs):
        return f"too small to be faster on integers: {steps} steps of {step_macs} MACs"
    return ""


def weights(node: ir.Node) -> list[ir.Value | None]:
    """Return the values that an LSTM reads as its weights."""
    return [node.inputs[port] for port in _WEIGHTS]


def round_lstm(node: ir.Node, *, channelwise: bool, one_scale_db: float, clip: bool, bits: int) -> RoundedLstm:
    """Choose the scales of an LSTM's weights: one for each direction and gate output, or for each direction.

    The recurrent weight is read in every step, and a kernel with one scale is faster: it gets one for each direction
    where that leaves it `one_scale_db` above its rounding noise.

    Raises:
        ValueError: a weight holds NaN or infinities.
    """
    inward, recurrent = (float_constants.tensor(value) for value in weights(node))
    assert inward is not None
    assert recurrent is not None
    array = recurrent.numpy()
    coarse = _round(array, channelwise=False, clip=True, bits=bits)
    if channelwise and coarse.sqnr_db < one_scale_db:
        coarse = _round(array, channelwise=True, clip=clip, bits=bits)
    return RoundedLstm(node, (_round(inward.numpy(), channelwise=channelwise, clip=clip, bits=bits), coarse))


def _round(array: np.ndarray, *, channelwise: bool, clip: bool, bits: int) -> Rounding:
    directions, gates, width = array.shape
    rows = array.reshape((directions * gates, width) if channelwise else (directions, gates * width))
    return round_weight(ir.tensor(rows), 0, clip=clip, bits=bits)


class LstmWriter:
    """Writes LSTMs; a weight that several of them read is stored once."""

    def __init__(self, model: ir.Model, scene: WeightContext) -> None:
        self._model = model
        self._scene = scene
        self._stored: dict[ir.Value, tuple[ir.Value, ir.Value, ir.Value]] = {}

    def write(self, rounded: RoundedLstm) -> None:
        """Turn an LSTM into one on integers; its outputs keep their names."""
        node = rounded.node
        inputs = [*node.inputs, *[None] * (_FLOAT_INPUTS - len(node.inputs))]
        for port, rounding in zip(_WEIGHTS, rounded.roundings, strict=True):
            value = inputs[port]
            assert value is not None
            if value not in self._stored:
                self._stored[value] = self._store(node, value, rounding)
            integers, scale, zero_point = self._stored[value]
            inputs[port] = integers
            inputs += [scale, zero_point]
        attributes = {a.name: a for a in node.attributes.values() if a.name != "layout"}
        edit.turn_into(node, "DynamicQuantizeLSTM", inputs, attributes, domain=ops.MICROSOFT)
        self._model.opset_imports.setdefault(ops.MICROSOFT, 1)

    def _store(self, node: ir.Node, value: ir.Value, rounding: Rounding) -> tuple[ir.Value, ir.Value, ir.Value]:
        """Store a weight as int8 [directions, input or hidden, 4 x hidden], with its scales and their zero points."""
        tensor = float_constants.tensor(value)
        assert tensor is not None
        directions, gates, width = query.dims(tensor)
        integers = rounding.integers(transposed=False).numpy().reshape(directions, gates, width)
        scale = rounding.scale.reshape(directions, -1) if rounding.scale.size > directions else rounding.scale
        arrays = {
            "int8": np.ascontiguousarray(integers.transpose(0, 2, 1)),
            "scale": scale,
            "zero_point": np.zeros(scale.shape, np.int8),  # onnxruntime reads one for each scale, whatever it says
        }
        owners = {use.node.graph for use in value.uses()}
        home = query.home(node) if len(owners) == 1 else owner(value)
        made = [edit.add_initializer(home, self._scene.names, f"{value.name}_{k}", a) for k, a in arrays.items()]
        return made[0], made[1], made[2]


def _steps(node: ir.Node, shapes: Shapes) -> tuple[int, int]:
    """Return the time steps and the MACs of one, dynamic dimensions counted as 1."""
    data = shapes.shape(node.inputs[0]) or (1, 1, 1)
    steps, batch = (d if isinstance(d, int) else 1 for d in data[:2])
    tensors = [float_constants.tensor(node.inputs[port]) for port in _WEIGHTS]
    return steps, batch * sum(tensor.size for tensor in tensors if tensor is not None)
