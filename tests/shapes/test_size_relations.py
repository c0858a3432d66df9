"""Sizes that follow from others."""

import pytest

from onnxcompress.data import fill_inputs, synthetic
from onnxcompress.io import model_io
from onnxcompress.runtime.loaded_model import LoadedModel
from onnxcompress.shapes.size_relations import completed, relations

from ..helpers import from_text
from ..recorder.decoders import decoder


def found(text):
    model = from_text(text)
    inputs = [(each.name, each.dims) for each in fill_inputs.free_inputs(model)]
    return relations(model, inputs)


CONCAT = "g (float[1, p] past, float[1, s] x, float[1, t] mask) => (float[1, n] y) {{ {body} }}"


@pytest.mark.parametrize("operator", ["Add", "Mul", "Max"])
def test_a_mask_is_as_long_as_past_and_new_together(operator):
    body = f"all = Concat<axis = 1>(past, x) y = {operator}(all, mask)"
    assert found(CONCAT.format(body=body)) == {"t": {"p": 1, "s": 1}}


def test_sizes_that_never_meet_are_free():
    assert found(CONCAT.format(body="y = Concat<axis = 1>(past, x, mask)")) == {}


def test_a_constant_is_part_of_a_relation():
    text = "g (float[1, s] x, float[1, t] m) => (float[1, n] y) { k = Constant<value = float[1, 2] {1, 1}>() %s }"
    assert found(text % "a = Concat<axis = 1>(k, x) y = Add(a, m)") == {"t": {"s": 1, "": 2}}


def test_factors_of_a_product_meet_in_its_inner_dimension():
    text = "g (float[a, b] x, float[c, d] y) => (float[e, f] z) { z = MatMul(x, y) }"
    assert found(text) == {"c": {"b": 1}}


def test_a_chain_of_relations_is_solved():
    text = """g (float[p] x, float[s] y, float[t] m, float[u] n) => (float[v] z) {
        a = Concat<axis = 0>(x, y) b = Add(a, m) c = Concat<axis = 0>(m, y) z = Add(c, n) }"""
    assert found(text) == {"t": {"p": 1, "s": 1}, "u": {"p": 1, "s": 2}}
    assert completed({"p": 3, "s": 2}, found(text)) == {"p": 3, "s": 2, "t": 5, "u": 7}


def test_names_that_are_sums_say_it_themselves():
    model = from_text("g (float[1, p] past, float[1, s] x, float[1, t] mask) => (float[1, t] y) { y = Relu(mask) }")
    inputs = [("past", (1, "past_len")), ("x", (1, "seq")), ("mask", (1, "past_len + seq")), ("m", (1, "past_len + 1"))]
    assert relations(model, inputs) == {
        "past_len + seq": {"past_len": 1, "seq": 1},
        "past_len + 1": {"past_len": 1, "": 1},
    }


def test_made_up_inputs_of_a_decoder_run_at_every_kind_of_step(tmp_path):
    model = model_io.load(decoder(tmp_path / "m.onnx"))
    feeds = synthetic.runnable_feeds(model, LoadedModel(model).plain, seed=0, count=2)
    steps = [(feed["ids"].shape[1], feed["past"].shape[1]) for feed in feeds]
    assert (8, 8) in steps
    assert (8, 0) in steps
    assert any(new == 1 and past > 8 for new, past in steps)
    assert all(feed["mask"].shape[1] == new + past for feed, (new, past) in zip(feeds, steps, strict=True))
    [untried] = synthetic.synthetic_feeds(model, seed=0, sizes=(8,))
    assert untried["mask"].shape[1] == untried["ids"].shape[1] + untried["past"].shape[1]


def test_a_relation_that_is_wrong_is_given_up():
    text = """g (float[a] x, float[b] y) => (float[n] z) {
        one = Constant<value = int64[1] {1}>() r = ReduceSum(y) q = Expand(r, one) z = Add(x, q) }"""
    model = from_text(text)
    assert synthetic.runnable_feeds(model, LoadedModel(model).plain, seed=0, count=1)
