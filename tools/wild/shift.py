"""`python -m wild.shift MODEL OUT`: write the model with its weights off by about what rounding to 8 bits does.

Samples to work with and samples to judge by are of different sources: the same error may cost one half more than the
other. This copy, that no samples were used for, tells by how much.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from onnx import numpy_helper

_STEPS = 127
"""Steps from 0 to the largest weight of a tensor."""
_LEAST_WEIGHTS = 64
_MOST = 5.0
"""Factor beyond which a ratio is not believed. Chosen by judgement."""


def main(model: Path, out: Path) -> None:
    """Write the copy; weights in files beside the model are taken into it."""
    proto = onnx.load(model)
    random = np.random.default_rng(0)
    for tensor in _weights(proto.graph):
        weight = numpy_helper.to_array(tensor)
        if weight.dtype.kind != "f" or weight.ndim < 2 or weight.size < _LEAST_WEIGHTS:
            continue
        step = float(np.abs(weight).max()) / _STEPS
        noisy = weight + step * random.uniform(-0.5, 0.5, weight.shape)
        tensor.CopyFrom(numpy_helper.from_array(noisy.astype(weight.dtype), tensor.name))
    onnx.save(proto, out)


def factors(judge: Mapping[str, Any], work: Mapping[str, Any]) -> dict[str, float]:
    """Return by which factor the copy loses more on the samples to judge by, for outputs that are measured as numbers.

    Args:
        judge: what `wild.judge` says of the copy on these samples, every output as numbers.
        work: the same on the samples to work with.
    """
    found = {}
    for name, entry in judge["outputs"].items():
        one, other = work["outputs"].get(name, {}).get("points"), entry.get("points")
        if one and other and entry["figure"] == "relative_rms":
            found[name] = min(max(other / one, 1 / _MOST), _MOST)
    return found


def _weights(graph: onnx.GraphProto) -> Iterator[onnx.TensorProto]:
    yield from graph.initializer
    for node in graph.node:
        for attribute in node.attribute:
            if attribute.HasField("t") and node.op_type == "Constant":
                yield attribute.t
            for body in [attribute.g] if attribute.HasField("g") else attribute.graphs:
                yield from _weights(body)


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]))
