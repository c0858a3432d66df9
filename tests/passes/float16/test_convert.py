"""Weights in 16 bits, arithmetic in float16: what fits is converted, what does not stays, and all of it runs."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from hypothesis import given
from hypothesis import strategies as st

import onnxcompress as oc
from onnxcompress.base.gate import Gate
from onnxcompress.core import Action, Context
from onnxcompress.graph import query
from onnxcompress.io import model_io
from onnxcompress.numerics.quantization import float16
from onnxcompress.passes.float16.convert import ConvertFloat16
from onnxcompress.runtime import session as runtime
from onnxcompress.targets import facts as targets
from tests import helpers

MODELS = Path(__file__).parents[3] / "models"
RNG = np.random.default_rng(0)
HEADER = '<ir_version: 8, opset_import: ["" : 17]> '
X = {"x": helpers.floats(5, 64)}
MATMUL = "g (float[n, 64] x, float[64, 48] w) => (float[n, 48] y){y = MatMul(x, w)}"
FLOAT16, FLOAT, BFLOAT16 = ir.DataType.FLOAT16, ir.DataType.FLOAT, ir.DataType.BFLOAT16


def _model(text, opset=17, **weights):
    """Return the model of a text, the named inputs, of whichever graph, replaced by initializers."""
    header = f'<ir_version: 8, opset_import: ["" : {opset}]> '
    model = model_io.load(ir.to_proto(ir.from_onnx_text(header + text)))
    for body in query.graphs(model):
        for value in [v for v in body.inputs if v.name in weights]:
            array = weights[value.name]
            body.inputs.remove(value)
            value.const_value = ir.tensor(array, name=value.name)
            value.type, value.shape = ir.TensorType(value.const_value.dtype), ir.Shape(array.shape)
            body.register_initializer(value)
    return model


def _types(model):
    return [n.op_type for body in query.graphs(model) for n in body]


def _stored(model):
    """Return the types of all initializers by name."""
    return {v.name: v.dtype for b in query.graphs(model) for v in b.initializers.values()}


def _cast_types(model):
    nodes = [n for body in query.graphs(model) for n in body if n.op_type == "Cast"]
    return [ir.DataType(n.attributes["to"].as_int()) for n in nodes]


def _db(before, model, feed=X, *, optimize=False):
    """Return the least SQNR of any output of the rewritten model, whose types must be those of before."""
    a = runtime.open_session(before, optimize=False).run(feed)
    b = runtime.open_session(model_io.to_bytes(model), optimize=optimize).run(feed)
    assert all(a[k].dtype == b[k].dtype and np.isfinite(b[k]).all() for k in a)
    return min(10 * np.log10(np.square(a[k]).sum() / max(np.square(a[k] - b[k]).sum(), 1e-30)) for k in a)


def _compute(model, feeds=(X,), **options):
    return ConvertFloat16(compute="float16", **options).run(model, Context(feeds=feeds))


def _reasons(changes):
    return {c.target: c.reason for c in changes if c.action is Action.SKIPPED}


# What rounding loses.


@given(st.lists(st.floats(-70000, 70000, width=32), min_size=1, max_size=50))
def test_losses_are_those_of_numpy(values):
    rows = np.array([values], np.float32)
    with np.errstate(over="ignore", invalid="ignore"):
        difference = rows.astype(np.float16).astype(np.float32) - rows
        expected = np.square(difference.astype(np.float64)).sum()
    signal, noise = float16.row_losses(rows, FLOAT16.numpy())
    assert noise[0] == expected
    assert signal[0] == np.square(rows.astype(np.float64)).sum()


def test_a_row_counts_unless_it_is_nothing_beside_the_others():
    rows = np.ones((3, 4), np.float32)
    rows[1] = 1e-6  # as a subnormal it keeps 5 bits
    assert float16.worst_db(*float16.row_losses(rows, FLOAT16.numpy())) == np.inf  # -120 dB of the mean row
    rows[[0, 2]] = 2e-5
    assert float16.worst_db(*float16.row_losses(rows, FLOAT16.numpy())) < 40
    assert float16.worst_db(*float16.row_losses(rows, BFLOAT16.numpy())) > 50


# Storage.


def test_a_weight_is_stored_in_half_and_keeps_its_name():
    model = _model(MATMUL, w=helpers.floats(64, 48))
    before = model_io.to_bytes(model)
    changes = ConvertFloat16().run(model, Context())
    assert [c.action for c in changes] == [Action.APPLIED]
    assert _types(model) == ["Cast", "MatMul"]
    assert _stored(model) == {"w_float16": FLOAT16}
    assert model.graph[-1].inputs[1].name == "w"
    assert _db(before, model) > 70
    assert len(model_io.to_bytes(model)) < 0.52 * len(before)
    assert not ConvertFloat16().run(model, Context())


def test_the_runtime_turns_weights_back_when_it_loads_them(tmp_path):
    model = _model(MATMUL, w=helpers.floats(64, 48))
    ConvertFloat16().run(model, Context())
    assert runtime.optimized_nodes(model_io.to_bytes(model)) == ["MatMul"]


def test_bfloat16_on_request_raises_the_opset_that_its_cast_needs():
    model = _model(MATMUL, opset=12, w=helpers.floats(64, 48) * np.float32(1e6))
    before = model_io.to_bytes(model)
    changes = ConvertFloat16(storage="bfloat16").run(model, Context())
    assert _stored(model) == {"w_bfloat16": BFLOAT16}
    assert query.opset(model) == 13
    assert changes[0].target == "opset 13"
    assert 50 < _db(before, model) < 65
    assert _db(before, model, optimize=True) > 50


def test_large_weights_are_rounded_when_they_are_wanted(monkeypatch):
    from onnxcompress.passes.float16 import weights as float16_weights

    monkeypatch.setattr(float16_weights, "LAZY_BYTES", 1)
    monkeypatch.setattr(float16_weights, "PIECE_BYTES", 1000)
    w = helpers.floats(64, 48)
    for storage, dtype in (("float16", FLOAT16), ("bfloat16", BFLOAT16)):
        model = _model(MATMUL, w=w)
        ConvertFloat16(storage=storage).run(model_io.load(model), Context())
        model = model_io.load(ir.to_proto(model))
        ConvertFloat16(storage=storage).run(model, Context())
        half = model.graph.initializers[f"w_{storage}"].const_value
        assert isinstance(half, ir.LazyTensor)
        np.testing.assert_array_equal(half.numpy(), w.astype(dtype.numpy()))


def test_a_table_is_looked_up_in_half_and_only_rows_become_float32():
    text = "g (int64[n, t] i, float[90, 32] w) => (float[n, t, 32] y){y = Gather(w, i)}"
    model = _model(text, w=helpers.floats(90, 32))
    before = model_io.to_bytes(model)
    ConvertFloat16().run(model, Context())
    assert _types(model) == ["Gather", "Cast"]
    assert _db(before, model, {"i": RNG.integers(0, 90, (2, 3))}) > 70


def test_a_table_that_is_a_weight_too_is_cast_as_a_whole_once():
    text = """g (int64[n] i, float[90, 32] w) => (float[n, n] y, float[n, 90] z)
        {e = Gather(w, i) t = Transpose(w) z = MatMul(e, t) u = Transpose(e) y = MatMul(e, u)}"""
    model = _model(text, w=helpers.floats(90, 32))
    before = model_io.to_bytes(model)
    ConvertFloat16().run(model, Context())
    assert _types(model).count("Cast") == 1
    assert _db(before, model, {"i": RNG.integers(0, 90, (4,))}) > 60


IF = """g (bool c, float[n, 64] x, float[64, 64] outer) => (float[n, 64] y) {
    y = If <then_branch = a () => (float[n, 64] p) {p = MatMul(x, outer)},
            else_branch = b (float[64, 64] inner) => (float[n, 64] q) {r = MatMul(x, inner) q = Add(r, x)}> (c)
}"""


@pytest.mark.parametrize("compute", ["float32", "float16"])
def test_weights_inside_and_outside_of_bodies(compute):
    weights = {"inner": helpers.floats(64, 64), "outer": helpers.floats(64, 64, seed=1)}
    model = _model(IF, **weights)
    before = model_io.to_bytes(model)
    feeds = [{**X, "c": np.array(c)} for c in (True, False)]
    ConvertFloat16(compute=compute).run(model, Context(feeds=feeds))
    assert set(_stored(model).values()) == {FLOAT16}
    assert len(model_io.to_bytes(model)) < 0.6 * len(before)
    for feed in feeds:
        assert _db(before, model, feed) > 55
        assert _db(before, model, feed, optimize=True) > 55


@pytest.mark.parametrize(
    ("weight", "reason"),
    [
        (helpers.floats(64, 48) * np.float32(1e5), "more than float16 can hold"),
        (np.where(np.arange(48) < 1, np.nan, helpers.floats(64, 48)).astype(np.float32), "NaN or infinities"),
        (helpers.floats(64, 48) * np.float32(1e-6), "smallest numbers would vanish"),
        (helpers.floats(64, 48) * np.float32(1e-12), "smallest numbers would vanish"),
    ],
)
def test_weights_that_do_not_fit_stay(weight, reason):
    model = _model(MATMUL, w=weight)
    changes = ConvertFloat16().run(model, Context())
    assert reason in _reasons(changes)["w"]
    assert _types(model) == ["MatMul"]


def test_what_may_vanish_is_an_option():
    model = _model(MATMUL, w=helpers.floats(64, 48) * np.float32(1e-6))
    assert not _reasons(ConvertFloat16(least_sqnr_db=10).run(model, Context()))


def test_a_small_weight_would_not_become_smaller():
    model = _model("g (float[n, 8] x, float[8] b) => (float[n, 8] y){y = Add(x, b)}", b=helpers.floats(8))
    assert not ConvertFloat16().run(model, Context())


def test_scales_outputs_and_other_domains_stay():
    scales = np.linspace(0.01, 0.02, 400).astype(np.float32)
    text = "g (int8[n, 400] x, float[400] s) => (float[n, 400] y){y = DequantizeLinear<axis = 1>(x, s)}"
    assert "must be exact" in _reasons(ConvertFloat16().run(_model(text, s=scales), Context()))["s"]
    text = "g (float[n, 64] x, float[64, 48] w) => (float[n, 48] y, float[64, 48] w){y = MatMul(x, w)}"
    model = _model(MATMUL, w=helpers.floats(64, 48))
    model.graph.outputs.append(model.graph.initializers["w"])
    assert _reasons(ConvertFloat16().run(model, Context()))["w"] == "is an output itself"
    model = _model(MATMUL, w=helpers.floats(64, 48))
    model.graph[0].domain = "mine"
    assert "another domain" in _reasons(ConvertFloat16().run(model, Context()))["w"]


def test_only_and_skip_and_the_gate_are_obeyed():
    for compute in ("float32", "float16"):
        model = _model(MATMUL, w=helpers.floats(64, 48))
        changes = ConvertFloat16(compute=compute).run(model, Context(selects=lambda _: False, feeds=[X]))
        assert "--only/--skip" in _reasons(changes)["w"]
        ConvertFloat16(compute=compute).run(model, Context(gate=Gate(limit=0), feeds=[X]))
        assert _types(model) == ["MatMul"]


def test_an_opset_without_numbers_in_cast_is_raised():
    model = _model(MATMUL, opset=4, w=helpers.floats(64, 48))
    changes = ConvertFloat16().run(model, Context())
    assert query.opset(model) == 6
    assert [c.target for c in changes] == ["opset 6", "w"]


def test_decisions_can_be_carried_out_one_by_one():
    model = _model(MATMUL, w=helpers.floats(64, 48))
    (decision,) = ConvertFloat16().decide(model, Context())
    assert ConvertFloat16().apply(model, decision).action is Action.APPLIED
    assert _types(model) == ["Cast", "MatMul"]


# Arithmetic.

CHAIN = """g (float[n, 64] x, float[64, 64] w, float[64] b, float[64, 48] v) => (float[n, 48] y)
    {h = MatMul(x, w) i = Add(h, b) j = Relu(i) y = MatMul(j, v)}"""
CHAIN_WEIGHTS = {"w": helpers.floats(64, 64), "b": helpers.floats(64, seed=1), "v": helpers.floats(64, 48, seed=2)}


def test_a_chain_has_casts_at_its_ends_only():
    model = _model(CHAIN, **CHAIN_WEIGHTS)
    before = model_io.to_bytes(model)
    _compute(model)
    assert _types(model) == ["Cast", "MatMul", "Add", "Relu", "MatMul", "Cast"]
    assert _cast_types(model) == [FLOAT16, FLOAT]
    assert set(_stored(model).values()) == {FLOAT16}
    assert [(v.name, v.dtype) for v in [*model.graph.inputs, *model.graph.outputs]] == [("x", FLOAT), ("y", FLOAT)]
    assert 45 < _db(before, model) < 80
    onnx.checker.check_model(ir.to_proto(model), full_check=True)
    assert not [c for c in _compute(model) if c.action is Action.APPLIED]


def test_targets_say_whether_arithmetic_is_worth_it():
    for target, casts in (("cpu", [FLOAT] * 3), ("tensorrt", [FLOAT16, FLOAT])):
        model = _model(CHAIN, **CHAIN_WEIGHTS)
        ConvertFloat16().run(model, Context(feeds=[X], target=target))
        assert _cast_types(model) == casts
        assert targets.half_compute(target) == (len(casts) == 2)


@pytest.mark.parametrize("scale", [1e4, 1e30])
def test_layers_that_overflow_are_an_island_of_float32(scale):
    text = """g (float[n, 64] x, float[64, 64] w, float s, float[64, 48] v) => (float[n, 48] y)
        {h = MatMul(x, w) i = Mul(h, s) j = Add(i, i) k = Div(j, s) y = MatMul(k, v)}"""
    weights = {"w": CHAIN_WEIGHTS["w"], "v": CHAIN_WEIGHTS["v"], "s": np.float32(scale)}
    model = _model(text, **weights)
    before = model_io.to_bytes(model)
    refused = _reasons(_compute(model))
    assert len(refused) == 3
    assert any("reaches" in reason or "more than float16" in reason for reason in refused.values())
    assert _types(model) == ["Cast", "MatMul", "Cast", "Mul", "Add", "Div", "Cast", "MatMul", "Cast"]
    assert _db(before, model) > 45


def test_how_close_values_may_come_is_an_option():
    weights = {**CHAIN_WEIGHTS, "w": CHAIN_WEIGHTS["w"] * np.float32(300)}
    assert any("reaches" in r for r in _reasons(_compute(_model(CHAIN, **weights))).values())
    assert not _reasons(_compute(_model(CHAIN, **weights), headroom=1, least_sqnr_db=0))


def test_small_numbers_of_formulas_and_vanishing_values_stay():
    text = """g (float[n, 64] x, float[64, 64] w, float e, float t) => (float[n, 64] y, float[n, 64] z)
        {h = MatMul(x, w) a = Abs(h) i = Add(a, e) y = Div(h, i) z = Mul(h, t)}"""
    weights = {"w": CHAIN_WEIGHTS["w"], "e": np.float32(1e-12), "t": np.float32(0.0001)}
    model = _model(text, **weights)
    model.graph[-1].inputs[1].const_value = ir.tensor(np.full(64, 1e-8, np.float32), name="t")
    before = model_io.to_bytes(model)
    refused = _reasons(_compute(model))
    assert any("reads the constant 1e-12" in reason for reason in refused.values())
    assert any("would vanish" in reason for reason in refused.values())
    assert _db(before, model) > 45


def test_positions_and_counts_stay_float32():
    text = """g (float[n, 64] x, float[64, 64] w, float f) => (float[n, 64] y, int64[n, 64] z, float k)
        {h = MatMul(x, w) y = Relu(h) i = Mul(h, f) j = Floor(i) z = Cast<to = 7>(j)
         s = Size(x) c = Cast<to = 1>(s) k = Mul(c, f)}"""
    model = _model(text, w=CHAIN_WEIGHTS["w"], f=np.float32(3.0))
    feed = {"x": helpers.floats(50, 64)}
    before = model_io.to_bytes(model)
    _compute(model, feeds=[feed])
    by_type = {node.op_type: node for node in model.graph if node.op_type != "Cast"}
    assert by_type["Relu"].inputs[0].dtype == FLOAT16
    assert by_type["Floor"].inputs[0].dtype != FLOAT16
    a, b = (runtime.open_session(m, optimize=False).run(feed) for m in (before, model_io.to_bytes(model)))
    assert a["k"] == b["k"] == 9600
    assert np.abs(a["z"] - b["z"]).max() <= 1


def test_ports_that_must_be_float32_and_attributes_that_name_a_type():
    text = """g (float[1, 4, 8, 8] x, float[6, 4, 3, 3] w, float[4] s, int64[4] d) => (float[1, 6, n, m] y)
        {c = Conv<pads = [1, 1, 1, 1]>(x, w) r = Resize(c, , s) o = ConstantOfShape<value = float[1] {2}>(d)
         y = Mul(r, o)}"""
    sizes = {"s": np.array([1, 1, 2, 2], np.float32), "d": np.array([1, 6, 16, 16])}
    model = _model(text, w=helpers.floats(6, 4, 3, 3), **sizes)
    before = model_io.to_bytes(model)
    feed = {"x": helpers.floats(1, 4, 8, 8)}
    _compute(model, feeds=[feed])
    assert _types(model) == ["Cast", "Conv", "Resize", "ConstantOfShape", "Mul", "Cast"]
    assert _stored(model)["s"] == FLOAT
    assert _db(before, model, feed) > 50


def test_sums_at_places_stay_float32():
    text = """g (float[n, 64] x, float[64, 64] w, int64[1, 1] i, float[1, 64] u) => (float[n, 64] y)
        {h = MatMul(x, w) s = ScatterND<reduction = "add">(h, i, u) y = MatMul(s, w)}"""
    model = _model(text, w=CHAIN_WEIGHTS["w"], i=np.array([[0]]), u=helpers.floats(1, 64))
    before = model_io.to_bytes(model)
    _compute(model)
    assert _types(model) == ["Cast", "Cast", "MatMul", "Cast", "ScatterND", "Cast", "MatMul", "Cast"]
    assert _db(before, model, optimize=True) > 45


def test_a_value_read_on_both_sides_has_one_cast():
    text = """g (float[n, 64] x, float[64, 64] w, float s) => (float[n, 64] y, float[n, 64] z, float[n, 64] u)
        {h = MatMul(x, w) y = Mul(h, s) z = Add(h, y) u = MatMul(h, w)}"""
    model = _model(text, w=CHAIN_WEIGHTS["w"], s=np.float32(1e8))
    before = model_io.to_bytes(model)
    _compute(model)
    assert _types(model) == ["Cast", "MatMul", "Cast", "Mul", "Add", "MatMul", "Cast"]
    assert _db(before, model) > 45


def test_elementwise_models_gain_nothing_and_stay():
    model = _model("g (float[n, 64] x) => (float[n, 64] y){h = Relu(x) y = Neg(h)}")
    assert not _compute(model)


def test_a_model_that_would_grow_stays():
    text = f"g (float[n, 4] x, float[4, 4] w) => ({', '.join(f'float[n, 4] y{i}' for i in range(30))})"
    model = _model(text + f"{{{' '.join(f'y{i} = MatMul(x, w)' for i in range(30))}}}", w=helpers.floats(4, 4))
    (change,) = _compute(model, feeds=[{"x": helpers.floats(3, 4)}])
    assert "Casts take 2," in change.reason
    assert set(_types(model)) == {"MatMul"}


def test_made_up_inputs_stand_in_for_data():
    model = _model(CHAIN, **CHAIN_WEIGHTS)
    before = model_io.to_bytes(model)
    ConvertFloat16(compute="float16").run(model, Context())
    assert _types(model)[0] == "Cast"
    assert _db(before, model) > 45


def test_a_model_that_does_not_run_stays():
    model = _model(CHAIN, **CHAIN_WEIGHTS)
    changes = _compute(model, feeds=[{"x": helpers.floats(5, 63)}])
    assert "can't be observed" in _reasons(changes)["graph"]


def test_a_float16_model_passes():
    model = _model(CHAIN, **CHAIN_WEIGHTS)
    _compute(model)
    proto = model_io.to_bytes(model)
    result = oc.compress(onnx.ModelProto.FromString(proto), recipe="float16")
    mine = [c for c in result.changes if c.pass_name == "convert-float16"]
    assert {(c.action, c.reason) for c in mine} == {(Action.SKIPPED, "its weights are float16 already, not float32")}


# Whole models.


@pytest.mark.parametrize("compute", ["float32", "float16"])
@pytest.mark.parametrize("name", ["resnet14_bn", "mbv2", "vit"])
def test_real_models_take_half_and_score_the_same(tmp_path, name, compute):
    for part, count in (("calib", 16), ("test", 300)):
        with np.load(MODELS / f"fmnist_{part}.npz") as arrays:
            np.savez(tmp_path / f"{part}.npz", **{key: array[:count] for key, array in arrays.items()})
    result = oc.compress(
        MODELS / f"{name}.onnx",
        recipe="float16",
        settings=[f"convert-float16.compute={compute}"],
        data=tmp_path / "calib.npz",
        eval_data=tmp_path / "test.npz",
    )
    assert result.report.output.bytes < 0.52 * result.report.input.bytes
    assert result.report.quality["drop"] == 0
    assert not [c for c in result.changes if c.action is Action.ROLLED_BACK]
