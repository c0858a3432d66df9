"""Small functions that tests share: models from text, what is in them, and what onnxruntime makes of them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import onnx
import onnx.parser
import onnx_ir as ir

from onnxcompress.base import host
from onnxcompress.graph import query
from onnxcompress.io import model_io
from onnxcompress.runtime import session as runtime

DB_LESS = 6.02 * host.adds_in_16_bits()
"""What the one bit costs that weights have less on a processor whose kernels add in 16 bits, in dB."""


def from_text(text: str, *, opset: int = 17, ir_version: int = 8) -> ir.Model:
    """Return the model of an ONNX text graph (without the header in angle brackets), checked."""
    header = f'<ir_version: {ir_version}, opset_import: ["": {opset}]>\n'
    proto = onnx.parser.parse_model(header + text)
    onnx.checker.check_model(proto)
    return model_io.load(proto)


def with_constants(text: str, *, opset: int = 17, **arrays: np.ndarray) -> ir.Model:
    """Return the model of a text whose inputs named in `arrays` become initializers."""
    model = from_text(text, opset=opset)
    for value in [v for v in model.graph.inputs if v.name in arrays]:
        model.graph.inputs.remove(value)
        value.const_value = ir.tensor(np.asarray(arrays[value.name]), name=value.name)
        model.graph.register_initializer(value)
    return model


def op_types(model: ir.Model) -> list[str]:
    """Return the operator types of all nodes, bodies included, sorted."""
    return sorted(node.op_type for node in query.nodes(model))


def run(model: ir.Model, feed: Mapping[str, Any], *, optimize: bool = False) -> dict[str, Any]:
    """Return the outputs of a model in onnxruntime, by default with its optimizations off."""
    proto = model_io.to_bytes(model)
    onnx.checker.check_model(proto)
    return runtime.open_session(proto, optimize=optimize).run(feed)


def floats(*shape: int, seed: int = 0) -> np.ndarray:
    """Return normally distributed float32 numbers."""
    return np.random.default_rng(seed).standard_normal(shape).astype(np.float32)
