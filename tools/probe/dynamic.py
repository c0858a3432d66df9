"""Find from which size on products and LSTMs are faster with activations quantized in each run.

Models of one layer are rewritten by the pass itself and timed against their float form. The difference in time is
fitted, by least squares of relative errors, with

    products:  fixed + inputs * each - macs * gain
    LSTMs:     fixed + steps * each - macs * gain

and reported in multiply-accumulates (MACs): fixed / gain and each / gain.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from onnxcompress.core import Context
from onnxcompress.io import model_io
from onnxcompress.passes.quantize.dynamic import QuantizeDynamic
from onnxcompress.runtime import session as runtime
from onnxcompress.runtime.latency import race

PRODUCTS = [
    (rows, depth, columns)
    for rows in (1, 4, 16, 64, 256)
    for depth, columns in ((32, 32), (64, 64), (64, 256), (256, 64), (128, 128), (192, 192), (256, 256), (512, 16))
    if 1 << 13 <= rows * depth * columns <= 1 << 22
]
"""Rows of activations, depth and columns of the weight: sizes around the border."""

LSTMS = [
    (steps, batch, units)
    for steps in (1, 8, 40)
    for batch in (1, 8)
    for units in (16, 32, 64, 96, 128)
    if batch * units <= 256
]
"""Steps, batch, units: inputs are as wide as the state."""

_PRODUCT_KERNELS = {"DynamicQuantizeMatMul"}
_LSTM_KERNELS = {"DynamicQuantizeLSTM"}


def facts() -> dict[str, int]:
    """Return the section `dynamic` of a target profile.

    Raises:
        RuntimeError: onnxruntime doesn't fuse what the pass writes.
    """
    product = _fitted([(rows * k, rows * k * n, *_raced(*_product(rows, k, n))) for rows, k, n in PRODUCTS])
    lstm = _fitted(
        [
            (steps, steps * _step_macs(batch, units), *_raced(*_lstm(steps, batch, units)))
            for steps, batch, units in LSTMS
        ]
    )
    return {
        "product_macs": product[0],
        "product_macs_per_input": product[1],
        "lstm_macs": lstm[0],
        "lstm_macs_per_step": lstm[1],
    }


def _fitted(rows: Sequence[tuple[float, float, float, float]]) -> tuple[int, int]:
    """Fit (units of `each`, MACs, milliseconds on floats, ratio on integers) and return both costs in MACs."""
    table = np.array(rows, dtype=np.float64)
    units, macs, before, ratio = table.T
    terms = np.stack([np.ones(len(table)), units, -macs], axis=1) / before[:, None]
    fixed, each, gain = np.linalg.lstsq(terms, ratio - 1, rcond=None)[0]
    return _digits(max(0.0, fixed / gain)), _digits(max(0.0, each / gain))


def _raced(model: onnx.ModelProto, feed: dict[str, Any], kernels: set[str]) -> tuple[float, float]:
    """Return milliseconds of a run on floats, and the ratio on integers."""
    rewritten = model_io.load(model)
    QuantizeDynamic(layers="all").run(rewritten, Context(feeds=[feed]))
    data = model_io.to_bytes(rewritten)
    found = set(runtime.optimized_nodes(data))
    if not kernels <= found:
        raise RuntimeError(f"onnxruntime made {sorted(found)} of it, not {sorted(kernels)}")
    floats = runtime.open_session(model.SerializeToString(), optimize=True)
    latency = race(floats, runtime.open_session(data, optimize=True), feed, max_seconds=0.5)
    return latency.original_ms, latency.ratio


def _product(rows: int, depth: int, columns: int) -> tuple[onnx.ModelProto, dict[str, Any], set[str]]:
    generator = np.random.default_rng(0)
    weight = generator.standard_normal((depth, columns), np.float32)
    node = helper.make_node("MatMul", ["x", "w"], ["y"])
    feed = {"x": generator.standard_normal((rows, depth), np.float32)}
    return _model(node, feed, {"w": weight}), feed, _PRODUCT_KERNELS


def _lstm(steps: int, batch: int, units: int) -> tuple[onnx.ModelProto, dict[str, Any], set[str]]:
    generator = np.random.default_rng(0)
    weights = {name: generator.standard_normal((1, 4 * units, units), np.float32) / units for name in "wr"}
    node = helper.make_node("LSTM", ["x", "w", "r"], ["y"], hidden_size=units)
    feed = {"x": generator.standard_normal((steps, batch, units), np.float32)}
    return _model(node, feed, weights), feed, _LSTM_KERNELS


def _step_macs(batch: int, units: int) -> int:
    return batch * 8 * units * units


def _model(node: onnx.NodeProto, feed: dict[str, Any], weights: dict[str, Any]) -> onnx.ModelProto:
    inputs = [helper.make_tensor_value_info(n, TensorProto.FLOAT, a.shape) for n, a in feed.items()]
    outputs = [helper.make_tensor_value_info("y", TensorProto.FLOAT, None)]
    constants = [numpy_helper.from_array(array.astype(np.float32), name) for name, array in weights.items()]
    graph = helper.make_graph([node], "g", inputs, outputs, constants)
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)


def _digits(number: float) -> int:
    return int(float(f"{number:.2g}"))
