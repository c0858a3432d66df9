"""Append the distillation loss to a model as ONNX nodes, so that it can be differentiated."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import onnx
import onnx.inliner
import onnx_ir as ir
from onnx import helper, numpy_helper

from ..core import Feed
from ..errors import ModelError
from ..graph import query
from ..io import model_io
from ..quality.divergence import DivergenceKind
from ..runtime import session as runtime

_PREFIX = "onnxcompress_"
LOSS = f"{_PREFIX}loss"
"""Name of the output that holds the loss."""
SMALL = 1e-8
"""Added to probabilities before their logarithm, and least variance of targets: far below float32 noise of both."""
_OPSETS = (18, 16, 13)
"""Opsets to which the copy that is trained is raised, best first: rules write operators of 18, 16 has the reductions of
ScatterND and ScatterElements, and 13 is the first in which the loss has the form that is written here."""
_SAME = 1e-3
"""Largest difference of outputs at another opset, as a part of the largest number. Chosen by judgement, above the noise
of float32."""


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
        weights: constant -> float32 array, which become inputs.

    Raises:
        ModelError: the opset is too low and can't be raised, or the runtime can't run the model.
    """
    proto = _raised(student, list(kinds), feed)
    body = proto.graph
    kept = [tensor for tensor in body.initializer if tensor.name not in weights]
    nodes = [node for node in body.node if not (node.op_type == "Constant" and node.output[0] in weights)]
    del body.node[:]
    body.node.extend(nodes)
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


def _raised(student: ir.Model, outputs: Sequence[str], feed: Feed) -> onnx.ModelProto:
    """Return a copy at an opset in which derivatives can be written, functions inlined; it has the same outputs.

    Raises:
        ModelError: there is none, or the runtime can't run the model.
    """
    reason = ModelError("its opset can't be raised")
    for version in [opset for opset in _OPSETS if opset > query.opset(student)]:
        try:
            raised = model_io.convert_opset(student, version)
            if not _is_same(student, raised, outputs, feed):
                raise ModelError(f"its outputs change where its opset is raised to {version}")
        except ModelError as error:
            reason = error
            continue
        return _inlined(raised)
    if query.opset(student) < _OPSETS[-1]:
        raise reason
    return _inlined(student)


def _is_same(one: ir.Model, other: ir.Model, outputs: Sequence[str], feed: Feed) -> bool:
    """Say whether two models have the same outputs, but for the noise of float32."""
    pair = [runtime.open_session(model_io.to_bytes(model), optimize=False).run(feed, outputs) for model in (one, other)]
    return all(
        pair[0][name].shape == pair[1][name].shape
        and np.abs(pair[0][name] - pair[1][name]).max(initial=0) <= _SAME * np.abs(pair[0][name]).max(initial=SMALL)
        for name in outputs
    )


def _inlined(model: ir.Model) -> onnx.ModelProto:
    proto = onnx.ModelProto.FromString(model_io.to_bytes(model))
    return onnx.inliner.inline_local_functions(proto, convert_version=True) if proto.functions else proto


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
