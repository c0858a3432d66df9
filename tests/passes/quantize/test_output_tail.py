"""Nodes behind the last large products."""

import numpy as np

from onnxcompress.passes.quantize.output_tail import output_tail
from onnxcompress.shapes import infer as shapes
from tests.helpers import floats, from_text, with_constants

HEAD = """g (float[1, 128, 40, 40] x, float[128, 128, 3, 3] w, float[64, 128, 1, 1] v, float[8, 128, 1, 1] u,
           float[1, 16, 1, 1] bins)
    => (float[1, 12, 1600] y) <int64[4] split = {1, 4, 16, 1600}, int64[3] flat = {1, 4, 1600},
                               int64[3] eight = {1, 8, 1600}, float stride = {8}> {
    a = Conv<pads = [1, 1, 1, 1]>(x, w)
    c = Relu(a)
    side = Conv(c, v)
    logits = Conv(c, u)
    parted = Reshape(side, split)
    turned = Transpose<perm = [0, 2, 1, 3]>(parted)
    shares = Softmax<axis = 1>(turned)
    means = Conv(shares, bins)
    cells = Reshape(means, flat)
    boxes = Mul(cells, stride)
    rows = Reshape(logits, eight)
    scores = Sigmoid(rows)
    y = Concat<axis = 1>(boxes, scores)
}"""


def _tail(model):
    return sorted(node.op_type for node in output_tail(model.graph, shapes.infer(model).static))


def test_the_decoding_of_boxes_is_behind_the_last_products():
    model = with_constants(
        HEAD,
        w=floats(128, 128, 3, 3),
        v=floats(64, 128, 1, 1),
        u=floats(8, 128, 1, 1),
        bins=np.arange(16, dtype=np.float32).reshape(1, 16, 1, 1),
    )
    found = _tail(model)
    assert found == sorted(
        ["Reshape", "Transpose", "Softmax", "Conv", "Reshape", "Mul", "Reshape", "Sigmoid", "Concat"]
    )


def test_a_small_product_with_many_weights_is_no_decoding():
    text = """g (float[1, 8, 64, 64] x, float[8, 8, 7, 7] w, float[8, 200] v) => (float[1, 200] y) {
        a = Conv<pads = [3, 3, 3, 3]>(x, w) b = GlobalAveragePool(a) c = Flatten(b) y = MatMul(c, v) }"""
    assert _tail(with_constants(text, w=floats(8, 8, 7, 7), v=floats(8, 200))) == []


def test_without_products_there_is_no_tail():
    assert _tail(from_text("g (float[4] x) => (float[4] y) { a = Relu(x) y = Sigmoid(a) }")) == []


def test_products_of_unknown_size_are_large():
    text = "g (float[n, m] x, float[m, k] w) => (float[n, k] y) { a = Relu(x) y = MatMul(a, w) }"
    assert _tail(from_text(text)) == []


def test_what_leads_into_a_body_is_no_tail():
    text = """g (float[1, 8] x, float[8, 8] w, bool c) => (float[1, 8] y) {
        a = MatMul(x, w) b = Relu(a)
        y = If(c) <then_branch = t () => (float[1, 8] p) { p = Sigmoid(b) },
                   else_branch = e () => (float[1, 8] q) { q = Identity(b) }> }"""
    assert "Relu" not in _tail(with_constants(text, w=floats(8, 8)))
