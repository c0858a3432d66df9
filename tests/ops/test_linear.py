"""Layers as matrices: rows times matrix equals onnxruntime, and what is written back is what it computes then."""

import numpy as np
import onnx_ir as ir
import pytest

from onnxcompress.graph import edit, query
from onnxcompress.numerics.linear.patches import choose
from onnxcompress.ops import linear as layers
from tests.helpers import floats, run, with_constants

IN = {"x": floats(2, 4, 9, 8, seed=1)}


def only_layer(model: ir.Model) -> layers.LinearLayer:
    (layer,) = layers.linear_layers(model)
    return layer


def predicted(layer: layers.LinearLayer, x: np.ndarray, at: np.ndarray | None = None) -> np.ndarray:
    bias = layer.bias()
    product = layer.rows(x, at).astype(np.float64) @ layer.matrix().astype(np.float64).transpose(0, 2, 1)
    groups, out, _ = layer.shape
    return product if bias is None else product + bias.astype(np.float64).reshape(groups, 1, out)


def assert_predicts(model: ir.Model, x: np.ndarray) -> layers.LinearLayer:
    layer = only_layer(model)
    y = run(model, {"x": x})["y"]
    assert layer.y.name == "y"
    want = layer.targets(y)
    assert want.shape == (layer.shape[0], layer.count(x.shape), layer.shape[1])
    np.testing.assert_allclose(predicted(layer, x), want, atol=2e-5)
    at = choose(layer.count(x.shape), 5, np.random.default_rng(3))
    np.testing.assert_allclose(predicted(layer, x, at), layer.targets(y, at), atol=2e-5)
    assert not np.allclose(want[:, :-1], want[:, 1:])
    return layer


CONVS = [
    ("", (6, 4, 3, 3)),
    ("pads = [1, 1, 1, 1]", (6, 4, 3, 3)),
    ("pads = [0, 2, 1, 0], strides = [2, 3]", (6, 4, 3, 2)),
    ("dilations = [2, 3], pads = [2, 3, 2, 3]", (6, 4, 3, 3)),
    ("dilations = [2, 1], strides = [2, 2], group = 2", (6, 2, 3, 2)),
    ('group = 4, auto_pad = "SAME_UPPER"', (4, 1, 3, 3)),
    ('group = 4, auto_pad = "SAME_UPPER", strides = [2, 2]', (8, 1, 4, 4)),
    ('auto_pad = "SAME_LOWER", strides = [2, 2], dilations = [1, 1]', (6, 4, 2, 4)),
    ('auto_pad = "SAME_UPPER", strides = [3, 1]', (6, 4, 2, 5)),
    ('auto_pad = "VALID", strides = [2, 1]', (6, 4, 2, 2)),
    ("strides = [2, 2]", (6, 4, 1, 1)),
]


@pytest.mark.parametrize(("attributes", "shape"), CONVS)
@pytest.mark.parametrize("rank", [1, 2, 3])
def test_conv(attributes, shape, rank):
    """Each geometry in one, two and three dimensions: axes beyond the second repeat it, a single one is the second."""
    for each in ("pads", "strides", "dilations"):
        if f"{each} = [" in attributes:
            numbers = [int(n) for n in attributes.split(f"{each} = [")[1].split("]")[0].split(",")]
            halves = [numbers] if each != "pads" else [numbers[:2], numbers[2:]]
            wide = [n for half in halves for n in {1: half[1:], 2: half, 3: [*half, half[1]]}[rank]]
            attributes = attributes.replace(f"{each} = {numbers}", f"{each} = {wide}")
    kernel = {1: shape[3:], 2: shape[2:], 3: (*shape[2:], shape[3])}[rank]
    spatial = {1: (8,), 2: (9, 8), 3: (9, 8, 7)}[rank]
    ins, outs = ", ".join("abc"[:rank]), ", ".join("def"[:rank])
    text = f"""g (float[n, 4, {ins}] x, float{[*shape[:2], *kernel]} w, float[{shape[0]}] b)
        => (float[n, {shape[0]}, {outs}] y) {{ y = Conv<{attributes}>(x, w, b) }}"""
    model = with_constants(text.replace("<>", ""), w=floats(*shape[:2], *kernel, seed=2), b=floats(shape[0], seed=3))
    assert_predicts(model, floats(2, 4, *spatial, seed=1))


MATRICES = {
    "gemm": ("y = Gemm<alpha = 0.5, beta = 2.0>(x, w, b)", (5, 7), (7, 3), (3,)),
    "gemm transposed": ("y = Gemm<transB = 1>(x, w, b)", (5, 7), (3, 7), (1, 3)),
    "gemm, one number": ("y = Gemm(x, w, b)", (5, 7), (7, 3), ()),
    "matmul": ("y = MatMul(x, w)", (2, 5, 7), (7, 3), None),
    "matmul of a vector": ("y = MatMul(x, w)", (7,), (7, 3), None),
    "matmul, bias": ("p = MatMul(x, w) y = Add(p, b)", (2, 5, 7), (7, 3), (3,)),
    "bias, matmul": ("p = MatMul(x, w) y = Add(b, p)", (2, 5, 7), (7, 3), (1, 1, 3)),
    "left": ("y = MatMul(w, x)", (2, 7, 5), (3, 7), None),
    "left, bias": ("p = MatMul(w, x) y = Add(p, b)", (2, 7, 5), (3, 7), (3, 1)),
}


def matrix_model(case: str) -> tuple[ir.Model, np.ndarray]:
    body, x, w, b = MATRICES[case]
    given = {"w": floats(*w, seed=2)} | ({} if b is None else {"b": np.asarray(floats(*b, seed=3), np.float32)})
    inputs = "".join(f", float{list(each) or ''} {name}" for name, each in (("w", w), ("b", b)) if each is not None)
    ins, outs = ", ".join("abc"[: len(x)]), ", ".join("def"[: len(x)])
    model = with_constants(f"g (float[{ins}] x{inputs}) => (float[{outs}] y) {{ {body} }}", **given)
    return model, floats(*x, seed=1)


@pytest.mark.parametrize("case", MATRICES)
def test_matrices(case):
    model, x = matrix_model(case)
    layer = only_layer(model)
    y = run(model, {"x": x})["y"]
    np.testing.assert_allclose(predicted(layer, x), layer.targets(y), atol=1e-5)
    assert layer.targets(y).shape[1] == layer.count(x.shape)


@pytest.mark.parametrize("case", [*MATRICES, "conv", "grouped"])
def test_what_is_written_is_computed(case):
    if case in MATRICES:
        model, x = matrix_model(case)
    else:
        group, shape = (1, (6, 4, 3, 3)) if case == "conv" else (2, (6, 2, 3, 3))
        model = with_constants(
            f"g (float[n, 4, h, w] x, float{list(shape)} k) => (float[n, 6, a, b] y) "
            f"{{ y = Conv<group = {group}>(x, k) }}",
            k=floats(*shape),
        )
        x = IN["x"]
    layer = only_layer(model)
    groups, out, columns = layer.shape
    matrix, bias = floats(groups, out, columns, seed=8), floats(groups * out, seed=9)
    written = layer.with_weights(matrix, bias, edit.Names(model))
    assert written.y.name == "y"
    np.testing.assert_allclose(written.matrix(), matrix, rtol=1e-6)
    np.testing.assert_allclose(written.bias(), bias, rtol=1e-6)
    again = only_layer(model)
    y = run(model, {"x": x})["y"]
    np.testing.assert_allclose(predicted(again, x), again.targets(y), atol=2e-5)
    np.testing.assert_allclose(again.bias(), bias, rtol=1e-6)


def test_a_shared_weight_is_copied_and_the_other_reader_keeps_it():
    model = with_constants(
        "g (float[n, 4] x, float[4, 4] w) => (float[n, 4] y) { a = MatMul(x, w) r = Relu(a) y = MatMul(r, w) }",
        w=floats(4, 4),
    )
    first, second = layers.linear_layers(model)
    first.with_weights(floats(1, 4, 4, seed=5), None, edit.Names(model))
    np.testing.assert_array_equal(first.matrix(), floats(1, 4, 4, seed=5))
    np.testing.assert_array_equal(second.matrix()[0], floats(4, 4).T)
    assert len(model.graph.initializers) == 2
    second.with_weights(floats(1, 4, 4, seed=6), None, edit.Names(model))
    assert len(model.graph.initializers) == 2
    assert run(model, {"x": floats(3, 4)})["y"].shape == (3, 4)


def test_layers_in_bodies_are_found_and_written():
    model = with_constants(
        """g (bool c, float[n, 4] x, float[4, 3] w) => (float[n, 3] y) {
        y = If (c) <then_branch = t () => (float[n, 3] p) { p = MatMul(x, w) },
                    else_branch = e () => (float[n, 3] q) { m = Neg(x) q = MatMul(m, w) }> }""",
        w=floats(4, 3),
    )
    first, second = layers.linear_layers(model)
    first.with_weights(floats(1, 3, 4, seed=5), floats(3, seed=6), edit.Names(model))
    x = floats(2, 4, seed=1)
    then, other = (run(model, {"c": np.array(c), "x": x})["y"] for c in (True, False))
    np.testing.assert_allclose(then, x @ floats(1, 3, 4, seed=5)[0].T + floats(3, seed=6), atol=1e-5)
    np.testing.assert_allclose(other, -x @ floats(4, 3), atol=1e-5)
    assert second.bias() is None


QUANTIZED = """g (float[n, 4] x, int8[3, 4] q, float[3] s, int32[3] qb, float[3] sb) => (float[n, 3] y) {
    w = DequantizeLinear<axis = 0>(q, s) b = DequantizeLinear<axis = 0>(qb, sb) y = Gemm<transB = 1>(x, w, b) }"""


def quantized() -> ir.Model:
    integers = np.random.default_rng(0).integers(-127, 127, (3, 4), dtype=np.int8)
    scale = np.array([0.01, 0.02, 0.03], np.float32)
    return with_constants(QUANTIZED, q=integers, s=scale, qb=np.array([100, -7, 3], np.int32), sb=scale / 10)


def test_integer_weights_are_read_and_only_their_bias_is_written():
    model = quantized()
    layer = assert_predicts(model, floats(5, 4, seed=1))
    assert layer.is_fixed
    before = layer.matrix()
    layer.with_weights(np.zeros_like(before), np.array([0.5, -0.25, 0], np.float32), edit.Names(model))
    np.testing.assert_array_equal(layer.matrix(), before)
    np.testing.assert_allclose(layer.bias(), [0.5, -0.25, 0], atol=0.002)
    with pytest.raises(ValueError, match="int32"):
        layer.with_weights(before, np.full(3, 1e9, np.float32), edit.Names(model))


def test_blocks_of_integer_weights_have_scales_of_their_own():
    text = """g (float[n, 4] x, int8[4, 3] q, float[2, 3] s, int8[2, 3] z) => (float[n, 3] y) {
        w = DequantizeLinear<axis = 0, block_size = 2>(q, s, z) y = MatMul(x, w) }"""
    integers = np.random.default_rng(0).integers(-99, 99, (4, 3), dtype=np.int8)
    zero = np.array([[1, 2, 3], [4, 5, 6]], np.int8)
    assert_predicts(with_constants(text, opset=21, q=integers, s=abs(floats(2, 3)), z=zero), floats(5, 4, seed=1))


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("g (float[4, n] x, float[4, 3] w) => (float[n, 3] y) { y = Gemm<transA = 1>(x, w) }", "transposed"),
        ("g (float[n, 4] x, float[4, 3] v, float[4, 3] w) => (float[n, 3] y) { y = MatMul(x, v) }", "not constant"),
        ("g (float[n, 2, 4] x, float[2, 4, 3] w) => (float[n, 2, 3] y) { y = MatMul(x, w) }", "not one matrix"),
        ("g (float[n, 4, a, b] x, float[4, 3, 2, 2] w) => (float[n, 3, c, d] y) { y = ConvTranspose(x, w) }", "plain"),
        ("g (float[3, 4] x, float[4, 2] w, float[3, 1] b) => (float[3, 2] y) { y = Gemm(x, w, b) }", "bias"),
        ("g (float[3, 4] x, float[4, 2] w, float[2] c) => (float[3, 2] y) { y = Gemm(x, w, c) }", "bias"),
    ],
)
def test_refusals(text, why):
    shapes = {"w": text.split(" w")[0].rsplit("float", 1)[1], "b": "[3, 1]"}
    given = {name: floats(*(int(d) for d in shape.strip("[]").split(","))) for name, shape in shapes.items()}
    model = with_constants(text, **given)
    node = next(n for n in query.nodes(model) if n.op_type not in ("Add",))
    found = layers.linear_layer(node)
    assert isinstance(found, str)
    assert why in found
    assert layers.linear_layers(model) == []


def test_an_addition_that_is_no_bias_is_none():
    for addend in ("float[2, 3] b", "float[2, 1] b"):
        model = with_constants(
            f"g (float[2, 4] x, float[4, 3] w, {addend}) => (float[2, 3] y) {{ p = MatMul(x, w) y = Add(p, b) }}",
            w=floats(4, 3),
            b=floats(*(int(n) for n in addend[6:10].split(","))),
        )
        layer = only_layer(model)
        assert layer.bias() is None
        assert layer.y.name == "p"


def test_kept_channels_of_a_wider_output():
    model = with_constants("g (float[n, 4] x, float[4, 3] w) => (float[n, 3] y) { y = MatMul(x, w) }", w=floats(4, 3))
    wide = floats(2, 5)
    np.testing.assert_array_equal(only_layer(model).targets(wide, keep=np.array([4, 0, 2]))[0], wide[:, [4, 0, 2]])


def test_numbers_beyond_half_precision_are_refused():
    model = with_constants(
        "g (float16[n, 4] x, float16[4, 3] w) => (float16[n, 3] y) { y = MatMul(x, w) }",
        w=floats(4, 3).astype(np.float16),
    )
    layer = only_layer(model)
    layer.with_weights(layer.matrix() * 2, None, edit.Names(model))
    with pytest.raises(ValueError, match="float16"):
        layer.with_weights(np.full((1, 3, 4), 1e5, np.float32), None, edit.Names(model))


@pytest.mark.parametrize(("count", "limit"), [(10, 10), (10, 20), (11, 10), (1000, 7), (7, 1)])
def test_choice_is_distinct_ascending_and_even(count, limit):
    found = choose(count, limit, np.random.default_rng(0))
    assert len(found) == min(count, limit)
    assert (np.diff(found) > 0).all()
    assert found.min() >= 0
    assert found.max() < count
    if count > 2 * limit:
        assert not np.array_equal(found, choose(count, limit, np.random.default_rng(1)))
