"""Small detectors with random weights: a trunk of convolutions, boxes as expectations over bins, scores by a sigmoid.

x [1, 3, 64, 64] -> trunk -> 256 cells -> boxes in pixels, scores of 3 classes -> one of the forms of output
"""

from __future__ import annotations

import numpy as np
import onnx_ir as ir

from tests.helpers import run, with_constants

CLASSES = 3
CHANNELS = 96

_HEAD = """
    a = Conv<pads = [1, 1, 1, 1], strides = [2, 2]>(x, w0) a2 = Relu(a)
    b = Conv<pads = [1, 1, 1, 1], strides = [2, 2]>(a2, w1) b2 = Relu(b)
    c = Conv<pads = [1, 1, 1, 1]>(b2, w2) c2 = Relu(c)
    side = Conv(c2, w3) logits = Conv(c2, w4, bias)
    parted = Reshape(side, split) turned = Transpose<perm = [0, 2, 1, 3]>(parted)
    shares = Softmax<axis = 1>(turned) means = Conv(shares, bins) distances = Reshape(means, flat)
    near, far = Split<axis = 1>(distances, halves)
    low = Sub(cells, near) high = Add(cells, far) units = Concat<axis = 1>(low, high) boxes = Mul(units, stride)
    rows = Reshape(logits, classes) scores = Sigmoid(rows)
"""
_CHOSEN = """
    corners = Transpose<perm = [0, 2, 1]>(boxes) chosen = NonMaxSuppression(corners, scores, most, overlap, least)
    place = Gather<axis = 1>(chosen, first_last) box = GatherND(corners, place) score = GatherND(scores, chosen)
    class = Gather<axis = 1>(chosen, one) batch = Gather<axis = 1>(chosen, zero)
    count = Shape(score) best, order = TopK<axis = 0>(score, count)
    box2 = Gather<axis = 0>(box, order) class2 = Gather<axis = 0>(class, order)
    number = Cast<to = 1>(class2) column = Unsqueeze(best, one) batch2 = Cast<to = 1>(batch)
"""
FORMS = {
    "rows": (_CHOSEN + "y = Concat<axis = 1>(batch2, box2, column, number)", "float[d, 7] y"),
    "padded": (
        _CHOSEN
        + """table = Concat<axis = 1>(box2, column, number) more = Concat<axis = 0>(table, nothing)
        y = Slice(more, zero, twenty, zero)""",
        "float[20, 6] y",
    ),
    "apart": (
        _CHOSEN
        + """table = Concat<axis = 1>(box2, column, number) more = Concat<axis = 0>(table, nothing)
        cut = Slice(more, zero, twenty, zero) p, q, r = Split<axis = 1>(cut, parts) boxes_y = Unsqueeze(p, zero)
        scores_y = Transpose<perm = [1, 0]>(q) turned_r = Transpose<perm = [1, 0]>(r)
        classes_y = Cast<to = 6>(turned_r) fewer = Min(count, twenty) count_y = Cast<to = 6>(fewer)""",
        "int32[1] count_y, float[1, 20, 4] boxes_y, float[1, 20] scores_y, int32[1, 20] classes_y",
    ),
    "top": (
        """corners = Transpose<perm = [0, 2, 1]>(boxes) peak = ReduceMax<axes = [1], keepdims = 0>(scores)
        class = ArgMax<axis = 1, keepdims = 0>(scores) best, order = TopK<axis = 1>(peak, twenty)
        order3 = Unsqueeze(order, two) order4 = Tile(order3, four) box = GatherElements<axis = 1>(corners, order4)
        class2 = GatherElements<axis = 1>(class, order) number = Cast<to = 1>(class2)
        column = Unsqueeze(best, two) last = Unsqueeze(number, two) y = Concat<axis = 2>(box, column, last)""",
        "float[1, 20, 6] y",
    ),
    "raw": ("y = Concat<axis = 1>(boxes, scores)", "float[1, 7, 256] y"),
}
"""Form -> how the detections are chosen, and the outputs."""


def detector(form: str) -> ir.Model:
    """Return a detector that finds some 1 to 30 things in each of `pictures`."""
    random = np.random.default_rng(0)
    sizes = {"w0": (CHANNELS // 2, 3, 3, 3), "w1": (CHANNELS, CHANNELS // 2, 3, 3), "w2": (CHANNELS, CHANNELS, 3, 3)}
    sizes |= {"w3": (64, CHANNELS, 1, 1), "w4": (CLASSES, CHANNELS, 1, 1)}
    weights = {name: random.standard_normal(dims) * (2 / np.prod(dims[1:])) ** 0.5 for name, dims in sizes.items()}
    weights["w4"] *= 3
    y, x = np.divmod(np.arange(256), 16)
    weights |= {
        "bias": np.zeros(CLASSES),
        "bins": np.arange(16.0).reshape(1, 16, 1, 1) / 4,
        "cells": np.stack([x, y])[None] + 0.5,
    }
    weights = {name: array.astype(np.float32) for name, array in weights.items()}
    logits = run(_model("{}", "float[1, 3, 16, 16] logits", weights), pictures(1, seed=9)[0])["logits"]
    weights["bias"] = (-1.1 - np.quantile(logits, 0.99, axis=(0, 2, 3))).astype(np.float32)
    return _model(*FORMS[form], weights)


def _model(body: str, outputs: str, weights: dict[str, np.ndarray]) -> ir.Model:
    numbers = """int64[4] split = {1, 4, 16, 256}, int64[3] flat = {1, 4, 256}, int64[2] halves = {2, 2},
        float stride = {4}, int64[3] classes = {1, 3, 256}, int64[1] most = {20}, float[1] overlap = {0.5},
        float[1] least = {0.25}, int64[2] first_last = {0, 2}, int64[1] zero = {0}, int64[1] one = {1},
        int64[1] two = {2}, int64[1] twenty = {20}, int64[3] four = {1, 1, 4}, int64[3] parts = {4, 1, 1}"""
    dims = {name: list(array.shape) for name, array in weights.items()}
    declared = ", ".join(f"float{shape} {name}" for name, shape in dims.items())
    body = "" if body == "{}" else body
    text = f"g (float[1, 3, 64, 64] x, {declared}, float[20, 6] nothing) => ({outputs}) <{numbers}> {{{_HEAD}{body}}}"
    return with_constants(text, nothing=np.zeros((20, 6), np.float32), **weights)


def pictures(count: int, *, seed: int = 0) -> list[dict[str, np.ndarray]]:
    """Return smooth pictures with bright rectangles, one to a feed."""
    random = np.random.default_rng(seed)
    found = []
    for _ in range(count):
        picture = np.repeat(np.repeat(random.random((3, 8, 8)), 8, 1), 8, 2) * 0.3
        for _ in range(random.integers(1, 6)):
            (top, left), (height, width) = random.integers(0, 48, 2), random.integers(6, 24, 2)
            picture[:, top : top + height, left : left + width] = random.random((3, 1, 1))
        found.append({"x": picture[None].astype(np.float32)})
    return found


def found_rows(form: str, outputs: dict[str, np.ndarray]) -> np.ndarray:
    """Return what was found: four edges, score, class, float [n, 6]."""
    if form == "apart":
        columns = [outputs["boxes_y"][0], outputs["scores_y"][0, :, None], outputs["classes_y"][0, :, None]]
        return np.concatenate(columns, 1)[: int(outputs["count_y"][0])]
    y = outputs["y"]
    if form == "raw":
        boxes, scores = y[0, :4].T, y[0, 4:].T
        kept = scores.max(1) > 0.25
        return np.column_stack([boxes, scores.max(1), scores.argmax(1)])[kept]
    rows = y[:, 1:] if form == "rows" else y.reshape(-1, 6)
    return rows[rows[:, 4] > 0.25]


def f1(one: list[np.ndarray], other: list[np.ndarray]) -> float:
    """Return the F1 score of rows: pairs of one class whose boxes overlap by half."""
    pairs = 0
    for a, b in zip(one, other, strict=True):
        low = np.maximum(a[:, None, :2], b[None, :, :2])
        high = np.minimum(a[:, None, 2:4], b[None, :, 2:4])
        shared = np.clip(high - low, 0, None).prod(2)
        areas = [np.prod(rows[:, 2:4] - rows[:, :2], 1) for rows in (a, b)]
        overlap = shared / (areas[0][:, None] + areas[1][None] - shared + 1e-9) * (a[:, None, 5] == b[None, :, 5])
        while overlap.size and overlap.max() >= 0.5:
            i, j = np.unravel_index(overlap.argmax(), overlap.shape)
            overlap[i], overlap[:, j] = 0, 0
            pairs += 1
    return 2 * pairs / max(sum(map(len, one)) + sum(map(len, other)), 1)
