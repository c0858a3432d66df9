"""Every operator with links, in a small model of its own: random groups are cut out and compared with zeroing them."""

import numpy as np
import pytest

from onnxcompress.channels import groups as channel_groups
from onnxcompress.channels import rules
from onnxcompress.channels import rules_linear as layers
from onnxcompress.ops import table as ops
from tests.helpers import floats
from tests.pruned import both_ways, built, check_exact

IMAGE = "n, 3, 6, 6"
PRE = {"w0": (8, 3, 2, 2), "b0": (8,)}
WEIGHTS = {**PRE, "w1": (4, 8, 3, 3)}
UNARY = {
    "Acosh": "s = Sigmoid(h) t = Add(s, one) u = Acosh(t)",
    "BitwiseNot": "i = Cast<to = 6>(h) v = BitwiseNot(i) u = Cast<to = 1>(v)",
    "Cast": "s = Cast<to = 11>(h) u = Cast<to = 1>(s)",
    "IsInf": "v = IsInf(h) f = Cast<to = 1>(v) u = Add(f, h)",
    "IsNaN": "v = IsNaN(h) f = Cast<to = 1>(v) u = Add(f, h)",
    "Not": "g = Greater(h, zero) v = Not(g) u = Cast<to = 1>(v)",
}
BINARY = {
    "And": "g = Greater(h, c) l = Less(h, one) v = And(g, l) u = Cast<to = 1>(v)",
    "BitShift": 'i = Cast<to = 12>(a) j = Cast<to = 12>(k) v = BitShift<direction = "LEFT">(i, j) u = Cast<to = 1>(v)',
    "BitwiseAnd": "i = Cast<to = 6>(h) j = Cast<to = 6>(k) v = BitwiseAnd(i, j) u = Cast<to = 1>(v)",
    "BitwiseOr": "i = Cast<to = 6>(h) j = Cast<to = 6>(k) v = BitwiseOr(i, j) u = Cast<to = 1>(v)",
    "BitwiseXor": "i = Cast<to = 6>(h) j = Cast<to = 6>(k) v = BitwiseXor(i, j) u = Cast<to = 1>(v)",
    "Equal": "i = Cast<to = 6>(h) j = Cast<to = 6>(c) v = Equal(i, j) u = Cast<to = 1>(v)",
    "Mod": "i = Cast<to = 6>(a) j = Cast<to = 6>(k) v = Mod(i, j) u = Cast<to = 1>(v)",
    "Or": "g = Greater(h, c) l = Less(h, one) v = Or(g, l) u = Cast<to = 1>(v)",
    "Pow": "u = Pow(a, c)",
    "Where": "g = Greater(c, zero) u = Where(g, h, c)",
    "Xor": "g = Greater(h, c) l = Less(h, one) v = Xor(g, l) u = Cast<to = 1>(v)",
    **{name: f"v = {name}(h, c) u = Cast<to = 1>(v)" for name in ("Greater", "GreaterOrEqual", "Less", "LessOrEqual")},
}
NUMBERS = {"one": np.float32(1), "zero": np.float32(0), "c": (8, 1, 1), "k": np.full((8, 1, 1), 3, np.float32)}
COMPARING = ("ReduceLogSum", "ReduceLogSumExp", "ReduceMax", "ReduceMin", "ReduceProd")
SEQUENCE = "n, 5, 6"
LINEAR = {"w0": (6, 8), "w1": (8, 4)}


def _image(middle, weights=None, *, opset=20, post="y = Conv(u, w1)", **options):
    more = {} if weights is None else weights
    return built(f"h = Conv(x, w0, b0) {middle} {post}", IMAGE, {**WEIGHTS, **more}, opset=opset, **options)


def _sequence(middle, weights=None, *, opset=20, post="y = MatMul(u, w1)"):
    more = {} if weights is None else weights
    return built(f"h = MatMul(x, w0) {middle} {post}", SEQUENCE, {**LINEAR, **more}, opset=opset)


def _ints(*numbers):
    return np.array(numbers, np.int64)


def _unary(name):
    squash = "Sigmoid" if name in ("Acos", "Asin", "Atanh", "Log", "Sqrt") else "Identity"
    text = UNARY.get(name, f"s = {squash}(h) u = {name}(s)")
    return lambda: _image(text, NUMBERS if "one" in text or "zero" in text else {}, opset=24 if name == "Swish" else 20)


def _binary(name):
    text = BINARY.get(name, f"u = {name}(h, c)")
    used = {
        key: NUMBERS[key]
        for key in NUMBERS
        if key in text.replace("(", " ").replace(")", " ").replace(",", " ").split()
    }
    return lambda: _image(f"a = Abs(h) {text}", used)


def _recurrent(name, gates, extra=""):
    def build():
        weights = {"w": (2, gates * 6, 8), "r": (2, gates * 6, 6), "b": (2, 2 * gates * 6), "w0": (6, 8), "w2": (6, 4)}
        if name == "LSTM":
            weights |= {"h0": (2, 3, 6), "c0": (2, 3, 6), "p": (2, 3 * 6)}
        body = f'h = MatMul(x, w0) u, s = {name}<hidden_size = 6, direction = "bidirectional">(h, w, r, b{extra}) '
        return built(f"{body} y = MatMul(u, w2) z = MatMul(s, w2)", "5, 3, 6", weights, outputs="float[] y, float[] z")

    return build


def _attention_4d():
    weights = {
        "wq": (6, 16),
        "wk": (6, 8),
        "wv": (6, 12),
        "wo": (24, 3),
        "s4": _ints(0, 0, 4, 4),
        "s2": _ints(0, 0, 2, 4),
    }
    weights |= {"v2": _ints(0, 0, 2, 6), "m": _ints(0, 0, -1)}
    body = """q0 = MatMul(x, wq) q1 = Reshape(q0, s4) q = Transpose<perm = [0, 2, 1, 3]>(q1)
        k0 = MatMul(x, wk) k1 = Reshape(k0, s2) k = Transpose<perm = [0, 2, 1, 3]>(k1)
        v0 = MatMul(x, wv) v1 = Reshape(v0, v2) v = Transpose<perm = [0, 2, 1, 3]>(v1)
        a = Attention(q, k, v) t = Transpose<perm = [0, 2, 1, 3]>(a) u = Reshape(t, m) y = MatMul(u, wo)"""
    return built(body, SEQUENCE, weights, opset=23)


EXAMPLES = {
    "Conv": lambda: _image("u = Relu(h)"),
    "Conv groups": lambda: _image("u = Conv<group = 4>(h, w2, b2)", {"w2": (8, 2, 1, 1), "b2": (8,)}),
    "Conv places": lambda: _image("u = Conv<group = 2>(h, w2, b2)", {"w2": (8, 4, 1, 1), "b2": (8,)}),
    "Conv multiplier": lambda: _image(
        "v = Conv<group = 8>(h, w2) u = MaxPool<kernel_shape = [1, 1]>(v)", {"w2": (16, 1, 1, 1), "w1": (4, 16, 3, 3)}
    ),
    "Conv of one axis": lambda: built(
        "h = Conv(x, w0) u = Relu(h) y = Conv(u, w1)", "n, 3, 9", {"w0": (8, 3, 2), "w1": (4, 8, 3)}
    ),
    "Conv of three axes": lambda: built(
        "h = Conv(x, w0) u = Relu(h) y = Conv(u, w1)", "n, 3, 4, 4, 4", {"w0": (8, 3, 2, 2, 2), "w1": (4, 8, 1, 1, 1)}
    ),
    "ConvTranspose": lambda: _image(
        "u = ConvTranspose(h, w2, b2)", {"w2": (8, 6, 2, 2), "b2": (6,), "w1": (4, 6, 3, 3)}
    ),
    "ConvTranspose groups": lambda: _image(
        "u = ConvTranspose<group = 8>(h, w2, b2)", {"w2": (8, 2, 2, 2), "b2": (16,), "w1": (4, 16, 3, 3)}
    ),
    "ConvTranspose places": lambda: _image(
        "u = ConvTranspose<group = 2>(h, w2, b2)", {"w2": (8, 3, 2, 2), "b2": (6,), "w1": (4, 6, 3, 3)}
    ),
    "Gemm": lambda: built(
        "h = Gemm<transB = 1>(x, w0, b0) u = Relu(h) y = Gemm(u, w1)", "n, 6", {"w0": (8, 6), "b0": (8,), "w1": (8, 4)}
    ),
    "Gemm of the left": lambda: built(
        "h = Gemm<transB = 1>(w0, x, b0) u = Relu(h) y = Gemm<transA = 1>(u, w1)",
        "n, 6",
        {"w0": (8, 6), "b0": (8, 1), "w1": (8, 4)},
    ),
    "MatMul": lambda: _sequence("u = Relu(h)"),
    "MatMul from the left": lambda: built(
        "t = Transpose<perm = [0, 2, 1]>(x) h = MatMul(w0, t) u = Relu(h) y = MatMul(w1, u)",
        SEQUENCE,
        {"w0": (8, 6), "w1": (4, 8)},
    ),
    "MatMul with a vector": lambda: built(
        "h = MatMul(x, w0) u = Relu(h) y = MatMul(u, w1)", SEQUENCE, {"w0": (6, 8), "w1": (8,)}
    ),
    "MatMul of many": lambda: built(
        "h = MatMul(x, w0) y = MatMul(h, w1)", "3, n, 6", {"w0": (3, 6, 8), "w1": (3, 8, 4)}
    ),
    "MatMul of two activations": lambda: built(
        "q = MatMul(x, w0) k = MatMul(x, w1) t = Transpose<perm = [0, 2, 1]>(k) y = MatMul(q, t)",
        SEQUENCE,
        {"w0": (6, 8), "w1": (6, 8)},
    ),
    "Einsum": lambda: _sequence('u = Einsum<equation = "bij, jk -> bik">(h, w2)', {"w2": (8, 8)}),
    "Einsum of two activations": lambda: built(
        'q = MatMul(x, w0) k = MatMul(x, w1) y = Einsum<equation = "bic, bjc -> bij">(q, k)',
        SEQUENCE,
        {"w0": (6, 8), "w1": (6, 8)},
    ),
    "Gather": lambda: built(
        "i = Cast<to = 7>(x) h = Gather(e, i) y = MatMul(h, w1)", "n, 5", {"e": (9, 8), "w1": (8, 4)}
    ),
    "Gather of channels": lambda: _image("u = Gather<axis = 1>(h, i)", {"i": _ints(3, -1, 0, 2, 1, 4, 3, 6)}),
    "Gather of one": lambda: _sequence(
        "v = Gather<axis = 2>(h, i) w = Unsqueeze(v, a) u = Add(h, w)", {"i": _ints(3)[0], "a": _ints(2)}
    ),
    "BatchNormalization": lambda: _image(
        "u = BatchNormalization(h, s, b, m, v)", {"s": (8,), "b": (8,), "m": (8,), "v": np.full(8, 2, np.float32)}
    ),
    "InstanceNormalization": lambda: _image("u = InstanceNormalization(h, s, b)", {"s": (8,), "b": (8,)}),
    "InstanceNormalization of groups": lambda: _image(
        "v = Reshape(h, i) w = InstanceNormalization(v, s, b) u = Reshape(w, j)",
        {"i": _ints(0, 2, -1), "j": _ints(0, 8, 5, 5), "s": (2,), "b": (2,)},
    ),
    "ReduceSum of channels": lambda: _sequence(
        "a = Relu(h) b = ReduceSum(a, i) u = Mul(b, w2)", {"i": _ints(-1), "w2": (8,)}
    ),
    "GroupNormalization": lambda: _image(
        "u = GroupNormalization<num_groups = 4>(h, s, b)", {"s": (8,), "b": (8,)}, opset=21
    ),
    "LpNormalization": lambda: _image("u = LpNormalization<axis = 1>(h)"),
    "MeanVarianceNormalization": lambda: _image("u = MeanVarianceNormalization<axes = [2, 3]>(h)"),
    "LRN": lambda: _image("v = LRN<size = 3>(h) w = Conv(v, w2) u = Relu(w)", {"w2": (8, 8, 1, 1)}),
    "LayerNormalization": lambda: _image("u = LayerNormalization<axis = 2>(h, s, b)", {"s": (5, 5), "b": (5, 5)}),
    "RMSNormalization": lambda: _image("u = RMSNormalization<axis = 2>(h, s)", {"s": (5, 5)}, opset=23),
    "SimplifiedLayerNormalization": lambda: _image("u = SimplifiedLayerNormalization<axis = -1>(h, s)", {"s": (5,)}),
    **{name: (lambda name=name: _image(f"u = {name}<axis = 2>(h)")) for name in ("Hardmax", "LogSoftmax", "Softmax")},
    "Softmax before opset 13": lambda: _image("v = Softmax<axis = 2>(h) u = Relu(v)", opset=11),
    "CumSum": lambda: _image("u = CumSum(h, i)", {"i": _ints(2)[0]}),
    "TopK": lambda: _image("u, j = TopK<axis = 3>(h, i)", {"i": _ints(4)}),
    "ArgMax": lambda: _image("a = ArgMax<axis = 2>(h) u = Cast<to = 1>(a)", {"w1": (4, 8, 1, 3)}),
    "ArgMin": lambda: _image("a = ArgMin<axis = 2, keepdims = 0>(h) u = Cast<to = 1>(a)", {"w1": (4, 8, 3)}),
    "Trilu": lambda: _image("u = Trilu(h)"),
    "AveragePool": lambda: _image("u = AveragePool<kernel_shape = [2, 2]>(h)"),
    "MaxPool": lambda: _image("u = MaxPool<kernel_shape = [2, 2]>(h)"),
    "LpPool": lambda: _image("u = LpPool<kernel_shape = [2, 2]>(h)"),
    **{
        name: (lambda name=name: _image(f"u = {name}(h)", {"w1": (4, 8, 1, 1)}))
        for name in ("GlobalAveragePool", "GlobalLpPool", "GlobalMaxPool")
    },
    "GridSample": lambda: _image("u = GridSample(h, g)", {"g": np.zeros((2, 4, 4, 2), np.float32) + 0.3}),
    **{
        name: (
            lambda name=name: _image(
                f"a = Abs(h) u = {name}<keepdims = 0>(a, i)", {"i": _ints(2, -1), "w2": (8, 4)}, post="y = Gemm(u, w2)"
            )
        )
        for name in ("ReduceL1", "ReduceL2", "ReduceSum", "ReduceSumSquare", "ReduceMean", *COMPARING)
    },
    "DequantizeLinear": lambda: built(
        "w = DequantizeLinear<axis = 0>(q, s, z) h = Conv(x, w) y = Conv(h, w1)",
        IMAGE,
        {
            "q": np.arange(96, dtype=np.int8).reshape(8, 3, 2, 2),
            "s": np.full(8, 0.03, np.float32),
            "z": np.zeros(8, np.int8),
            "w1": (4, 8, 3, 3),
        },
    ),
    "QuantizeLinear": lambda: _image(
        "q = QuantizeLinear(h, s, z) u = DequantizeLinear(q, s, z)",
        {"s": np.linspace(0.01, 0.1, 8, dtype=np.float32), "z": np.zeros(8, np.int8)},
    ),
    "Concat": lambda: _image(
        "v = Conv(x, w2) u = Concat<axis = 1>(h, v, h)", {"w2": (4, 3, 2, 2), "w1": (4, 20, 3, 3)}
    ),
    "ConstantOfShape": lambda: _image(
        "o = ConstantOfShape<value = float[1] {2.0}>(i) u = Mul(h, o)", {"i": _ints(8, 1, 1)}
    ),
    "DepthToSpace": lambda: _image("u = DepthToSpace<blocksize = 2>(h)", {"w1": (4, 2, 3, 3)}),
    "DepthToSpace CRD": lambda: _image('u = DepthToSpace<blocksize = 2, mode = "CRD">(h)', {"w1": (4, 2, 3, 3)}),
    "SpaceToDepth": lambda: _image(
        "p = MaxPool<kernel_shape = [2, 2]>(h) u = SpaceToDepth<blocksize = 2>(p)", {"w1": (4, 32, 1, 1)}
    ),
    "Expand": lambda: _image("e = Expand(s, i) u = Mul(h, e)", {"s": (1, 1), "i": _ints(8, 1, 1)}),
    "Expand of channels": lambda: _image("p = GlobalAveragePool(h) u = Expand(p, i)", {"i": _ints(1, 8, 5, 5)}),
    "Flatten": lambda: _image("u = Flatten(h)", {"w2": (200, 4)}, post="y = MatMul(u, w2)"),
    "Pad": lambda: _image("u = Pad(h, p)", {"p": _ints(0, 1, 0, 0, 0, 2, 1, 1), "w1": (4, 11, 3, 3)}),
    "Pad by reflection": lambda: _image(
        'u = Pad<mode = "reflect">(h, p, , a)', {"p": _ints(1, 1, 1, 1), "a": _ints(2, 3)}
    ),
    "RoiAlign": lambda: _image(
        "u = RoiAlign<output_height = 3, output_width = 3>(h, r, i)", {"r": np.float32([[0, 0, 4, 4]]), "i": _ints(1)}
    ),
    "Reshape": lambda: _image("v = Reshape(h, i) u = Reshape(v, j)", {"i": _ints(0, 8, 25), "j": _ints(-1, 8, 5, 5)}),
    "Reshape into heads": lambda: _sequence(
        "v = Reshape(h, i) w = Relu(v) u = Reshape(w, j)", {"i": _ints(0, 0, 4, 2), "j": _ints(0, 0, 8)}
    ),
    "Resize": lambda: _image("u = Resize(h, , s)", {"s": np.float32([1, 1, 2, 2])}),
    "Resize to sizes": lambda: _image("u = Resize(h, , , s)", {"s": _ints(2, 8, 7, 7)}),
    "Upsample": lambda: _image("u = Upsample(h, s)", {"s": np.float32([1, 1, 2, 2])}, opset=9),
    "Shape": lambda: _image(
        "s = Shape(h) d = Gather(s, i) f = Cast<to = 1>(d) v = Div(h, f) u = Reshape(v, s)", {"i": _ints(1)[0]}
    ),
    "Slice": lambda: _image("u = Slice(h, s, e, a)", {"s": _ints(1), "e": _ints(7), "a": _ints(1), "w1": (4, 6, 3, 3)}),
    "Slice by two": lambda: _image(
        "u = Slice(h, s, e, a, t)", {"s": _ints(1), "e": _ints(9), "a": _ints(1), "t": _ints(2), "w1": (4, 4, 3, 3)}
    ),
    "Slice of two axes": lambda: _image(
        "u = Slice(h, s, e, a)", {"s": _ints(0, 2), "e": _ints(4, 7), "a": _ints(2, 1), "w1": (4, 5, 3, 3)}
    ),
    "Split": lambda: _image(
        "a, b = Split<axis = 1>(h, i) c = Mul(a, b) u = Relu(c)", {"i": _ints(4, 4), "w1": (4, 4, 3, 3)}
    ),
    "Split evenly": lambda: _image("a, b = Split<axis = 1, num_outputs = 2>(h) u = Concat<axis = 1>(b, a)"),
    "Split before opset 13": lambda: _image("a, b = Split<axis = 1>(h) u = Concat<axis = 1>(b, a)", opset=11),
    "Squeeze": lambda: _image(
        "p = GlobalAveragePool(h) u = Squeeze(p, i)", {"i": _ints(2, 3), "w2": (8, 4)}, post="y = MatMul(u, w2)"
    ),
    "Unsqueeze": lambda: _image("g = Unsqueeze(s, i) u = Mul(h, g)", {"s": (8,), "i": _ints(1, 2)}),
    "Tile": lambda: _image("u = Tile(h, i)", {"i": _ints(1, 2, 1, 1), "w1": (4, 16, 3, 3)}),
    "Transpose": lambda: _image(
        "t = Transpose<perm = [0, 2, 3, 1]>(h) v = Mul(t, s) u = Transpose<perm = [0, 3, 1, 2]>(v)", {"s": (8,)}
    ),
    "LSTM": _recurrent("LSTM", 4, ", , h0, c0, p"),
    "GRU": _recurrent("GRU", 3),
    "RNN": _recurrent("RNN", 1),
    "Attention": lambda: built(
        """q = MatMul(x, wq) k = MatMul(x, wk) v = MatMul(x, wv)
        u = Attention<q_num_heads = 4, kv_num_heads = 2>(q, k, v, m) y = MatMul(u, wo)""",
        SEQUENCE,
        {"wq": (6, 16), "wk": (6, 8), "wv": (6, 12), "wo": (24, 3), "m": (4, 5, 5)},
        opset=23,
    ),
    "Attention of four axes": _attention_4d,
    "RotaryEmbedding": lambda: built(
        "h = MatMul(x, w0) u = RotaryEmbedding<num_heads = 4>(h, c, s, i) y = MatMul(u, w1)",
        SEQUENCE,
        {"w0": (6, 16), "w1": (16, 3), "c": (5, 2), "s": (5, 2), "i": np.tile(np.arange(5), (2, 1))},
        opset=23,
    ),
    "com.microsoft.RotaryEmbedding": lambda: built(
        "h = MatMul(x, w0) u = com.microsoft.RotaryEmbedding<num_heads = 4>(h, i, c, s) y = MatMul(u, w1)",
        SEQUENCE,
        {"w0": (6, 16), "w1": (16, 3), "c": (5, 2), "s": (5, 2), "i": np.tile(np.arange(5), (2, 1))},
    ),
    "com.microsoft.Attention": lambda: built(
        "h = MatMul(x, w0) u = com.microsoft.Attention<num_heads = 4>(h, w, b) y = MatMul(u, w1)",
        SEQUENCE,
        {"w0": (6, 8), "w": (8, 48), "b": (48,), "w1": (16, 3)},
    ),
    "com.microsoft.MultiHeadAttention": lambda: built(
        """q = MatMul(x, wq) k = MatMul(x, wk) v = MatMul(x, wv)
        u = com.microsoft.MultiHeadAttention<num_heads = 4>(q, k, v, b) y = MatMul(u, wo)""",
        SEQUENCE,
        {"wq": (6, 16), "wk": (6, 16), "wv": (6, 8), "b": (40,), "wo": (8, 3)},
    ),
    "com.microsoft.FusedConv": lambda: _image(
        'u = com.microsoft.FusedConv<activation = "Relu">(h, w2, b2, h)', {"w2": (8, 8, 1, 1), "b2": (8,)}
    ),
    "com.microsoft.FusedGemm": lambda: built(
        'u = com.microsoft.FusedGemm<activation = "Relu">(x, w0, b0) y = Gemm(u, w1)',
        "n, 6",
        {"w0": (6, 8), "b0": (8,), "w1": (8, 4)},
    ),
    "com.microsoft.FusedMatMul": lambda: built(
        """q = MatMul(x, w0) k = MatMul(x, w1) y = com.microsoft.FusedMatMul<transB = 1>(q, k)
        t = com.microsoft.FusedMatMul<transA = 1, alpha = 0.5>(k, q) z = ReduceSum<keepdims = 0>(t)""",
        SEQUENCE,
        {"w0": (6, 8), "w1": (6, 8)},
        outputs="float[] y, float[] z",
    ),
    "com.microsoft.Gelu": lambda: _image("u = com.microsoft.Gelu(h)"),
    "com.microsoft.QuickGelu": lambda: _image("u = com.microsoft.QuickGelu(h)"),
    "com.microsoft.FastGelu": lambda: _sequence("u = com.microsoft.FastGelu(h, b)", {"b": (8,)}),
    "com.microsoft.BiasGelu": lambda: _sequence("u = com.microsoft.BiasGelu(h, b)", {"b": (8,)}),
    "Dropout": lambda: _image("u = Dropout(h)"),
}
LINKED = {f"{domain}.{name}".lstrip("."): links for (domain, name), links in rules.LINKS.items()}
EXAMPLES |= {
    name: (_unary(name) if links is layers.unary else _binary(name))
    for name, links in LINKED.items()
    if name not in EXAMPLES and links in (layers.unary, layers.elementwise)
}
INEXACT = {
    "LayerNormalization": lambda: _sequence("u = LayerNormalization(h, s, b)", {"s": (8,), "b": (8,)}),
    "RMSNormalization": lambda: _sequence("u = RMSNormalization(h, s)", {"s": (8,)}, opset=23),
    "ReduceMean": lambda: _sequence("m = ReduceMean(h, i) u = Sub(h, m)", {"i": _ints(-1)}),
    "MeanVarianceNormalization": lambda: _image("u = MeanVarianceNormalization<axes = [1, 2, 3]>(h)"),
    "com.microsoft.SkipLayerNormalization": lambda: _sequence(
        "k = MatMul(x, w2) u = com.microsoft.SkipLayerNormalization(h, k, s, b)", {"w2": (6, 8), "s": (8,), "b": (8,)}
    ),
    "com.microsoft.SkipSimplifiedLayerNormalization": lambda: _sequence(
        "k = MatMul(x, w2) u = com.microsoft.SkipSimplifiedLayerNormalization(h, k, s)", {"w2": (6, 8), "s": (8,)}
    ),
}


def _feed(model):
    dims = [2 if not isinstance(d, int) else d for d in model.graph.inputs[0].shape]
    return {"x": floats(*dims)}


NOT_FOLLOWED = {
    ("", "ConvInteger"): "weights in integers are not cut",
    ("", "MatMulInteger"): "weights in integers are not cut",
    ("com.microsoft", "DynamicQuantizeLSTM"): "weights in integers are not cut",
    ("com.microsoft", "DynamicQuantizeMatMul"): "weights in integers are not cut",
    ("com.microsoft", "MatMulIntegerToFloat"): "weights in integers are not cut",
    ("com.microsoft", "MatMulNBits"): "weights in integers are not cut",
    ("com.microsoft", "MatMulBnb4"): "weights in 4 bits are not cut",
    ("com.microsoft", "GatherBlockQuantized"): "tables in integers are not cut",
    ("", "QLinearMatMul"): "weights in integers are not cut",
    ("", "QLinearConv"): "weights in integers are not cut",
    ("com.microsoft", "QLinearConv"): "weights in integers are not cut",
    ("com.microsoft", "QGemm"): "weights in integers are not cut",
    ("com.microsoft", "QAttention"): "weights in integers are not cut",
    ("com.microsoft", "QEmbedLayerNormalization"): "tables in integers are not cut",
}


def test_every_operator_of_the_table_has_a_rule_or_a_reason():
    assert set(ops.OPS) - set(rules.LINKS) == set(NOT_FOLLOWED)


def test_every_operator_with_links_has_an_example():
    tested = {name.split(" ")[0] for name in (*EXAMPLES, *INEXACT)}
    assert tested == set(LINKED)


@pytest.mark.parametrize("name", EXAMPLES)
def test_a_cut_equals_a_mask(name):
    model = EXAMPLES[name]()
    is_plain = name in LINKED and LINKED[name] in (layers.unary, layers.elementwise)
    for seed in (0,) if is_plain else (0, 1):
        check_exact(model, _feed(model), seed=seed)


@pytest.mark.parametrize("name", INEXACT)
def test_where_statistics_change_the_group_says_so(name):
    model = INEXACT[name]()
    feed = _feed(model)
    found = channel_groups.find_groups(model, feed)
    changed = [group for group in found.groups if group.inexact]
    assert {node.op_type for group in changed for node in group.inexact} == {name.rpartition(".")[2]}
    tally = found.tally()
    left, zeroed, _ = both_ways(model, feed, [changed[0].id])
    assert tally.allows(changed[0].id)
    assert left["y"].shape == zeroed["y"].shape
    assert np.isfinite(left["y"]).all()
    assert np.abs(left["y"] - zeroed["y"]).max() > 1e-3
