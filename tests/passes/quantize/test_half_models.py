"""What recipes make of models that are in float16 already: half the size of these, and faster than they were."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir
import pytest

import onnxcompress as oc
from onnxcompress.core import Action, Context
from onnxcompress.graph import query
from onnxcompress.io import model_io
from onnxcompress.passes import build
from onnxcompress.passes.float16.widen import computed_types
from onnxcompress.passes.quantize.equalize import Equalize
from tests.helpers import floats, op_types, run, with_constants

CONVS = """g ({t}[n, 3, 16, 16] x, {t}[64, 3, 3, 3] k, {t}[64] kb, {t}[64, 64, 3, 3] l, {t}[64] lb,
  {t}[64, 64, 3, 3] o, {t}[64, 10] m)
  => ({t}[n, 10] y)
{{
    c = Conv<pads = [1, 1, 1, 1]>(x, k, kb)
    r = Relu(c)
    d = Conv<pads = [1, 1, 1, 1]>(r, l, lb)
    s = Relu(d)
    e = Conv<pads = [1, 1, 1, 1]>(s, o, lb)
    p = GlobalAveragePool(e)
    f = Flatten(p)
    y = MatMul(f, m)
}}"""
PRODUCTS = """g ({t}[n, 256] x, {t}[256, 512] w, {t}[512] b, {t}[512, 256] v) => ({t}[n, 256] y)
{{ h = Gemm(x, w, b) r = Relu(h) y = MatMul(r, v) }}"""
STORED = """g (float[n, 256] x, float16[256, 512] w, float16[512] b, float16[512, 256] v) => (float[n, 256] y)
{{ w2 = Cast<to = 1>(w) b2 = Cast<to = 1>(b) v2 = Cast<to = 1>(v)
   h = Gemm(x, w2, b2) r = Relu(h) y = MatMul(r, v2) }}"""
MIXED = """g (float[n, 256] x, float16[256, 512] w, float16[512] b, float[512, 256] v) => (float[n, 256] y)
{{ xh = Cast<to = 10>(x) h = Gemm(xh, w, b) r = Relu(h) f = Cast<to = 1>(r) y = MatMul(f, v) }}"""
LSTM = """g ({t}[s, 1, 128] x, {t}[1, 512, 128] w, {t}[1, 512, 128] r) => ({t}[s, 1, 1, 128] y)
{{ y = LSTM<hidden_size = 128>(x, w, r) }}"""


def _weight(*shape, seed=0):
    fan = np.prod(shape[1:]) if len(shape) == 4 else shape[-1 if len(shape) == 3 else 0]
    return floats(*shape, seed=seed) / np.float32(np.sqrt(fan))


WEIGHTS = {
    "k": _weight(64, 3, 3, 3),
    "kb": floats(64) / 10,
    "l": _weight(64, 64, 3, 3, seed=1),
    "lb": floats(64) / 10,
    "o": _weight(64, 64, 3, 3, seed=3),
    "m": floats(64, 10),
    "w": _weight(256, 512),
    "b": floats(512) / 10,
    "v": _weight(512, 256, seed=2),
}
LSTM_WEIGHTS = {"w": _weight(1, 512, 128), "r": _weight(1, 512, 128, seed=1)}
SHAPES = {CONVS: (1, 3, 16, 16), PRODUCTS: (16, 256), STORED: (16, 256), MIXED: (16, 256), LSTM: (20, 1, 128)}


def _model(text: str) -> ir.Model:
    """Return a model in float16, with weights of the types that its text declares."""
    given = LSTM_WEIGHTS if text is LSTM else {n: a for n, a in WEIGHTS.items() if f"] {n}" in text}
    single = {name for name in given if f"float[512, 256] {name}" in text}
    arrays = {n: a if n in single else a.astype(np.float16) for n, a in given.items()}
    return with_constants(text.format(t="float16"), **arrays)


def _feeds(text: str, count: int = 8):
    dtype = np.float32 if "float[n" in text else np.float16
    return [{"x": floats(*SHAPES[text], seed=seed).astype(dtype)} for seed in range(count)]


def _db(before, after, feed):
    expected, found = run(before, feed), run(after, feed, optimize=True)
    assert {n: a.dtype for n, a in found.items()} == {n: a.dtype for n, a in expected.items()}
    wide = {n: a.astype(np.float64) for n, a in expected.items()}
    return min(10 * np.log10(np.square(a).sum() / max(np.square(a - found[n]).sum(), 1e-30)) for n, a in wide.items())


ALL = pytest.mark.parametrize("text", list(SHAPES), ids=["convs", "products", "stored", "mixed", "lstm"])


@ALL
@pytest.mark.parametrize(("recipe", "size", "least_db"), [("int8-weights", 0.6, 35), ("int4-weights", 0.6, 15)])
def test_weight_recipes_halve_the_size_without_being_slower(text, recipe, size, least_db):
    model = _model(text)
    result = oc.compress(model, recipe=recipe)
    assert len(model_io.to_bytes(result.model)) < size * len(model_io.to_bytes(model))
    assert computed_types(result.model) == set()
    said = [c for c in result.changes if c.pass_name == "widen-float16" and c.action == Action.APPLIED]
    assert len(said) == (0 if text is STORED else 1)
    assert _db(model, result.model, _feeds(text)[0]) > least_db


@pytest.mark.parametrize("text", [PRODUCTS, STORED], ids=["products", "stored"])
def test_four_bits_take_half_of_what_eight_take(text):
    small = len(model_io.to_bytes(oc.compress(_model(text), recipe="int4-weights").model))
    assert small < 0.33 * len(model_io.to_bytes(_model(text)))


@pytest.mark.parametrize("text", [CONVS, PRODUCTS, STORED, MIXED], ids=["convs", "products", "stored", "mixed"])
def test_int8_takes_half_the_size_and_less_time(text):
    model = _model(text)
    result = oc.compress(model, recipe="int8", data=_feeds(text, 24), max_drop=0.05)
    assert result.report.output.bytes < 0.65 * result.report.input.bytes
    assert result.report.latency["ratio"] < 1
    assert result.report.quality["drop"] <= 0.05
    assert {"quantize-static", "quantize-dynamic"} & {c.pass_name for c in result.changes if c.action == Action.APPLIED}
    assert [v.dtype for v in result.model.graph.outputs] == [v.dtype for v in model.graph.outputs]


@ALL
def test_integer_routes_take_all_layers_of_a_widened_model(text):
    for route in ("static", "dynamic"):
        model = _model(text)
        build("quantize-int8", {"routes": [route]}).run(model, Context(feeds=_feeds(text)))
        assert _db(_model(text), model, _feeds(text)[1]) > 20
        kernels = set(op_types(model))
        if text is LSTM:
            assert ("DynamicQuantizeLSTM" in kernels) == (route == "dynamic")
        elif route == "static":
            large = [n for n in query.nodes(model) if n.op_type in ("Conv", "MatMul", "Gemm")]
            assert all(n.inputs[1].producer().op_type == "DequantizeLinear" for n in large)
            assert all(n.inputs[0].producer().op_type == "DequantizeLinear" for n in large)
        elif text is not CONVS:
            assert "MatMulInteger" in kernels or "DynamicQuantizeMatMul" in kernels


def test_auto_begins_from_a_widened_model_too():
    settings = ["search-best.reductions=[]"]
    result = oc.compress(_model(CONVS), data=_feeds(CONVS, 24), settings=settings, max_drop=0.05)
    assert result.report.output.bytes < 0.6 * result.report.input.bytes
    assert result.report.latency["ratio"] < 1
    assert "widen-float16" in {c.pass_name for c in result.changes if c.action == Action.APPLIED}
    without = oc.compress(_model(CONVS))
    assert "widen-float16" in {c.pass_name for c in without.changes if c.action == Action.APPLIED}
    assert computed_types(without.model) == set()


def test_float16_says_that_a_model_is_float16_already():
    for text in (CONVS, STORED):
        result = oc.compress(_model(text), recipe="float16")
        reasons = [c.reason for c in result.changes if c.pass_name == "convert-float16"]
        assert any("float16 already" in reason for reason in reasons)


def test_a_model_that_gains_nothing_stays_as_it_is_and_the_reason_is_said():
    text = "g (float16[n, 8] x, float16[8, 8] w) => (float16[n, 8] y) { y = MatMul(x, w) }"
    model = with_constants(text, w=floats(8, 8).astype(np.float16))
    for recipe in ("int8", "int8-weights", "int4-weights"):
        data = [{"x": floats(2, 8, seed=seed).astype(np.float16)} for seed in range(16)]
        result = oc.compress(model, recipe=recipe, data=data)
        assert op_types(result.model) == ["MatMul"]
        assert computed_types(result.model) == {ir.DataType.FLOAT16}
        assert any("undone" in c.reason for c in result.changes if c.pass_name == "widen-float16")


def test_channels_that_float16_could_not_hold_are_not_scaled():
    text = """g (float[n, 64] x, float16[64, 64] w, float16[64, 64] v) => (float[n, 64] y)
    { wf = Cast<to = 1>(w) vf = Cast<to = 1>(v) h = MatMul(x, wf) r = Relu(h) y = MatMul(r, vf) }"""
    feeds = [{"x": floats(64, 64, seed=seed)} for seed in range(8)]
    uneven = floats(64, 64) * np.geomspace(1 / 64, 64, 64, dtype=np.float32)

    def scaled(factor):
        weights = {"w": (uneven * factor).astype(np.float16), "v": floats(64, 64, seed=1).astype(np.float16)}
        model = with_constants(text, **weights)
        changes = Equalize().run(model, Context(feeds=feeds))
        assert _db(with_constants(text, **weights), model, feeds[0]) > 60
        return [c for c in changes if c.action is Action.APPLIED]

    assert scaled(1.0)
    assert not scaled(2.0**-17)  # most are near the least that float16 can hold: some bits would go
