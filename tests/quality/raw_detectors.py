"""Outputs of a made detector: objects on anchors of three strides, in every layout that detectors have."""

import numpy as np

SIZE = 160
COUNT = 12
CLASSES = 6


def anchors():
    """Return the centres of the cells of three strides, [525, 2], and the strides."""
    found = []
    for stride in (8, 16, 32):
        line = (np.arange(SIZE // stride) + 0.5) * stride
        y, x = np.meshgrid(line, line, indexing="ij")
        found.append(np.stack([x.ravel(), y.ravel(), np.full(x.size, stride)], 1))
    return np.concatenate(found)


def made(*, seed=0, objects=4, faint=False):
    """Return boxes by centre and size [COUNT, 525, 4] in pixels, and scores [COUNT, 525, CLASSES].

    Args:
        seed: of the random numbers.
        objects: in each sample.
        faint: no score reaches a usual threshold.
    """
    random = np.random.default_rng(seed)
    grid = anchors()
    boxes, scores = [], []
    for _ in range(COUNT):
        box = np.concatenate(
            [grid[:, :2] + random.normal(0, 2, (len(grid), 2)), random.uniform(10, 60, (len(grid), 2))], 1
        )
        score = random.beta(0.2, 40, (len(grid), CLASSES)) * 0.1
        for _ in range(objects):
            centre, size = random.uniform(30, 130, 2), random.uniform(24, 60, 2)
            near = np.argsort(np.abs(grid[:, :2] - centre).max(1))[:4]
            box[near] = np.concatenate([centre, size]) + random.normal(0, 0.5, (4, 4))
            score[near, random.integers(CLASSES)] = random.uniform(0.3, 0.95) - 0.05 * np.arange(4)
        boxes.append(box)
        scores.append(np.clip(score, 0, 1) * (0.1 if faint else 1))
    return np.array(boxes), np.array(scores)


def corners(boxes):
    """Return the corners of boxes by centre and size."""
    return np.concatenate([boxes[..., :2] - boxes[..., 2:] / 2, boxes[..., :2] + boxes[..., 2:] / 2], -1)


def _with_objectness(boxes, scores):
    """Return scores as a product: the classes are sure where nothing is, too."""
    objectness = scores.max(-1, keepdims=True)
    classes = np.clip(scores / np.maximum(objectness, 1e-9), 0, 1)
    return np.concatenate([boxes, objectness, classes], -1)


def _with_background(boxes, scores):
    rest = np.clip(scores, 0, 0.95) / np.maximum(scores.sum(-1, keepdims=True), 1)
    return np.concatenate([boxes / SIZE, 1 - rest.sum(-1, keepdims=True), rest], -1)


def _with_masks(boxes, scores):
    coefficients = np.random.default_rng(9).standard_normal((*boxes.shape[:-1], 8))
    return np.concatenate([boxes, scores, coefficients], -1)


LAYOUTS = {
    "channels first": lambda b, s: np.concatenate([b, s], -1).swapaxes(1, 2),
    "channels last": lambda b, s: np.concatenate([b, s], -1),
    "corners": lambda b, s: np.concatenate([corners(b), s], -1),
    "parts of the picture": lambda b, s: np.concatenate([b / SIZE, s], -1),
    "objectness": _with_objectness,
    "objectness, channels first": lambda b, s: _with_objectness(b, s).swapaxes(1, 2),
    "background": _with_background,
    "masks": _with_masks,
    "one class": lambda b, s: np.concatenate([b, s.max(-1, keepdims=True)], -1),
}
