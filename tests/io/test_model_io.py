import os
import resource
import subprocess
import sys
import textwrap
from pathlib import Path

import ml_dtypes
import numpy as np
import onnx
import onnx_ir as ir
import onnxruntime
import pytest
from onnx import TensorProto, helper, numpy_helper

from onnxcompress.base import atomic_files
from onnxcompress.errors import ModelError, UsageError
from onnxcompress.graph.query import graphs
from onnxcompress.io import model_io
from onnxcompress.io import save as saving
from onnxcompress.io.serialize import RawType
from onnxcompress.io.tensors import SparseTensor, StoredTensor

MODELS = sorted((Path(__file__).parents[2] / "models").glob("*.onnx"))
BACKEND = Path(onnx.__file__).parent / "backend" / "test" / "data"
WEIGHT = np.arange(32 * 32, dtype=np.float32).reshape(32, 32)


def info(name, dims=("N", 32), kind=TensorProto.FLOAT):
    return helper.make_tensor_value_info(name, kind, dims)


def make(nodes=None, initializers=None, inputs=None, outputs=None, opset=17, ir_version=8, **fields):
    """A model whose defaults are y = x @ w."""
    nodes = nodes or [helper.make_node("MatMul", ["x", "w"], ["y"], name="mul")]
    initializers = [numpy_helper.from_array(WEIGHT, "w")] if initializers is None else initializers
    graph = helper.make_graph(nodes, "g", inputs or [info("x")], outputs or [info("y")], initializers)
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=ir_version, **fields)


def write(tmp_path, proto, name="m.onnx"):
    path = tmp_path / name
    path.write_bytes(proto.SerializeToString())
    return path


def external(name, location, *, offset=None, length=None, dims=(32, 32), kind=TensorProto.FLOAT):
    tensor = TensorProto(name=name, dims=dims, data_type=kind, data_location=TensorProto.EXTERNAL)
    for key, value in (("location", location), ("offset", offset), ("length", length)):
        if value is not None:
            tensor.external_data.add(key=key, value=str(value))
    return tensor


def arrays(proto):
    """Every tensor of a proto by where it is."""
    found = {}

    def visit(graph, at):
        for tensor in graph.initializer:
            found[(*at, tensor.name)] = (tensor.data_type, numpy_helper.to_array(tensor))
        nodes(graph.node, at)

    def nodes(nodes, at):
        for index, node in enumerate(nodes):
            for attribute in node.attribute:
                here = (*at, index, attribute.name)
                if attribute.type == onnx.AttributeProto.TENSOR:
                    found[here] = (attribute.t.data_type, numpy_helper.to_array(attribute.t))
                elif attribute.type == onnx.AttributeProto.GRAPH:
                    visit(attribute.g, here)

    visit(proto.graph, ())
    for function in proto.functions:
        nodes(function.node, (function.name,))
    return found


def assert_same_model(before, after):
    expected, found = arrays(before), arrays(after)
    assert expected.keys() == found.keys()
    for key, (kind, array) in expected.items():
        assert found[key][0] == kind
        assert found[key][1].shape == array.shape
        assert found[key][1].tobytes() == array.tobytes()
    assert [n.op_type for n in before.graph.node] == [n.op_type for n in after.graph.node]
    assert [list(n.input) for n in before.graph.node] == [list(n.input) for n in after.graph.node]
    for name in ("input", "output"):
        assert list(getattr(before.graph, name)) == list(getattr(after.graph, name))


# Round trips


@pytest.mark.parametrize("path", MODELS, ids=lambda path: path.stem)
def test_real_models_come_back_as_they_were(path, tmp_path):
    before = onnx.load(path)
    saved = model_io.save(model_io.load(path), tmp_path / "out.onnx")
    assert_same_model(before, onnx.load(saved.path))
    assert saved.bytes == saved.path.stat().st_size
    assert saved.bytes <= path.stat().st_size * 1.001 + 100
    external = model_io.save(model_io.load(path), tmp_path / "ext.onnx", external_data="always")
    assert_same_model(before, onnx.load(external.path))


def _backend_models():
    return sorted(BACKEND.glob("*/*/model.onnx"))


def test_every_model_of_the_onnx_backend_comes_back_as_it_was():
    paths = _backend_models()
    assert len(paths) > 100
    for path in paths:
        before = onnx.load(path)
        after = onnx.ModelProto.FromString(model_io.to_bytes(model_io.load(path)))
        assert_same_model(before, after)


@pytest.mark.parametrize("path", MODELS, ids=lambda path: path.stem)
def test_every_source_gives_the_same_model(path):
    expected = model_io.to_bytes(model_io.load(path))
    assert model_io.to_bytes(model_io.load(str(path))) == expected
    assert model_io.to_bytes(model_io.load(onnx.load(path))) == expected
    assert model_io.to_bytes(model_io.load(ir.load(path))) == expected
    assert model_io.to_bytes(model_io.restore(*model_io.detach(model_io.load(path)))) == expected


DTYPES = {
    TensorProto.FLOAT16: np.float16,
    TensorProto.BFLOAT16: ml_dtypes.bfloat16,
    TensorProto.DOUBLE: np.float64,
    TensorProto.COMPLEX64: np.complex64,
    TensorProto.BOOL: np.bool_,
    TensorProto.UINT16: np.uint16,
    TensorProto.FLOAT8E4M3FN: ml_dtypes.float8_e4m3fn,
    TensorProto.FLOAT8E4M3FNUZ: ml_dtypes.float8_e4m3fnuz,
    TensorProto.FLOAT8E5M2: ml_dtypes.float8_e5m2,
    TensorProto.FLOAT8E8M0: ml_dtypes.float8_e8m0fnu,
    TensorProto.INT4: ml_dtypes.int4,
    TensorProto.UINT4: ml_dtypes.uint4,
    TensorProto.INT2: ml_dtypes.int2,
    TensorProto.UINT2: ml_dtypes.uint2,
    TensorProto.FLOAT4E2M1: ml_dtypes.float4_e2m1fn,
}


@pytest.mark.parametrize("count", [0, 3, 9001], ids=["empty", "small", "large"])
@pytest.mark.parametrize("kind", DTYPES, ids=TensorProto.DataType.Name)
def test_every_dtype_survives_inline_and_external(kind, count, tmp_path):
    values = (np.arange(count) % 2).astype(DTYPES[kind])
    tensor = ir.Tensor(values, ir.DataType(kind), name="w")
    stored = TensorProto(name="w", dims=[count], data_type=kind, raw_data=tensor.tobytes())
    nodes = [helper.make_node("Identity", ["w"], ["y"])]
    proto = make(nodes, [stored], outputs=[info("y", [count], kind)], opset=24, ir_version=12)
    path = write(tmp_path, proto)
    for placement in ("never", "always"):
        loaded = model_io.load(model_io.save(model_io.load(path), tmp_path / placement, external_data=placement).path)
        found = loaded.graph.initializers["w"].const_value
        assert found.dtype == ir.DataType(kind)
        assert found.tobytes() == stored.raw_data
        assert found.numpy().dtype == values.dtype
        np.testing.assert_array_equal(found.numpy().astype(np.complex64), values.astype(np.complex64))


def test_strings_survive():
    words = [b"one", "zwölf".encode(), b"\xff\xfe", b""] * 500
    stored = TensorProto(name="w", dims=[len(words)], data_type=TensorProto.STRING, string_data=words)
    nodes = [helper.make_node("Identity", ["w"], ["y"])]
    proto = make(nodes, [stored], outputs=[info("y", [len(words)], TensorProto.STRING)])
    after = onnx.ModelProto.FromString(model_io.to_bytes(model_io.load(proto)))
    assert list(after.graph.initializer[0].string_data) == words


def test_weights_in_constants_subgraphs_and_functions_stay_on_disk(tmp_path):
    body = helper.make_graph(
        [helper.make_node("Add", ["x", "v"], ["t"])],
        "b",
        [],
        [info("t")],
        [numpy_helper.from_array(WEIGHT, "v")],
    )
    constant = helper.make_node("Constant", [], ["c"], value=numpy_helper.from_array(WEIGHT + 1))
    nodes = [
        helper.make_node("If", ["on"], ["r"], then_branch=body, else_branch=body),
        helper.make_node("F", ["r"], ["y"], domain="d"),
    ]
    imports = [helper.make_opsetid("", 17)]
    function = helper.make_function(
        "d", "F", ["a"], ["b"], [constant, helper.make_node("Add", ["a", "c"], ["b"])], imports
    )
    proto = make(nodes, [], [info("x", [32, 32]), info("on", [], TensorProto.BOOL)], functions=[function])
    proto.opset_import.add(domain="d", version=1)
    path = write(tmp_path, proto)
    model = model_io.load(path)
    light = model_io.skeleton(model)
    assert light.ByteSize() < 2500 < 3 * WEIGHT.nbytes
    attribute = light.functions[0].node[0].attribute[0]
    assert attribute.t.data_location == TensorProto.EXTERNAL
    onnx.checker.check_model(light, full_check=True)
    assert_same_model(proto, onnx.ModelProto.FromString(model_io.to_bytes(model)))


def test_metadata_survives(tmp_path):
    proto = make(producer_name="p", producer_version="1", domain="dom", model_version=7, doc_string="model doc")
    proto.metadata_props.add(key="z", value="1")
    proto.metadata_props.add(key="a", value="2")
    proto.opset_import.add(domain="custom", version=3)
    graph = proto.graph
    graph.doc_string = "graph doc"
    graph.metadata_props.add(key="gz", value="1")
    graph.metadata_props.add(key="ga", value="1")
    graph.input[0].doc_string = "input doc"
    graph.input[0].type.denotation = "IMAGE"
    graph.input[0].type.tensor_type.shape.dim[0].denotation = "DATA_BATCH"
    graph.initializer[0].doc_string = "tensor doc"
    graph.initializer[0].metadata_props.add(key="t", value="1")
    graph.node[0].doc_string = "node doc"
    graph.node[0].metadata_props.add(key="n", value="1")
    graph.node[0].attribute.add(name="unknown", type=onnx.AttributeProto.INT, i=3, doc_string="attribute doc")
    graph.node.add(op_type="Odd", domain="custom", input=["y", ""], output=["", "q"])
    graph.value_info.append(info("q", (None, "M")))
    graph.value_info[0].doc_string = "value doc"
    annotation = graph.quantization_annotation.add(tensor_name="y")
    annotation.quant_parameter_tensor_names.add(key="SCALE_TENSOR", value="s")
    for model in (model_io.load(write(tmp_path, proto)), model_io.clone(model_io.load(proto))):
        assert onnx.ModelProto.FromString(model_io.to_bytes(model)) == proto


def test_what_onnx_ir_has_no_place_for_survives(tmp_path):
    sparse = onnx.SparseTensorProto(dims=[4, 4])
    sparse.values.CopyFrom(numpy_helper.from_array(np.array([2.0, 3.0], np.float32), "s"))
    sparse.indices.CopyFrom(numpy_helper.from_array(np.array([[0, 1], [3, 3]], np.int64)))
    nodes = [
        helper.make_node("Identity", ["s"], ["y"]),
        helper.make_node("Constant", [], ["c"], sparse_value=sparse),
        helper.make_node("Odd", ["c"], ["m"], domain="odd", raw=b"\xff\xfe", raws=[b"\xff", b"a"]),
    ]
    classes = helper.make_sequence_type_proto(helper.make_map_type_proto(TensorProto.INT64, info("").type))
    outputs = [info("y", [4, 4]), helper.make_value_info("m", classes)]
    proto = make(nodes, [], outputs=outputs)
    proto.opset_import.add(domain="odd", version=1)
    proto.graph.sparse_initializer.append(sparse)
    proto.training_info.add().update_binding.add(key="a", value="b")
    old = onnx.AttributeProto(name="untyped", ints=[1, 2])
    proto.graph.node[2].attribute.append(old)
    model = model_io.load(write(tmp_path, proto))
    proto.graph.node[2].attribute[-1].type = onnx.AttributeProto.INTS
    for copy in (model, model_io.clone(model), model_io.restore(*model_io.detach(model))):
        assert onnx.ModelProto.FromString(model_io.to_bytes(copy)) == proto
    tensor = model.graph.initializers["s"].const_value
    assert isinstance(tensor, SparseTensor)
    dense = np.zeros((4, 4), np.float32)
    dense[0, 1], dense[3, 3] = 2, 3
    np.testing.assert_array_equal(tensor.numpy(), dense)
    assert isinstance(model.graph.outputs[1].type, RawType)


@pytest.mark.parametrize("ir_version", [9, 10])
def test_types_of_function_values_survive(ir_version):
    imports = [helper.make_opsetid("", 17)]
    function = helper.make_function("d", "F", ["a"], ["b"], [helper.make_node("Relu", ["a"], ["b"])], imports)
    proto = make([helper.make_node("F", ["x"], ["y"], domain="d")], [], functions=[function], ir_version=ir_version)
    proto.opset_import.add(domain="d", version=1)
    if ir_version < 10:
        proto.graph.value_info.append(info("d::F/b"))
    else:
        proto.functions[0].value_info.append(info("b"))
    assert onnx.ModelProto.FromString(model_io.to_bytes(model_io.load(proto))) == proto


def test_initializers_that_are_graph_inputs_stay_so():
    proto = make(inputs=[info("x"), info("w", (32, 32))], ir_version=3, opset=8)
    assert onnx.ModelProto.FromString(model_io.to_bytes(model_io.load(proto))) == proto


def test_clone_takes_nodes_in_any_order():
    nodes = [helper.make_node("Relu", ["t"], ["y"]), helper.make_node("MatMul", ["x", "w"], ["t"])]
    model = model_io.load(make(nodes))
    assert model_io.to_bytes(model_io.clone(model)) == model_io.to_bytes(model)


def test_clone_keeps_what_passes_noted():
    model = model_io.load(make())
    model.meta["a"] = model.graph.meta["b"] = model.graph[0].meta["c"] = 1
    copy = model_io.clone(model)
    assert (copy.meta["a"], copy.graph.meta["b"], copy.graph[0].meta["c"]) == (1, 1, 1)


def test_the_callers_model_is_never_changed():
    proto = make()
    before = proto.SerializeToString()
    model = model_io.load(proto)
    model.graph.initializers["w"].name = "renamed"
    model.graph[0].doc_string = "changed"
    assert proto.SerializeToString() == before
    copy = model_io.load(model)
    copy.graph[0].doc_string = "changed again"
    copy.metadata_props["k"] = "v"
    copy.graph.remove(copy.graph[0])
    assert model.graph[0].doc_string == "changed"
    assert not model.metadata_props


# Sizes


def test_sizes_are_exact_and_read_no_weight(monkeypatch, tmp_path):
    path = write(tmp_path, make())
    model = model_io.load(path)
    expected = len(model_io.to_bytes(model))

    def refuse(*_):
        raise AssertionError("a weight was read")

    monkeypatch.setattr(StoredTensor, "tobytes", refuse)
    monkeypatch.setattr(StoredTensor, "numpy", refuse)
    monkeypatch.setattr("onnxcompress.io.serialize.chunks", refuse)
    assert model_io.model_bytes(model) == expected


def test_node_records_are_dropped_and_measured_exactly():
    proto = make()
    proto.doc_string = "model doc"
    proto.metadata_props.add(key="k", value="v")
    proto.graph.input[0].doc_string = "kept"
    body = helper.make_graph([helper.make_node("Relu", ["x"], ["b"], doc_string="d")], "b", [], [info("b")])
    proto.graph.node.append(helper.make_node("If", ["x"], ["z"], then_branch=body, else_branch=body))
    proto.graph.value_info.append(info("z"))
    proto.graph.value_info[0].metadata_props.add(key="v", value="w" * 300)
    proto.graph.node[0].metadata_props.add(key="pkg.torch.onnx.stack_trace", value="somewhere/deep" * 20)
    proto.graph.node[0].metadata_props.add(key="namespace", value="a.b")
    model = model_io.load(proto)
    before = model_io.model_bytes(model)
    dropped = model_io.drop_node_records(model)
    assert dropped.count == 5  # two doc strings in the branches, two entries of the node, one of the value
    assert dropped.bytes == before - len(model_io.to_bytes(model)) > 500
    after = onnx.ModelProto.FromString(model_io.to_bytes(model))
    assert b"someone" not in after.SerializeToString()
    assert (after.doc_string, after.metadata_props[0].value) == ("model doc", "v")
    assert after.graph.input[0].doc_string == "kept"
    assert model_io.drop_node_records(model) == model_io.Dropped(0, 0)


# Errors


NOT_MODELS = {
    "empty": (b"", "is empty"),
    "text": (b"hello, this is some text\n" * 20, "m.onnx"),
    "zip": (b"PK\x03\x04" + bytes(100), "zip archive"),
    "png": (b"\x89PNG\r\n\x1a\n" + bytes(100), "PNG"),
    "html": (b"<!DOCTYPE html><html></html>", "HTML"),
    "lfs": (b"version https://git-lfs.github.com/spec/v1\noid sha256:0\n", "Git LFS"),
    "ort": (b"\x00\x00\x00\x00ORTM" + bytes(100), "ORT-format"),
    "zeros": (bytes(1000), "malformed at byte 0"),
    "other protobuf": (helper.make_opsetid("", 3).SerializeToString(), "graph"),
    "tensor": (numpy_helper.from_array(WEIGHT, "w").SerializeToString(), "m.onnx"),
    "no graph": (onnx.ModelProto(ir_version=8).SerializeToString(), "is not an ONNX model: it holds no graph"),
    "two graphs": (2 * make().SerializeToString(), "holds 2 graphs where one is allowed"),
    "no outputs": (
        onnx.ModelProto(ir_version=8, graph=onnx.GraphProto(name="g")).SerializeToString(),
        "no outputs",
    ),
    "truncated": (make().SerializeToString()[:-200], "malformed"),
}


@pytest.mark.parametrize("name", NOT_MODELS)
def test_files_that_are_no_model_are_refused(name, tmp_path):
    content, message = NOT_MODELS[name]
    path = tmp_path / "m.onnx"
    path.write_bytes(content)
    with pytest.raises(ModelError, match=message) as caught:
        model_io.load(path)
    assert caught.value.where.startswith(str(path))


def test_random_bytes_are_refused(tmp_path):
    generator = np.random.default_rng(0)
    path = tmp_path / "m.onnx"
    for _ in range(300):
        path.write_bytes(generator.bytes(int(generator.integers(1, 3000))))
        with pytest.raises(ModelError):
            model_io.load(path)


def test_flipped_bytes_give_a_model_or_a_model_error(tmp_path):
    generator = np.random.default_rng(1)
    data = (BACKEND / "simple" / "test_sequence_model4" / "model.onnx").read_bytes() + make().SerializeToString()
    refused = 0
    for original in (make().SerializeToString(), data[: -make().ByteSize()]):
        for _ in range(300):
            mutated = bytearray(original)
            for at in generator.integers(0, min(len(mutated), 400), 3):
                mutated[at] = generator.integers(0, 256)
            path = tmp_path / "m.onnx"
            path.write_bytes(mutated)
            try:
                model_io.to_bytes(model_io.load(path))
            except ModelError:
                refused += 1
    assert 0 < refused < 600


@pytest.mark.parametrize("field", ["ir_version", "opset_import"])
def test_a_missing_version_is_named(field):
    proto = make()
    proto.ClearField(field)
    with pytest.raises(ModelError, match=r"no ir_version|imports no opset"):
        model_io.load(proto)


def test_a_version_of_the_future_is_refused():
    proto = make()
    proto.ir_version = 99
    with pytest.raises(ModelError, match="ir_version 99") as caught:
        model_io.load(proto)
    assert "newer onnx" in caught.value.hint


def test_missing_files_and_folders_are_named(tmp_path):
    with pytest.raises(ModelError, match="no such file"):
        model_io.load(tmp_path / "none.onnx")
    with pytest.raises(ModelError, match="is a folder"):
        model_io.load(tmp_path)
    with pytest.raises(ModelError, match="not a usable file name"):
        model_io.load("a\0b")
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(ModelError, match="not a regular file"):
        model_io.load(tmp_path / "pipe")
    with pytest.raises(ModelError, match="a int is not a model"):
        model_io.load(3)


@pytest.mark.skipif(os.geteuid() == 0, reason="root may read anything")
def test_an_unreadable_file_is_named(tmp_path):
    path = write(tmp_path, make())
    path.chmod(0)
    with pytest.raises(ModelError, match="no permission"):
        model_io.load(path)


INCONSISTENT = {
    "raw too short": TensorProto(name="w", dims=[32, 32], data_type=1, raw_data=b"1234"),
    "raw too long": TensorProto(name="w", dims=[32], data_type=1, raw_data=bytes(2000)),
    "no data": TensorProto(name="w", dims=[10**12], data_type=1),
    "too few values": TensorProto(name="w", dims=[32, 32], data_type=1, float_data=[1.0]),
    "negative": TensorProto(name="w", dims=[-1, -1024], data_type=1, raw_data=bytes(4096)),
    "undefined type": TensorProto(name="w", dims=[1], data_type=0, raw_data=bytes(4)),
    "unknown type": TensorProto(name="w", dims=[1], data_type=77, raw_data=bytes(4)),
    "huge": TensorProto(name="w", dims=[2**62, 2**62], data_type=1, raw_data=bytes(4096)),
    "strings": TensorProto(name="w", dims=[3], data_type=8, string_data=[b"a"]),
}


@pytest.mark.parametrize("name", INCONSISTENT)
def test_tensors_that_contradict_themselves_are_refused(name):
    with pytest.raises(ModelError, match=r"m|w"):
        model_io.load(make(initializers=[INCONSISTENT[name]]))


def test_values_that_nothing_makes_are_refused(caplog):
    with pytest.raises(ModelError, match="node 'mul' uses 'w', which nothing makes"):
        model_io.load(make(initializers=[]))
    with pytest.raises(ModelError, match="output 'z' is made by no node"):
        model_io.load(make(outputs=[info("z")]))
    assert not caplog.records


def test_names_that_are_not_utf8_are_refused(tmp_path):
    path = tmp_path / "m.onnx"
    path.write_bytes(make().SerializeToString().replace(b"mul", b"m\xffl"))
    with pytest.raises(ModelError, match="not UTF-8"):
        model_io.load(path)


def test_values_made_twice_are_refused():
    node = helper.make_node("Relu", ["x"], ["y"])
    with pytest.raises(ModelError, match="redeclared"):
        model_io.load(make([node, node]))


# External data


def test_external_data_is_read_where_it_says(tmp_path):
    (tmp_path / "sub").mkdir()
    (tmp_path / "sub" / "w.bin").write_bytes(bytes(100) + WEIGHT.tobytes() + bytes(8))
    tensor = external("w", "sub/w.bin", offset=100, length=WEIGHT.nbytes)
    model = model_io.load(write(tmp_path, make(initializers=[tensor])))
    np.testing.assert_array_equal(model.graph.initializers["w"].const_value.numpy(), WEIGHT)
    assert_same_model(make(), onnx.ModelProto.FromString(model_io.to_bytes(model)))


BAD_REFERENCES = {
    "missing": (external("w", "none.bin"), "external data: no such file"),
    "parent": (external("w", "../w.bin"), "outside of the model's folder"),
    "inner parent": (external("w", "sub/../../w.bin"), "outside of the model's folder"),
    "windows parent": (external("w", "..\\w.bin"), "outside of the model's folder"),
    "absolute": (external("w", "/etc/passwd"), "outside of the model's folder"),
    "drive": (external("w", "C:\\w.bin"), "outside of the model's folder"),
    "link": (external("w", "link.bin"), "through a link"),
    "folder link": (external("w", "out/w.bin"), "through a link"),
    "folder": (external("w", "sub"), "is a folder"),
    "no location": (external("w", None), "without a usable file name"),
    "nul": (external("w", "a\0b"), "without a usable file name"),
    "offset": (external("w", "w.bin", offset=8), r"end at byte 4104 of a file of 4096 bytes"),
    "huge offset": (external("w", "w.bin", offset=2**70), "of a file of 4096 bytes"),
    "length": (external("w", "w.bin", length=4000), r"4000 bytes; FLOAT \[32, 32\] needs 4096"),
    "shape": (external("w", "w.bin", length=4096, dims=(32, 33)), "needs 4224"),
    "negative offset": (external("w", "w.bin", offset=-4), "offset must be non-negative|a negative offset"),
    "words": (external("w", "w.bin", offset="one"), "not a consistent model .*'one'"),
    "string": (external("w", "w.bin", kind=TensorProto.STRING), "external data of type STRING"),
    "itself": (external("w", "#raw_data", offset=0, length=4096), "end at byte 4096 of a file of"),
}


@pytest.mark.parametrize("name", BAD_REFERENCES)
def test_bad_external_data_is_refused(name, tmp_path):
    tensor, message = BAD_REFERENCES[name]
    (tmp_path / "w.bin").write_bytes(bytes(4096))
    folder = tmp_path / "model"
    (folder / "sub").mkdir(parents=True)
    (folder / "w.bin").write_bytes(WEIGHT.tobytes())
    (folder / "link.bin").symlink_to(tmp_path / "w.bin")
    (folder / "out").symlink_to(tmp_path)
    path = write(folder, make(initializers=[tensor]))
    with pytest.raises(ModelError, match=message) as caught:
        model_io.load(path)
    assert str(folder) in caught.value.where


def test_links_inside_the_folder_are_followed(tmp_path):
    (tmp_path / "real.bin").write_bytes(WEIGHT.tobytes())
    (tmp_path / "soft.bin").symlink_to("real.bin")
    (tmp_path / "hard.bin").hardlink_to(tmp_path / "real.bin")
    for name in ("soft.bin", "hard.bin"):
        model = model_io.load(write(tmp_path, make(initializers=[external("w", name)])))
        np.testing.assert_array_equal(model.graph.initializers["w"].const_value.numpy(), WEIGHT)


def test_a_reference_can_not_be_smuggled_into_a_small_tensor(tmp_path):
    secret = external("w", "#raw_data", offset=0, length=8, dims=(2,))
    secret.data_location = TensorProto.DEFAULT
    secret.raw_data = bytes(8)
    nodes = [helper.make_node("Add", ["v", "w"], ["y"])]
    model = model_io.load(make(nodes, [numpy_helper.from_array(WEIGHT, "v"), secret]))
    after = onnx.ModelProto.FromString(model_io.to_bytes(model))
    assert after.graph.initializer[1].raw_data == bytes(8)
    assert not after.graph.initializer[1].external_data


def test_external_data_without_a_folder_is_refused():
    with pytest.raises(ModelError, match="no folder to look for it") as caught:
        model_io.load(make(initializers=[external("w", "w.bin")]))
    assert "path" in caught.value.hint


def test_external_data_of_an_ir_model_is_kept_open(tmp_path):
    path = tmp_path / "m.onnx"
    ir.save(ir.from_proto(make()), path, external_data="w.bin")
    model = model_io.load(ir.load(path))
    (tmp_path / "w.bin").unlink()
    np.testing.assert_array_equal(model.graph.initializers["w"].const_value.numpy(), WEIGHT)


# Saving


def test_the_same_model_saves_to_the_same_bytes(tmp_path):
    for placement in ("never", "always"):
        first = model_io.save(model_io.load(MODELS[0]), tmp_path / "a.onnx", external_data=placement, force=True)
        content = first.path.read_bytes()
        data = first.data_path.read_bytes() if first.data_path else b""
        again = model_io.save(model_io.load(MODELS[0]), tmp_path / "a.onnx", external_data=placement, force=True)
        assert again == first
        assert again.path.read_bytes() == content
        assert (again.data_path.read_bytes() if again.data_path else b"") == data


def test_external_data_is_aligned_and_runs(tmp_path):
    saved = model_io.save(model_io.load(MODELS[0]), tmp_path / "a.onnx", external_data="always")
    assert saved.bytes == saved.path.stat().st_size + saved.data_path.stat().st_size
    assert saved.data_path.name.startswith("a-")
    proto = onnx.load(saved.path, load_external_data=False)
    entries = [{e.key: e.value for e in t.external_data} for t in proto.graph.initializer]
    assert all(int(entry["offset"]) % 4096 == 0 for entry in entries if entry)
    assert {entry["location"] for entry in entries if entry} == {saved.data_path.name}
    onnxruntime.InferenceSession(saved.path)


def test_a_tensor_used_twice_is_stored_once(tmp_path):
    model = model_io.load(make())
    value = ir.Value(name="w2", const_value=model.graph.initializers["w"].const_value)
    model.graph.register_initializer(value)
    saved = model_io.save(model, tmp_path / "a.onnx", external_data="always")
    assert saved.data_path.stat().st_size == WEIGHT.nbytes
    assert [t.name for t in onnx.load(saved.path).graph.initializer] == ["w", "w2"]


def test_without_large_tensors_there_is_no_data_file(tmp_path):
    model = model_io.load(make([helper.make_node("Relu", ["x"], ["y"])], []))
    assert model_io.save(model, tmp_path / "a.onnx", external_data="always").data_path is None


@pytest.fixture
def target(tmp_path):
    """A saved model, to be replaced."""
    path = tmp_path / "out.onnx"
    model_io.save(model_io.load(make()), path, external_data="always")
    return path


def changed():
    return model_io.load(make(initializers=[numpy_helper.from_array(WEIGHT * 2, "w")]))


def names(path):
    return sorted(p.name for p in path.parent.iterdir())


def test_an_existing_file_needs_force(target):
    before = target.read_bytes()
    with pytest.raises(UsageError, match="--force"):
        model_io.save(changed(), target)
    assert target.read_bytes() == before


def test_places_that_are_no_file_are_refused(tmp_path):
    model = changed()
    with pytest.raises(UsageError, match="is a folder"):
        model_io.save(model, tmp_path, force=True)
    (tmp_path / "file").touch()
    with pytest.raises(UsageError, match="is no folder"):
        model_io.save(model, tmp_path / "file" / "new" / "m.onnx")


def test_the_folder_of_a_file_is_made(tmp_path):
    assert model_io.save(changed(), tmp_path / "new" / "in it" / "m.onnx").path.is_file()


def test_a_replaced_model_takes_its_data_file_along(target):
    (old,) = target.parent.glob("*.data")
    saved = model_io.save(changed(), target, external_data="always", force=True)
    assert not old.exists()
    assert names(target) == sorted([target.name, saved.data_path.name])
    model_io.save(changed(), target, external_data="never", force=True)
    assert names(target) == [target.name]


def test_data_that_another_model_uses_stay(target):
    (old,) = target.parent.glob("*.data")
    (target.parent / "copy.onnx").write_bytes(target.read_bytes())
    model_io.save(changed(), target, force=True)
    assert old.exists()
    onnx.load(target.parent / "copy.onnx")


def test_foreign_data_files_are_never_removed(tmp_path):
    path = tmp_path / "out.onnx"
    (tmp_path / "w.bin").write_bytes(WEIGHT.tobytes())
    write(tmp_path, make(initializers=[external("w", "w.bin")]), "out.onnx")
    model_io.save(model_io.load(path), path, force=True)
    assert (tmp_path / "w.bin").exists()


@pytest.mark.parametrize("placement", ["never", "always"])
def test_a_model_can_be_saved_over_its_own_file(placement, tmp_path):
    path = write(tmp_path, make())
    model = model_io.load(path)
    for _ in range(2):
        model_io.save(model, path, external_data=placement, force=True)
        assert_same_model(make(), onnx.load(path))


def test_the_source_may_be_replaced_or_deleted_after_loading(tmp_path):
    path = write(tmp_path, make())
    model = model_io.load(path)
    other = write(tmp_path, make(initializers=[numpy_helper.from_array(WEIGHT * 3, "w")]), "other.onnx")
    other.replace(path)
    assert_same_model(make(), onnx.ModelProto.FromString(model_io.to_bytes(model)))
    path.unlink()
    assert_same_model(make(), onnx.load(model_io.save(model, tmp_path / "out.onnx").path))


def test_a_source_that_changes_in_place_is_noticed(tmp_path):
    path = write(tmp_path, make())
    model = model_io.load(path)
    with path.open("r+b") as file:
        file.seek(path.stat().st_size)
        file.write(b"more")
    with pytest.raises(ModelError, match="was changed while"):
        model.graph.initializers["w"].const_value.numpy()


@pytest.mark.parametrize("step", [0, 1])
@pytest.mark.parametrize("failure", [OSError("crash"), KeyboardInterrupt()], ids=["error", "interrupt"])
def test_a_crash_between_the_renames_leaves_the_old_model_whole(target, monkeypatch, step, failure):
    before = onnx.load(target)
    calls = []
    replace = Path.replace

    def crash(self, destination):
        calls.append(destination)
        if len(calls) > step:
            raise failure
        return replace(self, destination)

    monkeypatch.setattr(Path, "replace", crash)
    with pytest.raises((ModelError, KeyboardInterrupt)):
        model_io.save(changed(), target, external_data="always", force=True)
    assert len(calls) == step + 1
    assert_same_model(before, onnx.load(target))
    assert not list(target.parent.glob(".*.tmp"))


def test_a_failing_tensor_leaves_nothing_behind(target):
    before = names(target), target.read_bytes()
    model = changed()
    broken = ir.LazyTensor(lambda: ir.tensor(WEIGHT[:3]), ir.DataType.FLOAT, ir.Shape([32, 32]), name="w")
    model.graph.initializers["w"].const_value = broken
    for placement in ("never", "always"):
        with pytest.raises(ModelError, match="bytes"):
            model_io.save(model, target, external_data=placement, force=True)
        assert (names(target), target.read_bytes()) == before


def test_temporary_files_of_dead_processes_are_removed(target):
    child = subprocess.run([sys.executable, "-c", "import os; print(os.getpid())"], capture_output=True, check=True)
    dead = target.with_name(f".{target.name}.{int(child.stdout)}.{'0' * 12}.tmp")
    alive = target.with_name(f".{target.name}.{os.getppid()}.{'0' * 12}.tmp")
    foreign = target.with_name(f".other.onnx.{int(child.stdout)}.{'0' * 12}.tmp")
    for path in (dead, alive, foreign):
        path.touch()
    model_io.save(changed(), target, force=True)
    assert not dead.exists()
    assert alive.exists()
    assert foreign.exists()


def test_a_new_file_keeps_the_mode_of_the_old(target):
    target.chmod(0o640)
    model_io.save(changed(), target, force=True)
    assert target.stat().st_mode & 0o777 == 0o640


def test_paths_with_spaces_and_other_letters(tmp_path):
    path = tmp_path / "mein Modell äöü 模型.onnx"
    saved = model_io.save(changed(), path, external_data="always")
    assert_same_model(onnx.load(saved.path), onnx.ModelProto.FromString(model_io.to_bytes(changed())))


def run(code, *arguments):
    command = [sys.executable, "-c", textwrap.dedent(code), *map(str, arguments)]
    done = subprocess.run(command, capture_output=True, text=True, cwd=Path(__file__).parents[2], check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout.split()


@pytest.mark.parametrize("placement", ["never", "always"])
def test_a_full_disk_leaves_the_old_model_and_says_what_is_needed(target, placement):
    before = names(target), target.read_bytes()
    code = """
        import resource, sys
        from onnxcompress.io import model_io
        from onnxcompress.errors import ModelError
        model = model_io.load(sys.argv[1])
        resource.setrlimit(resource.RLIMIT_FSIZE, (3000, 3000))
        try:
            model_io.save(model, sys.argv[1], external_data=sys.argv[2], force=True)
        except ModelError as error:
            print("no space left" in str(error), "bytes are needed" in str(error), "4096" in str(error))
    """
    found = run(code, target, placement)
    assert found[:2] == ["True", "True"]
    assert placement == "never" or found[2] == "True"
    assert (names(target), target.read_bytes()) == before


# Scale


def _sparse_model(folder, count, mebibytes):
    """A model with `count` weights that take no room on the disk."""
    rows = mebibytes * 256
    tensors = []
    for index in range(count):
        offset, length = index * rows * 4096, rows * 4096
        tensors.append(external(f"w{index}", "w.bin", offset=offset, length=length, dims=(rows, 1024)))
    (folder / "w.bin").touch()
    os.truncate(folder / "w.bin", count * rows * 4096)
    nodes = [helper.make_node("Identity", [f"w{index}"], [f"y{index}"]) for index in range(count)]
    outputs = [info(f"y{index}", (rows, 1024)) for index in range(count)]
    return write(folder, make(nodes, tensors, outputs=outputs))


def test_a_model_over_2_gib_is_loaded_sized_and_checked_without_reading(tmp_path):
    path = _sparse_model(tmp_path, 5, 600)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    model = model_io.load(path)
    onnx.checker.check_model(model_io.skeleton(model), full_check=True)
    assert model_io.model_bytes(model) > 5 * 600 * 2**20
    with pytest.raises(ModelError, match="over the 2 GiB"):
        model_io.to_bytes(model)
    with pytest.raises(ModelError, match="over the 2 GiB"):
        model_io.save(model, tmp_path / "out.onnx", external_data="never")
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 100 * 1024
    assert len(list(graphs(model))) == 1


def test_auto_leaves_the_file_when_it_does_not_fit(tmp_path, monkeypatch):
    monkeypatch.setattr(saving, "_INLINE_LIMIT_BYTES", 4000)
    saved = model_io.save(changed(), tmp_path / "a.onnx")
    assert saved.data_path is not None
    monkeypatch.setattr(saving, "_INLINE_LIMIT_BYTES", 5000)
    assert model_io.save(changed(), tmp_path / "b.onnx").data_path is None


@pytest.mark.parametrize("placement", ["never", "always"])
def test_loading_and_saving_300_mb_takes_little_memory(tmp_path, placement):
    source = model_io.save(model_io.load(_sparse_model(tmp_path, 10, 30)), tmp_path / "in.onnx", external_data="never")
    assert source.bytes > 300 * 2**20
    code = """
        import resource, sys
        from onnxcompress.io import model_io
        start = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        model_io.save(model_io.load(sys.argv[1]), sys.argv[2], external_data=sys.argv[3])
        print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - start)
    """
    (growth,) = run(code, source.path, tmp_path / "out.onnx", placement)
    assert int(growth) < 60 * 1024


def test_importing_does_not_import_graphsurgeon_or_onnxruntime():
    code = "import sys, onnxcompress.io.model_io; print({'onnx_graphsurgeon', 'onnxruntime'} & set(sys.modules))"
    assert run(code) == ["set()"]


# Opsets


def run_model(model, feeds):
    return onnxruntime.InferenceSession(model_io.to_bytes(model)).run(None, feeds)[0]


def test_an_opset_is_raised_by_its_import_where_no_operator_changed(monkeypatch):
    monkeypatch.delattr(onnx.version_converter, "convert_version")
    proto = make(opset=13)
    proto.graph.node[0].metadata_props.add(key="k", value="v")
    model = model_io.convert_opset(model_io.load(proto), 17)
    assert model.opset_imports == {"": 17}
    expected = onnx.ModelProto.FromString(model_io.to_bytes(model_io.load(proto)))
    expected.opset_import[0].version = 17
    assert onnx.ModelProto.FromString(model_io.to_bytes(model)) == expected


def test_an_opset_is_raised_by_rewriting_with_metadata_restored():
    imports = [helper.make_opsetid("", 11)]
    function = helper.make_function("d", "F", ["a"], ["b"], [helper.make_node("Relu", ["a"], ["b"])], imports)
    nodes = [
        helper.make_node("MatMul", ["x", "w"], ["t"], name="mul", doc_string="doc"),
        helper.make_node("Squeeze", ["t"], ["s"], axes=[0]),
        helper.make_node("F", ["s"], ["y"], domain="d"),
    ]
    proto = make(nodes, inputs=[info("x", (1, 32))], outputs=[info("y", (32,))], opset=11, ir_version=6)
    proto.functions.append(function)
    proto.opset_import.add(domain="d", version=1)
    proto.metadata_props.add(key="k", value="v")
    proto.graph.node[0].metadata_props.add(key="n", value="v")
    before = model_io.load(proto)
    after = model_io.convert_opset(before, 21)
    assert after.opset_imports[""] == 21
    assert after.ir_version >= 10
    assert len(after.graph[1].inputs) <= 2
    assert after.metadata_props == {"k": "v"}
    assert after.graph[0].metadata_props == {"n": "v"}
    assert after.graph[0].doc_string == "doc"
    assert list(after.functions) == [("d", "F", "")]
    tensor = after.graph.initializers["w"].const_value
    assert tensor is before.graph.initializers["w"].const_value
    before.ir_version = 8
    feeds = {"x": np.ones((1, 32), np.float32)}
    np.testing.assert_array_equal(run_model(after, feeds), WEIGHT.sum(0))


def test_an_opset_conversion_that_fails_says_so():
    proto = make([helper.make_node("NoSuchOperator", ["x", "w"], ["y"])], opset=9)
    with pytest.raises(ModelError, match="opset conversion"):
        model_io.convert_opset(model_io.load(proto), 21)
    with pytest.raises(ModelError, match="knows opsets"):
        model_io.convert_opset(model_io.load(proto), 999)


# The lock


def test_two_savers_do_not_meet_in_one_folder(tmp_path):
    with atomic_files.locked_folder(tmp_path):
        code = """
            import fcntl, os, sys
            folder = os.open(sys.argv[1], os.O_RDONLY)
            try:
                fcntl.flock(folder, fcntl.LOCK_EX | fcntl.LOCK_NB)
                print("free")
            except BlockingIOError:
                print("locked")
        """
        assert run(code, tmp_path) == ["locked"]
