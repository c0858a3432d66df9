"""Derivatives of convolutions, pools, paddings and slices equal differences, for every way of padding and grouping."""

import numpy as np
import pytest
from onnx import helper

from .differences import check, normal, scalar_loss, spaced

CONV = [
    {},
    {"pads": [1, 1], "strides": [2]},
    {"pads": [2, 0], "dilations": [2]},
    {"auto_pad": "SAME_UPPER", "strides": [2]},
    {"auto_pad": "SAME_LOWER", "strides": [3]},
    {"auto_pad": "VALID", "strides": [2]},
    {"pads": [4, 3]},
]


def widened(attributes, rank):
    """Return the attributes of one axis for several, one of them changed."""
    found = {}
    for name, value in attributes.items():
        if name == "pads":
            found[name] = [value[0]] * rank + [value[1]] * rank
        elif name in ("strides", "dilations", "kernel_shape", "output_padding", "output_shape"):
            found[name] = value * rank
        else:
            found[name] = value
    return found


@pytest.mark.parametrize("groups", [1, 2, 4])
@pytest.mark.parametrize("rank", [1, 2, 3])
@pytest.mark.parametrize("attributes", CONV, ids=str)
def test_convolutions(attributes, rank, groups):
    size = [8, 5, 3][:rank] if rank < 3 else [4, 5, 4]
    if rank == 3 and attributes.get("dilations"):
        size = [5, 5, 5]
    kernel = [3] * rank if rank < 3 else [2, 3, 2]
    feed = {"x": normal(2, 4, *size), "w": normal(4, 4 // groups, *kernel, seed=1), "b": normal(4, seed=2)}
    node = helper.make_node("Conv", ["x", "w", "b"], ["y"], group=groups, **widened(attributes, rank))
    check(scalar_loss([node], feed), feed)


TRANSPOSED = [
    {},
    {"strides": [2], "pads": [1, 0]},
    {"strides": [2], "output_padding": [1], "pads": [1, 1]},
    {"dilations": [2], "pads": [1, 1]},
    {"strides": [2], "output_shape": [9]},
    {"strides": [2], "auto_pad": "SAME_UPPER"},
    {"strides": [3], "auto_pad": "SAME_LOWER"},
]


@pytest.mark.parametrize("groups", [1, 2, 4])
@pytest.mark.parametrize("rank", [1, 2, 3])
@pytest.mark.parametrize("attributes", TRANSPOSED, ids=str)
def test_transposed_convolutions(attributes, rank, groups):
    size = [4, 4, 2][:rank] if "output_shape" not in attributes else [4] * rank
    feed = {"x": normal(2, 4, *size), "w": normal(4, 4 // groups, *[3, 3, 3][:rank], seed=1), "b": normal(4, seed=2)}
    node = helper.make_node("ConvTranspose", ["x", "w", "b"], ["y"], group=groups, **widened(attributes, rank))
    check(scalar_loss([node], feed), feed, ["x", "w", "b"] if rank < 3 else ["w", "b"])


def test_one_large_kernel_is_correlated_by_a_convolution():
    feed = {"x": normal(2, 2, 40), "w": normal(3, 2, 16, seed=1), "v": normal(2, 3, 70, seed=2)}
    nodes = [
        helper.make_node("Conv", ["x", "w"], ["h"], strides=[4]),
        helper.make_node("Conv", ["h", "v"], ["y"], pads=[40, 40]),
    ]
    check(scalar_loss(nodes, feed), feed)


def test_outputs_of_other_channel_counts_per_group():
    feed = {"x": normal(2, 4, 5, 5), "w": normal(6, 2, 3, 1, seed=1)}
    check(scalar_loss([helper.make_node("Conv", ["x", "w"], ["y"], group=2, strides=[1, 2])], feed), feed)
    feed = {"x": normal(2, 4, 5, 5), "w": normal(4, 3, 3, 1, seed=1)}
    check(scalar_loss([helper.make_node("ConvTranspose", ["x", "w"], ["y"], group=2, strides=[1, 2])], feed), feed)


POOLS = [
    {"kernel_shape": [3]},
    {"kernel_shape": [3], "strides": [2], "pads": [1, 1]},
    {"kernel_shape": [2], "strides": [2], "ceil_mode": 1},
    {"kernel_shape": [3], "strides": [2], "ceil_mode": 1, "pads": [0, 1]},
    {"kernel_shape": [3], "strides": [2], "auto_pad": "SAME_UPPER"},
    {"kernel_shape": [2], "strides": [1], "auto_pad": "SAME_LOWER"},
    {"kernel_shape": [3], "auto_pad": "VALID"},
    {"kernel_shape": [2], "strides": [3]},
    {"kernel_shape": [2], "dilations": [2], "pads": [1, 1]},
]


@pytest.mark.parametrize("rank", [1, 2, 3])
@pytest.mark.parametrize("attributes", POOLS, ids=str)
@pytest.mark.parametrize("kind", ["MaxPool", "AveragePool", "AveragePool with padding"])
def test_pools(kind, attributes, rank):
    if kind == "MaxPool" and "dilations" in attributes and rank != 2:
        attributes = attributes | {"pads": [0, 0]}
    extra = {"count_include_pad": 1} if "with" in kind else {}
    feed = {"x": spaced(1, 2, *[7, 5, 4][:rank])}
    opset = 19 if "dilations" in attributes else 18
    node = helper.make_node(kind.split()[0], ["x"], ["y"], **widened(attributes, rank), **extra)
    check(scalar_loss([node], feed, opset=opset), feed)


@pytest.mark.parametrize("order", [0, 1])
def test_a_pool_whose_positions_are_read(order):
    feed = {"x": spaced(2, 2, 6, 6)}
    nodes = [
        helper.make_node("MaxPool", ["x"], ["h", "i"], kernel_shape=[2, 2], strides=[2, 2], storage_order=order),
        helper.make_node("Cast", ["i"], ["f"], to=1),
        helper.make_node("Add", ["h", "f"], ["y"]),
    ]
    check(scalar_loss(nodes, feed), feed)


@pytest.mark.parametrize("mode", ["constant", "reflect", "edge", "wrap"])
@pytest.mark.parametrize(
    "pads", [[0, 0, 1, 2, 0, 0, 2, 1], [0, 0, 3, 0, 0, 0, 0, 3], [0, 0, -1, 0, 0, 0, 0, -2]], ids=str
)
def test_paddings(mode, pads):
    feed = {"x": normal(1, 2, 4, 5)}
    node = helper.make_node("Pad", ["x", "p"], ["y"], mode=mode)
    check(scalar_loss([node], feed, constants={"p": np.asarray(pads)}, opset=19), feed)


def test_a_padding_of_chosen_axes():
    feed = {"x": normal(1, 2, 4, 5)}
    node = helper.make_node("Pad", ["x", "p", "", "a"], ["y"], mode="reflect")
    check(scalar_loss([node], feed, constants={"p": np.asarray([2, 1]), "a": np.asarray([-1])}), feed)


@pytest.mark.parametrize(
    ("starts", "ends", "axes", "steps"),
    [
        ([1], [4], [1], [1]),
        ([-3], [2**62], [2], None),
        ([0, 1], [4, 6], [1, 2], [2, 3]),
        ([-1], [-(2**62)], [2], [-1]),
        ([5], [0], [-1], [-2]),
        ([2], [3], None, None),
        ([4, 0], [9, 0], [2, 1], [1, 1]),
    ],
)
def test_slices(starts, ends, axes, steps):
    feed = {"x": normal(3, 4, 6)}
    given = {"s": starts, "e": ends} | ({} if axes is None else {"a": axes}) | ({} if steps is None else {"t": steps})
    inputs = ["x", "s", "e", "a" if "a" in given else "", "t" if "t" in given else ""]
    node = helper.make_node("Slice", inputs[: 5 if "t" in given else 4 if "a" in given else 3], ["y"])
    check(scalar_loss([node], feed, constants={name: np.asarray(value) for name, value in given.items()}), feed)
