"""Small models of many kinds of output, each with samples and with the loss that a user of it would care for.

All have random weights: what is judged is the distance to the original, which is taken for the truth.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto as T
from onnx import helper

from bench.net import Net

Feed = dict[str, np.ndarray]
Outputs = Sequence[Sequence[Any]]
"""For each sample the values of all outputs."""
Loss = Callable[[Sequence[Feed], Outputs, Outputs], float]
"""Samples, the original's outputs, the result's -> the loss."""
Draw = Callable[[np.random.Generator, int], list[Feed]]

MOST_LOSS = 0.03
"""Loss up to which a result is good."""
MOST_LOSS_OF_BOXES = 0.2
"""The same for detectors: by far the most of their boxes are background."""
_IMAGE = (T.FLOAT, ["N", 3, 16, 16])
_PIXELS = 256
"""Of an image."""
_WIDTH = 24
"""Channels of the convolutions; chosen so that a command takes seconds."""


@dataclass(frozen=True, kw_only=True)
class Kind:
    """A model, its samples and its loss: `most` is allowed. `options` are for our command."""

    build: Callable[[], onnx.ModelProto]
    loss: Loss
    draw: Draw
    most: float = MOST_LOSS
    options: tuple[str, ...] = ()


def _images(random: np.random.Generator, count: int) -> list[Feed]:
    return [{"x": random.standard_normal((1, 3, 16, 16)).astype(np.float32)} for _ in range(count)]


def _texts(random: np.random.Generator, count: int) -> list[Feed]:
    feeds = []
    for _ in range(count):
        length = int(random.integers(3, 25))
        mask = (np.arange(48) < length).astype(np.int64)[None]
        feeds.append({"ids": random.integers(1, 400, (1, 48)) * mask, "mask": mask})
    return feeds


def _steps(random: np.random.Generator, count: int) -> list[Feed]:
    drift = np.cumsum(0.4 * random.standard_normal((count, 1, 16)), axis=0)
    return [{"x": np.sin(each).astype(np.float32)} for each in drift]


# What a loss is. Outputs are by sample; `index` picks one of them.


def _joined(outputs: Outputs, index: int = 0) -> np.ndarray:
    return np.concatenate([np.atleast_1d(np.asarray(each[index])) for each in outputs])


def share_differing(index: int = 0) -> Loss:
    """Return a loss: the part of elements (pixels, labels) that are not the original's."""
    return lambda _, a, b: float(np.mean(_joined(a, index) != _joined(b, index)))


def unexplained(index: int = 0) -> Loss:
    """Return a loss: the part of each column's variance over samples that is lost, mean of the columns."""
    return lambda _, a, b: _unexplained(_joined(a, index), _joined(b, index))


def _unexplained(a: np.ndarray, b: np.ndarray) -> float:
    spread = np.square(a - a.mean(axis=0)).reshape(len(a), -1).mean(axis=0)
    error = np.square(a - b).reshape(len(a), -1).mean(axis=0)
    return float(np.mean(error / np.maximum(spread, 1e-12)))


def lost_change(feeds: Sequence[Feed], a: Outputs, b: Outputs) -> float:
    """Return the part of what the model does to its input (output minus input) that is lost."""
    x = np.concatenate([feed["x"] for feed in feeds])
    before, after = _joined(a) - x, _joined(b) - x
    return float(np.mean((before - after) ** 2) / before.var())


def lost_direction(_: Sequence[Feed], a: Outputs, b: Outputs) -> float:
    """Return 1 - the mean cosine of embeddings, both without the original's mean."""
    before, after = _joined(a) - _joined(a).mean(axis=0), _joined(b) - _joined(a).mean(axis=0)
    lengths = np.linalg.norm(before, axis=1) * np.linalg.norm(after, axis=1)
    return float(1 - np.mean((before * after).sum(axis=1) / np.maximum(lengths, 1e-12)))


def lost_ranking(_: Sequence[Feed], a: Outputs, b: Outputs) -> float:
    """Return how much the mean truth of the ten cells found best in each sample falls, by objectness x class score."""
    losses = []
    for before, after in zip(a, b, strict=True):
        p, q = (rows[0][:, 4] * rows[0][:, 5:].max(axis=1) for rows in (before[0], after[0]))
        best, found = (np.sort(p[np.argsort(-score)[:10]]).mean() for score in (p, q))
        moved = np.abs(before[0][0][:, :4] - after[0][0][:, :4]).mean() / before[0][0][:, :4].std()
        losses.append(max(1 - found / best, moved))
    return float(np.mean(losses))


def lost_boxes_and_classes(feeds: Sequence[Feed], a: Outputs, b: Outputs) -> float:
    """Return the larger of the lost part of the boxes and the part of samples of another class."""
    classes = [np.mean([x[1].argmax() != y[1].argmax() for x, y in zip(a, b, strict=True)])]
    return float(max(unexplained()(feeds, a, b), *classes))


def lost_detections(_: Sequence[Feed], a: Outputs, b: Outputs) -> float:
    """Return 1 - F1 of rows [x1, y1, x2, y2, score, class] above the original's median score, overlap over a half."""
    found = total = 0
    for before, after in zip(a, b, strict=True):
        first, second = before[0][0], after[0][0]
        least = np.median(first[:, 4])
        first, second = first[first[:, 4] > least], second[second[:, 4] > least]
        good = (overlaps(first, second) > 0.5) & (first[:, None, 5] == second[None, :, 5])
        free = np.ones(len(second), bool)
        for row in good:
            match = np.flatnonzero(row & free)
            free[match[:1]] = False
            found += len(match) > 0
        total += len(first) + len(second)
    return 1 - 2 * found / max(1, total)


def overlaps(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """Return intersection over union of boxes [rows, 4+] by boxes."""
    low, high = np.maximum(a[:, None, :2], b[None, :, :2]), np.minimum(a[:, None, 2:4], b[None, :, 2:4])
    common = np.prod(np.maximum(high - low, 0), axis=2)
    areas = [np.prod(each[:, 2:4] - each[:, :2], axis=1) for each in (a, b)]
    return np.asarray(common / (areas[0][:, None] + areas[1][None] - common + 1e-9))


def lost_choices(_: Sequence[Feed], a: Outputs, b: Outputs) -> float:
    """Return 1 - F1 of sets of rows of integers."""
    sets = [({tuple(r) for r in x[0].tolist()}, {tuple(r) for r in y[0].tolist()}) for x, y in zip(a, b, strict=True)]
    return 1 - 2 * sum(len(x & y) for x, y in sets) / max(1, sum(len(x) + len(y) for x, y in sets))


def lost_tags(feeds: Sequence[Feed], a: Outputs, b: Outputs) -> float:
    """Return the part of words, without padding, that get another tag."""
    real = np.concatenate([feed["mask"] for feed in feeds]) > 0
    return float(np.mean(_joined(a).argmax(axis=-1)[real] != _joined(b).argmax(axis=-1)[real]))


def lost_tag_sets(_: Sequence[Feed], a: Outputs, b: Outputs) -> float:
    """Return how much the expected F1 of "score over .5" falls, the original's scores being the chances."""
    p, q = _joined(a), _joined(b)
    before, after = (2 * p[s > 0.5].sum() / max(1e-9, p.sum() + (s > 0.5).sum()) for s in (p, q))
    return float(before - after)


def lost_steps(_: Sequence[Feed], a: Outputs, b: Outputs) -> float:
    """Return the part of steps of another best class, each model with its own state."""
    return float(np.mean(_joined(a).argmax(axis=-1) != _joined(b).argmax(axis=-1)))


def lost_parts(_: Sequence[Feed], a: Outputs, b: Outputs) -> float:
    """Return the lost part of the worst tensor of a sequence."""
    parts = range(len(a[0][0]))
    return max(_unexplained(*(np.concatenate([each[0][k] for each in side]) for side in (a, b))) for k in parts)


# The models.


def bool_mask() -> onnx.ModelProto:
    """Make a foreground mask: probabilities over a threshold."""
    net = Net(1)
    score = net.op("Sigmoid", net.head(net.features("x", 3), _WIDTH, 1, gain=3))
    net.op("Greater", score, net.constant(np.float32(0.5)), into="y")
    return net.model({"x": _IMAGE}, {"y": (T.BOOL, ["N", 1, 16, 16])})


def _pooled(net: Net, stride: int = 2) -> str:
    return net.op("Flatten", net.features("x", 3, stride=stride))


def landmarks() -> onnx.ModelProto:
    """Make ten coordinates around the middle of a picture of 224 pixels."""
    net = Net(2)
    net.scaled(net.linear(_pooled(net), 4 * _WIDTH, 10), 12, 112, into="y")
    return net.model({"x": _IMAGE}, {"y": (T.FLOAT, ["N", 10])})


def objectness_rows() -> onnx.ModelProto:
    """Make rows of a grid detector: four numbers of a box, objectness, scores of six classes, in one array."""
    net = Net(3)
    shared = net.features("x", 3)
    box = net.shaped(net.scaled(net.op("Sigmoid", net.head(shared, _WIDTH, 4)), 320), 0, 4, -1)
    sure = net.shaped(net.op("Sigmoid", net.head(shared, _WIDTH, 1, gain=2, bias=-3)), 0, 1, -1)
    kind = net.shaped(net.op("Sigmoid", net.head(shared, _WIDTH, 6, gain=2, bias=-1)), 0, 6, -1)
    net.op("Transpose", net.op("Concat", box, sure, kind, axis=1), perm=[0, 2, 1], into="y")
    return net.model({"x": _IMAGE}, {"y": (T.FLOAT, ["N", _PIXELS, 11])})


def logits_beside_boxes() -> onnx.ModelProto:
    """Make one box and the scores of seven classes, as two outputs."""
    net = Net(4)
    shared = _pooled(net)
    net.scaled(net.op("Sigmoid", net.linear(shared, 4 * _WIDTH, 4)), 640, into="box")
    net.linear(shared, 4 * _WIDTH, 7, gain=3, into="logits")
    return net.model({"x": _IMAGE}, {"box": (T.FLOAT, ["N", 4]), "logits": (T.FLOAT, ["N", 7])})


_NAMES = ["ant", "bee", "cat", "dog", "eel", "fox", "gnu", "hen", "ibis", "jay"]


def _class_number(seed: int) -> tuple[Net, str]:
    net = Net(seed)
    return net, net.op("ArgMax", net.linear(_pooled(net), 4 * _WIDTH, len(_NAMES), gain=3), axis=1, keepdims=0)


def strings_from_table() -> onnx.ModelProto:
    """Make the name of the best class, looked up in a table."""
    net, best = _class_number(5)
    net.op("Gather", net.constant(_NAMES), best, into="y")
    return net.model({"x": _IMAGE}, {"y": (T.STRING, ["N"])})


def strings_from_encoder() -> onnx.ModelProto:
    """Make the name of the best class by a LabelEncoder."""
    net, best = _class_number(6)
    keys = list(range(len(_NAMES)))
    net.op("LabelEncoder", best, into="y", domain="ai.onnx.ml", keys_int64s=keys, values_strings=_NAMES)
    return net.model({"x": _IMAGE}, {"y": (T.STRING, ["N"])})


def image_and_residual() -> onnx.ModelProto:
    """Make a cleaned image: the input and a small correction."""
    net = Net(7)
    net.op("Add", "x", net.scaled(net.head(net.features("x", 3), _WIDTH, 3), 0.05), into="y")
    return net.model({"x": _IMAGE}, {"y": (T.FLOAT, ["N", 3, 16, 16])})


def sorted_rows() -> onnx.ModelProto:
    """Make the 300 best of 400 rows [x1, y1, x2, y2, score, class], best first."""
    net = Net(8)
    shared = net.features("x", 3, depth=2)
    corner = net.shaped(net.head(shared, _WIDTH, 2), 0, 2, -1)
    size = net.shaped(net.op("Softplus", net.head(shared, _WIDTH, 2)), 0, 2, -1)
    places = np.stack(np.meshgrid(np.arange(20), np.arange(20)), 0).reshape(1, 2, 400).astype(np.float32) * 16
    low = net.op("Add", net.scaled(corner, 6), net.constant(places))
    high = net.op("Add", low, net.scaled(size, 20, 12))
    boxes = net.op("Transpose", net.op("Concat", low, high, axis=1), perm=[0, 2, 1])
    scores = net.op("Transpose", net.shaped(net.head(shared, _WIDTH, 5, gain=2, bias=-1), 0, 5, -1), perm=[0, 2, 1])
    best = net.op("ReduceMax", net.op("Sigmoid", scores), axes=[2], keepdims=0)
    value, index = net.ops("TopK", best, net.constant(np.array([300], np.int64)), into=("top", "index"), axis=1)
    label = net.op("Cast", net.op("ArgMax", scores, axis=2, keepdims=1), to=T.FLOAT)
    axis = net.constant(np.array([2], np.int64))
    column = net.op("Unsqueeze", index, axis)
    columns = net.op("Expand", column, net.constant(np.array([1, 300, 4], np.int64)))
    rows = [net.op("GatherElements", boxes, columns, axis=1), net.op("Unsqueeze", value, axis)]
    net.op("Concat", *rows, net.op("GatherElements", label, column, axis=1), axis=2, into="y")
    return net.model({"x": (T.FLOAT, ["N", 3, 20, 20])}, {"y": (T.FLOAT, ["N", 300, 6])})


def suppressed_indices() -> onnx.ModelProto:
    """Make rows (sample, class, box) of the boxes that NonMaxSuppression leaves."""
    net = Net(9)
    shared = net.features("x", 3)
    places = np.stack(np.meshgrid(np.arange(16), np.arange(16)), 0).reshape(1, 2, _PIXELS).astype(np.float32) * 8
    middle = net.op("Add", net.scaled(net.shaped(net.head(shared, _WIDTH, 2), 0, 2, -1), 4), net.constant(places))
    size = net.scaled(net.shaped(net.op("Softplus", net.head(shared, _WIDTH, 2)), 0, 2, -1), 10, 10)
    boxes = net.op("Transpose", net.op("Concat", middle, size, axis=1), perm=[0, 2, 1])
    scores = net.shaped(net.op("Sigmoid", net.head(shared, _WIDTH, 4, gain=2, bias=-2)), 0, 4, -1)
    limits = (net.constant(np.array([20], np.int64)), *(net.constant(np.array([v], np.float32)) for v in (0.5, 0.1)))
    net.op("NonMaxSuppression", boxes, scores, *limits, center_point_box=1, into="y")
    return net.model({"x": (T.FLOAT, [1, 3, 16, 16])}, {"y": (T.INT64, [None, 3])})


def padded_tags() -> onnx.ModelProto:
    """Make scores of nine tags for each word; most of the 48 places of a text are padding."""
    net = Net(10)
    words = net.op("Gather", net.weight(400, 48, gain=5), "ids")
    real = net.op("Unsqueeze", net.op("Cast", "mask", to=T.FLOAT), net.constant(np.array([2], np.int64)))
    value = net.op("Mul", words, real)
    for _ in range(2):
        hidden = net.op("Relu", net.op("MatMul", value, net.weight(48, 96)))
        context = net.op("ReduceMean", hidden, axes=[1], keepdims=1)
        mixed = net.op("MatMul", net.op("Add", hidden, context), net.weight(96, 48))
        value = net.op("Mul", net.op("Add", value, mixed), real)
    net.op("Add", net.op("MatMul", value, net.weight(48, 9, gain=4)), net.weight(9), into="y")
    text = (T.INT64, ["N", "T"])
    return net.model({"ids": text, "mask": text}, {"y": (T.FLOAT, ["N", "T", 9])})


def unit_embedding() -> onnx.ModelProto:
    """Make an embedding of length one."""
    net = Net(11)
    net.op("LpNormalization", net.linear(_pooled(net), 4 * _WIDTH, 64), axis=-1, p=2, into="y")
    return net.model({"x": _IMAGE}, {"y": (T.FLOAT, ["N", 64])})


def tag_set() -> onnx.ModelProto:
    """Make the chance of each of 20 tags, which don't exclude each other; few hold."""
    net = Net(12)
    net.op("Sigmoid", net.scaled(net.linear(_pooled(net), 4 * _WIDTH, 20, gain=4), 1, -2), into="y")
    return net.model({"x": _IMAGE}, {"y": (T.FLOAT, ["N", 20])})


def recurrent_state() -> onnx.ModelProto:
    """Make scores of six classes and the state of a GRU for the next step."""
    net = Net(13)
    weights = (net.weight(1, 96, 16, gain=30), net.weight(1, 96, 32, gain=22), net.weight(1, 192, gain=1))
    net.ops("GRU", net.op("Unsqueeze", "x", net.constant(np.array([0], np.int64))), *weights, "", "h",
            into=("", "next"), hidden_size=32)  # fmt: skip
    net.linear(net.op("Squeeze", "next", net.constant(np.array([0], np.int64))), 32, 6, gain=6, into="y")
    state = (T.FLOAT, [1, 1, 32])
    return net.model({"x": (T.FLOAT, [1, 16]), "h": state}, {"y": (T.FLOAT, [1, 6]), "next": state})


def sequence_of_maps() -> onnx.ModelProto:
    """Make a sequence of three maps."""
    net = Net(14)
    maps = net.head(net.features("x", 3), _WIDTH, 3)
    net.op("SplitToSequence", maps, axis=1, keepdims=1, into="y")
    kind = helper.make_tensor_type_proto(T.FLOAT, ["N", 1, 16, 16])
    return net.model({"x": _IMAGE}, [helper.make_value_info("y", helper.make_sequence_type_proto(kind))])


def two_trivial_outputs() -> onnx.ModelProto:
    """Make labels of pixels, and beside them the mean of the input and the number of pixels."""
    net = Net(15)
    net.op("ReduceMean", "x", axes=[1, 2, 3], keepdims=0, into="mean")
    net.op("ArgMax", net.head(net.features("x", 3), _WIDTH, 8, gain=2), axis=1, keepdims=0, into="labels")
    net.op("Size", "x", into="pixels")
    outputs = {"mean": (T.FLOAT, ["N"]), "labels": (T.INT64, ["N", 16, 16]), "pixels": (T.INT64, [])}
    return net.model({"x": _IMAGE}, outputs)


def _grid(random: np.random.Generator, count: int) -> list[Feed]:
    return [{"x": random.standard_normal((1, 3, 20, 20)).astype(np.float32)} for _ in range(count)]


KINDS = {
    "bool mask": Kind(build=bool_mask, loss=share_differing(), draw=_images),
    "landmarks": Kind(build=landmarks, loss=unexplained(), draw=_images),
    "objectness rows": Kind(build=objectness_rows, loss=lost_ranking, draw=_images, most=MOST_LOSS_OF_BOXES),
    "logits beside boxes": Kind(build=logits_beside_boxes, loss=lost_boxes_and_classes, draw=_images),
    "strings from a table": Kind(build=strings_from_table, loss=share_differing(), draw=_images),
    "strings from an encoder": Kind(build=strings_from_encoder, loss=share_differing(), draw=_images),
    "image + residual": Kind(build=image_and_residual, loss=lost_change, draw=_images),
    "sorted rows": Kind(build=sorted_rows, loss=lost_detections, draw=_grid, most=MOST_LOSS_OF_BOXES),
    "NMS indices": Kind(build=suppressed_indices, loss=lost_choices, draw=_images, most=MOST_LOSS_OF_BOXES),
    "padded tags": Kind(build=padded_tags, loss=lost_tags, draw=_texts),
    "unit embedding": Kind(build=unit_embedding, loss=lost_direction, draw=_images),
    "tag set": Kind(build=tag_set, loss=lost_tag_sets, draw=_images),
    "recurrent state": Kind(build=recurrent_state, loss=lost_steps, draw=_steps, options=("--state", "h=next")),
    "sequence of maps": Kind(build=sequence_of_maps, loss=lost_parts, draw=_images),
    "two trivial outputs": Kind(build=two_trivial_outputs, loss=share_differing(1), draw=_images),
}
"""By name: all kinds that are not in the cases given from outside."""
