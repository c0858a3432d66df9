import time

import numpy as np
import onnx
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx import AttributeProto, GraphProto, ModelProto, TensorProto

from onnxcompress.errors import ModelError
from onnxcompress.io import wire
from onnxcompress.io.sources import InMemory, OpenFile, read_chunks

LARGE = 64


def field(number: int, content: bytes) -> bytes:
    return varint(number << 3 | 2) + varint(len(content)) + content


def varint(value: int) -> bytes:
    out = bytearray()
    while value > 127:
        out.append(value & 127 | 128)
        value >>= 7
    return bytes(out + bytes([value]))


def splice(skeleton: bytes, source) -> bytes:
    plan = wire.plan(skeleton)
    out = b"".join(plan.chunks(lambda ref: read_chunks(source, ref.offset, ref.length)))
    assert len(out) == plan.size
    return out


@st.composite
def tensors(draw) -> TensorProto:
    count = draw(st.integers(0, 80))
    kind = draw(st.sampled_from(["raw", "float", "double", "complex", "int64", "mistyped", "string"]))
    values = np.arange(count, dtype=np.float32)
    tensor = TensorProto(name=draw(st.text(max_size=5)), dims=[count], data_type=TensorProto.FLOAT)
    if kind == "raw":
        tensor.raw_data = values.tobytes()
    elif kind in ("float", "mistyped"):
        tensor.float_data.extend(values)
        tensor.data_type = TensorProto.FLOAT if kind == "float" else TensorProto.INT8
    elif kind == "double":
        tensor.double_data.extend(values)
        tensor.data_type = TensorProto.DOUBLE
    elif kind == "complex":
        tensor.float_data.extend(np.repeat(values, 2))
        tensor.data_type = TensorProto.COMPLEX64
    elif kind == "int64":
        tensor.int64_data.extend(range(count))
        tensor.data_type = TensorProto.INT64
    else:
        tensor.string_data.extend([b"s"] * count)
        tensor.data_type = TensorProto.STRING
    if draw(st.booleans()):
        tensor.doc_string = "#raw_data"  # what a reference looks like, where it means nothing
    return tensor


@st.composite
def attributes(draw, depth: int) -> AttributeProto:
    attribute = AttributeProto(name="a")
    kind = draw(st.sampled_from(["t", "tensors", "s"] if depth == 0 else ["t", "tensors", "s", "g", "graphs"]))
    if kind == "t":
        attribute.t.CopyFrom(draw(tensors()))
    elif kind == "tensors":
        attribute.tensors.extend(draw(st.lists(tensors(), max_size=2)))
    elif kind == "s":
        attribute.s = b"x" * draw(st.integers(0, 200))
    elif kind == "g":
        attribute.g.CopyFrom(draw(graphs(depth - 1)))
    else:
        attribute.graphs.extend(draw(st.lists(graphs(depth - 1), max_size=2)))
    return attribute


@st.composite
def graphs(draw, depth: int) -> GraphProto:
    graph = GraphProto(name=draw(st.text(max_size=5)))
    for attribute in draw(st.lists(attributes(depth), max_size=3)):
        graph.node.add(op_type="N", output=["o"]).attribute.append(attribute)
    graph.initializer.extend(draw(st.lists(tensors(), max_size=3)))
    graph.value_info.add(name="v" * draw(st.integers(0, 100)))
    return graph


@st.composite
def models(draw) -> ModelProto:
    model = ModelProto(ir_version=8, graph=draw(graphs(2)))
    function = model.functions.add(name="f", domain="d")
    for attribute in draw(st.lists(attributes(1), max_size=2)):
        function.node.add(op_type="N").attribute.append(attribute)
        function.attribute_proto.append(attribute)
    return model


@settings(max_examples=200, deadline=None)
@given(models())
def test_splicing_what_was_scanned_gives_the_message_back(model):
    data = model.SerializeToString()
    skeleton = wire.scan(InMemory(data), LARGE)
    restored = splice(skeleton, InMemory(data))
    assert ModelProto.FromString(restored) == model
    assert len(restored) == len(data)


@settings(max_examples=100, deadline=None)
@given(models())
def test_a_skeleton_holds_no_large_payload(model):
    skeleton = wire.scan(InMemory(model.SerializeToString()), LARGE)
    referred = {(ref.name, ref.length) for ref in wire.plan(skeleton).references}
    for tensor in ModelProto.FromString(skeleton).graph.initializer:
        assert len(tensor.raw_data) < LARGE
        assert len(tensor.double_data) * 8 < LARGE
    for tensor in model.graph.initializer:
        if len(tensor.raw_data) >= LARGE:
            assert ("raw_data", len(tensor.raw_data)) in referred


def test_a_reference_says_where_the_bytes_are_in_the_file():
    payload = bytes(range(256)) * 8
    tensor = TensorProto(name="w", dims=[2048], data_type=TensorProto.UINT8, raw_data=payload)
    data = ModelProto(graph=GraphProto(initializer=[tensor])).SerializeToString()
    (reference,) = wire.plan(wire.scan(InMemory(data))).references
    assert data[reference.offset : reference.offset + reference.length] == payload


@pytest.mark.parametrize(
    ("kind", "is_taken"),
    [(TensorProto.FLOAT, True), (TensorProto.COMPLEX64, True), (TensorProto.INT8, False), (TensorProto.DOUBLE, False)],
)
def test_values_are_taken_out_only_where_their_field_has_the_layout_of_their_type(kind, is_taken):
    tensor = TensorProto(name="w", dims=[LARGE], data_type=kind, float_data=[1.0] * LARGE)
    data = ModelProto(graph=GraphProto(initializer=[tensor])).SerializeToString()
    references = wire.plan(wire.scan(InMemory(data), LARGE)).references
    assert [ref.name for ref in references] == ["float_data"] * is_taken


def test_unknown_fields_are_kept_byte_for_byte():
    tensor = TensorProto(name="w", dims=[LARGE], data_type=TensorProto.UINT8, raw_data=b"p" * LARGE)
    unknown = field(900, b"unknown" * 3) + varint(901 << 3) + varint(2**60) + varint(902 << 3 | 5) + b"1234"
    graph = field(5, unknown + tensor.SerializeToString() + unknown) + unknown
    data = unknown + field(7, graph) + unknown
    skeleton = wire.scan(InMemory(data), LARGE)
    assert skeleton.count(unknown) == 5
    restored = splice(skeleton, InMemory(data))
    assert restored.count(unknown) == 5
    assert len(restored) == len(data)


@pytest.mark.parametrize("window", [1, 7, 50])
def test_the_size_of_the_window_does_not_matter(tmp_path, monkeypatch, window):
    model = ModelProto(ir_version=9, graph=GraphProto())
    for index in range(40):
        model.graph.initializer.add(name=f"w{index}", dims=[index * 4], data_type=2, raw_data=b"z" * index * 4)
        model.graph.node.add(op_type="N", input=[f"w{index}"], doc_string="d" * index * 3)
    data = model.SerializeToString()
    path = tmp_path / "m.onnx"
    path.write_bytes(data)
    expected = wire.scan(InMemory(data), LARGE)
    monkeypatch.setattr(wire, "_WINDOW_BYTES", max(window, wire._HEADER_BYTES))
    assert wire.scan(OpenFile(path), LARGE) == expected


def test_large_payloads_are_not_read():
    class Counting(InMemory):
        count = 0

        def read(self, offset, length):
            self.count += length
            return super().read(offset, length)

    tensor = TensorProto(name="w", dims=[1 << 24], data_type=TensorProto.UINT8, raw_data=bytes(1 << 24))
    source = Counting(ModelProto(graph=GraphProto(initializer=[tensor])).SerializeToString())
    wire.scan(source)
    assert source.count < 1000


def _nested(levels: int) -> bytes:
    graph = b""
    for _ in range(levels):
        graph = field(1, field(5, field(6, graph))) + field(10, b"d" * wire.LARGE_BYTES)
    return field(7, graph)


GRAPH = GraphProto(name="g").SerializeToString()
HOSTILE = {
    "truncated tag": field(7, GRAPH) + b"\x80",
    "truncated length": field(7, GRAPH) + b"\x0a\x80",
    "length past the end": field(7, GRAPH) + b"\x0a\x7f",
    "huge length": b"\x3a" + varint(2**62),
    "length over 64 bits": b"\x3a" + b"\xff" * 9 + b"\x7f",
    "varint of eleven bytes": field(7, GRAPH) + b"\x08" + b"\x80" * 10 + b"\x01",
    "tag of eleven bytes": field(7, GRAPH) + b"\x88" + b"\x80" * 10 + b"\x01",
    "group": field(7, GRAPH) + b"\x0b\x0c",
    "wire type 6": field(7, GRAPH) + b"\x0e",
    "wire type 7": field(7, GRAPH) + b"\x0f",
    "field number 0": field(7, GRAPH) + b"\x00\x01",
    "fixed32 cut short": field(7, GRAPH) + b"\x0d\x00",
    "fixed64 cut short": field(7, GRAPH) + b"\x09\x00",
    "node past its graph": field(7, b"\x0a" + varint(5000) + b"n" * 2000),
    "tensor field past its tensor": field(7, field(5, b"\x4a" + varint(5000) + b"w" * 2000)),
    "nested too deeply": _nested(150),
}


@pytest.mark.parametrize("name", HOSTILE)
def test_a_malformed_message_is_refused_with_its_offset(name):
    with pytest.raises(ModelError, match=r"malformed at byte \d+"):
        wire.scan(InMemory(HOSTILE[name]))


@pytest.mark.parametrize("data", [b"", field(7, GRAPH) * 2, b"\x08\x07"], ids=["empty", "two", "none"])
def test_there_must_be_exactly_one_graph(data):
    with pytest.raises(ModelError, match="graph"):
        wire.scan(InMemory(data))


def test_nesting_as_deep_as_protobuf_reads_is_fine():
    data = _nested(30)
    assert splice(wire.scan(InMemory(data)), InMemory(data)) == data


def test_every_truncation_of_a_model_is_refused():
    graph = GraphProto(initializer=[TensorProto(name="w", dims=[90], data_type=2, raw_data=b"w" * 90)])
    data = ModelProto(ir_version=8, graph=graph, doc_string="d").SerializeToString()
    wire.scan(InMemory(data), LARGE)
    start = data.index(b"\x3a")
    for length in range(start + 1, len(data)):
        if length != start + 2 + len(graph.SerializeToString()):  # that one ends after the whole graph
            with pytest.raises(ModelError):
                wire.scan(InMemory(data[:length]), LARGE)


def test_a_payload_of_another_length_is_refused():
    tensor = TensorProto(name="w", dims=[LARGE], data_type=TensorProto.UINT8, raw_data=b"p" * LARGE)
    skeleton = wire.scan(InMemory(ModelProto(graph=GraphProto(initializer=[tensor])).SerializeToString()), LARGE)
    with pytest.raises(ModelError, match=f"{LARGE - 1} bytes where {LARGE}"):
        list(wire.plan(skeleton).chunks(lambda ref: [bytes(ref.length - 1)]))


def test_tensors_that_are_stored_twice_stay_as_they_are():
    twice = TensorProto(dims=[LARGE], data_type=2, raw_data=b"a" * LARGE).SerializeToString()
    twice += field(9, b"b" * LARGE)
    data = field(7, field(5, twice))
    assert wire.scan(InMemory(data), LARGE) == data


def test_real_external_data_is_left_alone():
    tensor = TensorProto(name="w", dims=[400], data_type=1, data_location=TensorProto.EXTERNAL)
    tensor.external_data.add(key="location", value="w" * 100 + ".data")
    data = ModelProto(graph=GraphProto(initializer=[tensor])).SerializeToString()
    assert wire.scan(InMemory(data), LARGE) == data
    assert wire.plan(data).references == ()


def test_a_hundred_thousand_nodes_take_about_linear_time():
    def seconds(count: int) -> float:
        node = onnx.helper.make_node("Add", ["a", "b"], ["c"], name="n" * 50)
        long = onnx.helper.make_node("Add", ["a", "b"], ["c"], name="n" * 2000)
        data = field(7, field(1, node.SerializeToString()) * count + field(1, long.SerializeToString()) * count)
        started = time.process_time()
        wire.plan(wire.scan(InMemory(data)))
        return time.process_time() - started

    small, large = min(seconds(5_000) for _ in range(3)), seconds(50_000)
    assert large < 5
    assert large < 40 * small  # ten times the nodes; quadratic would be a hundred
