"""Boxes of all anchors, as detectors give them, become tables of detections by the runtime's own suppression."""

from __future__ import annotations

from functools import cache

import numpy as np
import onnx
import onnxruntime as ort
from onnx import TensorProto, helper

from wild.boxes import THRESHOLD

_BOX = 4
_LEAST_ANCHORS = 64
_OVERLAP = 0.5
_MOST = 300
"""Detections of a class in a picture, at most."""


def detections(array: np.ndarray) -> np.ndarray:
    """Return the detections of one picture, float64 [n, 6]: two corners, score, class; highest score first.

    Args:
        array: float [1, anchors, 4 + classes] or with channels first: centre, size and a fraction for each class.

    Raises:
        ValueError: it is no such table.
    """
    table = array.reshape(array.shape[-2:])
    table = table if table.shape[0] > table.shape[1] else table.T
    boxes, scores = table[:, :_BOX], table[:, _BOX:]
    if len(table) < _LEAST_ANCHORS or not scores.size or scores.min() < 0 or scores.max() > 1:
        raise ValueError(f"{array.shape} is no table of boxes and fractions")
    feeds = {"boxes": boxes[None], "scores": scores.T[None]}
    kept = _suppression().run(None, {name: each.astype(np.float32) for name, each in feeds.items()})[0]
    labels, anchors = kept[:, 1], kept[:, 2]
    half = boxes[anchors, 2:] / 2
    corners = [boxes[anchors, :2] - half, boxes[anchors, :2] + half]
    found = np.concatenate([*corners, scores[anchors, labels][:, None], labels[:, None]], 1).astype(np.float64)
    return found[np.argsort(-found[:, _BOX], kind="stable")]


@cache
def _suppression() -> ort.InferenceSession:
    """Return ONNX's NonMaxSuppression, class by class, on boxes by centre and size."""
    constants = [
        helper.make_tensor("most", TensorProto.INT64, [], [_MOST]),
        helper.make_tensor("overlap", TensorProto.FLOAT, [], [_OVERLAP]),
        helper.make_tensor("least", TensorProto.FLOAT, [], [THRESHOLD]),
    ]
    inputs = ["boxes", "scores", *(each.name for each in constants)]
    node = helper.make_node("NonMaxSuppression", inputs, ["kept"], center_point_box=1)
    values = [helper.make_tensor_value_info(name, TensorProto.FLOAT, [1, None, None]) for name in inputs[:2]]
    kept = helper.make_tensor_value_info("kept", TensorProto.INT64, [None, 3])
    graph = helper.make_graph([node], "suppression", values, [kept], constants)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 13)], ir_version=8)
    onnx.checker.check_model(model)
    return ort.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
