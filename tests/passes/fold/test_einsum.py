"""An Einsum with a constant matrix becomes a MatMul with the same result; others stay."""

import numpy as np
import pytest

import onnxcompress as oc
from onnxcompress.core import Action, Context
from onnxcompress.io import model_io
from onnxcompress.passes.fold.patterns import FusePatterns
from onnxcompress.passes.quantize.weights import QuantizeWeights
from tests.helpers import floats, op_types, run, with_constants

DIMS = {"b": 2, "t": 5, "d": 24, "e": 40, "h": 4, "k": 6, "u": 7, "g": 3}


def _shape(term):
    return [DIMS[letter] for letter in term]


def _model(equation, x, w, result, *, is_left=False):
    """Return an Einsum of an activation with letters `x` and a constant with letters `w`."""
    operands = "w, x" if is_left else "x, w"
    text = f"""g (float{_shape(x)} x, float{_shape(w)} w) => (float{_shape(result)} y) {{
        [one] y = Einsum<equation = "{equation}">({operands}) }}"""
    return with_constants(text, w=floats(*_shape(w), seed=1))


PRODUCTS = [
    ("btd,de->bte", "btd", "de", "bte", False, ["MatMul"]),
    ("btd,ed->bte", "btd", "ed", "bte", False, ["MatMul"]),
    ("d,de", "d", "de", "e", False, ["MatMul"]),
    ("...d,ed->...e", "btd", "ed", "bte", False, ["MatMul"]),
    ("bthk,hke->bte", "bthk", "hke", "bte", False, ["MatMul", "Reshape"]),
    ("bthk,ehk->bte", "bthk", "ehk", "bte", False, ["MatMul", "Reshape"]),
    ("btd,dhk->bthk", "btd", "dhk", "bthk", False, ["MatMul", "Reshape"]),
    ("bthk,hkgu->btgu", "bthk", "hkgu", "btgu", False, ["MatMul", "Reshape", "Reshape"]),
    ("ut,btd->bud", "btd", "ut", "bud", True, ["MatMul"]),
    ("tu,btd->bud", "btd", "tu", "bud", True, ["MatMul"]),
    ("de,btd->bte", "btd", "de", "bte", True, ["MatMul"]),
]


@pytest.mark.parametrize(("equation", "x", "w", "result", "is_left", "expected"), PRODUCTS)
def test_products_become_matmuls(equation, x, w, result, is_left, expected):
    model = _model(equation, x, w, result, is_left=is_left)
    feed = {"x": floats(*_shape(x))}
    before = run(model, feed)["y"]
    (change,) = FusePatterns().run(model, Context())
    assert (change.action, change.target) == (Action.APPLIED, "one")
    assert op_types(model) == expected
    assert next(node for node in model.graph if node.op_type == "MatMul").name == "one"
    np.testing.assert_allclose(run(model, feed)["y"], before, rtol=1e-5, atol=1e-5)
    assert FusePatterns().run(model, Context()) == []


@pytest.mark.parametrize(
    ("equation", "x", "w", "result"),
    [
        ("bthk,hke->bthe", "bthk", "hke", "bthe"),  # a batch of products
        ("bdt,de->bte", "bdt", "de", "bte"),  # the activation would have to be transposed
        ("btd,de->ebt", "btd", "de", "ebt"),  # so would the result
        ("btd,d->btd", "btd", "d", "btd"),  # no sum
        ("btd,de->bt", "btd", "de", "bt"),  # a sum over an axis that the weight alone has
    ],
)
def test_others_stay_and_are_quantized_where_they_hold_a_matrix(equation, x, w, result):
    model = _model(equation, x, w, result)
    feed = {"x": floats(*_shape(x))}
    before, size = run(model, feed)["y"], len(model_io.to_bytes(model))
    assert FusePatterns().run(model, Context()) == []
    changes = QuantizeWeights().run(model, Context())
    if len(w) > 1:
        assert [(c.action, c.target) for c in changes] == [(Action.APPLIED, "w")]
        assert len(model_io.to_bytes(model)) < size
    noise = run(model, feed)["y"] - before
    assert np.square(noise).sum() < 1e-3 * np.square(before).sum()


def test_a_size_that_an_einsum_repeats_is_no_product():
    text = """g (float[2, 5, 1] x, float[24, 40] w) => (float[2, 5, 40] y) {
        [one] y = Einsum<equation = "btd,de->bte">(x, w) }"""
    assert FusePatterns().run(with_constants(text, w=floats(24, 40)), Context()) == []


def test_a_weight_that_others_read_is_not_stored_twice():
    text = """g (float[2, 24] x, float[40, 24] w) => (float[2, 40] y, float[40, 24] z) {
        [one] y = Einsum<equation = "td,ed->te">(x, w) z = Relu(w) }"""
    assert FusePatterns().run(with_constants(text, w=floats(40, 24)), Context()) == []


def test_an_option_that_names_the_einsum_still_names_the_product():
    model = _model("btd,de->bte", "btd", "de", "bte")
    changes = oc.compress(model, recipe="int8-weights", only=["one"]).changes
    assert [c.action for c in changes if c.pass_name == "quantize-weights"] == [Action.APPLIED]
