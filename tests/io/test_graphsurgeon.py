import subprocess
import sys
import textwrap
from pathlib import Path

import ml_dtypes
import numpy as np
import onnx
import onnx_graphsurgeon as gs
import onnx_ir as ir
import onnxruntime
import pytest
from onnx import TensorProto, helper, numpy_helper

from onnxcompress.errors import ModelError
from onnxcompress.io import graphsurgeon, model_io
from onnxcompress.io.tensors import StoredTensor

MODELS = sorted((Path(__file__).parents[2] / "models").glob("*.onnx"))
WEIGHT = np.arange(32 * 32, dtype=np.float32).reshape(32, 32) / 1024


def info(name, dims=(2, 32), kind=TensorProto.FLOAT):
    return helper.make_tensor_value_info(name, kind, dims)


def make(nodes, initializers=(), inputs=None, outputs=None, ir_version=8, opset=17, functions=()):
    inputs = inputs or [info("x")]
    graph = helper.make_graph(nodes, "g", inputs, outputs or [info("y")], list(initializers))
    imports = [helper.make_opsetid("", opset), helper.make_opsetid("d", 1)]
    return helper.make_model(graph, opset_imports=imports, ir_version=ir_version, functions=list(functions))


def linear():
    nodes = [helper.make_node("MatMul", ["x", "w"], ["y"], name="mul")]
    return make(nodes, [numpy_helper.from_array(WEIGHT, "w")])


def branches():
    """y = x @ w in one branch of an If, x @ w + w[0] in the other."""
    then = [helper.make_node("MatMul", ["x", "w"], ["t"])]
    other = [
        helper.make_node("Constant", [], ["c"], value=numpy_helper.from_array(WEIGHT[0])),
        helper.make_node("MatMul", ["x", "w"], ["m"]),
        helper.make_node("Add", ["m", "c"], ["e"]),
    ]
    node = helper.make_node(
        "If",
        ["on"],
        ["y"],
        then_branch=helper.make_graph(then, "then", [], [info("t")]),
        else_branch=helper.make_graph(other, "else", [], [info("e")]),
    )
    inputs = [info("x"), info("on", [], TensorProto.BOOL)]
    return make([node], [numpy_helper.from_array(WEIGHT, "w")], inputs)


def run(model, **feeds):
    return onnxruntime.InferenceSession(model_io.to_bytes(model)).run(None, feeds)[0]


X = np.linspace(-1, 1, 64, dtype=np.float32).reshape(2, 32)


@pytest.mark.parametrize("path", MODELS, ids=lambda path: path.stem)
def test_real_models_come_back_with_the_same_outputs(path):
    model = model_io.load(path)
    before = model_io.to_bytes(model)
    back = graphsurgeon.from_surgeon(graphsurgeon.to_surgeon(model))
    assert model_io.to_bytes(model) == before
    assert abs(model_io.model_bytes(back) - len(before)) < 1000
    (taken,) = onnxruntime.InferenceSession(before).get_inputs()
    shape = [size if isinstance(size, int) else 2 for size in taken.shape]
    feed = np.random.default_rng(0).standard_normal(shape).astype(np.float32)
    np.testing.assert_array_equal(run(back, **{taken.name: feed}), run(model, **{taken.name: feed}))


def test_weights_are_not_read_on_the_way(monkeypatch, tmp_path):
    path = tmp_path / "m.onnx"
    path.write_bytes(branches().SerializeToString())
    model = model_io.load(path)
    before = {value.name: value.const_value for value in model.graph.initializers.values()}
    assert isinstance(before["w"], StoredTensor)

    def refuse(*_):
        raise AssertionError("a weight was read")

    monkeypatch.setattr(StoredTensor, "numpy", refuse)
    monkeypatch.setattr(StoredTensor, "tobytes", refuse)
    back = graphsurgeon.from_surgeon(graphsurgeon.to_surgeon(model))
    assert back.graph.initializers["w"].const_value is before["w"]


def test_an_edit_arrives():
    model = model_io.load(linear())
    graph = graphsurgeon.to_surgeon(model)
    weight = graph.tensors()["w"]
    weight.values *= 2
    graph.nodes.append(gs.Node("Relu", "added", inputs=[graph.outputs[0]], outputs=[gs.Variable("z", np.float32)]))
    graph.outputs = [graph.nodes[-1].outputs[0]]
    back = graphsurgeon.from_surgeon(graph)
    np.testing.assert_allclose(run(back, x=X), np.maximum(X @ WEIGHT * 2, 0), rtol=1e-5)
    np.testing.assert_allclose(run(model, x=X), X @ WEIGHT, rtol=1e-5)


@pytest.mark.parametrize("on", [True, False])
def test_if_bodies_keep_working_and_share_their_weights(on):
    model = model_io.load(branches())
    back = graphsurgeon.from_surgeon(graphsurgeon.to_surgeon(model))
    expected = X @ WEIGHT + (0 if on else WEIGHT[0])
    np.testing.assert_allclose(run(back, x=X, on=np.array(on)), expected, rtol=1e-5)
    assert list(back.graph.initializers) == ["w"]
    assert abs(model_io.model_bytes(back) - model_io.model_bytes(model)) < 100


def test_metadata_and_doc_strings_come_back():
    proto = linear()
    proto.doc_string = "model doc"
    proto.producer_name = "p"
    proto.domain = "d"
    proto.metadata_props.add(key="k", value="v")
    proto.graph.doc_string = "graph doc"
    proto.graph.node[0].doc_string = "node doc"
    proto.graph.node[0].metadata_props.add(key="n", value="v")
    proto.graph.input[0].doc_string = "input doc"
    annotation = proto.graph.quantization_annotation.add(tensor_name="y")
    annotation.quant_parameter_tensor_names.add(key="SCALE_TENSOR", value="s")
    model = model_io.load(proto)
    back = model_io.load(graphsurgeon.to_surgeon(model))
    assert onnx.ModelProto.FromString(model_io.to_bytes(back)) == proto
    graph = graphsurgeon.to_surgeon(model).copy()  # a copy does not know where it came from
    assert not graphsurgeon.from_surgeon(graph).metadata_props
    assert graphsurgeon.from_surgeon(graph, model).metadata_props == {"k": "v"}


def test_a_graph_made_elsewhere_is_loaded_and_left_as_it_is():
    large = helper.make_node("Constant", [], ["c"], value=numpy_helper.from_array(WEIGHT))
    for proto in (linear(), branches(), make([large, helper.make_node("MatMul", ["x", "c"], ["y"])])):
        graph = gs.import_onnx(proto)
        before = gs.export_onnx(graph).SerializeToString()
        expected = model_io.load(proto)
        loaded = model_io.load(graph)
        feeds = {"x": X} | ({"on": np.array(False)} if len(proto.graph.input) > 1 else {})
        np.testing.assert_array_equal(run(loaded, **feeds), run(expected, **feeds))
        assert gs.export_onnx(graph).SerializeToString() == before
        assert all(type(t.values) is np.ndarray for t in graph.tensors().values() if isinstance(t, gs.Constant))


def test_a_graph_made_from_arrays_is_loaded():
    x, y = gs.Variable("x", np.float32, (2, 32)), gs.Variable("y", np.float32)
    node = gs.Node("MatMul", inputs=[x, gs.Constant("w", WEIGHT)], outputs=[y])
    model = model_io.load(gs.Graph([node], [x], [y], opset=13))
    np.testing.assert_allclose(run(model, x=X), X @ WEIGHT, rtol=1e-5)


def test_functions_keep_working():
    body = [
        helper.make_node("Constant", [], ["c"], value=numpy_helper.from_array(WEIGHT)),
        helper.make_node("MatMul", ["a", "c"], ["b"]),
    ]
    function = helper.make_function("d", "F", ["a"], ["b"], body, [helper.make_opsetid("", 17)])
    proto = make([helper.make_node("F", ["x"], ["y"], domain="d")], functions=[function])
    model = model_io.load(proto)
    graph = graphsurgeon.to_surgeon(model)
    for _ in range(2):
        np.testing.assert_allclose(run(graphsurgeon.from_surgeon(graph), x=X), X @ WEIGHT, rtol=1e-5)


def test_bfloat16_survives_untouched_and_touched():
    values = WEIGHT.astype(ml_dtypes.bfloat16)
    stored = TensorProto(name="w", dims=[32, 32], data_type=TensorProto.BFLOAT16, raw_data=values.tobytes())
    nodes = [helper.make_node("Cast", ["w"], ["y"], to=TensorProto.FLOAT)]
    model = model_io.load(make(nodes, [stored], outputs=[info("y", (32, 32))]))
    graph = graphsurgeon.to_surgeon(model)
    for _ in range(2):
        tensor = graphsurgeon.from_surgeon(graph).graph.initializers["w"].const_value
        assert tensor.dtype == ir.DataType.BFLOAT16
        assert tensor.tobytes() == values.tobytes()
        assert graph.tensors()["w"].values.dtype == ml_dtypes.bfloat16  # reads it


def test_initializers_that_were_inputs_become_free_and_the_ir_version_follows():
    proto = linear()
    proto.ir_version = 3
    proto.opset_import[0].version = 8
    proto.graph.input.append(info("w", (32, 32)))
    back = graphsurgeon.from_surgeon(graphsurgeon.to_surgeon(model_io.load(proto)))
    assert [value.name for value in back.graph.inputs] == ["x"]
    assert back.ir_version >= 4
    onnx.checker.check_model(model_io.skeleton(back))


def _typed(kind):
    nodes = [helper.make_node("Identity", ["x"], ["y"])]
    return make(nodes, inputs=[info("x", kind=kind)], outputs=[info("y", kind=kind)], opset=24, ir_version=12)


def _weighted(kind, dims):
    stored = TensorProto(name="w", dims=dims, data_type=kind, raw_data=bytes(4096))
    nodes = [helper.make_node("Cast", ["w"], ["y"], to=TensorProto.FLOAT)]
    return make(nodes, [stored], outputs=[info("y", dims)], opset=24, ir_version=12)


def _constant(kind):
    stored = TensorProto(dims=[8192], data_type=kind, raw_data=bytes(4096))
    nodes = [
        helper.make_node("Constant", [], ["w"], value=stored),
        helper.make_node("Identity", ["w"], ["y"]),
    ]
    return make(nodes, outputs=[info("y", [8192], kind)], opset=24, ir_version=12)


def _valued(proto):
    nodes = [helper.make_node("Odd", ["x"], ["y"], domain="d")]
    return make(nodes, outputs=[helper.make_value_info("y", proto)])


def _attributed(**attributes):
    return make([helper.make_node("Odd", ["x"], ["y"], domain="d", **attributes)])


TENSOR = info("").type
REFUSED = {
    "int4": (_weighted(TensorProto.INT4, [8192]), "INT4"),
    "uint4": (_weighted(TensorProto.UINT4, [8192]), "UINT4"),
    "int2": (_weighted(TensorProto.INT2, [16384]), "INT2"),
    "float4": (_weighted(TensorProto.FLOAT4E2M1, [8192]), "FLOAT4E2M1"),
    "float8e4m3fnuz": (_weighted(TensorProto.FLOAT8E4M3FNUZ, [4096]), "FLOAT8E4M3FNUZ"),
    "int4 in a constant": (_constant(TensorProto.INT4), "INT4"),
    "int4 as a value": (_typed(TensorProto.INT4), "INT4"),
    "optional": (_valued(helper.make_optional_type_proto(TENSOR)), "OptionalType"),
    "sequence": (_valued(helper.make_sequence_type_proto(TENSOR)), "SequenceType"),
    "map": (_valued(helper.make_map_type_proto(TensorProto.INT64, TENSOR)), "RawType"),
    "tensors": (_attributed(a=[numpy_helper.from_array(WEIGHT)] * 2), "TENSORS"),
    "type": (_attributed(a=TENSOR), "TYPE_PROTO"),
    "bytes": (_attributed(a=b"\xff"), "STRING"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_graphsurgeon_can_not_carry_is_refused(name):
    proto, reason = REFUSED[name]
    with pytest.raises(ModelError, match=f"can't carry .*{reason}") as caught:
        graphsurgeon.to_surgeon(model_io.load(proto))
    assert caught.value.hint


def test_failures_of_graphsurgeon_are_model_errors_and_print_nothing(capfd):
    y = gs.Variable("y")
    graph = gs.Graph([gs.Node("Relu", inputs=[gs.Variable("x")], outputs=[y])], [], [y])
    with pytest.raises(ModelError, match="can't export"):
        graphsurgeon.from_surgeon(graph)
    assert capfd.readouterr() == ("", "")


def test_external_data_that_was_not_loaded_is_refused():
    tensor = TensorProto(name="w", dims=[32, 32], data_type=1, data_location=TensorProto.EXTERNAL)
    tensor.external_data.add(key="location", value="w.bin")
    graph = gs.import_onnx(make([helper.make_node("MatMul", ["x", "w"], ["y"])], [tensor]))
    with pytest.raises(ModelError, match="external data"):
        graphsurgeon.from_surgeon(graph)


def test_400_mb_pass_through_in_little_memory(tmp_path):
    code = """
        import resource, sys
        import numpy as np, onnx_ir as ir
        from onnxcompress.io import graphsurgeon, model_io
        start = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        model = model_io.load(sys.argv[1])
        graph = graphsurgeon.to_surgeon(model)
        model_io.save(graphsurgeon.from_surgeon(graph), sys.argv[2])
        print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - start)
    """
    rows = 4096
    tensors = [TensorProto(name=f"w{i}", dims=[rows, 2560], data_type=1) for i in range(10)]
    for i, tensor in enumerate(tensors):
        tensor.data_location = TensorProto.EXTERNAL
        for key, value in (("location", "w.bin"), ("offset", i * rows * 10240), ("length", rows * 10240)):
            tensor.external_data.add(key=key, value=str(value))
    with (tmp_path / "w.bin").open("wb") as file:
        file.truncate(10 * rows * 10240)
    nodes = [helper.make_node("Identity", [f"w{i}"], [f"y{i}"]) for i in range(10)]
    outputs = [info(f"y{i}", (rows, 2560)) for i in range(10)]
    (tmp_path / "m.onnx").write_bytes(make(nodes, tensors, outputs=outputs).SerializeToString())
    command = [sys.executable, "-c", textwrap.dedent(code), tmp_path / "m.onnx", tmp_path / "out.onnx"]
    root = Path(__file__).parents[2]
    done = subprocess.run(command, capture_output=True, text=True, cwd=root, check=True)
    assert int(done.stdout) < 60 * 1024
    assert (tmp_path / "out.onnx").stat().st_size > 400 * 2**20
