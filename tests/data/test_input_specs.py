"""Specifications of inputs: what a session says of a model is said without one."""

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper

from onnxcompress.data.input_specs import input_specs
from onnxcompress.io import model_io
from onnxcompress.runtime import session as runtime


def _model(*kinds):
    """Return a model that hands on one input of each type, [n, 3]."""
    inputs = [helper.make_tensor_value_info(f"x{i}", kind, ["n", 3]) for i, kind in enumerate(kinds)]
    outputs = [helper.make_tensor_value_info(f"y{i}", kind, ["n", 3]) for i, kind in enumerate(kinds)]
    nodes = [helper.make_node("Identity", [f"x{i}"], [f"y{i}"]) for i in range(len(kinds))]
    graph = helper.make_graph(nodes, "g", inputs, outputs)
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)


@pytest.mark.parametrize("kind", ["FLOAT", "DOUBLE", "FLOAT16", "BFLOAT16", "BOOL", "STRING", "UINT8", "INT64"])
def test_a_model_says_of_its_inputs_what_a_session_does(kind):
    model = _model(TensorProto.DataType.Value(kind))
    assert input_specs(model_io.load(model)) == list(
        runtime.open_session(model.SerializeToString(), optimize=False).inputs
    )


def test_inputs_with_a_default_need_not_be_fed():
    model = _model(TensorProto.FLOAT, TensorProto.FLOAT)
    model.graph.initializer.append(onnx.numpy_helper.from_array(np.zeros((2, 3), np.float32), "x1"))
    specs = input_specs(model_io.load(model))
    assert [(spec.name, spec.is_optional) for spec in specs] == [("x0", False), ("x1", True)]
    assert specs == list(runtime.open_session(model.SerializeToString(), optimize=False).feedable)


def test_sequences_have_the_name_of_their_elements():
    info = helper.make_tensor_sequence_value_info("x", TensorProto.FLOAT, ["n"])
    node = helper.make_node("ConcatFromSequence", ["x"], ["y"], axis=0)
    graph = helper.make_graph([node], "g", [info], [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["m"])])
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    session = runtime.open_session(model.SerializeToString(), optimize=False)
    assert input_specs(model_io.load(model)) == list(session.inputs)
    assert session.inputs[0].type == "seq(tensor(float))"
