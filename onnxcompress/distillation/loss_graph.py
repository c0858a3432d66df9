"""Append the distillation loss to a model as ONNX nodes, so that it can be differentiated."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
from onnx import helper, numpy_helper

from ..core import Feed
from ..graph import query
from ..io import model_io
from ..quality.divergence import DivergenceKind

_PREFIX = "onnxcompress_"
LOSS = f"{_PREFIX}loss"
"""Name of the output that holds the loss."""
SMALL = 1e-8
"""Added to probabilities before their logarithm, and least variance of targets: far below float32 noise of both."""
_OPSET = 13
"""First opset in which the operators of the loss have the form that is written here."""


def target_name(output: str) -> str:
    """Return the name of the input that holds the targets of an output."""
    return f"{_PREFIX}target_{output}"


def with_loss(
    student: ir.Model,
    kinds: Mapping[str, DivergenceKind],
    feed: Feed,
    targets: Mapping[str, np.ndarray],
    weights: Mapping[str, np.ndarray],
) -> onnx.ModelProto:
    """Return the student at a batch's shapes, with weights and targets as inputs and the loss as its only output.

    Args:
        student: the model.
        kinds: output -> kind of its loss: cross entropy of class scores, squared error by the variance of others.
        feed: a batch.
        targets: the teacher's outputs for it, float32.
        weights: initializer -> float32 array, which become inputs.
    """
    if query.opset(student) < _OPSET:
        student = model_io.convert_opset(student, _OPSET)
    proto = onnx.ModelProto.FromString(model_io.to_bytes(student))
    body = proto.graph
    kept = [tensor for tensor in body.initializer if tensor.name not in weights]
    inputs = [spec for spec in body.input if spec.name in feed]
    del body.initializer[:], body.input[:], body.value_info[:]
    body.initializer.extend(kept)
    for spec in inputs:
        array = np.asarray(feed[spec.name])
        body.input.append(
            helper.make_tensor_value_info(spec.name, helper.np_dtype_to_tensor_dtype(array.dtype), array.shape)
        )
    for name, array in weights.items():
        body.input.append(helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, array.shape))
    losses = []
    for number, (name, kind) in enumerate(kinds.items()):
        target = targets[name]
        body.input.append(helper.make_tensor_value_info(target_name(name), onnx.TensorProto.FLOAT, target.shape))
        losses.append(_append_loss(body, name, number, kind, target, 1 / len(kinds)))
    body.node.append(helper.make_node("Sum" if len(losses) > 1 else "Identity", losses, [LOSS]))
    del body.output[:]
    body.output.append(helper.make_tensor_value_info(LOSS, onnx.TensorProto.FLOAT, []))
    return onnx.shape_inference.infer_shapes(proto)


def _append_loss(
    body: onnx.GraphProto, name: str, number: int, kind: DivergenceKind, target: np.ndarray, weight: float
) -> str:
    """Append the loss of one output, a scalar, and return its name."""
    prefix = f"{_PREFIX}{number}_"

    def constant(hint: str, array: np.ndarray) -> str:
        body.initializer.append(numpy_helper.from_array(array, f"{prefix}{hint}"))
        return f"{prefix}{hint}"

    def node(op_type: str, inputs: Sequence[str], hint: str, **attributes: Any) -> str:
        body.node.append(helper.make_node(op_type, list(inputs), [f"{prefix}{hint}"], **attributes))
        return f"{prefix}{hint}"

    axes = constant("axes", np.arange(target.ndim, dtype=np.int64))
    if kind is DivergenceKind.NUMBERS:
        error = node("Sub", [name, target_name(name)], "missed")
        terms = node("Mul", [error, error], "terms")
        factor = weight / max(float(np.var(target)), SMALL) / target.size
    else:
        if kind is DivergenceKind.LOGITS:
            logs = node("LogSoftmax", [name], "logs", axis=-1)
        else:
            logs = node("Log", [node("Add", [name, constant("small", np.asarray(SMALL, np.float32))], "above")], "logs")
        terms = node("Mul", [logs, target_name(name)], "terms")
        factor = -weight * target.shape[-1] / target.size
    total = node("ReduceSum", [terms, axes], "total", keepdims=0)
    return node("Mul", [total, constant("factor", np.asarray(factor, np.float32))], "loss")
