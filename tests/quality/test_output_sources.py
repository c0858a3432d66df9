"""The computation behind outputs, read off small graphs, and models that show it."""

import numpy as np
import pytest

from onnxcompress.quality.output_sources import Ending, Source, show, sources
from onnxcompress.runtime.loaded_model import LoadedModel
from tests.helpers import floats, from_text

SCALARS = "int64[1] k = {2}, int64[1] axes = {0}, float half = {0.5}, float s = {255}"
IMAGE = "g (float[n, 3, 4, 4] x, float[5, 3, 1, 1] w) => "


def _source(body, kind="float[n, d] y", inputs="float[n, 4] x, float[4, 3] w"):
    return sources(from_text(f"g ({inputs}) => ({kind}) <{SCALARS}> {{ {body} }}"))["y"]


@pytest.mark.parametrize(
    ("body", "ending", "operator"),
    [
        ("y = MatMul(x, w)", Ending.PRODUCT, "MatMul"),
        ("m = MatMul(x, w) y = Div(m, half)", Ending.PRODUCT, "Div"),
        ("m = Gemm(x, w) r = Transpose(m) y = Identity(r)", Ending.PRODUCT, "Gemm"),
        (
            "i, c, z = DynamicQuantizeLinear(x) j, e, o = DynamicQuantizeLinear(w) t = Mul(c, e) "
            "p = MatMulInteger(i, j, z, o) f = Cast<to = 1>(p) y = Mul(f, t)",
            Ending.PRODUCT,
            "Mul",
        ),
        ("m = MatMul(x, w) y = Softmax(m)", Ending.SOFTMAX, "Softmax"),
        ("m = MatMul(x, w) y = LogSoftmax(m)", Ending.SOFTMAX, "LogSoftmax"),
        ("m = MatMul(x, w) y = Sigmoid(m)", Ending.SIGMOID, "Sigmoid"),
        ("m = HardSigmoid(x) y = Mul(m, half)", Ending.SIGMOID, "Mul"),
        ("m = Sigmoid(x) y = ReduceMean<axes = [1]>(m)", Ending.SIGMOID, "ReduceMean"),
        ("m = Tanh(x) y = ReduceMean<axes = [1]>(m)", Ending.OTHER, "ReduceMean"),
        ("y = Tanh(x)", Ending.OTHER, "Tanh"),
        ("m = MatMul(x, w) y = Mul(m, m)", Ending.OTHER, "Mul"),
        ("y = Concat<axis = 1>(x, x)", Ending.STATE, "Concat"),
        ("y = Identity(x)", Ending.OTHER, "input"),
    ],
)
def test_the_last_operator_of_a_float_output(body, ending, operator):
    has_scores = ending in (Ending.SIGMOID, Ending.SOFTMAX)
    assert _source(body) == Source(ending, operator, has_scores=has_scores)


@pytest.mark.parametrize(("other", "ending"), [("Sigmoid", Ending.SIGMOID), ("Tanh", Ending.OTHER)])
def test_the_branches_of_an_if_have_to_end_alike(other, ending):
    branch = "= g () => (float[n, 4] {0}) {{ s{0} = {1}(x) {0} = Identity(s{0}) }}"
    body = f"y = If(c) <then_branch {branch.format('a', 'Sigmoid')}, else_branch {branch.format('b', other)}>"
    assert _source(body, inputs="float[n, 4] x, bool c") == Source(ending, "If")


def test_states_of_recurrent_operators():
    text = """g (float[5, n, 4] x, float[1, 8, 4] w, float[1, 8, 2] r, float[1, n, 2] h, float[1, n, 2] c)
        => (float[5, 1, n, 2] y, float[1, n, 2] hn, float[1, n, 2] cn)
        { y, hn, cn = LSTM<hidden_size = 2>(x, w, r, , , h, c) }"""
    found = sources(from_text(text))
    assert found["hn"] == found["cn"] == Source(Ending.STATE, "LSTM")
    assert found["y"] == Source(Ending.OTHER, "LSTM")


def test_pieces_of_a_last_concat_through_what_moves_elements():
    body = """a = MatMul(x, w) g = Sigmoid(a) t = Tanh(a) inner = Concat<axis = 1>(t, g)
        c = Concat<axis = 1>(a, inner) y = Transpose<perm = [1, 0]>(c)"""
    pieces = (("a", Source(Ending.PRODUCT, "MatMul")), ("t", Source(Ending.OTHER, "Tanh")))
    found = _source(body)
    assert (found.ending, found.operator) == (Ending.OTHER, "Concat")
    assert found.pieces == (*pieces, ("g", Source(Ending.SIGMOID, "Sigmoid")))


def test_of_many_pieces_none_is_judged_apart():
    made = " ".join(f"a{k} = Tanh(a{k - 1})" for k in range(1, 34))
    joined = ", ".join(f"a{k}" for k in range(1, 34))
    assert _source(f"a0 = Relu(x) {made} y = Concat<axis = 1>({joined})").pieces == ()


@pytest.mark.parametrize(
    ("body", "kind", "ending", "operator", "values", "axis"),
    [
        ("m = MatMul(x, w) y = ArgMax<axis = 1>(m)", "int64[n, 1] y", Ending.CHOICE, "ArgMax", ("m",), 1),
        ("m = MatMul(x, w) y = ArgMin(m)", "int64[1, d] y", Ending.CHOICE, "ArgMin", ("m",), 0),
        ("m = MatMul(x, w) v, y = TopK(m, k)", "int64[n, 2] y", Ending.CHOICE, "TopK", ("m",), -1),
        ("m = MatMul(x, w) y = NonZero(m)", "int64[2, d] y", Ending.CHOICE, "NonZero", ("m",), None),
        (
            "m = MatMul(x, w) b = Greater(m, half) y = Cast<to = 6>(b)",
            "int32[n, d] y", Ending.COMPARISON, "Greater", ("m",), None,
        ),
        ("m = MatMul(x, w) t = Tanh(m) y = Less(m, t)", "bool[n, d] y", Ending.COMPARISON, "Less", ("m", "t"), None),
        ("m = MatMul(x, w) r = Round(m) y = Cast<to = 2>(r)", "uint8[n, d] y", Ending.OTHER, "Cast", ("r",), None),
        ("y = Cast<to = 2>(x)", "uint8[n, d] y", Ending.OTHER, "input", (), None),
        (
            "m = MatMul(x, w) a = ArgMax<axis = 1>(m) y = Gather(names, a)",
            "string[n, 1] y", Ending.CHOICE, "ArgMax", ("m",), 1,
        ),
    ],
)  # fmt: skip
def test_floats_that_decide_an_output_which_is_none(body, kind, ending, operator, values, axis):
    text = f"g (float[n, 4] x, float[4, 3] w) => ({kind}) <{SCALARS}> {{ {body} }}"
    if "names" in body:
        text = text.replace("{ m", '{ names = Constant<value_strings = ["a", "b", "c"]>() m')
    assert sources(from_text(text))["y"] == Source(ending, operator, values, axis)


def test_non_maximum_suppression_is_decided_by_boxes_and_scores():
    text = """g (float[1, 6, 4] x, float[1, 2, 6] q) => (int64[d, 3] y) <int64 most = {3}> {
        b = Abs(x) s = Sigmoid(q) y = NonMaxSuppression(b, s, most) }"""
    assert sources(from_text(text))["y"] == Source(Ending.CHOICE, "NonMaxSuppression", ("b", "s"), counts_rows=True)


def test_a_model_shows_the_sources_that_it_has_in_common_with_the_original():
    text = IMAGE + "(int64[n, 1, 4, 4] y) { %s y = ArgMax<axis = 1>(m) }"
    original, other = (from_text(text % body) for body in ("m = Conv(x, w)", "c = Conv(x, w) m = Relu(c)"))
    wanted = sources(original)
    for model in (original, other):
        shown = show(model, sources(model), wanted)
        assert set(shown.names) == {"m"}
        feed = {"x": floats(2, 3, 4, 4), "w": floats(5, 3, 1, 1)}
        found = LoadedModel(shown.model).plain.run(feed)
        assert (found[shown.names["m"]].argmax(1, keepdims=True) == found["y"]).all()
        assert [output.name for output in model.graph.outputs] == ["y"]


def test_what_one_model_lacks_is_not_shown():
    original = from_text(IMAGE + "(int64[n, 1, 4, 4] y) { m = Conv(x, w) y = ArgMax<axis = 1>(m) }")
    fused = from_text(IMAGE + "(int64[n, 1, 4, 4] y) <int64[1] y0 = {1}> { s = Shape(x) y = Expand(y0, s) }")
    shown = show(fused, sources(fused), sources(original))
    assert shown.model is fused
    assert shown.names == {}


def test_a_source_that_is_an_output_already_needs_no_other():
    text = "g (float[n, 4] x) => (float[n, 4] p, int64[n, 1] y) { p = Softmax(x) y = ArgMax<axis = 1>(p) }"
    model = from_text(text)
    shown = show(model, sources(model), sources(model))
    assert shown.names == {"p": "p"}
    assert np.allclose(LoadedModel(shown.model).plain.run({"x": floats(2, 4)})["p"].sum(1), 1)
