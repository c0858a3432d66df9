"""Long names inside of a model are cut down, those that callers know are not."""

from __future__ import annotations

import numpy as np
import onnx
import pytest

import onnxcompress as oc
from onnxcompress.core import Context
from onnxcompress.io import model_io
from onnxcompress.passes.fold.shorten_names import ShortenNames

from ...helpers import floats, from_text, run

_LONG = "model/block_{0}/dense/MatMul;model/block_{0}/dense/BiasAdd;model/block_{0}/dense/BiasAdd/ReadVariableOp"


def _converted(layers: int = 12) -> onnx.ModelProto:
    """Return a network whose inner names tell all layers that they came from, as tf2onnx writes them."""
    names = [_LONG.format(i) for i in range(layers)]
    values = ["x" * 60, *(f"{name}:0" for name in names[:-1]), "y" * 60]
    weights = [
        onnx.numpy_helper.from_array(floats(16, 16, seed=i) / 4, f"{name}/kernel") for i, name in enumerate(names)
    ]
    nodes = [
        onnx.helper.make_node("MatMul", [values[i], weights[i].name], [values[i + 1]], name=name)
        for i, name in enumerate(names)
    ]
    kinds = [onnx.helper.make_tensor_value_info(v, onnx.TensorProto.FLOAT, ["n", 16]) for v in (values[0], values[-1])]
    graph = onnx.helper.make_graph(nodes, "g", kinds[:1], kinds[1:], weights)
    return onnx.helper.make_model(graph, opset_imports=[onnx.helper.make_opsetid("", 17)], ir_version=8)


def test_names_become_short_and_unique_and_those_of_inputs_and_outputs_stay():
    model = model_io.load(_converted())
    expected = run(model, {"x" * 60: floats(3, 16)})["y" * 60]
    (change,) = ShortenNames().run(model, Context())
    np.testing.assert_array_equal(run(model, {"x" * 60: floats(3, 16)})["y" * 60], expected)
    named = [node.name for node in model.graph] + list(model.graph.initializers)
    assert max(map(len, named)) <= 24 + len("_12")
    assert len(set(named)) == len(named)
    assert model.graph[0].name == "model/block_0/dense/MatMul"[-24:].lstrip("/")
    assert change.bytes_after == model_io.model_bytes(model) < change.bytes_before - 2000


def test_names_in_bodies_and_functions_are_cut_down_too():
    body = "b" * 50
    text = (
        f"g (float[2] x, bool c) => (float[2] y) {{ y = If(c) <then_branch = t () => (float[2] {body}1) "
        f"{{ {body}1 = Neg(x) }}, else_branch = e () => (float[2] {body}2) {{ {body}2 = Abs(x) }}> }}"
    )
    model = from_text(text)
    ShortenNames(longest=8).run(model, Context())
    feed = {"x": floats(2), "c": np.array(True)}
    np.testing.assert_array_equal(run(model, feed)["y"], -floats(2))
    assert b"b" * 9 not in model_io.to_bytes(model)


@pytest.mark.parametrize("options", [{"longest": 200}, {"least_share": 0.9}])
def test_names_stay_where_they_are_short_or_make_little_of_the_file(options):
    model = model_io.load(_converted())
    before = model_io.to_bytes(model)
    assert ShortenNames(**options).run(model, Context()) == []
    assert model_io.to_bytes(model) == before


def test_recipes_that_aim_at_size_cut_names_and_fold_keeps_them():
    small = oc.compress(_converted(), recipe="float16").report
    assert [c.action for c in small.changes if c.pass_name == "shorten-names"] == ["applied"]
    assert any(node.name == _LONG.format(3) for node in oc.compress(_converted(), recipe="fold").model.graph)
