"""`python -m bench.wide FOLDER MODEL OUT COUNT`: write a zoo classifier with wide Gemm layers at its end, as VGG has.

The last mean over positions and what follows give way to three Gemm layers on all features, which are trained on what
the classifier gives for COUNT images of the folder's calibration data: no labels.
"""

from __future__ import annotations

import itertools
import sys
from pathlib import Path

import numpy as np
import onnx
import onnx.compose
import onnx.version_converter
from onnx import helper, numpy_helper

import onnxcompress as oc
from bench.corpus import load_eval
from onnxcompress.activations import observe

_WIDE = (512, 256)
_POOLS = ("GlobalAveragePool", "ReduceMean")
_STEPS = 600


def main(folder: Path, model: Path, out: Path, count: int) -> None:
    """Build, train and write the model."""
    proto = onnx.load(model)
    pool = [node for node in proto.graph.node if node.op_type in _POOLS][-1]
    features, scores = pool.input[0], proto.graph.output[0].name
    feeds = load_eval(folder).calib_feeds(count)
    seen = [found[features] for found in observe.stream(oc.load(model), feeds, [features])]
    shape = [None, *seen[0].shape[1:]]
    opset = [helper.make_opsetid("", 17)]
    proto = onnx.version_converter.convert_version(proto, 17)
    start = next(place for place, node in enumerate(proto.graph.node) if node.output[0] == pool.output[0])
    known = {tensor.name: tensor for tensor in proto.graph.initializer}
    last = list(proto.graph.node)[start:]
    ends = [
        helper.make_tensor_value_info(features, onnx.TensorProto.FLOAT, shape),
        helper.make_tensor_value_info(scores, onnx.TensorProto.FLOAT, [None, None]),
    ]
    held = [known[name] for name in dict.fromkeys(name for node in last for name in node.input) if name in known]
    teacher = helper.make_model(helper.make_graph(last, "end", ends[:1], ends[1:], held), opset_imports=opset)
    student = helper.make_model(_wide(features, scores, ends, seen[0]), opset_imports=opset)
    taught = oc.distill(student, teacher, data=[{features: array} for array in seen], steps=_STEPS).model
    oc.save(taught, out.with_suffix(".end.onnx"))
    trunk = onnx.ModelProto()
    trunk.CopyFrom(proto)
    del trunk.graph.node[start:], trunk.graph.output[:], trunk.graph.value_info[:]
    trunk.graph.output.extend(ends[:1])
    used = {name for node in trunk.graph.node for name in node.input}
    left = [tensor for tensor in trunk.graph.initializer if tensor.name in used]
    del trunk.graph.initializer[:]
    trunk.graph.initializer.extend(left)
    end = onnx.load(out.with_suffix(".end.onnx"))
    trunk.ir_version = end.ir_version = 8
    end = onnx.compose.add_prefix(end, "wide_", rename_inputs=True, rename_outputs=False)
    onnx.save(onnx.compose.merge_models(trunk, end, [(features, f"wide_{features}")]), out)


def _wide(features: str, scores: str, ends: list[onnx.ValueInfoProto], seen: np.ndarray) -> onnx.GraphProto:
    """Return the three layers, as they are before they learn."""
    random = np.random.default_rng(0)
    classes = 10
    sizes = [int(seen[0].size), *_WIDE, classes]
    nodes = [helper.make_node("Flatten", [features], ["flat"])]
    held, value = [], "flat"
    for number, (into, out) in enumerate(itertools.pairwise(sizes)):
        weight = (random.standard_normal((out, into)) * np.sqrt(2 / into)).astype(np.float32)
        held += [
            numpy_helper.from_array(weight, f"w{number}"),
            numpy_helper.from_array(np.zeros(out, np.float32), f"b{number}"),
        ]
        is_last = number == len(sizes) - 2
        result = scores if is_last else f"fc{number}"
        name = f"fc{number}"
        nodes.append(helper.make_node("Gemm", [value, f"w{number}", f"b{number}"], [result], name=name, transB=1))
        if not is_last:
            nodes.append(helper.make_node("Relu", [result], [f"act{number}"]))
            value = f"act{number}"
    return helper.make_graph(nodes, "wide", ends[:1], ends[1:], held)


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]), Path(sys.argv[3]), int(sys.argv[4]))
