"""Derivatives of MaxPool and AveragePool, for any padding, overhanging windows included.

MaxPool says which element of a window it took: the derivative is added up there. AveragePool's is spread over each
window, divided by the number of elements that the runtime itself counted: found by pooling a picture of ones.
"""

from __future__ import annotations

import math

import numpy as np
import onnx

from .convolution import crop, geometry
from .rule import RuleNode


def max_pool(node: RuleNode, dy: str) -> dict[int, str]:
    """Differentiate MaxPool."""
    x_dims = node.dims(node.node.input[0])
    replaced = onnx.NodeProto()
    replaced.CopyFrom(node.node)
    if len(replaced.output) < 2 or not replaced.output[1] or node.attribute("storage_order", 0):
        indices = f"{replaced.output[0]}_onnxcompress_positions"
        del replaced.output[1:]
        replaced.output.append(indices)
        kept = [each for each in replaced.attribute if each.name != "storage_order"]
        del replaced.attribute[:]
        replaced.attribute.extend(kept)
        node.replace(replaced)
    zeros = node.add(
        "ConstantOfShape",
        node.ints([math.prod(x_dims)]),
        value=onnx.numpy_helper.from_array(np.zeros(1, np.float32)),
    )
    where = node.reshape(replaced.output[1], [-1])
    found = node.add("ScatterElements", zeros, where, node.reshape(dy, [-1]), axis=0, reduction="add")
    return {0: node.reshape(found, x_dims)}


def average_pool(node: RuleNode, dy: str) -> dict[int, str]:
    """Differentiate AveragePool."""
    x_dims, y_dims = node.dims(node.node.input[0]), node.dims(node.node.output[0])
    kernel, rank = tuple(node.attribute("kernel_shape")), len(x_dims) - 2
    way = geometry(node, kernel, x_dims[2:], y_dims[2:])
    counts = np.ones((), np.float32)
    for axis in range(rank):
        starts = np.arange(y_dims[2 + axis])[:, None] * way.strides[axis] - way.begin[axis]
        at = starts + np.arange(kernel[axis]) * way.dilations[axis]
        inside = ((at >= 0) & (at < x_dims[2 + axis])).sum(axis=1).astype(np.float32)
        counts = counts[..., None] * inside
    ones = node.constant(np.ones((1, 1, *x_dims[2:]), np.float32))
    given = {each.name: onnx.helper.get_attribute_value(each) for each in node.node.attribute}
    pooled = node.add("AveragePool", ones, **given)
    share = node.add("Div", pooled, node.constant(np.maximum(counts, 1)[None, None]))
    alone = node.reshape(node.add("Mul", dy, share), [x_dims[0] * x_dims[1], 1, *y_dims[2:]])
    run = node.add(
        "ConvTranspose",
        alone,
        node.constant(np.ones((1, 1, *kernel), np.float32)),
        strides=way.strides,
        dilations=way.dilations,
    )
    whole = [way.strides[i] * (y_dims[2 + i] - 1) + way.reach(i) for i in range(rank)]
    return {0: node.reshape(crop(node, run, way.begin, whole, x_dims[2:]), x_dims)}
