"""Made-up feeds: right types, shapes and values, two sizes of what is dynamic, the same for the same seed."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir
import pytest

import onnxcompress as oc
from onnxcompress.core import Feed
from onnxcompress.data.input_semantics import roles
from onnxcompress.data.synthetic import runnable_feeds, synthetic_feeds
from onnxcompress.errors import ModelError
from onnxcompress.io import model_io
from onnxcompress.runtime import session as runtime
from tests.helpers import from_text


def _feeds(model: ir.Model, *, seed: int = 0, count: int = 2) -> list[Feed]:
    session = runtime.open_session(model_io.to_bytes(model), optimize=False)
    return runnable_feeds(model, session, seed=seed, count=count)


def test_each_dynamic_dimension_has_two_sizes():
    feeds = _feeds(from_text("g (float[n, 3, h, w] x) => (float[n, 3, h, w] y) { y = Relu(x) }"))
    shapes = np.array([feed["x"].shape for feed in feeds])
    assert len(feeds) == 2
    assert (shapes[0][[0, 2, 3]] != shapes[1][[0, 2, 3]]).all()
    assert (shapes[:, 1] == 3).all()


def test_a_name_is_one_size_wherever_it_stands():
    model = from_text("g (float[n, s] x, float[n, s] mask) => (float[n, s] y) { y = Mul(x, mask) }")
    for feed in (*_feeds(model), *synthetic_feeds(model, seed=0)):
        assert feed["x"].shape == feed["mask"].shape


def test_the_seed_decides():
    model = from_text("g (float[n, 3] x) => (float[n, 3] y) { y = Relu(x) }")
    one, same, other = _feeds(model), _feeds(model), _feeds(model, seed=1)
    np.testing.assert_array_equal(one[0]["x"], same[0]["x"])
    assert not np.array_equal(one[0]["x"], other[0]["x"])
    assert not np.array_equal(one[0]["x"].ravel()[:3], one[1]["x"].ravel()[:3])


def test_feeds_without_a_run_have_the_sizes_asked_for():
    model = from_text("g (float[n, s] x) => (float[n, s] y) { y = Relu(x) }")
    assert [feed["x"].shape for feed in synthetic_feeds(model, seed=0, sizes=(5, 9, 1))] == [(2, 5), (1, 9), (3, 1)]


@pytest.mark.parametrize("rows", [2, 3, 50])
def test_token_ids_lie_within_their_table(rows: int):
    table = ", ".join(["1"] * (rows * 2))
    model = from_text(
        f"g (int64[n, s] ids) => (float[n, s, 2] y) <float[{rows}, 2] table = {{{table}}}> {{ y = Gather(table, ids) }}"
    )
    assert roles(model)["ids"].limit == rows
    feeds = _feeds(model, count=8)
    ids = np.concatenate([feed["ids"].ravel() for feed in feeds])
    assert ids.min() >= 0
    assert rows / 2 <= ids.max() < rows


def test_ids_are_followed_through_what_moves_them_and_into_branches():
    model = from_text(
        """g (bool c, int32[n] ids) => (float[m, 2] y) <float[3, 2] table = {1, 2, 3, 4, 5, 6}> {
            wide = Cast<to = 7>(ids)
            y = If(c) <
                then_branch = t () => (float[a, 2] p) { p = Gather(table, wide) },
                else_branch = e () => (float[b, 2] q) { q0 = Gather(table, wide) q = Neg(q0) }
            >
        }"""
    )
    found = roles(model)
    assert found["ids"].limit == 3
    assert found["c"].branches
    assert {bool(feed["c"]) for feed in _feeds(model)} == {True, False}


def test_masks_let_everything_through():
    model = from_text(
        "g (float[n, s] x, int64[n, s] attention_mask) => (float[n, s] y) "
        "{ m = Cast<to = 1>(attention_mask) y = Mul(x, m) }"
    )
    assert all((feed["attention_mask"] == 1).all() for feed in _feeds(model))


def test_a_number_that_the_model_compares_with_is_tried():
    model = from_text(
        """g (float[n] x, int64 sr) => (float[n] y) <int64 rate = {16000}> {
            c = Equal(sr, rate)
            y = If(c) <
                then_branch = t () => (float[a] p) { p = Identity(x) },
                else_branch = e () => (float[b] q) { q = Neg(x) }
            >
        }"""
    )
    assert roles(model)["sr"].compared == [16000]
    assert {int(feed["sr"]) == 16000 for feed in _feeds(model)} == {True, False}


def test_sizes_are_searched_until_the_model_runs():
    ones = ", ".join(["1"] * 200)
    model = from_text(
        f"g (float[n, s] x) => (float[n, 5] y) <int64[2] shape = {{-1, 40}}, float[40, 5] w = {{{ones}}}> "
        "{ r = Reshape(x, shape) y = MatMul(r, w) }"
    )
    assert all(feed["x"].size % 40 == 0 for feed in _feeds(model))


def test_sizes_that_constants_of_the_model_name_are_tried():
    reshaped = from_text(
        "g (float[n, t] x) => (float[k, 37] y) <int64[2] shape = {-1, 37}> { y = Reshape(x, shape) }", opset=13
    )
    assert _feeds(reshaped)[0]["x"].size % 37 == 0
    picked = from_text("g (float[n, t, 2] x) => (float[n, 2] y) <int64 i = {431}> { y = Gather<axis=1>(x, i) }")
    assert _feeds(picked)[0]["x"].shape[1] > 431


def test_the_constant_length_of_a_recurrent_layer_fits_the_input():
    text = (
        "g (float[t, 1, 2] x) => (float[t, 1, 1, 3] y) <int32[1] length = {7}> "
        "{ y = RNN<hidden_size=3>(x, w, r, b, length) }"
    )
    weights = "float[1, 3, 2] w, float[1, 3, 3] r, float[1, 6] b"
    model = from_text(text.replace("(float[t, 1, 2] x)", f"(float[t, 1, 2] x, {weights})"), opset=14)
    assert _feeds(model)[0]["x"].shape[0] >= 7


def test_inputs_of_a_logarithm_are_above_zero():
    model = from_text("g (float[n, 4] x) => (float[n, 4] y) { y = Log(x) }")
    assert all((feed["x"] > 0).all() for feed in _feeds(model))


def test_inputs_with_a_default_are_left_to_it():
    model = from_text("g (float[n, 2] x, float[2] w = {1, 2}) => (float[n, 2] y) { y = Mul(x, w) }")
    assert all(set(feed) == {"x"} for feed in _feeds(model))


@pytest.mark.parametrize("kind", ["float16", "double", "int8", "uint8", "int32", "uint64", "bool", "string"])
def test_every_type_that_the_runtime_takes_is_made(kind: str):
    model = from_text(f"g ({kind}[n, 3] x) => ({kind}[n, 3] y) {{ y = Identity(x) }}")
    session = runtime.open_session(model_io.to_bytes(model), optimize=False)
    for feed in _feeds(model):
        assert feed["x"].dtype == (session.inputs[0].dtype or np.dtype(object))


def test_a_model_without_inputs_has_the_empty_feed():
    model = from_text("g () => (float[2] y) <float[2] w = {1, 2}> { y = Neg(w) }")
    assert _feeds(model)[0] == {}


def test_a_model_that_nothing_runs_is_told_with_the_reason():
    model = from_text("g (float[n, 7] x) => (float[a, b] y) <int64[2] shape = {-1, 5000003}> { y = Reshape(x, shape) }")
    with pytest.raises(ModelError, match=r"no synthetic inputs that the model runs were found.*--data"):
        _feeds(model)


def test_an_input_of_terabytes_is_told_and_not_made():
    model = from_text("g (float[1099511627776] x) => (float[1099511627776] y) { y = Relu(x) }")
    told = r"input 'x' \[1099511627776\] has 1,099,511,627,776 elements, too many"
    with pytest.raises(ModelError, match=told):
        oc.compress(model, recipe="fold", verify="full")
    with pytest.raises(ModelError, match=told):
        oc.compare(model, model)
