"""Every recipe answers for every layer with weights: it is changed, or the report says why it is not.

One model has all operators that hold weights, in all places where weights occur (`weighted`); each recipe runs on it,
and each layer of the folded model has to be named by each pass that the recipe is named after, or to take fewer bytes.
"""

from __future__ import annotations

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from onnx import helper, numpy_helper

import onnxcompress as oc
from onnxcompress import accounting
from onnxcompress.core import GRAPH, Action, Change, Context
from onnxcompress.errors import UsageError
from onnxcompress.ops.weight_layers import weighted_layers
from onnxcompress.passes import build
from tests import weighted
from tests.helpers import floats, with_constants

NAMED_AFTER = {
    "int8": ("quantize-int8",),
    "int8-weights": ("quantize-weights",),
    "int4-weights": ("quantize-blocks", "quantize-weights"),
    "float16": ("convert-float16",),
    "cluster": ("cluster",),
    "prune": ("prune-channels",),
    "sparse": ("sparsify",),
    "shallow": ("low-rank",),
    "auto": ("search-best",),
}
"""Recipe -> the passes that it is named after."""
INSIDE = {
    "quantize-int8": ("quantize-int8", "quantize-static", "quantize-dynamic", "quantize-weights"),
    "search-best": ("search-best", "quantize-weights"),
}
"""Pass -> the passes whose changes count as its own."""
WITH_DATA = ("int8", "prune", "shallow")
FAST = {
    "shallow": ["low-rank.distill_steps=0", "low-rank.refit=false"],
    "prune": ["prune-channels.rounds=1", "prune-channels.distill_steps=0"],
}


@pytest.fixture(scope="module")
def proto():
    return weighted.model_of()


@pytest.fixture(scope="module")
def folded(proto):
    return oc.compress(proto, recipe="fold").model


def _stored(model: ir.Model) -> dict[str, int]:
    return {w.name: w.bytes for layer in weighted_layers(model) for w in layer.weights}


@pytest.mark.parametrize("recipe", list(NAMED_AFTER))
def test_each_layer_is_changed_or_has_a_reason_and_bytes_add_up(recipe, proto, folded):
    data = weighted.samples(12) if recipe in WITH_DATA else None
    result = oc.compress(proto, recipe=recipe, data=data, settings=FAST.get(recipe, ()))
    report = result.report
    assert report.internal_errors == ()
    layers, left = weighted_layers(folded), _stored(result.model)
    assert len(layers) > 30
    for name in NAMED_AFTER[recipe]:
        mine = [c for c in result.changes if c.pass_name in INSIDE.get(name, (name,))]
        named = {c.target for c in mine}
        assert all(c.reason for c in mine)
        silent = [
            layer.label
            for layer in layers
            if layer.label not in named
            and not any(w.names & named for w in layer.weights)
            and all(left.get(w.name, 0) >= w.bytes for w in layer.main)
        ]
        assert silent == []
    saved = sum(c.bytes_before - c.bytes_after for c in report.changes if c.action is Action.APPLIED)
    assert saved <= report.input.bytes
    # of weights in blocks the data is counted and not the nodes, some 300 bytes for each of these small ones
    near = 0.04 if recipe == "int4-weights" else 0.03
    assert abs(saved - (report.input.bytes - report.output.bytes)) < near * report.input.bytes


def test_the_model_has_every_operator_with_weights_and_every_place():
    labels = {layer.label for layer in weighted_layers(_loaded(weighted.model_of()))}
    assert labels >= {"conv", "grouped", "depthwise", "transposed", "gemm", "matmul", "left", "batched", "einsum"}
    assert labels >= {"embedding", "lstm", "gru", "rnn", "attention", "prelu", "batchnorm", "layernorm", "trees"}
    assert labels >= {"in_then", "in_else", "in_loop", "in_function", "by_constant", "by_turned", "by_shaped"}
    assert labels >= {"half", "double", "by_half", "by_brain", "by_default", "shared_first", "shared_second"}


def _loaded(proto: onnx.ModelProto) -> ir.Model:
    from onnxcompress.io import model_io

    return model_io.load(proto)


PRODUCT = "g (float[n, 64] x, float[64, 48] w) => (float[n, 48] y) { [one] y = MatMul(x, w) }"


def _left(pass_name, model, changes=(), context=None):
    one = build(pass_name, {})
    layers = weighted_layers(model)
    return [
        (c.target, c.reason) for c in accounting.unmentioned(one, layers, None, list(changes), context or Context())
    ]


def test_a_layer_that_is_named_by_itself_or_by_its_weight_needs_no_reason():
    model = with_constants(PRODUCT, w=floats(64, 48))
    for target in ("one", "w"):
        assert _left("quantize-weights", model, [Change.skipped("quantize-weights", "why", target=target)]) == []
    (found,) = _left("quantize-weights", model)
    assert found == ("one", "constants of MatMul are none that quantize-weights changes")


def test_a_pass_that_was_taken_back_as_a_whole_is_the_reason():
    model = with_constants(PRODUCT, w=floats(64, 48))
    lost = Change(pass_name="sparsify", target=GRAPH, action=Action.ROLLED_BACK, reason="it broke")
    assert _left("sparsify", model, [lost]) == [("one", "sparsify was taken back: it broke")]


def test_what_the_user_left_out_says_so():
    model = with_constants(PRODUCT, w=floats(64, 48))
    assert _left("cluster", model, context=Context(selects=lambda _: False)) == [("one", "left out by --only/--skip")]


def test_a_layer_whose_weight_takes_fewer_bytes_needs_no_reason():
    model, smaller = (with_constants(PRODUCT.replace("64", str(n)), w=floats(n, 48)) for n in (64, 32))
    layers = weighted_layers(model)
    one = build("prune-channels", {})
    assert list(accounting.unmentioned(one, layers, smaller, [], Context())) == []
    assert len(list(accounting.unmentioned(one, layers, model, [], Context()))) == 1


@pytest.mark.parametrize("option", ["only", "skip"])
def test_a_choice_of_nodes_that_no_pass_heeds_is_refused(option):
    model = with_constants(PRODUCT, w=floats(64, 48))
    with pytest.raises(UsageError, match="limit lossy passes, and recipe 'fold' has none"):
        oc.compress(model, recipe="fold", **{option: ["op:MatMul"]})
    assert oc.compress(model, recipe="int8-weights", **{option: ["op:MatMul"]}).changes


def _shared(count: int) -> onnx.ModelProto:
    """Return a chain of convolutions that all read one weight."""
    nodes, value = [], "x"
    for index in range(count):
        nodes.append(helper.make_node("Conv", [value, "w"], [f"c{index}"], name=f"conv{index}", pads=[1] * 4))
        nodes.append(helper.make_node("Relu", [f"c{index}"], [f"r{index}"], name=f"relu{index}"))
        value = f"r{index}"
    shape = ["n", 32, 12, 12]
    graph = helper.make_graph(
        nodes,
        "shared",
        [helper.make_tensor_value_info("x", onnx.TensorProto.FLOAT, shape)],
        [helper.make_tensor_value_info(value, onnx.TensorProto.FLOAT, shape)],
        [numpy_helper.from_array(0.1 * floats(32, 32, 3, 3), "w")],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)


def _saved(changes):
    return sum(c.bytes_before - c.bytes_after for c in changes if c.action is Action.APPLIED)


def test_a_weight_that_several_layers_share_is_saved_once():
    from onnxcompress.passes.quantize.static import QuantizeStatic

    model = _loaded(_shared(6))
    feeds = [{"x": floats(1, 32, 12, 12, seed=seed)} for seed in range(4)]
    changes = QuantizeStatic().run(model, Context(feeds=feeds))
    done = [c for c in changes if c.action is Action.APPLIED and c.bytes_after]
    assert len(done) == 6
    assert sum(c.bytes_before for c in done) == 4 * 32 * 32 * 9
    assert _saved(changes) == 3 * 32 * 32 * 9 - sum(c.bytes_after for c in done[1:]) - (done[0].bytes_after - 9216)


def test_copies_of_a_function_s_constants_are_no_saving():
    weight = helper.make_node("Constant", [], ["w"], value=numpy_helper.from_array(0.1 * floats(64, 64)))
    inner = helper.make_node("MatMul", ["x", "w"], ["y"])
    function = helper.make_function("own", "F", ["x"], ["y"], [weight, inner], [helper.make_opsetid("", 17)])
    calls = [helper.make_node("F", [f"v{i}"], [f"v{i + 1}"], domain="own", name=f"call{i}") for i in range(8)]
    info = [helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, ["n", 64]) for name in ("v0", "v8")]
    graph = helper.make_graph(calls, "g", info[:1], info[1:])
    opsets = [helper.make_opsetid("", 17), helper.make_opsetid("own", 1)]
    proto = helper.make_model(graph, opset_imports=opsets, ir_version=8, functions=[function])
    report = oc.compress(proto, recipe="fold").report
    assert abs(_saved(report.changes) - (report.input.bytes - report.output.bytes)) < 2000  # names, not weights
    assert report.input.bytes < 20_000


def test_a_zero_bias_that_others_read_still_is_no_saving():
    text = """g (float[n, 64] x, float[64, 64] a, float[64, 64] b, float[64] z) => (float[n, 64] y, float[n, 64] u) {
        h = Gemm(x, a, z) y = Gemm(h, b, z) u = Add(y, z) }"""
    from onnxcompress.passes.fold.drop_zeros import DropZeros

    model = with_constants(text, a=floats(64, 64), b=floats(64, 64), z=np.zeros(64, np.float32))
    changes = DropZeros().run(model, Context())
    assert [c.bytes_before for c in changes] == [0, 0]
