"""Long lists of attributes stay in the file: read anew at each use, and written as they were."""

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from onnx import TensorProto, helper
from onnx_graphsurgeon import Graph

from onnxcompress.errors import ModelError
from onnxcompress.io import graphsurgeon, model_io, stored_lists, wire
from onnxcompress.io.sources import InMemory
from onnxcompress.io.stored_lists import LARGE_LIST_BYTES, StoredList
from onnxcompress.shapes.infer import infer

from ..trees import tree_ensemble

STORED = {
    *("nodes_treeids", "nodes_nodeids", "nodes_featureids", "nodes_modes", "nodes_values", "nodes_truenodeids"),
    *("nodes_falsenodeids", "nodes_hitrates", "nodes_missing_value_tracks_true"),
    *("class_ids", "class_nodeids", "class_treeids", "class_weights"),
}


@pytest.fixture(scope="module")
def proto() -> onnx.ModelProto:
    return tree_ensemble(trees=70)


def trees_of(model: ir.Model) -> ir.Node:
    return next(node for node in model.graph if node.op_type == "TreeEnsembleClassifier")


def test_long_lists_stay_in_the_file_and_hold_what_they_held(proto, tmp_path):
    onnx.save(proto, tmp_path / "trees.onnx")
    node = trees_of(model_io.load(tmp_path / "trees.onnx"))
    expected = {attr.name: attr for attr in proto.graph.node[1].attribute}
    assert {name for name, attr in node.attributes.items() if isinstance(attr, StoredList)} == STORED
    assert node.attributes["class_weights"].as_floats() == tuple(expected["class_weights"].floats)
    assert node.attributes["nodes_treeids"].as_ints() == tuple(expected["nodes_treeids"].ints)
    assert node.attributes["nodes_modes"].as_strings() == tuple(s.decode() for s in expected["nodes_modes"].strings)


def test_the_model_is_written_as_it_was_in_every_way(proto, tmp_path):
    path = tmp_path / "trees.onnx"
    onnx.save(proto, path)
    data = path.read_bytes()
    model = model_io.load(path)
    assert model_io.model_bytes(model) == len(data)
    for same in (model, model_io.clone(model), model_io.restore(*model_io.detach(model)), model_io.load(proto)):
        assert model_io.to_bytes(same) == data
    model_io.save(model, tmp_path / "inline.onnx")
    assert (tmp_path / "inline.onnx").read_bytes() == data
    model_io.save(model, tmp_path / "external.onnx", external_data="always")
    assert onnx.load(tmp_path / "external.onnx") == proto
    converted = model_io.convert_opset(model, 18)
    assert onnx.load_model_from_string(model_io.to_bytes(converted)).graph.node[1] == proto.graph.node[1]


def test_the_checker_and_inference_take_the_skeleton(proto):
    model = model_io.load(proto)
    light = model_io.skeleton(model)
    assert light.ByteSize() < 1000
    onnx.checker.check_model(light, full_check=True)
    whole, lean = (onnx.shape_inference.infer_shapes(each) for each in (proto, light))
    assert lean.graph.value_info == whole.graph.value_info
    assert lean.graph.output == whole.graph.output
    assert infer(model).dtype(trees_of(model).outputs[0]) == ir.DataType.INT64


def test_lists_count_for_the_runtime(proto):
    model = model_io.load(proto)
    size = proto.ByteSize()
    assert 0.99 * size < model_io.list_bytes(model) < size
    assert all(attr.nbytes >= LARGE_LIST_BYTES for attr in trees_of(model).attributes.values() if attr.name in STORED)


def test_graphsurgeon_gets_the_lists_themselves(proto):
    graph: Graph = graphsurgeon.to_surgeon(model_io.load(proto))
    (node,) = (node for node in graph.nodes if node.op == "TreeEnsembleClassifier")
    assert node.attrs["class_ids"] == next(list(a.ints) for a in proto.graph.node[1].attribute if a.name == "class_ids")
    back = onnx.load_model_from_string(model_io.to_bytes(graphsurgeon.from_surgeon(graph)))
    assert {a.name: a for a in back.graph.node[1].attribute} == {a.name: a for a in proto.graph.node[1].attribute}


@pytest.mark.parametrize(
    ("operator", "domain", "name", "values"),
    [
        ("TfIdfVectorizer", "", "pool_int64s", list(range(1000, 60_000))),
        ("LabelEncoder", "ai.onnx.ml", "keys_int64s", list(range(1000, 60_000))),
        ("Constant", "", "value_floats", np.linspace(0, 1, 20_000).tolist()),
    ],
)
def test_lists_that_decide_a_shape_or_type_are_read(operator, domain, name, values):
    node = helper.make_node(operator, [] if operator == "Constant" else ["x"], ["y"], domain=domain, **{name: values})
    data = node.attribute[0].SerializeToString()
    assert len(data) > LARGE_LIST_BYTES
    assert stored_lists.Lists(InMemory(data)).stand_in(0, len(data)) is None


def test_short_lists_are_read():
    model = model_io.load(tree_ensemble(trees=3))
    assert not any(isinstance(attr, StoredList) for attr in trees_of(model).attributes.values())


def test_a_reference_that_a_file_brings_along_is_refused():
    tensor = TensorProto(name="FLOATS", dims=[4], data_type=TensorProto.UINT8, data_location=TensorProto.EXTERNAL)
    for key, value in (("location", wire.LIST_LOCATION), ("offset", "0"), ("length", "4")):
        tensor.external_data.add(key=key, value=value)
    graph = helper.make_graph(
        [helper.make_node("Constant", [], ["y"], value=tensor)],
        "g",
        [],
        [helper.make_tensor_value_info("y", TensorProto.UINT8, [4])],
    )
    with pytest.raises(ModelError):
        model_io.load(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8))
