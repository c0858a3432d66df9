"""What every test of a lossless pass checks: outputs, a second run, a closed gate."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import onnx
import onnx.parser
import onnx.shape_inference
import onnx_ir as ir

from onnxcompress.base.gate import Gate
from onnxcompress.core import Action, Change, Context, Feed, Pass
from onnxcompress.graph import query
from onnxcompress.runtime import session as runtime


def parsed(text: str) -> ir.Model:
    """Return the model that ONNX text with its header describes; output shapes are inferred, `[]` will do."""
    return shaped(onnx.parser.parse_model(text))


def shaped(proto: onnx.ModelProto) -> ir.Model:
    """Return the model with the output shapes that inference finds."""
    for output in proto.graph.output:
        output.type.tensor_type.ClearField("shape")
    inferred = onnx.shape_inference.infer_shapes(proto, strict_mode=True, data_prop=True)
    del proto.graph.output[:]
    proto.graph.output.extend(inferred.graph.output)
    return ir.from_proto(proto)


def proto_of(model: ir.Model) -> onnx.ModelProto:
    """Return the model as protobuf, checked."""
    proto = ir.to_proto(model)
    onnx.checker.check_model(proto, full_check=True)
    return proto


def kinds(model: ir.Model) -> list[str]:
    """Return the operators of all nodes of all graphs, without Constant, in order."""
    return [node.op_type for node in query.nodes(model) if node.op_type != "Constant"]


def run_plain(model: ir.Model, feed: Feed) -> dict[str, np.ndarray]:
    """Return what onnxruntime computes with its own optimizations off."""
    return runtime.open_session(proto_of(model).SerializeToString(), optimize=False).run(feed)


def optimized_count(model: ir.Model) -> int:
    """Return the number of nodes that onnxruntime keeps."""
    return len(runtime.optimized_nodes(proto_of(model).SerializeToString()))


def random_feed(model: ir.Model, seed: int = 0, dynamic: int = 3) -> Feed:
    """Return normal numbers for every float input, true for bool; a dynamic dimension is `dynamic` long."""
    generator = np.random.default_rng(seed)
    feed: Feed = {}
    for value in model.graph.inputs:
        dims = [d if isinstance(d, int) else dynamic for d in value.shape or ()]
        assert value.dtype is not None
        feed[str(value.name)] = np.asarray(3 * generator.standard_normal(dims), dtype=value.dtype.numpy())
    return feed


def applied(changes: Sequence[Change]) -> list[Change]:
    """Return the changes that were made."""
    return [change for change in changes if change.action is Action.APPLIED]


def reasons(changes: Sequence[Change]) -> str:
    """Return the reasons of all refusals, one a line."""
    return "\n".join(change.reason for change in changes if change.action is Action.SKIPPED)


def rewritten(model: ir.Model, the_pass: Pass, *, tolerance: float = 2e-6, feed: Feed | None = None) -> list[Change]:
    """Run a lossless pass and check what holds for each: outputs, a second run, a gate that admits nothing.

    `tolerance` is relative to the largest number of an output.
    """
    untouched = ir.from_proto(ir.to_proto(model))
    assert not applied(the_pass.run(untouched, Context(gate=Gate(limit=0))))
    assert kinds(untouched) == kinds(model)
    feed = random_feed(model) if feed is None else feed
    before, nodes = run_plain(model, feed), optimized_count(model)
    changes = the_pass.run(model, Context())
    after = run_plain(model, feed)
    assert list(after) == list(before)
    for name, expected in before.items():
        assert after[name].dtype == expected.dtype
        assert after[name].shape == expected.shape
        scale = float(np.max(np.abs(expected.astype(np.float64)), initial=1e-30))
        np.testing.assert_allclose(after[name], expected, rtol=0, atol=tolerance * scale, err_msg=name)
    assert optimized_count(model) <= nodes, "onnxruntime made less of the rewritten model"
    assert not applied(the_pass.run(model, Context()))
    return changes
