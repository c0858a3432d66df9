"""Slices of a value with huge weights: what each rule cuts, that the parts make the whole, and where there are none."""

import numpy as np
import onnx_ir as ir
import pytest

from onnxcompress.graph import edit, query
from onnxcompress.io import model_io
from onnxcompress.io.tensors import StoredTensor, cut
from onnxcompress.runtime import session as runtime
from onnxcompress.verify import regions
from onnxcompress.verify.regions import RegionProof
from onnxcompress.verify.slices import Making, parts

HEADER = '<ir_version: 10, opset_import: ["" : 21]>\n'
SIZES = {
    "f": (24, 36),
    "t": (36, 24),
    "b": (36,),
    "c": (1, 36),
    "s": (36,),
    "r": (24,),
    "k": (12, 24, 1, 1),
    "o": (12,),
}

SLICED = {
    "matmul": ("float[2, 24] x", "float[2, 36] y", "m = MatMul(x, f) m2 = Add(m, b) y = Tanh(m2)"),
    "gemm": ("float[2, 24] x", "float[2, 36] y", "y = Gemm <transB = 1> (x, t, c)"),
    "transposed": ("float[2, 24] x", "float[2, 36] y", "v = Transpose(t) y = MatMul(x, v)"),
    "columns": ("float[2, 24] x", "float[2, 36] y", "v = DequantizeLinear <axis = 1> (q, s) y = MatMul(x, v)"),
    "rows": ("float[2, 24] x", "float[2, 36] y", "v = DequantizeLinear <axis = 0> (q, r) y = MatMul(x, v)"),
    "cast": ("float[2, 24] x", "float[2, 36] y", "v0 = Cast <to = 1> (q) v = Mul(v0, s) y = MatMul(x, v)"),
    "conv": ("float[1, 24, 3, 3] x", "float[1, 12, 3, 3] y", "y = Conv(x, k, o)"),
    "table": ("int64[2, 5] x", "float[2, 5, 36] y", "g = Gather(f, x) y = Mul(g, b)"),
    "looked up": ("int64[5] x", "float[24, 5] y", "y = Gather <axis = 1> (f, x)"),
    "beside": ("float[2, 24] x, float[2, 36] z", "float[2, 36] y", "m = MatMul(x, f) y = Add(m, z)"),
}
WHOLE = {
    "softmax": ("float[2, 24] x", "float[2, 36] y", "m = MatMul(x, f) y = Softmax(m)"),
    "both": ("float[2, 36] x", "float[2, 36] y", "h = MatMul(x, w) y = MatMul(h, w)"),
    "grouped": ("float[1, 48, 3, 3] x", "float[1, 12, 3, 3] y", "y = Conv <group = 2> (x, k, o)"),
    "vector": ("float[24, 36] x", "float[24] y", "y = MatMul(x, b)"),
    "mixed": ("float[24, 36] x", "float[24, 36] y", "m = MatMul(x, w) n = Transpose(x) a = MatMul(f, w) y = Add(m, a)"),
}


def _model(inputs, output, body):
    rng = np.random.default_rng(0)
    arrays = {name: rng.standard_normal(dims).astype(np.float32) for name, dims in SIZES.items()}
    arrays |= {"w": rng.standard_normal((36, 36)).astype(np.float32)}
    arrays |= {"q": rng.integers(-127, 128, (24, 36), np.int8)}
    model = ir.from_onnx_text(f"{HEADER}g ({inputs}) => ({output}) {{ {body} }}")
    read = {value.name: value for node in model.graph for value in node.inputs if value.name in arrays}
    for name, value in read.items():
        value.const_value = ir.tensor(arrays[name], name=name)
        value.type, value.shape = ir.TensorType(value.const_value.dtype), ir.Shape(arrays[name].shape)
        model.graph.register_initializer(value)
    return model_io.load(ir.to_proto(model))


def _making(model, feed):
    side = regions.Side(model, feed)
    return Making(list(model.graph), model.graph.outputs[0], side.dims)


def _feed(model):
    rng = np.random.default_rng(1)
    feed = {}
    for value in model.graph.inputs:
        dims = tuple(int(size) for size in value.shape)
        is_index = value.dtype == ir.DataType.INT64
        feed[value.name] = rng.integers(0, 24, dims) if is_index else rng.standard_normal(dims).astype(np.float32)
    return feed


@pytest.mark.parametrize("kind", SLICED)
def test_the_parts_make_the_whole(kind):
    model = _model(*SLICED[kind])
    feed = _feed(model)
    (whole,) = runtime.open_session(model_io.to_bytes(model), optimize=False).run(feed).values()
    way = _making(model, feed)
    size_bytes = query.tensor_bytes([value for node in model.graph for value in node.inputs])
    found = parts(way, way, most_bytes=size_bytes // 3)
    assert len(found) > 2
    made = []
    for part in found:
        piece = model_io.clone(model)
        part.narrow(piece)
        piece.graph.outputs[0].shape = None
        left = [query.tensor_bytes([v]) for v in piece.graph.initializers.values()]
        assert sum(left) <= size_bytes // 3 + 64
        given = {name: array[part.index(name)] for name, array in feed.items()}
        made += runtime.open_session(model_io.to_bytes(piece), optimize=False).run(given).values()
    np.testing.assert_allclose(np.concatenate(made, axis=found[0].axis), whole, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("kind", WHOLE)
def test_what_can_not_be_made_in_parts_stays_whole(kind):
    model = _model(*WHOLE[kind])
    way = _making(model, _feed(model))
    assert parts(way, way, most_bytes=1000) == []


def test_both_ways_must_cut_their_inputs_alike():
    ways = [
        _making(model, _feed(model))
        for model in (
            _model("float[36, 36] x", "float[36, 36] y", body)
            for body in ("m = MatMul(x, w) y = Add(m, x)", "m = MatMul(w, x) n = Transpose(m) y = MatMul(n, w)")
        )
    ]
    assert parts(ways[0], ways[1], most_bytes=4000) == []


def _stored(tmp_path, name, bump=0.0):
    model = _model(*SLICED["matmul"])
    weight = model.graph.initializers["f"]
    array = query.constant(weight).copy()
    array[3, 30] += bump
    edit.set_weight(weight, array)
    model_io.save(model, tmp_path / name, external_data="always")
    return model_io.load(tmp_path / name)


@pytest.mark.parametrize(("bump", "is_wrong"), [(0.0, False), (0.5, True)])
def test_a_region_with_huge_weights_is_judged_in_parts(tmp_path, monkeypatch, bump, is_wrong):
    monkeypatch.setattr(regions, "_BATCH_BYTES", 2000)
    monkeypatch.setattr(regions, "_PART_BYTES", 1000)
    before, after = _stored(tmp_path, "a.onnx"), _stored(tmp_path, "b.onnx", bump)
    proof = RegionProof(before, _feed(before), lossless=True)
    problem = proof.problem(after)
    assert (problem is not None) == is_wrong
    assert is_wrong or proof.measured.regions > 3


def test_a_cut_reads_its_own_bytes_only(tmp_path):
    model = _stored(tmp_path, "a.onnx")
    tensor = model.graph.initializers["f"].const_value
    whole = tensor.numpy()
    for axis, where in ((0, slice(3, 11)), (1, slice(5, 36)), (1, slice(0, 1))):
        part = cut(tensor, axis, where)
        want = whole[(slice(None),) * axis + (where,)]
        assert isinstance(part, StoredTensor)
        assert part.stored.length == want.nbytes
        np.testing.assert_array_equal(part.numpy(), want)
        assert part.tobytes() == want.tobytes()
        assert part.stored.source.read(5, 50) == want.tobytes()[5:55]
        np.testing.assert_array_equal(cut(ir.tensor(whole), axis, where).numpy(), want)
