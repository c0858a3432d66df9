"""FusePatterns: every spelling, a near-miss for every refusal, numbers, and what onnxruntime keeps of it."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir
import pytest

from onnxcompress.core import Context
from onnxcompress.graph import edit
from onnxcompress.passes.fold.patterns import FusePatterns
from tests.lossless import applied, kinds, parsed, proto_of, random_feed, reasons, rewritten

NUMBERS = (
    "float three = {3}, float six = {6}, float zero = {0}, float sixth = {0.16666667}, float half = {0.5},"
    "float one = {1}, float two = {2}, float root = {1.4142135}, float k = {0.044715}, float c = {0.7978846},"
    "float eps = {0.00001}, float[4] g = {1, 2, 3, 4}, float[4] b = {4, 3, 2, 1}, float wrong = {5.99}"
)


def model_of(
    body: str, opset: int, x: str = "float[2, 3, 4] x", more: str = "", outputs: str = "float[] y"
) -> ir.Model:
    weights = ", ".join(w for w in (NUMBERS, more) if w)
    header = f'<ir_version: 9, opset_import: ["" : {opset}]>'
    model = parsed(f"{header} m ({x}) => ({outputs}) <{weights}> {{ {body} }}")
    for name in [n for n, value in model.graph.initializers.items() if not value.uses()]:
        del model.graph.initializers[name]
    return model


HARD_SWISH = [
    "a = Add(x, three)  r = Clip(a, zero, six)  m = Mul(x, r)  y = Div(m, six)",
    "a = Add(three, x)  r = Clip(a, zero, six)  m = Mul(r, x)  y = Mul(sixth, m)",
    "a = Add(x, three)  r = Clip(a, zero, six)  d = Div(r, six)  y = Mul(x, d)",
    "a = Add(x, three)  r = Clip(a, zero, six)  d = Mul(r, sixth)  y = Mul(d, x)",
    "a = Add(x, three)  r = Clip(a, zero, six)  d = Mul(x, sixth)  y = Mul(d, r)",
    "h = HardSigmoid<alpha = 0.16666667, beta = 0.5>(x)  y = Mul(h, x)",
]


@pytest.mark.parametrize("spelling", HARD_SWISH)
def test_hard_swish(spelling: str) -> None:
    model = model_of(spelling, 14)
    rewritten(model, FusePatterns())
    assert kinds(model) == ["HardSwish"]
    assert model.graph.outputs[0].name == "y"


@pytest.mark.parametrize("spelling", HARD_SWISH[:5])
def test_hard_swish_before_its_opset(spelling: str) -> None:
    model = model_of(spelling, 12)
    rewritten(model, FusePatterns())
    assert kinds(model) == ["HardSigmoid", "Mul"]


def test_hard_swish_with_limits_in_attributes() -> None:
    model = model_of("a = Add(x, three)  r = Clip<min = 0.0, max = 6.0>(a)  m = Mul(x, r)  y = Div(m, six)", opset=10)
    rewritten(model, FusePatterns())
    assert kinds(model) == ["HardSigmoid", "Mul"]


@pytest.mark.parametrize(
    "near",
    [
        "a = Add(x, three)  r = Clip(a, zero, six)  m = Mul(x, r)  y = Div(m, wrong)",
        "a = Add(x, two)  r = Clip(a, zero, six)  m = Mul(x, r)  y = Div(m, six)",
        "a = Add(x, three)  r = Clip(a, zero, six)  m = Mul(a, r)  y = Div(m, six)",
        "a = Add(x, three)  r = Clip(a, one, six)  m = Mul(x, r)  y = Div(m, six)",
    ],
)
def test_nearly_hard_swish(near: str) -> None:
    model = model_of(near, 14)
    before = kinds(model)
    assert not rewritten(model, FusePatterns())
    assert kinds(model) == before


@pytest.mark.parametrize(
    "spelling",
    [
        "a = Add(x, three)  r = Clip(a, zero, six)  y = Div(r, six)",
        "a = Add(x, three)  r = Clip(a, zero, six)  y = Mul(r, sixth)",
        "m = Mul(x, sixth)  a = Add(m, half)  y = Clip(a, zero, one)",
        "m = Div(x, six)  a = Add(m, half)  y = Clip(a, zero, one)",
        "a = Add(x, one)  r = Clip(a, zero, two)  y = Mul(r, half)",
    ],
)
@pytest.mark.parametrize("opset", [11, 17, 22])
def test_hard_sigmoid(spelling: str, opset: int) -> None:
    model = model_of(spelling, opset)
    rewritten(model, FusePatterns())
    assert kinds(model) == ["HardSigmoid"]


def test_hard_sigmoid_of_doubles_is_not_what_runtimes_have() -> None:
    model = parsed("""<ir_version: 9, opset_import: ["" : 17]> m (double[2, 3] x) => (double[] y)
        <double three = {3}, double zero = {0}, double six = {6}> {
        a = Add(x, three)  r = Clip(a, zero, six)  y = Div(r, six)
    }""")
    assert "float32 only" in reasons(rewritten(model, FusePatterns()))


GELU = [
    "d = Div(x, root)  e = Erf(d)  a = Add(e, one)  m = Mul(x, a)  y = Mul(m, half)",
    "d = Div(x, root)  e = Erf(d)  a = Add(one, e)  m = Mul(half, a)  y = Mul(x, m)",
    "d = Div(x, root)  e = Erf(d)  a = Add(one, e)  m = Mul(x, half)  y = Mul(m, a)",
    "d = Mul(x, i)  e = Erf(d)  a = Add(one, e)  m = Mul(x, half)  y = Mul(a, m)",
]
GELU_TANH = [
    "p = Pow(x, three)  q = Mul(p, k)  s = Add(x, q)  t = Mul(s, c)  h = Tanh(t)  a = Add(h, one)"
    "  m = Mul(x, a)  y = Mul(m, half)",
    "p = Mul(x, x)  r = Mul(p, x)  q = Mul(k, r)  s = Add(q, x)  t = Mul(c, s)  h = Tanh(t)  a = Add(one, h)"
    "  m = Mul(x, half)  y = Mul(m, a)",
    "p = Mul(x, x)  q = Mul(p, k)  s = Add(q, one)  u = Mul(x, c)  t = Mul(u, s)  h = Tanh(t)"
    "  a = Add(one, h)  m = Mul(half, a)  y = Mul(m, x)",
]


@pytest.mark.parametrize("spelling", [*GELU, *GELU_TANH])
def test_gelu(spelling: str) -> None:
    model = model_of(spelling, 20, more="float i = {0.70710678}")
    rewritten(model, FusePatterns())
    assert kinds(model) == ["Gelu"]
    assert ("approximate" in model.graph.node(0).attributes) == (spelling in GELU_TANH)


@pytest.mark.parametrize("spelling", GELU)
def test_gelu_before_its_opset_is_left_to_the_runtime(spelling: str) -> None:
    model = model_of(spelling, 17, more="float i = {0.70710678}")
    before = kinds(model)
    assert not rewritten(model, FusePatterns())
    assert kinds(model) == before


def test_gelu_with_a_value_that_is_read_outside() -> None:
    model = model_of(GELU[0] + "  z = Relu(e)", 20, outputs="float[] y, float[] z")
    assert "no Gelu: e inside it has other readers" in reasons(rewritten(model, FusePatterns()))


def test_gelu_with_a_value_that_is_an_output() -> None:
    model = model_of(GELU[0], 20, outputs="float[] y, float[] a")
    assert "no Gelu: a inside it has other readers" in reasons(rewritten(model, FusePatterns()))


def test_a_number_that_adds_an_axis() -> None:
    body = "a = Add(x, t)  r = Clip(a, zero, six)  y = Div(r, six)"
    model = model_of(body, 17, x="float x", more="float[1] t = {3}")
    assert "may add an axis to x" in reasons(rewritten(model, FusePatterns()))
    model = model_of(body, 17, x="float[N] x", more="float[1] t = {3}")
    rewritten(model, FusePatterns())
    assert kinds(model) == ["HardSigmoid"]


def test_mish_and_softplus() -> None:
    model = model_of("e = Exp(x)  a = Add(e, one)  s = Log(a)  t = Tanh(s)  y = Mul(t, x)", 18)
    rewritten(model, FusePatterns())
    assert kinds(model) == ["Mish"]
    model = model_of("e = Exp(x)  a = Add(one, e)  s = Log(a)  t = Tanh(s)  y = Mul(t, x)", 17)
    rewritten(model, FusePatterns())
    assert kinds(model) == ["Softplus", "Tanh", "Mul"]
    model = model_of("e = Exp(x)  a = Add(two, e)  y = Log(a)", 18)
    assert not rewritten(model, FusePatterns())


@pytest.mark.parametrize("axis", [-1, 1])
def test_softmax(axis: int) -> None:
    model = model_of(
        f"n = ReduceMax<axes = [{axis}]>(x)  d = Sub(x, n)  e = Exp(d)  s = ReduceSum(e, i)  y = Div(e, s)",
        13,
        more=f"int64[1] i = {{{axis}}}",
    )
    rewritten(model, FusePatterns())
    assert kinds(model) == ["Softmax"]


def test_softmax_that_overflows_or_mixes_axes() -> None:
    model = model_of("e = Exp(x)  s = ReduceSum(e, i)  y = Div(e, s)", 13, more="int64[1] i = {-1}")
    assert "large inputs overflow" in reasons(rewritten(model, FusePatterns()))
    body = "n = ReduceMax<axes = [1]>(x)  d = Sub(x, n)  e = Exp(d)  s = ReduceSum(e, i)  y = Div(e, s)"
    model = model_of(body, 13, more="int64[1] i = {2}")
    assert not applied(rewritten(model, FusePatterns()))


CENTRE = "n = ReduceMean<axes = [-1]>(x)  d = Sub(x, n)"
LAYER_NORM = [
    f"{CENTRE}  p = Pow(d, two)  v = ReduceMean<axes = [-1]>(p)  w = Add(v, eps)  q = Sqrt(w)  z = Div(d, q)",
    f"{CENTRE}  p = Mul(d, d)  v = ReduceMean<axes = [2]>(p)  w = Add(eps, v)  q = Sqrt(w)  z = Div(d, q)",
    f"{CENTRE}  p = Mul(d, d)  v = ReduceMean<axes = [2]>(p)  w = Add(eps, v)"
    "  q = Sqrt(w)  i = Reciprocal(q)  z = Mul(i, d)",
    f"{CENTRE}  f = Cast<to = 1>(d)  p = Pow(f, two)  v = ReduceMean<axes = [-1]>(p)  w = Add(v, eps)"
    "  q = Sqrt(w)  z = Div(d, q)",
    f"{CENTRE}  d2 = Sub(x, n)  p = Pow(d2, two)  v = ReduceMean<axes = [-1]>(p)  w = Add(v, eps)"
    "  q = Sqrt(w)  z = Div(d, q)",
]


@pytest.mark.parametrize("spelling", LAYER_NORM)
@pytest.mark.parametrize("tail", ["o = Mul(z, g)  y = Add(o, b)", "o = Mul(g, z)  y = Relu(o)", "y = Relu(z)"])
def test_layer_norm(spelling: str, tail: str) -> None:
    model = model_of(f"{spelling}  {tail}", 17)
    rewritten(model, FusePatterns(), tolerance=4e-6)
    assert kinds(model) == ["LayerNormalization", *(["Relu"] if "Relu" in tail else [])]
    assert model.graph.node(0).attributes["epsilon"].value == pytest.approx(1e-5)


def test_layer_norm_with_axes_as_input_and_two_axes() -> None:
    axes = "int64[2] i = {1, 2}, float[3, 4] s = {1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12}"
    body = (
        "n = ReduceMean(x, i)  d = Sub(x, n)  p = Mul(d, d)  v = ReduceMean(p, i)  w = Add(v, eps)"
        "  q = Sqrt(w)  z = Div(d, q)  y = Mul(z, s)"
    )
    model = model_of(body, 18, more=axes)
    rewritten(model, FusePatterns(), tolerance=4e-6)
    assert kinds(model) == ["LayerNormalization"]


@pytest.mark.parametrize(
    ("body", "x", "reason"),
    [
        (
            LAYER_NORM[0].replace("[-1]", "[1]") + "  y = Relu(z)",
            "float[2, 3, 4] x",
            "not run over the last axes",
        ),
        (LAYER_NORM[0] + "  y = Relu(z)", "float[2, 3, N] x", "sizes of the normalised axes are not known"),
        (LAYER_NORM[0] + "  y = Relu(z)", "float[2, 3, 400] x", "scale of ones would make the file larger"),
    ],
)
def test_layer_norm_refused(body: str, x: str, reason: str) -> None:
    model = model_of(body, 17, x=x)
    before = kinds(model)
    assert reason in reasons(rewritten(model, FusePatterns()))
    assert kinds(model) == before


def test_a_scale_of_another_shape_stays_outside() -> None:
    model = model_of(f"{LAYER_NORM[0]}  y = Mul(z, s)", 17, more="float[3, 1] s = {1, 2, 3}")
    rewritten(model, FusePatterns(), tolerance=4e-6)
    assert kinds(model) == ["LayerNormalization", "Mul"]


def test_rms_norm() -> None:
    body = "p = Pow(x, two)  v = ReduceMean(p, i)  w = Add(v, eps)  q = Sqrt(w)  {}"
    for end in ("z = Div(x, q)  y = Mul(z, g)", "r = Reciprocal(q)  z = Mul(x, r)  y = Mul(g, z)"):
        model = model_of(body.format(end), 23, more="int64[1] i = {-1}")
        rewritten(model, FusePatterns(), tolerance=4e-6)
        assert kinds(model) == ["RMSNormalization"]
    model = model_of(body.format("z = Div(x, q)  y = Relu(z)"), 23, more="int64[1] i = {-1}")
    assert "it has no scale" in reasons(rewritten(model, FusePatterns()))


@pytest.mark.parametrize(
    ("scale", "operator"),
    [("float[4] u", True), ("float[3, 4] u", False), ("float[N] u", False), ("float[1] u", False)],
)
def test_a_scale_that_is_an_input(scale: str, *, operator: bool) -> None:
    body = "p = Mul(x, x)  v = ReduceMean(p, i)  w = Add(v, eps)  q = Sqrt(w)  z = Div(x, q)  y = Mul(z, u)"
    model = model_of(body, 23, x=f"float[2, 3, 4] x, {scale}", more="int64[1] i = {-1}")
    feed = random_feed(model, dynamic=4)
    changes = rewritten(model, FusePatterns(), tolerance=4e-6, feed=feed)
    assert ("RMSNormalization" in kinds(model)) is operator
    assert ("it has no scale" in reasons(changes)) is not operator


def test_a_scale_that_others_read_is_stored_once() -> None:
    body = (
        "p = Mul(x, x)  v = ReduceMean(p, i)  w = Add(v, eps)  q = Sqrt(w)  z = Div(x, q)  a = Mul(z, g)  y = Mul(a, g)"
    )
    model = model_of(body, 23, more="int64[1] i = {-1}")
    rewritten(model, FusePatterns(), tolerance=4e-6)
    assert kinds(model) == ["RMSNormalization", "Mul"]
    assert sum(v.dtype == ir.DataType.FLOAT and v.shape == (4,) for v in model.graph.initializers.values()) == 1


@pytest.mark.parametrize("scaled", ["Div(x, three)", "Mul(x, third)"])
@pytest.mark.parametrize(
    ("elu", "factor", "opset", "operator"),
    [
        ("Elu", "three", 12, True),
        ("Elu<alpha = 1.0>", "three", 17, True),
        ("Elu<alpha = 2.0>", "three", 12, False),
        ("Elu", "six", 12, False),
        ("Elu", "three", 11, False),
    ],
)
def test_celu(scaled: str, elu: str, factor: str, opset: int, *, operator: bool) -> None:
    model = model_of(f"d = {scaled}  e = {elu}(d)  y = Mul({factor}, e)", opset, more="float third = {0.33333334}")
    rewritten(model, FusePatterns())
    assert kinds(model) == (["Celu"] if operator else [scaled[:3], "Elu", "Mul"])


def test_no_celu_of_a_negative_alpha() -> None:
    model = model_of("d = Div(x, m)  e = Elu(d)  y = Mul(e, m)", 12, more="float m = {-3}")
    assert not rewritten(model, FusePatterns())


@pytest.mark.parametrize(
    ("x", "axes", "fits"),
    [
        ("float[2, 3, 4, 5] x", "2, 3", True),
        ("float[2, 3, 4, 5] x", "-1, -2", True),
        ("float[N, 3, H, W, 7] x", "2, 3, 4", True),
        ("float[2, 3, 4] x", "2", False),
        ("float[2, 3, 4, 5] x", "3", False),
        ("float[2, 3, 4, 5] x", "1, 2, 3", False),
        ("double[2, 3, 4, 5] x", "2, 3", False),
        ("float[2, 3, 0, 5] x", "2, 3", False),
    ],
)
def test_global_average(x: str, axes: str, fits: bool) -> None:
    outputs = "double[] y" if "double" in x else "float[] y"
    model = model_of(f"y = ReduceMean<axes = [{axes}]>(x)", 13, x=x, outputs=outputs)
    rewritten(model, FusePatterns())
    assert kinds(model) == (["GlobalAveragePool"] if fits else ["ReduceMean"])


@pytest.mark.parametrize(
    "body",
    [
        "y = ReduceMean<axes = [2, 3], keepdims = 0>(x)",
        "n = ReduceMean<axes = [2, 3]>(x)  y = Sub(x, n)",
        "p = Pow(x, two)  y = ReduceMean<axes = [2, 3]>(p)",
    ],
)
def test_means_that_stay(body: str) -> None:
    assert not rewritten(model_of(body, 13, x="float[2, 3, 4, 5] x"), FusePatterns())


@pytest.mark.parametrize(
    ("body", "expected"),
    [
        ("a = Clip(x, zero, six)  y = Clip(a, one, three)", "Clip"),
        ("a = Relu(x)  y = Clip(a, , six)", "Clip"),
        ("a = Relu(x)  y = Relu(a)", "Relu"),
        ("a = Clip(x, , three)  y = Relu(a)", "Clip"),
        ("y = Max(x, zero)", "Relu"),
        ("y = Min(six, x)", "Clip"),
        ("a = Max(zero, x)  y = Min(a, six)", "Clip"),
        ("a = Clip(x, three, six)  y = Clip(a, zero, one)", "Clip"),
    ],
)
@pytest.mark.parametrize("opset", [11, 17])
def test_clips(body: str, expected: str, opset: int) -> None:
    model = model_of(body, opset)
    rewritten(model, FusePatterns(), tolerance=0)
    assert kinds(model) == [expected]


def test_clips_with_attributes() -> None:
    model = model_of("a = Clip<min = 0.0, max = 6.0>(x)  y = Clip<max = 3.0>(a)", 10)
    rewritten(model, FusePatterns(), tolerance=0)
    assert kinds(model) == ["Clip"]


@pytest.mark.parametrize(
    ("body", "x"),
    [
        ("a = Max(x, g)  y = Min(a, b)", "float[2, 3, 4] x"),
        ("y = Max(x, v)", "float x"),
        ("a = Clip(x, zero, six)  y = Clip(a, three, one)", "float[2, 3, 4] x"),
    ],
)
def test_what_is_no_single_clip(body: str, x: str) -> None:
    model = model_of(body, 17, x=x, more="float[1] v = {0}")
    before = kinds(model)
    assert not rewritten(model, FusePatterns())
    assert kinds(model) == before


def test_a_clip_in_between_that_others_read() -> None:
    body = "a = Clip(x, zero, six)  y = Clip(a, one, three)  z = Neg(a)"
    model = model_of(body, 17, outputs="float[] y, float[] z")
    assert "a has other readers" in reasons(rewritten(model, FusePatterns()))


PAD = "int64[8] p = {0, 0, 1, 2, 0, 0, 0, 1}, float low = {-3.4028235e38}"
PAD += ", float[2, 3, 3, 3] w = {" + ", ".join(str(i % 7 - 3) for i in range(54))
PAD += "}, float[3, 2, 3, 3] t = {" + ", ".join(str(i % 5 - 2) for i in range(54)) + "}, float minus = {-inf}"


@pytest.mark.parametrize(
    ("body", "pads"),
    [
        ("a = Pad(x, p)  y = Conv<pads = [1, 0, 1, 0]>(a, w)", [2, 2, 1, 1]),
        ('a = Pad(x, p, zero)  y = Conv<auto_pad = "VALID", strides = [2, 2]>(a, w)', [1, 2, 0, 1]),
        ("a = Pad(x, p)  y = AveragePool<kernel_shape = [3, 3]>(a)", [1, 2, 0, 1]),
        (
            "a = Pad(x, p)  y = AveragePool<kernel_shape = [4, 4], pads = [1, 1, 1, 1], count_include_pad = 1>(a)",
            [2, 3, 1, 2],
        ),
        ("a = Pad(x, p)  y = ConvTranspose<strides = [2, 1], pads = [2, 2, 2, 2]>(a, t)", [0, 0, 2, 1]),
    ],
)
def test_pads(body: str, pads: list[int]) -> None:
    model = model_of(body, 17, x="float[2, 3, 6, 7] x", more=PAD)
    rewritten(model, FusePatterns())
    assert "Pad" not in kinds(model)
    assert list(model.graph.node(len(list(model.graph)) - 1).attributes["pads"].value) == pads


def test_pads_with_axes_and_attributes() -> None:
    body = "a = Pad(x, q, , i)  y = Conv(a, w)"
    more = PAD + ", int64[4] q = {1, 2, 0, 1}, int64[2] i = {2, -1}"
    model = model_of(body, 18, x="float[2, 3, 6, 7] x", more=more)
    rewritten(model, FusePatterns())
    assert kinds(model) == ["Conv"]
    body = "a = Pad<pads = [0, 0, 1, 1, 0, 0, 1, 1]>(x)  y = Conv(a, w)"
    model = model_of(body, 10, "float[2, 3, 6, 7] x", PAD)
    rewritten(model, FusePatterns())
    assert kinds(model) == ["Conv"]


@pytest.mark.parametrize(
    "body",
    [
        "a = Pad(x, p, minus)  y = MaxPool<kernel_shape = [3, 3]>(a)",
        "r = Relu(x)  a = Pad(r, p)  y = MaxPool<kernel_shape = [3, 3]>(a)",
        "r = Relu(x)  a = Pad(r, p, low)  y = MaxPool<kernel_shape = [3, 3]>(a)",
    ],
)
def test_what_nothing_is_below_in_front_of_a_max_pool(body: str) -> None:
    model = model_of(body, 17, "float[2, 3, 6, 7] x", PAD)
    rewritten(model, FusePatterns())
    assert "Pad" not in kinds(model)


@pytest.mark.parametrize(
    ("body", "reason"),
    [
        ("a = Pad(x, p)  y = MaxPool<kernel_shape = [3, 3]>(a)", "MaxPool pads with minus infinity"),
        ("a = Pad(x, p, low)  y = MaxPool<kernel_shape = [3, 3]>(a)", "MaxPool pads with minus infinity"),
        ("r = Relu(x) a = Pad(r, p, one)  y = MaxPool<kernel_shape = [3, 3]>(a)", "MaxPool pads with minus infinity"),
        (
            "r = Relu(x) a = Pad(r, p)  v, i = MaxPool<kernel_shape = [3, 3]>(a)  y = Cast<to = 1>(i)",
            "places of the maxima",
        ),
        ("a = Pad(x, p, one)  y = Conv(a, w)", "Conv pads with 0"),
        ('a = Pad<mode = "reflect">(x, p)  y = Conv(a, w)', "mode is reflect"),
        ('a = Pad(x, p)  y = Conv<auto_pad = "SAME_UPPER">(a, w)', "auto_pad is SAME_UPPER"),
        ("a = Pad(x, n)  y = Conv(a, w)", "it crops"),
        ("a = Pad(x, e)  y = AveragePool<kernel_shape = [2, 2]>(a)", "pads the batch or the channels"),
        ("a = Pad(x, p)  y = AveragePool<kernel_shape = [2, 2]>(a)", "smaller than its kernel"),
        ("a = Pad(x, p)  y = AveragePool<kernel_shape = [3, 3], ceil_mode = 1>(a)", "ceil_mode"),
        ("a = Pad(x, p)  y = AveragePool<kernel_shape = [3, 3], pads = [1, 1, 1, 1]>(a)", "don't count"),
        ("a = Pad(x, p)  y = ConvTranspose(a, t)", "more than the result is cropped"),
    ],
)
def test_pads_refused(body: str, reason: str) -> None:
    more = PAD + ", int64[8] n = {0, 0, -1, 0, 0, 0, 0, 0}, int64[8] e = {0, 1, 0, 0, 0, 0, 0, 0}"
    model = model_of(body, 17, x="float[2, 3, 6, 7] x", more=more)
    before = kinds(model)
    assert reason in reasons(rewritten(model, FusePatterns()))
    assert kinds(model) == before


def test_a_pad_that_others_read() -> None:
    body = "a = Pad(x, p)  y = Conv(a, w)  z = Neg(a)"
    model = model_of(body, 17, "float[2, 3, 6, 7] x", PAD, outputs="float[] y, float[] z")
    assert "a has other readers" in reasons(rewritten(model, FusePatterns()))


def test_inside_a_body() -> None:
    model = parsed(f"""<ir_version: 9, opset_import: ["" : 17]> m (float[2, 3] x, bool f) => (float[] y)
        <{NUMBERS}> {{
        y = If(f) <then_branch = a () => (float[2, 3] p) {{ q = Add(x, three)  r = Clip(q, zero, six)
                   s = Mul(x, r)  p = Div(s, six) }}, else_branch = b () => (float[2, 3] n) {{ n = Neg(x) }}>
    }}""")
    changes = rewritten(model, FusePatterns(), feed={**random_feed(model), "f": np.array(True)})
    assert len(applied(changes)) == 1
    assert kinds(model) == ["If", "HardSwish", "Neg"]


def test_float16_constants_may_be_coarse() -> None:
    model = model_of(GELU[0], 20)
    root = model.graph.initializers["root"]
    edit.set_weight(root, np.array(1.4142135, np.float16).astype(np.float32))
    assert not FusePatterns().run(model, Context()), "1e-4 off is another number among float32"
    for value in model.graph.initializers.values():
        edit.set_weight(value, value.const_value.numpy().astype(np.float16))
    for value in (*model.graph.inputs, *model.graph.outputs):
        value.dtype = ir.DataType.FLOAT16
    for node in model.graph:
        node.outputs[0].type = ir.TensorType(ir.DataType.FLOAT16)
    FusePatterns().run(model, Context())
    assert kinds(model) == ["Gelu"]
    proto_of(model)


def test_a_long_chain_takes_linear_time() -> None:
    body = "".join(f"h{i + 1} = Relu(h{i})  " for i in range(200))
    model = model_of(f"h0 = Tanh(x)  {body} y = Tanh(h200)", 17)
    rewritten(model, FusePatterns(), tolerance=0)
    assert sorted(kinds(model)) == ["Relu", "Tanh", "Tanh"]


def test_a_wrong_answer_would_fail() -> None:
    class Wrong(FusePatterns):
        def run(self, model: ir.Model, context: Context) -> list:
            changes = super().run(model, context)
            for node in model.graph:
                if "epsilon" in node.attributes:
                    node.attributes["epsilon"] = ir.AttrFloat32("epsilon", 1.1e-2)
            return changes

    with pytest.raises(AssertionError, match="Mismatched elements"):
        rewritten(model_of(LAYER_NORM[0] + "  y = Mul(z, g)", 17), Wrong())
