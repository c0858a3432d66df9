"""What nobody reads goes; what has a reader, or means something by being there, stays."""

from __future__ import annotations

import numpy as np
import onnx
import onnx.parser
import onnx_ir as ir
import pytest

from onnxcompress.base.gate import Gate
from onnxcompress.core import Context, Feed
from onnxcompress.graph import query
from onnxcompress.io import model_io
from onnxcompress.passes.fold.dead_code import RemoveDead
from tests.helpers import floats, from_text, op_types, run


def _clean(model: ir.Model, feed: Feed) -> list[str]:
    """Run the pass, check outputs, a second run and a closed gate, and return the targets."""
    before, kinds = run(model, feed), op_types(model)
    assert not RemoveDead().run(model, Context(gate=Gate(limit=0)))
    assert op_types(model) == kinds
    changes = RemoveDead().run(model, Context())
    after = run(model, feed)
    for name, expected in before.items():
        np.testing.assert_array_equal(after[name], expected)
    assert not RemoveDead().run(model, Context())
    return [change.target for change in changes]


def test_dead_chains_and_their_weights_go_and_shared_ones_stay() -> None:
    model = from_text(
        "g (float[2] x) => (float[2] y) <float[2] w = {1, 2}, float[2] v = {3, 4}> "
        "{ a = Add(x, v) b = Mul(a, w) c = Exp(b) y = Mul(x, w) }"
    )
    assert "v" in _clean(model, {"x": floats(2)})
    assert op_types(model) == ["Mul"]
    assert list(model.graph.initializers) == ["w"]


def test_what_only_a_dead_body_captured_goes() -> None:
    model = from_text(
        "g (bool c, float[2] x) => (float[2] y) { k = Exp(x) d = If(c) <"
        "then_branch = t () => (float[2] a) { a = Neg(k) }, "
        "else_branch = e () => (float[2] b) { b = Abs(k) }> y = Relu(x) }"
    )
    _clean(model, {"c": np.array(True), "x": floats(2)})
    assert op_types(model) == ["Relu"]


def test_what_a_living_body_captures_stays() -> None:
    model = from_text(
        "g (bool c, float[2] x) => (float[2] y) <float[2] w = {1, 2}> { k = Exp(x) y = If(c) <"
        "then_branch = t () => (float[2] a) { u = Sin(k) a = Add(k, w) }, "
        "else_branch = e () => (float[2] b) { b = Abs(k) }> }"
    )
    _clean(model, {"c": np.array(True), "x": floats(2)})
    assert op_types(model) == ["Abs", "Add", "Exp", "If"]
    assert "w" in model.graph.initializers


@pytest.mark.parametrize(
    ("call", "reads", "names"),
    [
        ("p, i = MaxPool<kernel_shape=[1, 1]>(x)", "p", ["p"]),
        ("p, m, s = LayerNormalization(x, w)", "p", ["p"]),
        ("p, h, c = LSTM<hidden_size=2>(s3, lw, lr)", "h", ["", "h"]),
        ("p, h, c = LSTM<hidden_size=2>(s3, lw, lr)", "p", ["p"]),
        ("p, q = TopK(x, k)", "p", ["p", "q"]),
        ("p, q = Split<axis=3>(x)", "p", ["p", "q"]),
    ],
)
def test_optional_outputs_that_nobody_reads(call: str, reads: str, names: list[str]) -> None:
    model = from_text(
        "g (float[1, 1, 2, 2] x, float[3, 1, 2] s3) => (float[A] y) "
        "<float[2] w = {1, 2}, int64[1] k = {1}, int64[1] flat = {-1}, float[1, 8, 2] lw = "
        "{1, 2, 1, 2, 1, 2, 1, 2, 1, 2, 1, 2, 1, 2, 1, 2}, float[1, 8, 2] lr = "
        f"{{1, 2, 1, 2, 1, 2, 1, 2, 1, 2, 1, 2, 1, 2, 1, 2}}> {{ {call} y = Reshape({reads}, flat) }}"
    )
    _clean(model, {"x": floats(1, 1, 2, 2), "s3": floats(3, 1, 2)})
    node = next(iter(model.graph))
    assert [output.name or "" for output in node.outputs] == names


def test_batch_normalization_in_training_keeps_its_outputs() -> None:
    text = (
        "g (float[2, 3] x) => (float[2, 3] y) <float[3] s = {1, 1, 1}, float[3] m = {0, 0, 0}> "
        "{ y, rm, rv = BatchNormalization<training_mode=1>(x, s, m, m, s) }"
    )
    model = from_text(text)
    RemoveDead().run(model, Context())
    assert len(next(iter(model.graph)).outputs) == 3


def test_batch_normalization_of_old_opsets_keeps_its_outputs() -> None:
    model = from_text(
        "g (float[2, 3] x) => (float[2, 3] y) <float[3] s = {1, 1, 1}, float[3] m = {0, 0, 0}> "
        "{ y, a, b, c, d = BatchNormalization(x, s, m, m, s) }",
        opset=9,
    )
    RemoveDead().run(model, Context())
    assert len(next(iter(model.graph)).outputs) == 5


@pytest.mark.parametrize(("reads", "kinds"), [("p", ["Exp", "If", "Neg", "Relu"]), ("q", ["Abs", "If", "Relu", "Sin"])])
def test_outputs_of_an_if_that_nobody_reads(reads: str, kinds: list[str]) -> None:
    model = from_text(
        "g (bool c, float[2] x) => (float[2] y) { p, q = If(c) <"
        "then_branch = t () => (float[2] a, float[2] b) { a = Exp(x) b = Sin(x) }, "
        f"else_branch = e () => (float[2] d, float[2] f) {{ d = Neg(x) f = Abs(x) }}> y = Relu({reads}) }}"
    )
    _clean(model, {"c": np.array(True), "x": floats(2)})
    assert op_types(model) == kinds


def test_what_a_loop_collects_for_nobody() -> None:
    model = from_text(
        "g (int64 n, bool c, float[2] x) => (float[2] y, float[K, L] z) { y, u, z = Loop(n, c, x) "
        "<body = b (int64 i, bool e, float[2] v) => (bool f, float[2] w, float[2] o, float[2] p) "
        "{ f = Identity(e) w = Exp(v) o = Neg(v) p = Abs(v) }> }"
    )
    _clean(model, {"n": np.array(2), "c": np.array(True), "x": floats(2)})
    assert op_types(model) == ["Abs", "Exp", "Identity", "Loop"]


def test_the_state_of_a_loop_stays_though_nobody_reads_its_end() -> None:
    model = from_text(
        "g (int64 n, bool c, float[2] x) => (float[K, L] z) { y, z = Loop(n, c, x) "
        "<body = b (int64 i, bool e, float[2] v) => (bool f, float[2] w, float[2] o) "
        "{ f = Identity(e) w = Exp(v) o = Neg(v) }> }"
    )
    assert not _clean(model, {"n": np.array(2), "c": np.array(True), "x": floats(2)})


def test_functions_that_are_never_called_and_their_opset_go() -> None:
    text = """<ir_version: 8, opset_import: ["" : 17, "my" : 1, "other" : 1, "unused" : 3]>
    g (float[N] x) => (float[N] y) { y = my.f(x) }
    <domain: "my", opset_import: ["" : 17, "my" : 1]> f (x) => (o) { a = my.h(x) dead = Exp(x) o = Neg(a) }
    <domain: "my", opset_import: ["" : 17]> h (x) => (o) { o = Abs(x) }
    <domain: "other", opset_import: ["" : 17]> k (x) => (o) { o = Abs(x) }
    """
    model = model_io.load(onnx.parser.parse_model(text))
    targets = _clean(model, {"x": floats(3)})
    assert {"function other:k", "opset other", "opset unused"} <= set(targets)
    assert len(model.functions) == 2
    assert "Exp" not in op_types(model)


def test_overridable_weights_and_outputs_stay() -> None:
    model = from_text(
        "g (float[2] x, int64[1] s) => (float[2] y, float[2] w) <int64[1] s = {2}, float[2] w = {1, 2}> { y = Neg(x) }"
    )
    assert not _clean(model, {"x": floats(2)})
    assert query.constant(model.graph.outputs[1]) is not None
