"""Products and LSTMs run on integers, in the forms that onnxruntime has kernels for; what would not gain stays."""

from __future__ import annotations

import numpy as np
import onnx
import onnx_ir as ir
import pytest

from onnxcompress.base import host
from onnxcompress.base.gate import Gate
from onnxcompress.core import Action, Context
from onnxcompress.graph import edit, query
from onnxcompress.io import model_io
from onnxcompress.passes.quantize.dynamic import QuantizeDynamic
from onnxcompress.passes.quantize.weights import QuantizeWeights
from onnxcompress.runtime import session as runtime
from onnxcompress.shapes import count as counting
from onnxcompress.targets import facts as targets
from tests.helpers import DB_LESS, floats, op_types

HEADER = '<ir_version: 8, opset_import: ["" : 17]> '
MICROSOFT = '<ir_version: 8, opset_import: ["" : 17, "com.microsoft" : 1]> '
ALL = QuantizeDynamic(layers="all")
MATMUL = "g (float[n, 256] x, float[256, 384] w) => (float[n, 384] y){y = MatMul(x, w)}"


def _model(text, *, header=HEADER, **weights):
    """Return the model of a text whose named inputs are weights: initializers of the graph."""
    model = model_io.load(ir.to_proto(ir.from_onnx_text(header + text)))
    for name, array in weights.items():
        value = next(v for v in model.graph.inputs if v.name == name)
        model.graph.inputs.remove(value)
        edit.set_weight(value, array)
        model.graph.register_initializer(value)
    return model


def _weight(*shape, seed=1):
    return floats(*shape, seed=seed) / np.float32(np.sqrt(shape[-2]))


def _db(before, after, feed, *, optimize=True):
    """Return the least signal-to-noise ratio of any output after the rewrite."""
    a = runtime.open_session(before, optimize=False).run(feed)
    b = runtime.open_session(model_io.to_bytes(after), optimize=optimize).run(feed)
    noise = [np.square(a[k].astype(float)).sum() / max(np.square(a[k].astype(float) - b[k]).sum(), 1e-30) for k in a]
    assert all(a[k].shape == b[k].shape for k in a)
    return 10 * np.log10(min(noise))


def _kernels(model):
    """Return the operators that onnxruntime executes, but for moves of data."""
    return [t for t in runtime.optimized_nodes(model_io.to_bytes(model)) if t not in ("Reshape", "Identity", "Squeeze")]


UNCHANGED_DB = 200


def _rewritten(model, feed, *, least_db=35.0, the_pass=None, context=None):
    """Run the pass, check the numbers with and without the runtime's optimizations, and a second run."""
    before = model_io.to_bytes(model)
    the_pass = the_pass or QuantizeDynamic()
    changes = the_pass.run(model, context or Context())
    onnx.checker.check_model(model_io.to_bytes(model))
    for optimize in (False, True):
        assert _db(before, model, feed, optimize=optimize) > least_db
    assert bool(_applied(changes)) == (least_db < UNCHANGED_DB)
    assert not _applied(the_pass.run(model, context or Context()))
    return changes


def _applied(changes):
    return [c for c in changes if c.action is Action.APPLIED]


def _reasons(changes):
    return " | ".join(c.reason for c in changes if c.action is Action.SKIPPED)


# Products.


@pytest.mark.parametrize("dims", ["n, 256", "n, t, 256", "1, n, t, 256"])
def test_a_product_becomes_one_kernel(dims):
    text = f"g (float[{dims}] x, float[256, 384] w) => (float[{dims.replace('256', '384')}] y){{y = MatMul(x, w)}}"
    model = _model(text, w=_weight(256, 384))
    sizes = [{"n": 3, "t": 5}.get(d, d) for d in dims.split(", ")]
    changes = _rewritten(model, {"x": floats(*map(int, sizes))})
    assert _kernels(model) == ["DynamicQuantizeMatMul"]
    assert [c.target for c in _applied(changes)] == ["w"]
    assert changes[0].bytes_after < 0.27 * changes[0].bytes_before
    assert changes[0].details["sqnr_db"] > 38 - DB_LESS
    assert {v.dtype for v in model.graph.initializers.values()} == {ir.DataType.INT8, ir.DataType.FLOAT}
    feed = {"x": floats(*map(int, sizes))}
    rows = feed["x"].size // 256
    counts = counting.count(model, feed)
    assert counts.parameters == 256 * 384
    assert counts.macs == rows * 256 * 384


@pytest.mark.parametrize(
    ("dims", "bias"),
    [
        ("n, 256", (384,)),
        ("n, 256", (1, 384)),
        ("2, n, 256", (384,)),
        ("2, n, 256", (1, 384)),
        ("2, n, 256", (1, 1, 384)),
    ],
)
def test_a_bias_that_is_added_is_taken_in(dims, bias):
    shape = ", ".join(map(str, bias))
    text = f"g (float[{dims}] x, float[256, 384] w, float[{shape}] b) => (float y){{p = MatMul(x, w) y = Add(b, p)}}"
    model = _model(text, w=_weight(256, 384), b=floats(*bias, seed=3))
    rows = (2, 5, 256) if dims.startswith("2") else (5, 256)
    _rewritten(model, {"x": floats(*rows)})
    assert _kernels(model) == ["DynamicQuantizeMatMul"]


def test_a_bias_with_more_axes_than_the_product_would_lose_them():
    text = (
        "g (float[n, 256] x, float[256, 384] w, float[1, 1, 384] b) => (float[1, n, 384] y)"
        "{p = MatMul(x, w) y = Add(p, b)}"
    )
    model = _model(text, w=_weight(256, 384), b=floats(1, 1, 384, seed=3))
    changes = _rewritten(model, {"x": floats(5, 256)}, least_db=UNCHANGED_DB)
    assert "a constant of 3 axes is added" in _reasons(changes)


def test_products_of_one_input_share_its_integers():
    text = (
        "g (float[b, t, 256] x, float[256, 256] q, float[256, 256] k, float[256, 256] v, float[256] c)"
        " => (float[b, t, 256] qy, float[b, t, 256] ky, float[b, t, 256] vy)"
        "{qy = MatMul(x, q) k1 = MatMul(x, k) ky = Add(k1, c) vy = MatMul(x, v)}"
    )
    weights = {name: _weight(256, 256, seed=i) for i, name in enumerate("qkv")}
    model = _model(text, **weights, c=floats(256, seed=9))
    _rewritten(model, {"x": floats(2, 7, 256)}, the_pass=ALL)
    assert sorted(_kernels(model)) == ["DynamicQuantizeLinear"] + ["MatMulIntegerToFloat"] * 3


def test_integers_are_the_nearest_and_the_weight_has_no_zero_point():
    weight = _weight(256, 384)
    model = _model(MATMUL, w=weight)
    QuantizeDynamic(weight_bits=8).run(model, Context())
    product = next(n for n in model.graph if n.op_type == "MatMulInteger")
    assert len(product.inputs) == 3
    integers, scale = (query.constant(model.graph.initializers[name]) for name in ("w_int8", "w_scale"))
    assert scale.shape == (384,)
    assert np.abs(integers).max(axis=0).tolist() == [127] * 384
    assert np.all(np.abs(weight - integers * scale) <= scale * 0.5000001)


@pytest.mark.parametrize(
    ("attributes", "x", "w", "c"),
    [
        ("", (5, 256), (256, 384), (384,)),
        ("", (5, 256), (256, 384), None),
        ("<transB = 1>", (5, 256), (384, 256), (1, 384)),
        ("<alpha = 0.5, beta = 2.0, transB = 1>", (5, 256), (384, 256), (384,)),
        ("<alpha = -1.5>", (5, 256), (256, 384), ()),
        ("<beta = 0.0>", (5, 256), (256, 384), (384,)),
        ("<transA = 1>", (256, 5), (256, 384), (1,)),
    ],
)
def test_gemm_with_a_bias_for_all_rows_is_one_kernel(attributes, x, w, c):
    made = "x, w" if c is None else "x, w, c"
    declared = "" if c is None else f", float[{', '.join(map(str, c))}] c"
    text = f"g (float{list(x)} x, float{list(w)} w{declared}) => (float[5, 384] y){{y = Gemm{attributes}({made})}}"
    weights = {"w": _weight(*w), **({} if c is None else {"c": floats(*c, seed=2)})}
    model = _model(text, **weights)
    _rewritten(model, {"x": floats(*x)})
    assert [k for k in _kernels(model) if k != "Transpose"] == ["DynamicQuantizeMatMul"]
    assert query.dims(query.constant_tensor(model.graph.initializers["w_int8"])) == (256, 384)


@pytest.mark.parametrize("beta", [1.0, 0.25])
def test_gemm_with_a_bias_for_each_row_or_of_a_run_adds_it(beta):
    text = (
        "g (float[5, 256] x, float[256, 384] w, float[5, 1] rows, float[384] given) => (float y, float z)"
        f"{{y = Gemm<beta = {beta}>(x, w, rows) z = Gemm<beta = {beta}>(x, w, given)}}"
    )
    model = _model(text, w=_weight(256, 384), rows=floats(5, 1, seed=4))
    _rewritten(model, {"x": floats(5, 256), "given": floats(384, seed=5)})
    assert "Gemm" not in op_types(model)
    assert [v.name for v in model.graph.initializers.values()].count("w_int8") == 1


def test_fused_matmul_of_an_optimised_model():
    text = (
        "g (float[n, 256] x, float[384, 256] w) => (float[n, 384] y)"
        "{y = com.microsoft.FusedMatMul<alpha = 0.125, transB = 1>(x, w)}"
    )
    model = _model(text, header=MICROSOFT, w=_weight(384, 256))
    _rewritten(model, {"x": floats(5, 256)})
    assert _kernels(model) == ["DynamicQuantizeMatMul"]


def test_a_table_that_is_the_head_too_is_stored_once():
    text = (
        "g (int64[n] i, float[900, 128] w) => (float[n, 900] y)"
        "{e = Gather(w, i) t = Transpose<perm = [1, 0]>(w) y = MatMul(e, t)}"
    )
    model = _model(text, w=floats(900, 128))
    size = len(model_io.to_bytes(model))
    _rewritten(model, {"i": np.array([3, 5, 899, 0])}, least_db=35 - DB_LESS)
    assert [v.name for v in model.graph.initializers.values() if v.dtype == ir.DataType.INT8] == ["w_int8"]
    assert len(model_io.to_bytes(model)) < 0.3 * size
    assert "DynamicQuantizeMatMul" in _kernels(model)


def test_a_reader_that_is_too_small_gets_the_weight_as_floats():
    text = (
        "g (float[64, 256] x, float[1, 256] s, float[256, 128] w) => (float[64, 128] y, float[1, 128] z)"
        "{y = MatMul(x, w) z = MatMul(s, w)}"
    )
    model = _model(text, w=_weight(256, 128))
    _rewritten(model, {"x": floats(64, 256), "s": floats(1, 256, seed=7)})
    assert sorted(_kernels(model)) == ["DynamicQuantizeMatMul", "MatMul"]
    assert [v.name for v in model.graph.initializers.values() if v.dtype == ir.DataType.INT8] == ["w_int8"]


BODIES = (
    "g (float[n, 256] x, bool c{outer}) => (float[n, 256] y)"
    "{{y = If<then_branch = t () => (float[n, 256] a) {inner} {{a1 = MatMul(x, w) a2 = MatMul(x, v) a = Add(a1, a2)}},"
    " else_branch = e () => (float[n, 256] b) {{b = Gemm<transB = 1>(x, u)}}>(c)}}"
)


def test_products_in_bodies_with_weights_outside():
    outer = ", float[256, 256] w, float[256, 256] v, float[256, 256] u"
    model = _model(
        BODIES.format(outer=outer, inner=""), **{name: _weight(256, 256, seed=i) for i, name in enumerate("wvu")}
    )
    for taken in (True, False):
        fresh = model_io.clone(model)
        _rewritten(fresh, {"x": floats(5, 256), "c": np.array(taken)}, the_pass=ALL)
        kernels = [k for k in _kernels(fresh) if k not in ("If", "Add")]
        assert sorted(kernels) == ["DynamicQuantizeLinear", "DynamicQuantizeMatMul", *["MatMulIntegerToFloat"] * 2]


def test_a_weight_that_bodies_share_is_stored_once_outside():
    text = (
        "g (float[n, 256] x, bool c, float[256, 256] w) => (float[n, 256] y)"
        "{y = If<then_branch = t () => (float[n, 256] a) {a = MatMul(x, w)},"
        " else_branch = e () => (float[n, 256] b) {n = Neg(x) b = MatMul(n, w)}>(c)}"
    )
    model = _model(text, w=_weight(256, 256))
    _rewritten(model, {"x": floats(5, 256), "c": np.array(False)}, the_pass=ALL)
    assert _kernels(model).count("DynamicQuantizeMatMul") == 2
    assert "w_int8" in model.graph.initializers


def test_an_old_opset_is_raised():
    model = _model(MATMUL, header='<ir_version: 5, opset_import: ["" : 9]> ', w=_weight(256, 384))
    changes = _rewritten(model, {"x": floats(5, 256)})
    assert [c.target for c in _applied(changes)] == ["opset 11", "w"]
    assert query.opset(model) == 11
    assert _kernels(model) == ["DynamicQuantizeMatMul"]


# Options.


@pytest.mark.parametrize(("is_narrow", "target", "most"), [(True, "cpu", 63), (False, "cpu", 127), (True, "arm", 127)])
def test_weights_have_seven_bits_where_this_machine_adds_in_16(monkeypatch, is_narrow, target, most):
    monkeypatch.setattr(host, "adds_in_16_bits", lambda: is_narrow)
    model = _model(MATMUL, w=_weight(256, 384))
    changes = QuantizeDynamic().run(model, Context(target=target))
    assert np.abs(query.constant(model.graph.initializers["w_int8"])).max() == most
    assert changes[0].details["weight_bits"] == (7 if most == 63 else 8)


def test_seven_bits_leave_room_for_sums_of_16_bits():
    model = _model(MATMUL, w=_weight(256, 384))
    _rewritten(model, {"x": floats(5, 256)}, the_pass=QuantizeDynamic(weight_bits=7), least_db=30)
    assert np.abs(query.constant(model.graph.initializers["w_int8"])).max() == 63


def test_one_scale_on_request():
    model = _model(MATMUL, w=_weight(256, 384))
    _rewritten(model, {"x": floats(5, 256)}, the_pass=QuantizeDynamic(scheme="int8/tensor/sym"), least_db=28)
    assert query.constant(model.graph.initializers["w_scale"]).shape == ()
    assert _kernels(model) == ["DynamicQuantizeMatMul"]


def test_clipping_lowers_the_error_of_a_weight_with_long_tails():
    text = "g (float[32, 2048] x, float[2048, 64] w) => (float[32, 64] y){y = MatMul(x, w)}"
    errors = []
    for clip in ("none", "mse"):
        model = _model(text, w=floats(2048, 64))
        changes = QuantizeDynamic(clip=clip, scheme="int8/tensor/sym").run(model, Context())
        errors.append(changes[0].details["sqnr_db"])
    assert errors[1] > errors[0] + 0.3


def test_layers_that_would_be_slower_stay_unless_asked_for():
    text = "g (float[n, 64] x, float[64, 48] w) => (float[n, 48] y){y = MatMul(x, w)}"
    model = _model(text, w=_weight(64, 48))
    changes = _rewritten(model, {"x": floats(5, 64)}, least_db=UNCHANGED_DB)
    assert "too small to be faster on integers: 1 x 64 x 48" in _reasons(changes)
    assert changes[0].target == "w"
    _rewritten(model, {"x": floats(5, 64)}, the_pass=QuantizeDynamic(layers="all"))
    assert _kernels(model) == ["DynamicQuantizeMatMul"]


def test_the_largest_feed_decides_what_is_worthwhile():
    text = "g (float[n, 64] x, float[64, 48] w) => (float[n, 48] y){y = MatMul(x, w)}"
    model = _model(text, w=_weight(64, 48))
    context = Context(feeds=[{"x": floats(2, 64)}, {"x": floats(300, 64)}])
    assert _applied(_rewritten(model, {"x": floats(5, 64)}, context=context))


# Refusals.


@pytest.mark.parametrize(
    ("text", "header", "reason"),
    [
        ("g (float[256, 256] w, float[256, n] x) => (float[256, n] y){y = MatMul(w, x)}", HEADER, "on the left"),
        ("g (float[2, n, 256] x, float[2, 256, 256] w) => (float[2, n, 256] y){y = MatMul(x, w)}", HEADER, "3 axes"),
        ("g (float16[n, 256] x, float16[256, 256] w) => (float16[n, 256] y){y = MatMul(x, w)}", HEADER, "float16"),
        ("g (double[n, 256] x, double[256, 256] w) => (double[n, 256] y){y = MatMul(x, w)}", HEADER, "float64"),
        (
            "g (float[n, 256] x, float[256, 256] w) => (float[n, 256] y, float[256, 256] w){y = MatMul(x, w)}",
            HEADER,
            "also read by a graph output",
        ),
        (
            "g (float[256, n] x, float[256, 256] w) => (float[n, 256] y)"
            "{y = com.microsoft.FusedMatMul<transA = 1>(x, w)}",
            MICROSOFT,
            "transposes its activations",
        ),
        (
            "g (float[n, 256] x, float[256, 256] w) => (float[n, 256] y)"
            '{y = com.microsoft.FusedGemm<activation = "Relu">(x, w)}',
            MICROSOFT,
            "FusedGemm of com.microsoft",
        ),
        (
            "g (float[n, 256] x, float[n, 256] z, float[256, 256] w) => (float[n, 256] y, float[n, 256] v)"
            "{y = Gemm(x, w) v = Gemm<transB = 1>(z, w)}",
            HEADER,
            "",
        ),
    ],
)
def test_what_has_no_form_on_integers_is_told(text, header, reason):
    value = next(v for v in ir.from_onnx_text(header + text).graph.inputs if v.name == "w")
    model = _model(text, header=header, w=_weight(*map(int, value.shape)).astype(value.dtype.numpy()))
    before = op_types(model)
    changes = ALL.run(model, Context())
    if reason:
        assert op_types(model) == before
        assert reason in _reasons(changes)
        assert not _applied(changes)
    else:  # the scales belong to the columns of one reader, the other one gets floats
        assert op_types(model).count("MatMulInteger") == 1
        assert op_types(model).count("Gemm") == 1


def test_a_matrix_too_deep_for_int32_stays():
    text = "g (float[n, 66000] x, float[66000, 16] w) => (float[n, 16] y){y = MatMul(x, w)}"
    model = _model(text, w=_weight(66000, 16))
    assert "int32" in _reasons(QuantizeDynamic(layers="all").run(model, Context()))


def test_convolutions_and_other_recurrent_layers_are_never_dynamic():
    text = (
        "g (float[3, 1, 8] x, float[1, 48, 8] w, float[1, 48, 16] r, float[4, 3, 3, 3] k, float[1, 3, 9, 9] i)"
        " => (float y, float z){y, h = GRU<hidden_size = 16>(x, w, r) z = Conv(i, k)}"
    )
    model = _model(text, w=floats(1, 48, 8), r=floats(1, 48, 16), k=floats(4, 3, 3, 3))
    before = op_types(model)
    reasons = _reasons(QuantizeDynamic(layers="all").run(model, Context()))
    assert "no GRU on integers" in reasons
    assert "1 convolution left to other passes: slower" in reasons
    assert op_types(model) == before


@pytest.mark.parametrize("form", ["dequantize", "multiply"])
def test_weights_that_are_integers_already_are_told(form):
    model = _model(MATMUL, w=_weight(256, 384))
    QuantizeWeights(form=form).run(model, Context())
    before = op_types(model)
    assert "quantized already" in _reasons(QuantizeDynamic().run(model, Context()))
    assert op_types(model) == before


def test_products_of_activations_are_nothing_to_speak_of():
    model = _model("g (float[n, 256] x, float[256, m] z) => (float[n, m] y){y = MatMul(x, z)}")
    assert QuantizeDynamic().run(model, Context()) == []


def test_nan_in_a_weight():
    weight = _weight(256, 384)
    weight[3, 4] = np.nan
    model = _model(MATMUL, w=weight)
    assert "can't be rounded" in _reasons(QuantizeDynamic().run(model, Context()))
    assert op_types(model) == ["MatMul"]


def test_left_out_nodes_and_closed_gates():
    model = _model(MATMUL, w=_weight(256, 384))
    changes = QuantizeDynamic().run(model, Context(selects=lambda node: node.op_type != "MatMul"))
    assert "--only/--skip" in _reasons(changes)
    assert not QuantizeDynamic().run(model, Context(gate=Gate(denied=frozenset({("quantize-dynamic", "w")}))))
    assert op_types(model) == ["MatMul"]


def test_facts_of_targets():
    measured = targets.dynamic_facts("cpu")
    assert measured == targets.dynamic_facts("arm")
    assert measured.product_pays(64, 64, 256)
    assert not measured.product_pays(1, 64, 256)
    assert not measured.product_pays(10**6, 512, 2)
    assert measured.lstm_pays(40, 32768)
    assert not measured.lstm_pays(40, 8192)
    assert targets.dynamic_facts("qnn") is None


def test_a_target_without_such_kernels():
    model = _model(MATMUL, w=_weight(256, 384))
    changes = QuantizeDynamic().run(model, Context(target="tensorrt"))
    assert "tensorrt" in _reasons(changes)
    assert op_types(model) == ["MatMul"]
