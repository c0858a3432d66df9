"""Weights in blocks: every grid in every form gives what its integers stand for; widths keep to budgets."""

from dataclasses import replace

import numpy as np
import onnx_ir as ir
import pytest

from onnxcompress import errors
from onnxcompress.base import schemes
from onnxcompress.base.gate import Gate
from onnxcompress.core import Action, Context, Trial
from onnxcompress.graph import edit, query
from onnxcompress.io import model_io
from onnxcompress.numerics.quantization.blocks import BlockGrid
from onnxcompress.packing import archive as packing
from onnxcompress.passes import build
from onnxcompress.passes.quantize import blocks_rounding
from onnxcompress.passes.quantize.blocks import QuantizeBlocks
from onnxcompress.passes.quantize.blocks_rounding import Rounder
from onnxcompress.passes.quantize.blocks_writer import array_of
from onnxcompress.passes.quantize.weight_storage import sites
from onnxcompress.runtime import session as runtime
from onnxcompress.search import drafts
from onnxcompress.shapes import count as counting
from tests.helpers import floats, op_types, run, with_constants

PRODUCT = "g (float[n, 80] x, float[80, 48] w) => (float[n, 48] y) { y = MatMul(x, w) }"
GEMM = """g (float[n, 80] x, float[48, 80] w, float[48] b) => (float[n, 48] y)
    { y = Gemm<transB = 1>(x, w, b) }"""
TABLE = "g (int64[n, t] i, float[90, 64] w) => (float[n, t, 64] y) { y = Gather(w, i) }"
TIED = """g (int64[n] i, float[90, 64] w) => (float[n, 90] y)
    { e = Gather(w, i) h = Tanh(e) r = Transpose<perm = [1, 0]>(w) y = MatMul(h, r) }"""
CONV = "g (float[n, 8, 6, 6] x, float[24, 8, 3, 3] w) => (float[n, 24, 4, 4] y) { y = Conv(x, w) }"
DEPTHWISE = """g (float[n, 256, 6, 6] x, float[256, 1, 3, 3] w) => (float[n, 256, 4, 4] y)
    { y = Conv<group = 256>(x, w) }"""
LSTM = """g (float[5, n, 16] x, float[1, 64, 16] w, float[1, 64, 16] r) => (float[5, 1, n, 16] y)
    { y = LSTM<hidden_size = 16>(x, w, r) }"""
BRANCHES = """g (float[n, 64] x, bool c, float[64, 40] v, float[64, 40] w) => (float[n, 40] y) {
    y = If (c) <then_branch = t () => (float[n, 40] a) { a = MatMul(x, v) },
                else_branch = e () => (float[n, 40] b) { p = MatMul(x, w) q = Add(p, p) b = MatMul(x, w) }>
}"""
MLP = """g (float[n, 64] x, float[64, 96] u, float[96] b, float[96, 64] v) => (float[n, 64] y)
    { h = MatMul(x, u) s = Add(h, b) r = Relu(s) y = MatMul(r, v) }"""
IDS = {"i": np.array([[3, 0, 89], [7, 7, 41]])}
CASES = {
    "product": (PRODUCT, {"w": floats(80, 48)}, {"x": floats(5, 80, seed=1)}),
    "gemm": (GEMM, {"w": floats(48, 80), "b": floats(48, seed=2)}, {"x": floats(5, 80, seed=1)}),
    "table": (TABLE, {"w": floats(90, 64)}, IDS),
    "filled table": (TABLE.replace(" 64]", " 100]"), {"w": floats(90, 100)}, IDS),
    "tied": (TIED, {"w": floats(90, 64)}, {"i": np.array([3, 0, 89])}),
    "conv": (CONV, {"w": floats(24, 8, 3, 3)}, {"x": floats(2, 8, 6, 6, seed=1)}),
    "depthwise": (DEPTHWISE, {"w": floats(256, 1, 3, 3)}, {"x": floats(2, 256, 6, 6, seed=1)}),
    "lstm": (LSTM, {"w": floats(1, 64, 16), "r": 0.3 * floats(1, 64, 16, seed=3)}, {"x": floats(5, 2, 16, seed=1)}),
}


def _scheme(bits, symmetric, block=32):
    return schemes.named(bits, block, symmetric=symmetric)


def _rounded(model, scheme, method="auto"):
    """Return a copy of the model with the floats that its integers stand for."""
    parsed, copy = schemes.parse(scheme), model_io.clone(model)
    found = [site for site, _ in sites(copy, lambda _: True, channelwise=True)]
    grid = BlockGrid(parsed.bits, parsed.block, parsed.symmetric)
    rounder = Rounder({site.name: grid for site in found}, method=method)
    rounder.all_alone(found)
    for site in found:
        edit.set_weight(site.value, array_of(site, rounder.blocks[site.name].floats()))
    return copy


def _worst(model, other, feed, *, optimize):
    before, after = run(model, feed), run(other, feed, optimize=optimize)
    return max(float(np.abs(before[k] - after[k]).max() / np.abs(before[k]).max()) for k in before)


def _run_at(model, bits, symmetric, form):
    """Quantize every weight with the same bits: the narrowest are had by no budget, the widest by one without end."""
    scheme = _scheme(bits, symmetric)
    spend = {2: 0.1, 8: 32}.get(bits)
    one = QuantizeBlocks(scheme=scheme, bits_per_weight=spend, form=form, min_elements=64)
    if bits in (3, 4):
        one = replace(one, bits_per_weight=None)
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr("onnxcompress.passes.quantize.blocks._SPARE", 1.0)
            return one.run(model, Context())
    return one.run(model, Context())


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("form", ["kernel", "integer", "multiply", "dequantize"])
@pytest.mark.parametrize(
    ("bits", "symmetric"), [(bits, symmetric) for bits in (2, 3, 4, 8) for symmetric in (True, False)]
)
def test_every_grid_in_every_form_gives_what_its_integers_stand_for(case, form, bits, symmetric):
    text, arrays, feed = CASES[case]
    opset = 25 if bits == 2 and form != "kernel" else 21
    model = with_constants(text, opset=opset, **arrays)
    expected = _rounded(model, _scheme(bits, symmetric))
    changes = _run_at(model, bits, symmetric, form)
    applied = [c for c in changes if c.action is Action.APPLIED and "scheme" in c.details]
    assert len(applied) == sum(a.ndim > 1 for a in arrays.values()), [c.reason for c in changes]
    assert {c.details["scheme"] for c in applied} == {_scheme(bits, symmetric)}
    rounds_activations = form == "integer" or (form == "dequantize" and case in ("product", "gemm", "tied"))
    assert _worst(expected, model, feed, optimize=False) < (0.03 if form == "integer" else 2e-5)
    assert _worst(expected, model, feed, optimize=True) < (0.03 if rounds_activations else 2e-5)


def test_three_bits_take_four_in_the_file_and_three_packed(tmp_path):
    sizes = {}
    for bits in (3, 4):
        model = with_constants(PRODUCT, opset=21, w=floats(256, 512))
        changes = QuantizeBlocks(scheme=_scheme(bits, True), form="multiply").run(model, Context())
        path = tmp_path / f"{bits}.onnx"
        model_io.save(model, path)
        packed = packing.pack(path, tmp_path / f"{bits}.onnxpack")
        sizes[bits] = path.stat().st_size, packed.packed_bytes, [c.bytes_after for c in changes if c.target == "w"]
    assert sizes[3][0] == sizes[4][0]
    assert sizes[3][2] == sizes[4][2]
    assert sizes[3][1] < 0.85 * sizes[4][1]


def _correlated(columns, *, rank=10, count=24, rows=8, seed=0):
    rng = np.random.default_rng(seed)
    mix = rng.standard_normal((rank, columns))
    return [
        {"x": (rng.standard_normal((rows, rank)) @ mix + 0.2 * rng.standard_normal((rows, columns))).astype(np.float32)}
        for _ in range(count)
    ]


def _noise(model, other, feeds):
    pairs = [(run(model, feed), run(other, feed, optimize=True)) for feed in feeds]
    error = sum(np.square(a[k].astype(float) - b[k]).sum() for a, b in pairs for k in a)
    return error / sum(np.square(a[k].astype(float)).sum() for a, _ in pairs for k in a)


def _mlp():
    return with_constants(MLP, u=floats(64, 96), b=floats(96, seed=2), v=floats(96, 64, seed=3))


def _schemes(changes):
    return {c.target: c.details["scheme"] for c in changes if c.action is Action.APPLIED and "scheme" in c.details}


def test_data_lowers_the_error_and_the_bias_takes_part():
    feeds = _correlated(64)
    noises = {}
    for method, context in (("nearest", Context()), ("auto", Context()), ("auto", Context(feeds=feeds[:16]))):
        model = _mlp()
        one = QuantizeBlocks(scheme="int2/block32/sym", method=method, min_elements=64)
        changes = one.run(model, context)
        how = "rounded by what" if context.feeds else ("to nearest" if method == "nearest" else "without data")
        assert all(how in c.reason for c in changes if c.target != "opset 25")
        noises[method, bool(context.feeds)] = _noise(_mlp(), model, feeds[16:])
    assert noises["auto", True] < 0.6 * noises["nearest", False]
    assert noises["auto", False] != noises["nearest", False]


OUTLIERS = np.where(np.arange(64) % 16, 1, 48).astype(np.float32)
NORM = """g (float[n, 64] x, float[64] g, float[64, 48] w) => (float[n, 48] y)
    { n = LayerNormalization(x, g) y = MatMul(n, w) }"""


def _normed():
    return with_constants(NORM, opset=21, g=OUTLIERS, w=floats(64, 48, seed=2))


@pytest.mark.parametrize("method", ["awq", "gptq"])
def test_channels_that_stand_out_are_scaled_into_the_weights(method):
    feeds = [{"x": floats(8, 64, seed=i)} for i in range(48)]
    noises = {}
    for name in (method, "nearest"):
        model = _normed()
        changes = QuantizeBlocks(scheme="int2/block32/sym", method=name, min_elements=64).run(
            model, Context(feeds=feeds[:24])
        )
        scaled = [c.target for c in changes if c.pass_name == "equalize"]
        assert scaled == ([] if name == "nearest" else ["LayerNormalization:n"])
        noises[name] = _noise(_normed(), model, feeds[24:])
    assert noises[method] < 0.5 * noises["nearest"]


def test_rounding_by_activations_is_no_solving():
    models = {method: _mlp() for method in ("nearest", "awq", "gptq")}
    feeds = _correlated(64)
    for method, model in models.items():
        changes = QuantizeBlocks(scheme="int2/block32/sym", method=method, min_elements=64).run(
            model, Context(feeds=feeds[:16])
        )
        assert any(
            {"awq": "to nearest, by activations", "gptq": "by what"}.get(method, "to nearest") in c.reason
            for c in changes
        )
    noises = {method: _noise(_mlp(), model, feeds[16:]) for method, model in models.items()}
    assert noises["gptq"] < 0.8 * noises["awq"] < 0.8 * noises["nearest"]


def test_a_method_without_data_is_kept_to_with_data():
    with_data, without = _mlp(), _mlp()
    options = {"scheme": "int2/block32/sym", "method": "hqq", "bits_per_weight": 0.1, "min_elements": 64}
    QuantizeBlocks(**options).run(with_data, Context(feeds=_correlated(64)))
    QuantizeBlocks(**options).run(without, Context())
    assert model_io.to_bytes(with_data) == model_io.to_bytes(without)


def test_a_scaled_product_keeps_its_scale_with_data():
    text = """g (float[n, 64] x, float[64, 96] w, float[96] b) => (float[n, 96] y)
        { y = Gemm<alpha = 0.25, beta = 2.0>(x, w, b) }"""
    arrays = {"w": floats(64, 96), "b": floats(96, seed=2)}
    model, feeds = with_constants(text, opset=21, **arrays), _correlated(64)
    changes = QuantizeBlocks(min_elements=64).run(model, Context(feeds=feeds))
    assert [c.details["form"] for c in changes] == ["multiply"]  # the kernel knows no alpha
    assert _noise(with_constants(text, **arrays), model, feeds) < 0.01


def test_steps_of_a_recurrent_model_are_rounded_by_with_their_states():
    text = """g (float[n, 64] x, float[n, 64] s, float[64, 64] w) => (float[n, 64] y, float[n, 64] t)
        { z = Add(x, s) y = MatMul(z, w) t = Tanh(y) }"""
    weight = 0.2 * floats(64, 64)
    feeds = [feed | {"s": np.zeros((8, 64), np.float32)} for feed in _correlated(64)]
    noises = []
    for state in ({}, {"s": "t"}):
        model = with_constants(text, w=weight)
        context = Context(feeds=feeds, state=state)
        QuantizeBlocks(scheme="int2/block32/sym", min_elements=64).run(model, context)
        carried, last = [], feeds[0]["s"]
        for feed in feeds:
            carried.append(feed | {"s": last})
            last = run(with_constants(text, w=weight), carried[-1])["t"]
        noises.append(_noise(with_constants(text, w=weight), model, carried))
    assert noises[1] < noises[0]


def test_weights_in_bodies_are_rounded_where_they_are():
    for form in ("kernel", "multiply"):
        model = with_constants(BRANCHES, opset=21, v=floats(64, 40), w=floats(64, 40, seed=1))
        expected = _rounded(model, "int8/block32/sym")
        changes = _run_at(model, 8, True, form)
        assert _schemes(changes) == {"v": "int8/block32/sym", "w": "int8/block32/sym"}
        for taken in (True, False):
            feed = {"x": floats(3, 64, seed=2), "c": np.array(taken)}
            assert _worst(expected, model, feed, optimize=True) < 2e-5
        if form == "kernel":
            assert op_types(model).count("MatMulNBits") == (3 if form == "kernel" else 0)


def test_a_table_that_is_also_a_product_is_stored_once():
    model = with_constants(TIED, opset=21, w=floats(90, 64))
    _run_at(model, 4, True, "kernel")
    assert op_types(model) == ["Cast", "GatherBlockQuantized", "MatMulNBits", "Reshape", "Tanh"]
    large = [v for v in model.graph.initializers.values() if v.const_value.nbytes > 1000]
    assert [v.const_value.nbytes for v in large] == [90 * 32]


def test_bytes_and_memory():
    model = with_constants(PRODUCT, opset=21, w=floats(80, 48))
    change = _run_at(model, 4, True, "kernel")[0]
    stored = sum(v.const_value.nbytes for v in model.graph.initializers.values())
    assert change.bytes_before == 80 * 48 * 4
    assert change.bytes_after == 48 * 3 * (16 + 2)  # the last block is filled up
    assert stored == change.bytes_after
    assert "MatMulNBits" in runtime.optimized_nodes(model_io.to_bytes(model))
    folded = with_constants(PRODUCT, opset=21, w=floats(80, 48))
    _run_at(folded, 4, True, "multiply")
    assert runtime.optimized_nodes(model_io.to_bytes(folded)) == ["MatMul"]  # all of it is folded at load


@pytest.mark.parametrize("form", ["kernel", "multiply", "dequantize"])
@pytest.mark.parametrize("case", ["product", "table", "tied", "conv"])
@pytest.mark.parametrize("symmetric", [True, False])
def test_the_model_has_as_many_parameters_as_before(case, form, symmetric):
    text, arrays, _ = CASES[case]
    text, arrays = text.replace("80", "96"), {"w": floats(96, 48)} if case == "product" else arrays
    model = with_constants(text, opset=21, **arrays)
    count = counting.parameters(model)
    _run_at(model, 4, symmetric, form)
    assert counting.parameters(model) == count + (
        24 * 24 if case == "conv" and form != "dequantize" else 0
    )  # filled up


def test_a_short_row_is_one_block_that_is_not_filled_up():
    text, arrays, _ = CASES["depthwise"]
    model = with_constants(text, opset=21, **arrays)
    assert [c.bytes_after for c in _run_at(model, 4, True, "multiply")] == [256 * 9 // 2 + 256 * 2]


def test_running_twice_changes_nothing():
    for form in ("kernel", "multiply", "dequantize"):
        model = with_constants(TIED, opset=21, w=floats(90, 64))
        one = QuantizeBlocks(form=form, min_elements=64)
        one.run(model, Context())
        before = model_io.to_bytes(model)
        assert not [c for c in one.run(model, Context()) if c.action is Action.APPLIED]
        assert model_io.to_bytes(model) == before


def _refusal(model, **options):
    before = model_io.to_bytes(model)
    (change,) = QuantizeBlocks(**{"min_elements": 64, **options}).run(model, Context())
    assert change.action is Action.SKIPPED
    assert model_io.to_bytes(model) == before
    return change.reason


def test_what_is_left_alone_and_why():
    half = PRODUCT.replace("float[", "float16[")
    model = with_constants(half, w=floats(80, 48).astype(np.float16))
    changes = QuantizeBlocks(min_elements=64).run(model, Context(target="tensorrt"))  # which computes in float16
    assert "float16 weights are not cut" in changes[-1].reason
    broken = floats(80, 48)
    broken[3, 4] = np.nan
    assert "NaN" in _refusal(with_constants(PRODUCT, w=broken))
    tiny = "g (float[n, 10] x, float[10, 7] w) => (float[n, 7] y) { y = MatMul(x, w) }"
    assert "would take" in _refusal(with_constants(tiny, w=floats(10, 7)))
    also = "g (float[n, 80] x, float[80, 48] w) => (float[n, 48] y, float[80, 48] z) { y = MatMul(x, w) z = Exp(w) }"
    assert "also read by" in _refusal(with_constants(also, w=floats(80, 48)))
    assert not QuantizeBlocks().run(with_constants(tiny, w=floats(10, 7)), Context())  # of few elements
    left_out = QuantizeBlocks().run(
        with_constants(PRODUCT, w=floats(80, 48)), Context(selects=lambda node: node.op_type != "MatMul")
    )
    assert "left out by --only/--skip" in left_out[0].reason


def test_two_weights_of_one_name_are_not_mixed_up():
    model = with_constants(BRANCHES, opset=21, v=floats(64, 40), w=floats(64, 40, seed=1))
    body = query.bodies(model.graph[0])[0]
    for value, home in ((model.graph.initializers["w"], body), (model.graph.initializers["v"], None)):
        if home is not None:
            made = ir.Value(name="v", const_value=value.const_value, type=value.type, shape=value.shape)
            home.register_initializer(made)
    changes = QuantizeBlocks(min_elements=64).run(model, Context())
    assert sorted(_schemes(changes)) == ["v", "w"]


def test_the_opset_is_raised_where_tensors_of_few_bits_need_it():
    model = with_constants(CONV, opset=13, w=floats(24, 8, 3, 3))
    changes = QuantizeBlocks(min_elements=64).run(model, Context())
    assert [c.target for c in changes] == ["opset 21", "w"]
    assert query.opset(model) == 21
    old = with_constants(PRODUCT, opset=13, w=floats(80, 48))
    QuantizeBlocks(min_elements=64).run(old, Context())
    assert query.opset(old) == 13  # the runtime's own operators take bytes


def test_where_the_opset_stays_low_the_weight_stays():
    model = with_constants(CONV, opset=13, w=floats(24, 8, 3, 3))
    gate = Gate(denied=frozenset({("quantize-blocks", "opset 21")}))
    changes = QuantizeBlocks(min_elements=64).run(model, Context(gate=gate))
    assert [c.reason for c in changes] == ["4 bits need opset 21, the model has 13"]
    assert op_types(model) == ["Conv"]


def test_the_gate_decides():
    gate = Gate(denied=frozenset({("quantize-blocks", "u")}))
    model = _mlp()
    changes = QuantizeBlocks(min_elements=64).run(model, Context(gate=gate))
    assert list(_schemes(changes)) == ["v"]
    assert gate.admitted == [("quantize-blocks", "v")]


def test_a_budget_buys_wider_integers_where_they_help_most():
    feeds = _correlated(64)
    for u_counts in (True, False):
        big, small = 30 * floats(64, 64), 0.03 * floats(64, 64, seed=1)
        text = """g (float[n, 64] x, float[64, 64] u, float[64, 64] v) => (float[n, 64] y)
            { a = MatMul(x, u) b = MatMul(x, v) y = Add(a, b) }"""
        model = with_constants(text, u=big if u_counts else small, v=small if u_counts else big)
        one = QuantizeBlocks(bits_per_weight=5.6, min_elements=64)
        changes = one.run(model, Context(feeds=feeds))
        widths = {"u": "int8/block32/sym", "v": "int2/block32/sym"}
        assert _schemes(changes) == (widths if u_counts else {"u": widths["v"], "v": widths["u"]})
    assert set(_schemes(QuantizeBlocks(min_elements=64).run(_mlp(), Context())).values()) == {"int4/block32/sym"}
    spent = QuantizeBlocks(bits_per_weight=3.6, min_elements=64).run(_mlp(), Context())
    assert sum(c.bytes_after for c in spent) <= 3.6 / 8 * 2 * 64 * 96
    assert len(set(_schemes(spent).values())) == 2


def test_the_file_limit_is_the_budget():
    bytes_by_limit = {}
    for limit in (9_000, 6_500):
        model = _mlp()
        QuantizeBlocks(min_elements=64).run(model, Context(max_bytes=limit))
        bytes_by_limit[limit] = model_io.model_bytes(model)
        assert bytes_by_limit[limit] <= limit
    assert bytes_by_limit[9_000] > 7_000  # nothing is given away
    assert QuantizeBlocks(min_elements=64).run(_mlp(), Context(max_bytes=100))  # as small as it gets


class _Judge:
    """Scores candidates by the noise that they make on feeds."""

    prefer = "balanced"

    def __init__(self, base, feeds, limit):
        self.base, self.feeds, self.limit = base, feeds, limit
        self.fault_limit = np.inf

    def score(self, model, *, most=None):
        noise = _noise(self.base, model, self.feeds[:most])
        return Trial(bytes=1, size_ratio=1, latency_ratio=None, drop=noise, divergence=noise)

    def __call__(self, _, label):
        raise AssertionError(label)

    def fault(self, model):
        return "too much" if _noise(self.base, model, self.feeds) > self.fault_limit else None


def test_with_a_limit_on_the_drop_it_takes_as_few_bits_as_are_good_enough():
    sizes = {}
    for limit in (1e-1, 1e-2, 1e-4, 1e-9):
        model = _mlp()
        context = Context(judge=_Judge(_mlp(), _correlated(64), limit))
        changes = QuantizeBlocks(min_elements=64).run(model, context)
        sizes[limit] = sum(c.bytes_after for c in changes)
        if limit > 1e-9:
            assert _noise(_mlp(), model, _correlated(64)) <= limit
    assert sizes[1e-1] < sizes[1e-2] < sizes[1e-4] == sizes[1e-9]
    judge = _Judge(_mlp(), _correlated(64), 1e-1)
    judge.fault_limit = 1e-2
    stricter = QuantizeBlocks(min_elements=64).run(_mlp(), Context(judge=judge))
    assert sum(c.bytes_after for c in stricter) == sizes[1e-2]


def _race(products=("kernel", "integer"), **times):
    asked = []

    def race(model, label):
        asked.append(label.rpartition("/")[2])
        assert ("MatMulNBits" in op_types(model)) == (asked[-1] in products)
        return times[label.rpartition("/")[2]]

    return race, asked


def _forms(context):
    model = _mlp()
    changes = QuantizeBlocks(min_elements=64).run(model, context)
    return {c.details["form"] for c in changes if "form" in c.details}


def test_the_fastest_form_is_taken_and_int8_products_only_where_they_do_no_harm():
    assert _forms(Context()) == {"kernel"}
    assert _forms(Context(target="qnn")) == {"dequantize"}
    race, asked = _race(kernel=1.0, multiply=0.97)
    assert _forms(Context(race=race)) == {"kernel"}
    assert asked == ["kernel", "multiply"]  # nothing says what int8 would do to the quality
    race, _ = _race(kernel=1.0, multiply=0.9)
    assert _forms(Context(race=race)) == {"multiply"}
    judge = _Judge(_mlp(), _correlated(64), None)
    race, _ = _race(kernel=1.0, multiply=0.9, integer=0.8)
    assert _forms(Context(race=race, judge=judge)) == {"integer"}
    race, _ = _race(kernel=1.0, multiply=0.9, integer=0.88)
    assert _forms(Context(race=race, judge=judge)) == {"multiply"}


def test_int8_products_are_refused_where_they_are_rougher():
    model, feeds = _mlp(), _correlated(64)
    race, _ = _race(["integer"], kernel=1.0, multiply=1.0, integer=0.5)  # 8 bits have no kernel for floats
    # beside weights of 8 bits, activations of 8 bits double the noise
    judge = _Judge(_mlp(), feeds, None)
    one = QuantizeBlocks(bits_per_weight=32, min_elements=64)
    changes = one.run(model, Context(race=race, judge=judge))
    assert {c.details["form"] for c in changes if "form" in c.details} == {"multiply"}


def test_options_are_checked():
    assert build("quantize-blocks", {"scheme": "uint2/block64/asym"}).scheme == "uint2/block64/asym"
    for scheme in ("int8/channel/sym", "int5/block32/sym", "int4/block48/sym", "uint4/block32/sym"):
        with pytest.raises(errors.UsageError):
            build("quantize-blocks", {"scheme": scheme})
    for options in ({"bits_per_weight": 0}, {"method": "magic"}, {"form": "none"}, {"min_elements": 0}):
        with pytest.raises(errors.UsageError):
            build("quantize-blocks", options)


def test_a_plan_has_the_bytes_of_a_run_and_says_that_it_is_a_draft(monkeypatch):
    feeds = [{"x": floats(1, 64, seed=seed)} for seed in range(6)]
    weights = {"u": floats(64, 96), "b": floats(96, seed=1), "v": floats(96, 64, seed=2)}
    done = QuantizeBlocks().run(with_constants(MLP, **weights), Context(feeds=feeds))
    monkeypatch.setattr(blocks_rounding.reconstruct, "refit", lambda *_, **__: pytest.fail("a plan fits nothing"))
    monkeypatch.setattr(drafts, "_MACS", 2 * 2 * (64 * 96 + 96 * 64))
    planned = QuantizeBlocks().run(with_constants(MLP, **weights), Context(feeds=feeds, is_plan=True))
    found, expected = ({c.target: (c.bytes_after, c.details["scheme"]) for c in each} for each in (planned, done))
    assert found == expected
    assert {c.details["draft_samples"] for c in planned} == {2}
    assert all("to the nearest" in c.details["draft"] and "nearest" in c.reason for c in planned)
    assert not any("draft" in c.details for c in done)
