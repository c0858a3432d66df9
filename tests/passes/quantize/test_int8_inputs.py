"""What every pass of the int8 family makes of float16, of integers that are there already, and of fused nodes."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import onnx
import onnx_ir as ir
import pytest

from onnxcompress.core import Action, Change, Context, Feed
from onnxcompress.graph import edit
from onnxcompress.io import model_io
from onnxcompress.passes import SHIPPED, build
from onnxcompress.runtime import session as runtime
from tests.helpers import floats, op_types

FAMILY = [name for name in SHIPPED if name.startswith("quantize-") and name != "quantize-blocks"]
"""The passes that write 8 bits; fewer bits have tests of their own."""

HEADER = '<ir_version: 10, opset_import: ["" : 21, "com.microsoft" : 1]> '

Model = tuple[ir.Model, Feed]


def _model(text: str, weights: dict[str, np.ndarray]) -> ir.Model:
    """Return the model of a text; the inputs, of the main graph, that weights are given for become initializers."""
    model = model_io.load(ir.to_proto(ir.from_onnx_text(HEADER + text)))
    for value in list(model.graph.inputs):
        if value.name in weights:
            model.graph.inputs.remove(value)
            edit.set_weight(value, weights[value.name])
            model.graph.register_initializer(value)
    return model


def _weight(*shape: int, seed: int = 1) -> np.ndarray:
    return floats(*shape, seed=seed) / np.float32(np.sqrt(np.prod(shape[1:] if len(shape) > 2 else shape[:1])))


WEIGHTS = {
    "k": _weight(32, 8, 3, 3, seed=2),
    "kb": floats(32, seed=3) / 10,
    "w": _weight(32, 256, seed=4),
    "v": _weight(256, 256, seed=5),
    "b": floats(256, seed=6) / 10,
    "t": floats(40, 32, seed=7),
}
IMAGE = np.random.default_rng(0).random((2, 8, 16, 16), np.float32)
IDS = np.array([[3, 39], [0, 7]])
NET = """g ({t}[n, 8, 16, 16] i, int64[n, 2] ids{weights}) => ({t}[n, 256] y)
{{
    c = Conv<pads = [1, 1, 1, 1]>(i, {k}, {kb})
    r = Relu(c)
    p = GlobalAveragePool(r)
    f = Flatten(p)
    e = Gather({table}, ids)
    s = ReduceMean<keepdims = 0>(e, axes)
    a = Add(f, s)
    m = MatMul(a, {w})
    g1 = Relu(m)
    y = Gemm(g1, {v}, {b})
}}"""


def _net(kind: str, stored: str = "") -> Model:
    """Return a network with a Conv, a table and two products that computes with one type and stores another."""
    dtype = {"float": np.float32, "float16": np.float16, "bfloat16": None}
    declared = "".join(f", {stored or kind}{list(a.shape)} {n}" for n, a in WEIGHTS.items()) + ", int64[1] axes"
    names = {"k": "k", "kb": "kb", "table": "t", "w": "w", "v": "v", "b": "b"}
    text = NET
    if stored:
        to = {"float": 1, "float16": 10}[kind]
        casts = "".join(f"{n}_cast = Cast<to = {to}>({n}) " for n in WEIGHTS)
        text = NET.replace("{{\n", "{{ " + casts, 1)
        names = {port: f"{n}_cast" for port, n in names.items()}
    arrays = {n: ir.tensor(a).numpy().astype(_numpy(stored or kind)) for n, a in WEIGHTS.items()}
    arrays["axes"] = np.array([1])
    assert kind in dtype
    model = _model(text.format(t=kind, weights=declared, **names), arrays)
    return model, {"i": IMAGE.astype(_numpy(kind)), "ids": IDS}


def _numpy(kind: str) -> np.dtype:
    return ir.DataType[{"float": "FLOAT", "float16": "FLOAT16", "bfloat16": "BFLOAT16"}[kind]].numpy()


def _outputs(model: ir.Model, feed: Feed, *, optimize: bool = True) -> dict[str, np.ndarray]:
    data = model_io.to_bytes(model)
    onnx.checker.check_model(data)
    return runtime.open_session(data, optimize=optimize).run(feed)


def _least_db(before: dict[str, np.ndarray], after: dict[str, np.ndarray]) -> float:
    assert list(before) == list(after)
    ratios = []
    for name, expected in before.items():
        assert after[name].dtype == expected.dtype
        assert after[name].shape == expected.shape
        wide = expected.astype(np.float64)
        ratios.append(np.square(wide).sum() / max(np.square(wide - after[name]).sum(), 1e-30))
    return float(10 * np.log10(min(ratios)))


def _run(name: str, model: ir.Model, feed: Feed) -> list[Change]:
    """Run a pass with data that it may calibrate on."""
    return build(name, {}).run(model, Context(feeds=[feed] * 4))


def _applied(changes: list[Change]) -> list[Change]:
    return [c for c in changes if c.action is Action.APPLIED]


@pytest.fixture(params=FAMILY)
def name(request) -> Iterator[str]:
    """Each pass of the family."""
    return request.param


@pytest.mark.parametrize(
    ("kind", "stored"), [("float", ""), ("float16", ""), ("float", "float16"), ("float", "bfloat16")]
)
def test_networks_of_every_float_type_stay_close(name, kind, stored):
    model, feed = _net(kind, stored)
    before, size = _outputs(model, feed), len(model_io.to_bytes(model))
    changes = _run(name, model, feed)
    assert changes
    assert _least_db(before, _outputs(model, feed)) > 25
    if _applied(changes):
        assert len(model_io.to_bytes(model)) < size
    else:
        assert all(c.reason for c in changes)


@pytest.mark.parametrize("stored", ["float16", "bfloat16"])
def test_floats_that_are_stored_shorter_become_integers_too(stored):
    for name in ("quantize-weights", "quantize-dynamic"):
        model, feed = _net("float", stored)
        changes = {c.target: c for c in _run(name, model, feed)}
        assert changes["v_cast"].action is Action.APPLIED
        assert changes["v_cast"].bytes_before == 2 * 256 * 256
        assert 0.5 <= changes["v_cast"].bytes_after / changes["v_cast"].bytes_before < 0.55
        assert "v" not in model.graph.initializers


def test_a_short_float_with_other_readers_stays():
    text = (
        "g (float[n, 256] x, float16[256, 256] v) => (float[n, 256] y, float16[256, 256] z)"
        "{f = Cast<to = 1>(v) y = MatMul(x, f) z = Neg(v)}"
    )
    for name in ("quantize-weights", "quantize-dynamic"):
        model = _model(text, {"v": WEIGHTS["v"].astype(np.float16)})
        changes = _run(name, model, {"x": floats(300, 256)})
        assert not _applied(changes)
        assert "also read by" in changes[0].reason
        assert op_types(model) == ["Cast", "MatMul", "Neg"]


def test_float16_arithmetic_has_no_dynamic_form():
    model, feed = _net("float16")
    reasons = {c.target: c.reason for c in _run("quantize-dynamic", model, feed)}
    assert "float16: DynamicQuantizeLinear reads float32 only" in reasons["v"]


def test_bfloat16_arithmetic_passes_through_what_runs_it_on_samples(name):
    model, feed = _net("bfloat16")
    before = model_io.to_bytes(model)
    changes = _run(name, model, feed)
    if name in ("quantize-weights", "quantize-int8"):  # the former, and the last step of the latter, run nothing
        assert {c.pass_name for c in _applied(changes)} == {"widen-float16", "quantize-weights"}
        assert len(model_io.to_bytes(model)) < len(before)
        assert [v.dtype for v in model.graph.outputs] == [ir.DataType.BFLOAT16] * len(model.graph.outputs)
        return
    assert not _applied(changes)
    assert model_io.to_bytes(model) == before


# Integers that are there already.

STATIC = """g (float[n, 8, 16, 16] i, float[m, 256] x, int8[32, 8, 3, 3] q, float[32] qs, int8[32] qz,
  float s, uint8 z, int8[32, 256] wq, float[256] ws, float[256, 256] v) => (float[n, 256] y, float[m, 256] y2)
{
    iq = QuantizeLinear(i, s, z) id = DequantizeLinear(iq, s, z)
    kd = DequantizeLinear<axis = 0>(q, qs, qz)
    c = Conv<pads = [1, 1, 1, 1]>(id, kd)
    cq = QuantizeLinear(c, s, z) cd = DequantizeLinear(cq, s, z)
    p = GlobalAveragePool(cd)
    pq = QuantizeLinear(p, s, z) pd = DequantizeLinear(pq, s, z)
    f = Flatten(pd)
    wd = DequantizeLinear<axis = 1>(wq, ws)
    y = MatMul(f, wd)
    y2 = MatMul(x, v)
}"""
STATIC_WEIGHTS = {
    "q": np.random.default_rng(3).integers(-127, 128, (32, 8, 3, 3), np.int8),
    "qs": np.full(32, 0.002, np.float32),
    "qz": np.zeros(32, np.int8),
    "s": np.array(0.01, np.float32),
    "z": np.array(128, np.uint8),
    "wq": np.random.default_rng(4).integers(-127, 128, (32, 256), np.int8),
    "ws": np.full(256, 0.01, np.float32),
}


def _integers(model: ir.Model) -> dict[str, np.ndarray]:
    kept = (ir.DataType.INT8, ir.DataType.UINT8)
    return {
        str(v.name): v.const_value.numpy()
        for v in model.graph.initializers.values()
        if v.dtype in kept and v.const_value is not None
    }


def test_what_is_quantized_stays_and_the_rest_may_follow(name):
    model = _model(STATIC, {**STATIC_WEIGHTS, "v": WEIGHTS["v"]})
    feed = {"i": IMAGE, "x": floats(60, 256)}
    before, integers = _outputs(model, feed), _integers(model)
    _run(name, model, feed)
    after = _outputs(model, feed)
    np.testing.assert_array_equal(before["y"], after["y"])
    assert _least_db({"y2": before["y2"]}, {"y2": after["y2"]}) > 30
    kept = _integers(model)
    for key, array in integers.items():
        np.testing.assert_array_equal(array, kept[key])


OPERATORS = """g (float[n, 32] x, float s, uint8 z, int8[32, 256] wq, float[256] ws, int8 zw,
  uint8[256, 2, 128] p, float[512] ps) => (float[n, 256] a, float[n, 256] b, float[n, 256] c)
{
    xq = QuantizeLinear(x, s, z)
    aq = QLinearMatMul(xq, s, z, wq, s, zw, s, z)
    a = DequantizeLinear(aq, s, z)
    dq, ds, dz = DynamicQuantizeLinear(x)
    bi = MatMulInteger(dq, wq, dz)
    bf = Cast<to = 1>(bi) bs = Mul(ds, ws) b = Mul(bf, bs)
    c = com.microsoft.MatMulNBits<K = 256, N = 256, bits = 8, block_size = 128>(b, p, ps)
}"""


def test_operators_on_integers_are_not_touched(name):
    rng = np.random.default_rng(5)
    weights = {
        **{key: STATIC_WEIGHTS[key] for key in ("s", "z", "wq", "ws")},
        "zw": np.array(0, np.int8),
        "p": rng.integers(0, 255, (256, 2, 128), np.uint8),
        "ps": np.full(512, 0.001, np.float32),
    }
    model = _model(OPERATORS, weights)
    before = model_io.to_bytes(model)
    changes = _run(name, model, {"x": floats(300, 32)})
    assert not _applied(changes)
    assert model_io.to_bytes(model) == before


@pytest.mark.parametrize("first", ["quantize-weights", "quantize-dynamic"])
def test_one_pass_after_the_other_leaves_its_work_alone(name, first):
    model, feed = _net("float")
    _run(first, model, feed)
    integers = _integers(model)
    between = _outputs(model, feed)
    _run(name, model, feed)
    assert _least_db(between, _outputs(model, feed)) > 28
    kept = _integers(model)
    assert set(integers) <= set(kept)
    for key, array in integers.items():
        np.testing.assert_array_equal(array, kept[key])


# Nodes that onnxruntime's optimizer leaves in a file.

FUSED = """g (float[n, 8, 16, 16] i, float[32, 8, 3, 3] k, float[32] kb, float[32, 256] w, float[256, 256] v,
  float[256] b, float[256] one) => (float[n, 256] y, float[n, 256] h, float[n, 256] m)
{
    c = com.microsoft.FusedConv<activation = "Relu", pads = [1, 1, 1, 1]>(i, k, kb)
    p = GlobalAveragePool(c)
    f = Flatten(p)
    m = com.microsoft.FusedMatMul<alpha = 0.5>(f, w)
    g1 = com.microsoft.FusedGemm<activation = "Relu">(m, v, b)
    u = Unsqueeze(g1, axis)
    l = com.microsoft.SkipLayerNormalization(u, u, one, b)
    a = com.microsoft.BiasGelu(l, b)
    h = Squeeze(a, axis)
    y = MatMul(h, v)
}"""


def test_fused_nodes_stay_as_they_are_or_become_integers(name):
    weights = {key: WEIGHTS[key] for key in ("k", "kb", "w", "v", "b")}
    text = FUSED.replace("float[256] one)", "float[256] one, int64[1] axis)")
    model = _model(text, {**weights, "one": np.ones(256, np.float32), "axis": np.array([1])})
    feed = {"i": np.concatenate([IMAGE] * 40)}
    before = _outputs(model, feed)
    changes = _run(name, model, feed)
    assert changes
    assert _least_db(before, _outputs(model, feed)) > 28
    for kind in ("FusedConv", "SkipLayerNormalization", "BiasGelu", "FusedGemm"):
        assert kind in op_types(model)


ATTENTION = """g (float[n, 6, 64] x, float[64, 192] w, float[192] b) => (float[n, 6, 64] y)
{ y = com.microsoft.Attention<num_heads = 4>(x, w, b) }"""


def test_attention_stays_one_node(name):
    model = _model(ATTENTION, {"w": _weight(64, 192), "b": floats(192, seed=2) / 10})
    feed = {"x": floats(50, 6, 64)}
    before = _outputs(model, feed)
    _run(name, model, feed)
    assert "Attention" in op_types(model)
    assert _least_db(before, _outputs(model, feed)) > 28


# Bodies.

BODY = """g (float[n, 256] x, bool c, float[256, 256] w) => (float[n, 256] y)
{
    y = If<
        then_branch = yes () => (float[n, 256] a) { a = MatMul(x, w) },
        else_branch = no () => (float[n, 256] e) { s = Sub(x, one) e = MatMul(s, w) }
    >(c)
}"""


def test_bodies_that_share_a_weight(name):
    text = BODY.replace("float[256, 256] w)", "float[256, 256] w, float[256] one)")
    model = _model(text, {"w": WEIGHTS["v"], "one": np.ones(256, np.float32)})
    feeds = [{"x": floats(40, 256), "c": np.array(taken)} for taken in (True, False)]
    before = [_outputs(model, feed) for feed in feeds]
    build(name, {}).run(model, Context(feeds=feeds))
    for expected, feed in zip(before, feeds, strict=True):
        assert _least_db(expected, _outputs(model, feed)) > 28
    big = [v for v in model.graph.initializers.values() if v.const_value is not None and v.const_value.size == 1 << 16]
    assert len(big) <= 1


@pytest.mark.parametrize("stored", ["float16", "bfloat16"])
def test_weights_behind_a_cast_are_cut_into_blocks(stored):
    model, feed = _net("float", stored)
    before, size = _outputs(model, feed), len(model_io.to_bytes(model))
    changes = {c.target: c for c in _run("quantize-blocks", model, feed)}
    assert changes["v_cast"].action is Action.APPLIED
    assert changes["v_cast"].bytes_before == 2 * 256 * 256
    assert changes["v_cast"].bytes_after < 0.3 * changes["v_cast"].bytes_before
    assert "v" not in model.graph.initializers
    assert len(model_io.to_bytes(model)) < 0.4 * size
    assert _least_db(before, _outputs(model, feed)) > 15
