"""Weights become int8 with a scale for each channel or row; what would not gain stays, with the reason."""

from pathlib import Path

import numpy as np
import onnx_ir as ir
import pytest

from onnxcompress import errors
from onnxcompress.base.gate import Gate
from onnxcompress.core import Action, Context
from onnxcompress.graph import query
from onnxcompress.io import model_io
from onnxcompress.io.tensors import StoredTensor
from onnxcompress.passes import build
from onnxcompress.passes.quantize import weight_rounding
from onnxcompress.passes.quantize.weights import QuantizeWeights
from onnxcompress.runtime import session as runtime
from onnxcompress.shapes import count as counting

RNG = np.random.default_rng(0)
HEADER = '<ir_version: 8, opset_import: ["" : 17]> '
MATMUL = HEADER + "g (float[n, 64] x, float[64, 48] w) => (float[n, 48] y){y = MatMul(x, w)}"
TABLE = (
    HEADER + "g (int64[n, t] i, float[90, 32] w) => (float[t, n, 32] y)"
    "{e = Gather(w, i) y = Transpose<perm = [1, 0, 2]>(e)}"
)
X = RNG.standard_normal((5, 64)).astype(np.float32)


def _fill(value, array):
    value.graph.inputs.remove(value)
    value.const_value = ir.tensor(array, name=value.name)
    value.type, value.shape = ir.TensorType(value.const_value.dtype), ir.Shape(array.shape)
    return value


def _model(text, **weights):
    """Return the model of a text, the named inputs replaced by initializers (float32 unless it is float16)."""
    model = model_io.load(ir.to_proto(ir.from_onnx_text(text)))
    for name, array in weights.items():
        placeholder = next(v for v in model.graph.inputs if v.name == name)
        owner = model.graph
        _fill(placeholder, array if array.dtype == np.float16 else array.astype(np.float32))
        owner.register_initializer(placeholder)
    return model


def _normal(*shape):
    return RNG.standard_normal(shape)


def _db(before, after, feed, *, optimize=False):
    """Return the least SQNR of any output of the rewritten model."""
    a = runtime.open_session(before, optimize=False).run(feed)
    b = runtime.open_session(model_io.to_bytes(after), optimize=optimize).run(feed)
    ratios = [np.square(a[k].astype(float)).sum() / max(np.square(a[k].astype(float) - b[k]).sum(), 1e-30) for k in a]
    return 10 * np.log10(min(ratios))


def _types(model):
    return [n.op_type for body in query.graphs(model) for n in body]


def _int8(model):
    return {v.name: v.const_value for b in query.graphs(model) for v in b.initializers.values() if v.dtype == 3}


def test_a_product_has_a_scale_for_each_column_and_the_weight_keeps_its_name():
    model = _model(MATMUL, w=_normal(64, 48))
    before, count = model_io.to_bytes(model), counting.parameters(model)
    changes = QuantizeWeights().run(model, Context())
    assert [c.action for c in changes] == [Action.APPLIED]
    assert _types(model) == ["Cast", "Mul", "MatMul"]
    assert model.graph[-1].inputs[1].name == "w"
    assert query.constant(model.graph[1].inputs[1]).shape == (1, 48)
    assert _db(before, model, {"x": X}) > 40  # 8 bits over a normal weight: about 43
    assert len(model_io.to_bytes(model)) < 0.35 * len(before)
    assert changes[0].bytes_after < 0.35 * changes[0].bytes_before
    assert counting.parameters(model) == count
    assert not QuantizeWeights().run(model, Context())


def test_dequantize_linear_on_request():
    model = _model(MATMUL, w=_normal(64, 48))
    before = model_io.to_bytes(model)
    QuantizeWeights(form="dequantize").run(model, Context())
    assert _types(model) == ["DequantizeLinear", "MatMul"]
    node = model.graph[0]
    assert query.attribute(node, "axis") == 1
    assert query.constant(node.inputs[1]).shape == (48,)
    assert counting.parameters(model) == 64 * 48
    assert _db(before, model, {"x": X}) > 40


def test_integers_round_to_the_nearest_step():
    weight = _normal(64, 48).astype(np.float32)
    model = _model(MATMUL, w=weight)
    QuantizeWeights().run(model, Context())
    integers = _int8(model)["w_int8"].numpy()
    scale = query.constant(model.graph[1].inputs[1])
    assert np.abs(integers).max(axis=0).tolist() == [127] * 48
    assert np.all(np.abs(weight - integers * scale) <= scale * 0.5000001)


def test_gemm_is_stored_in_by_out():
    text = (
        HEADER + "g (float[n, 64] x, float[48, 64] w, float[48] b) => (float[n, 48] y){y = Gemm<transB = 1>(x, w, b)}"
    )
    model = _model(text, w=_normal(48, 64), b=_normal(48))
    before = model_io.to_bytes(model)
    QuantizeWeights(form="dequantize").run(model, Context())
    assert query.dims(_int8(model)["w_int8"]) == (64, 48)
    assert query.attribute(model.graph[-1], "transB") == 0
    for optimize in (False, True):
        assert _db(before, model, {"x": X}, optimize=optimize) > 38
    assert "MatMulNBits" in runtime.optimized_nodes(model_io.to_bytes(model))


@pytest.mark.parametrize(
    ("body", "dims", "channels"),
    [
        ("y = Conv(x, w)", (16, 4, 3, 3), (16, 1, 1, 1)),
        ("y = Conv<group = 4>(x, w)", (32, 1, 3, 3), (32, 1, 1, 1)),
        ("y = ConvTranspose(x, w)", (4, 16, 3, 3), (1, 16, 1, 1)),
        ("y = ConvTranspose<group = 2>(x, w)", (4, 16, 3, 3), (1, 16, 1, 1)),
        ("y = MatMul(x, w)", (4, 8, 16), (1, 1, 16)),
        ("y = MatMul(w, x)", (4, 16, 8), (1, 16, 1)),
    ],
)
def test_output_channels_of_each_operator(body, dims, channels):
    shape = ", ".join(map(str, dims))
    text = HEADER + f"g (float[1, 4, 8, 8] x, float[{shape}] w) => (float[a, b, c, d] y){{{body}}}"
    model = _model(text, w=_normal(*dims))
    before = model_io.to_bytes(model)
    assert QuantizeWeights(min_elements=1).run(model, Context())[0].action is Action.APPLIED
    scale = next(n for n in model.graph if n.op_type == "Mul").inputs[1]
    assert query.dims(scale.const_value) == channels
    assert _db(before, model, {"x": _normal(1, 4, 8, 8).astype(np.float32)}) > 38


@pytest.mark.parametrize("kind", ["LSTM", "GRU", "RNN"])
def test_recurrent_weights_share_scales_over_both_directions(kind):
    gates = {"LSTM": 4, "GRU": 3, "RNN": 1}[kind]
    rows = gates * 16
    text = HEADER + (
        f"g (float[t, 1, 24] x, float[2, {rows}, 24] w, float[2, {rows}, 16] r) => (float[t, 2, 1, 16] y)"
        f'{{y = {kind}<hidden_size = 16, direction = "bidirectional">(x, w, r)}}'
    )
    model = _model(text, w=_normal(2, rows, 24) * 0.1, r=_normal(2, rows, 16) * 0.1)
    before = model_io.to_bytes(model)
    changes = QuantizeWeights(min_elements=1).run(model, Context())
    assert [c.action for c in changes] == [Action.APPLIED] * 2
    assert _db(before, model, {"x": _normal(7, 1, 24).astype(np.float32)}) > 35


@pytest.mark.parametrize("scheme", ["int8/channel/sym", "int8/tensor/sym"])
@pytest.mark.parametrize("optimize", [False, True])
def test_a_table_is_looked_up_as_integers(scheme, optimize):
    model = _model(TABLE, w=_normal(90, 32) * np.linspace(0.01, 1, 90)[:, None])
    before = model_io.to_bytes(model)
    QuantizeWeights(scheme=scheme).run(model, Context())
    first, last = model.graph[0], model.graph[-1]
    assert (first.op_type, last.op_type) == ("Gather", "Transpose")
    assert query.constant(first.inputs[0]).dtype == np.int8
    assert _types(model).count("Gather") == (2 if scheme == "int8/channel/sym" else 1)
    assert counting.parameters(model) == 90 * 32
    feed = {"i": RNG.integers(0, 90, (2, 7))}
    assert _db(before, model, feed, optimize=optimize) > (41 if scheme == "int8/channel/sym" else 30)


@pytest.mark.parametrize("axis", [0, 1, -1])
def test_a_table_on_any_axis(axis):
    text = HEADER + f"g (int64[n, t] i, float[40, 40] w) => (float[a, b, c] y){{y = Gather<axis = {axis}>(w, i)}}"
    model = _model(text, w=_normal(40, 40))
    before = model_io.to_bytes(model)
    QuantizeWeights().run(model, Context())
    assert _db(before, model, {"i": RNG.integers(0, 40, (2, 7))}) > 40


@pytest.mark.parametrize("optimize", [False, True])
@pytest.mark.parametrize("form", ["multiply", "dequantize"])
def test_a_tied_embedding_is_stored_once(form, optimize):
    text = HEADER + (
        "g (int64[n] i, float[300, 32] w) => (float[n, 300] y)"
        "{e = Gather(w, i) t = Transpose<perm = [1, 0]>(w) y = MatMul(e, t)}"
    )
    model = _model(text, w=_normal(300, 32))
    before = model_io.to_bytes(model)
    QuantizeWeights(form=form).run(model, Context())
    assert [query.dims(t) for t in _int8(model).values()] == [(300, 32)]
    assert _db(before, model, {"i": RNG.integers(0, 300, 9)}, optimize=optimize) > 38


def test_a_shared_weight_is_stored_once():
    text = HEADER + "g (float[n, 64] x, float[64, 64] w) => (float[n, 64] y){h = MatMul(x, w) y = MatMul(h, w)}"
    model = _model(text, w=_normal(64, 64))
    before = model_io.to_bytes(model)
    QuantizeWeights(form="dequantize").run(model, Context())
    assert _types(model) == ["DequantizeLinear", "MatMul", "MatMul"]
    assert _db(before, model, {"x": X}) > 38


BRANCHES = """g (bool c, float[n, 64] x, float[64, 64] w, float[64, 64] v) => (float[n, 64] y) {
    y = If (c) <then_branch = a () => (float[n, 64] p) { p = MatMul(x, w) },
                else_branch = b () => (float[n, 64] q) { h = MatMul(x, w) q = MatMul(h, v) }>
}"""


@pytest.mark.parametrize("optimize", [False, True])
@pytest.mark.parametrize("form", ["multiply", "dequantize"])
def test_weights_of_bodies(form, optimize):
    model = _model(HEADER + BRANCHES, w=_normal(64, 64), v=_normal(64, 64))
    before = model_io.to_bytes(model)
    assert len(QuantizeWeights(form=form).run(model, Context())) == 2
    homes = {v.name: v.graph is model.graph for b in query.graphs(model) for v in b.initializers.values()}
    assert homes["w_int8"]  # read by both branches
    assert not homes["v_int8"]  # read by one: onnxruntime can't load integers of another graph
    for condition in (True, False):
        assert _db(before, model, {"c": np.array(condition), "x": X}, optimize=optimize) > 36
    assert not QuantizeWeights(form=form).run(model, Context())


def test_a_weight_that_is_cut_and_joined_on_its_way():
    text = HEADER + (
        "g (float[t, 1, 24] x, float[64, 24] w, float[64, 16] r) => (float[t, 1, 1, 16] y) {"
        "s0 = Constant<value_ints = [0]>() s1 = Constant<value_ints = [32]>() s2 = Constant<value_ints = [64]>()"
        "a = Slice(w, s0, s1, s0) b = Slice(w, s1, s2, s0) j = Concat<axis = 0>(b, a)"
        "u = Unsqueeze(j, s0) v = Unsqueeze(r, s0) y = LSTM<hidden_size = 16>(x, u, v)}"
    )
    model = _model(text, w=_normal(64, 24) * 0.1, r=_normal(64, 16) * 0.1)
    before = model_io.to_bytes(model)
    assert [c.action for c in QuantizeWeights().run(model, Context())] == [Action.APPLIED] * 2
    assert _db(before, model, {"x": _normal(7, 1, 24).astype(np.float32)}) > 35


@pytest.mark.parametrize(("after", "applied"), [("LayerNormalization(s, g)", True), ("Mul(s, g)", False)])
def test_positions_that_are_normalised_are_weights_and_coordinates_are_not(after, applied):
    text = (
        HEADER + "g (float[n, 50, 64] x, float[1, 50, 64] w, float[64] g) => (float[n, 50, 64] y)"
        f"{{s = Add(x, w) y = {after}}}"
    )
    model = _model(text, w=_normal(1, 50, 64), g=np.ones(64))
    changes = QuantizeWeights().run(model, Context())
    assert [c.action for c in changes] == ([Action.APPLIED] if applied else [])


def test_an_old_opset_is_raised_only_for_dequantize_linear():
    text = MATMUL.replace("17", "11")
    model = _model(text, w=_normal(64, 48))
    assert QuantizeWeights().run(model, Context())[0].action is Action.APPLIED
    assert query.opset(model) == 11
    model = _model(text, w=_normal(64, 48))
    before = model_io.to_bytes(model)
    changes = QuantizeWeights(form="dequantize").run(model, Context())
    assert [c.target for c in changes] == ["opset 13", "w"]
    assert query.opset(model) == 13
    assert _db(before, model, {"x": X}) > 40


def test_without_the_opset_the_other_form_is_written():
    model = _model(MATMUL.replace("17", "11"), w=_normal(64, 48))
    gate = Gate(denied=frozenset({("quantize-weights", "opset 13")}))
    QuantizeWeights(form="dequantize").run(model, Context(gate=gate))
    assert _types(model) == ["Cast", "Mul", "MatMul"]


def test_the_opset_stays_where_nothing_is_quantized():
    model = _model(MATMUL.replace("17", "11"), w=_normal(64, 48))
    QuantizeWeights(form="dequantize").run(model, Context(selects=lambda _: False))
    assert query.opset(model) == 11


def test_opset_6_is_refused():
    model = _model(MATMUL.replace("17", "6"), w=_normal(64, 48))
    (change,) = QuantizeWeights().run(model, Context())
    assert change.action is Action.SKIPPED
    assert "needs opset 7" in change.reason


def test_float16_has_scales_of_its_own_type():
    text = HEADER + "g (float16[n, 64] x, float16[64, 48] w) => (float16[n, 48] y){y = MatMul(x, w)}"
    model = _model(text, w=_normal(64, 48).astype(np.float16))
    before = model_io.to_bytes(model)
    target = Context(target="tensorrt")  # which computes in float16
    QuantizeWeights(form="dequantize").run(model, target)  # at opset 17 that form has no float16
    assert _types(model) == ["Cast", "Mul", "MatMul"]
    assert query.opset(model) == 17
    assert _db(before, model, {"x": X.astype(np.float16)}) > 35


@pytest.mark.parametrize(
    ("array", "reason"),
    [
        (np.ones((40, 1)), "fewer than 256 elements"),
        (np.ones((1, 300)), "would take"),
        (np.full((64, 48), np.nan), "NaN"),
        (np.full((64, 48), np.inf), "NaN or infinities"),
    ],
)
def test_what_does_not_gain_is_left_with_the_reason(array, reason):
    model = _model(MATMUL.replace("48", str(array.shape[1])).replace("64", str(array.shape[0])), w=array)
    (change,) = QuantizeWeights().run(model, Context())
    assert change.action is Action.SKIPPED
    assert reason in change.reason
    assert _types(model) == ["MatMul"]


@pytest.mark.parametrize("kind", ["double", "bfloat16"])
def test_types_that_no_integer_can_become_are_refused(kind):
    text = HEADER + f"g ({kind}[n, 64] x, {kind}[64, 48] w) => ({kind}[n, 48] y){{y = MatMul(x, w)}}"
    model = model_io.load(ir.to_proto(ir.from_onnx_text(text)))
    dtype = ir.DataType.DOUBLE if kind == "double" else ir.DataType.BFLOAT16
    model.graph.register_initializer(_fill(model.graph.inputs[1], np.zeros((64, 48), dtype.numpy())))
    (change,) = QuantizeWeights().decide(model, Context())
    assert change.rounding is None
    assert "can't be dequantized" in change.reason


@pytest.mark.parametrize("other", ["z = Neg(w)", "z = Identity(w)"])
def test_a_weight_that_something_else_reads_is_left(other):
    text = (
        HEADER
        + f"g (float[n, 64] x, float[64, 48] w) => (float[n, 48] y, float[64, 48] z) {{y = MatMul(x, w) {other}}}"
    )
    (change,) = QuantizeWeights().run(_model(text, w=_normal(64, 48)), Context())
    assert change.action is Action.SKIPPED
    assert "also read by" in change.reason


def test_already_quantized_weights_are_left():
    text = HEADER + (
        "g (float[n, 64] x, int8[64, 48] q, float s) => (float[n, 48] y){w = DequantizeLinear(q, s) y = MatMul(x, w)}"
    )
    model = model_io.load(ir.to_proto(ir.from_onnx_text(text)))
    for value, array in zip(list(model.graph.inputs)[1:], (np.ones((64, 48), np.int8), np.float32(0.1)), strict=True):
        model.graph.register_initializer(_fill(value, np.asarray(array)))
    assert not QuantizeWeights().run(model, Context())


def test_only_and_the_gate_are_respected():
    model = _model(MATMUL, w=_normal(64, 48))
    (change,) = QuantizeWeights().run(model, Context(selects=lambda _: False))
    assert "left out by --only/--skip" in change.reason
    assert not QuantizeWeights().run(model, Context(gate=Gate(limit=0)))
    assert _types(model) == ["MatMul"]


def test_the_least_harmful_comes_first():
    text = (
        HEADER
        + "g (float[n, 64] x, float[64, 64] a, float[64, 64] b) => (float[n, 64] y){h = MatMul(x, a) y = MatMul(h, b)}"
    )
    spiky = _normal(64, 64)
    spiky[0] *= 50
    model = _model(text, a=spiky, b=_normal(64, 64))
    changes = QuantizeWeights().run(model, Context())
    assert [c.target for c in changes] == ["b", "a"]
    assert changes[0].details["sqnr_db"] > changes[1].details["sqnr_db"] > 0


def test_decide_changes_nothing_and_agrees_with_run():
    model = _model(MATMUL, w=_normal(64, 48))
    before = model_io.to_bytes(model)
    (decision,) = QuantizeWeights().decide(model, Context())
    assert model_io.to_bytes(model) == before
    change = QuantizeWeights().apply(model, decision)
    assert (change.target, change.reason) == (decision.target, decision.reason)
    assert _types(model) == ["Cast", "Mul", "MatMul"]


def test_clip_lowers_the_error_where_a_value_stands_out():
    weight = _normal(65536, 4)
    weight[0] = 12
    found = {}
    for clip in ("none", "mse"):
        model = _model(MATMUL.replace("64", "65536").replace("48", "4"), w=weight)
        found[clip] = QuantizeWeights(clip=clip).run(model, Context())[0].details["sqnr_db"]
    assert found["mse"] > found["none"] + 0.5


def test_options_out_of_range_are_usage_errors():
    for options in ({"scheme": "int4/block32/sym"}, {"min_elements": 0}, {"clip": "most"}, {"form": "fast"}):
        with pytest.raises(errors.UsageError):
            build("quantize-weights", options)


@pytest.mark.parametrize("dims", [(3000, 2048), (1, 3000, 2048)])
def test_a_large_weight_is_computed_when_it_is_saved(tmp_path: Path, dims):
    shape = ", ".join(map(str, dims))
    text = (
        HEADER + f"g (float[n, 1, {dims[-2]}] x, float[{shape}] w) => (float[n, 1, {dims[-1]}] y){{y = MatMul(x, w)}}"
    )
    weight = np.random.default_rng(1).standard_normal(dims, np.float32)
    model_io.save(_model(text, w=weight), tmp_path / "a.onnx")
    model = model_io.load(tmp_path / "a.onnx")
    QuantizeWeights().run(model, Context())
    integers = _int8(model)["w_int8"]
    assert isinstance(integers, StoredTensor)  # nothing of it is in memory
    scale = (np.abs(weight).max(axis=-2, keepdims=True) / np.float32(127)).astype(np.float32)
    assert np.abs(integers.numpy() * scale - weight).max() <= scale.max() * 0.501
    saved = [model_io.save(model, tmp_path / f"{i}.onnx") for i in (1, 2)]
    del saved
    assert (tmp_path / "1.onnx").read_bytes() == (tmp_path / "2.onnx").read_bytes()
    assert (tmp_path / "1.onnx").stat().st_size < 0.26 * (tmp_path / "a.onnx").stat().st_size


@pytest.mark.parametrize("axis", [0, 1, None])
@pytest.mark.parametrize("transposed", [False, True])
def test_integers_made_piece_by_piece_are_those_made_at_once(monkeypatch, axis, transposed):
    tensor = ir.tensor(_normal(40, 24))
    rounding = weight_rounding.round_weight(tensor, axis, clip=False)
    whole = rounding.integers(transposed=transposed)
    monkeypatch.setattr(weight_rounding, "LAZY_BYTES", 1)
    monkeypatch.setattr(weight_rounding, "PIECE_BYTES", 700)
    pieces = rounding.integers(transposed=transposed)
    assert isinstance(pieces, StoredTensor)
    assert tuple(pieces.shape) == ((24, 40) if transposed else (40, 24))
    np.testing.assert_array_equal(pieces.numpy(), whole.numpy())
    scale = rounding.scale if axis is None else np.expand_dims(rounding.scale, 1 - axis)
    back = (pieces.numpy().T if transposed else pieces.numpy()) * scale
    assert np.abs(back - tensor.numpy()).max() <= scale.max() * 0.501
