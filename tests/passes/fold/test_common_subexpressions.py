"""Equal nodes are computed once; what only looks equal, or is random, is not touched."""

from __future__ import annotations

import numpy as np
import pytest

from onnxcompress.base.gate import Gate
from onnxcompress.core import Context
from onnxcompress.graph import edit
from onnxcompress.passes.fold.common_subexpressions import ShareNodes
from tests.helpers import floats, from_text, op_types, run


def test_a_chain_of_equal_nodes() -> None:
    model = from_text("g (float[N] x) => (float[N] y) { a = Exp(x) b = Exp(x) c = Neg(a) d = Neg(b) y = Sub(c, d) }")
    expected = run(model, {"x": floats(4)})["y"]
    assert len(ShareNodes().run(model, Context())) == 2
    assert op_types(model) == ["Exp", "Neg", "Sub"]
    np.testing.assert_array_equal(run(model, {"x": floats(4)})["y"], expected)
    assert not ShareNodes().run(model, Context())


@pytest.mark.parametrize(
    "expression",
    [
        "a = Elu<alpha=1.0>(x) b = Elu<alpha=2.0>(x) y = Add(a, b)",
        "a = Sub(x, z) b = Sub(z, x) y = Add(a, b)",
        "a = Clip(x, k) b = Clip(x, , k) y = Add(a, b)",
        "a = RandomNormalLike(x) b = RandomNormalLike(x) y = Add(a, b)",
        "a = RandomNormalLike<seed=1.0>(x) b = RandomNormalLike<seed=1.0>(x) y = Add(a, b)",
        "a = Dropout(x, r, t) b = Dropout(x, r, t) y = Add(a, b)",
        "p = QuantizeLinear(x, s) q = QuantizeLinear(x, s) a = DequantizeLinear(p, s) "
        "b = DequantizeLinear(q, s) y = Add(a, b)",
        "a, i = TopK<largest=1>(x, n) b, j = TopK<largest=0>(x, n) y = Add(a, b)",
    ],
)
def test_not_equal(expression: str) -> None:
    model = from_text(
        "g (float[N] x, float[N] z) => (float[M] y) "
        "<float k = {0.5}, float r = {0.5}, bool t = {1}, float s = {0.1}, int64[1] n = {2}> { " + expression + " }"
    )
    before = op_types(model)
    assert not ShareNodes().run(model, Context())
    assert op_types(model) == before


def test_outputs_keep_their_names() -> None:
    model = from_text("g (float[N] x) => (float[N] y, float[N] z) { a = Exp(x) y = Exp(x) z = Exp(x) w = Neg(a) }")
    expected = run(model, {"x": floats(4)})
    ShareNodes().run(model, Context())
    assert op_types(model) == ["Exp", "Exp", "Neg"]  # one value can't be two outputs
    got = run(model, {"x": floats(4)})
    assert list(got) == ["y", "z"]
    np.testing.assert_array_equal(got["z"], expected["z"])


def test_bodies_read_what_precedes_them_and_not_each_other() -> None:
    model = from_text("""g (bool b, float[N] x) => (float[N] y, float[N] z) {
        a = Exp(x)
        y = If (b) <then_branch = t () => (float[N] p) { q = Exp(x) r = Sin(x) p = Add(q, r) },
                    else_branch = e () => (float[N] s) { u = Sin(x) s = Neg(u) }>
        c = Sin(x) d = Cos(x) f = Add(a, c) z = Add(d, f) }""")
    feeds = [{"b": np.array(flag), "x": floats(3)} for flag in (True, False)]
    expected = [run(model, feed) for feed in feeds]
    ShareNodes().run(model, Context())
    assert op_types(model).count("Exp") == 1
    assert op_types(model).count("Sin") == 3
    for feed, want in zip(feeds, expected, strict=True):
        got = run(model, feed)
        for name in want:
            np.testing.assert_array_equal(got[name], want[name])


def test_a_body_output_stays_a_node_of_the_body() -> None:
    model = from_text("""g (bool b, float[N] x) => (float[N] y, float[N] a) {
        a = Exp(x)
        y = If (b) <then_branch = t () => (float[N] p) { p = Exp(x) },
                    else_branch = e () => (float[N] s) { s = Neg(x) }> }""")
    assert not ShareNodes().run(model, Context())
    run(model, {"b": np.array(True), "x": floats(3)})


def test_minus_zero_is_not_zero() -> None:
    model = from_text("g (float[N] x) => (float[N] y) { a = Elu<alpha=0.0>(x) b = Elu<alpha=-0.0>(x) y = Div(a, b) }")
    assert not ShareNodes().run(model, Context())


def test_gate_is_asked() -> None:
    model = from_text("g (float[N] x) => (float[N] y) { a = Exp(x) b = Exp(x) y = Sub(a, b) }")
    denied = Gate(denied=frozenset({("share-nodes", "Exp:b")}))
    assert not ShareNodes().run(model, Context(gate=denied))


def test_a_reader_with_thousands_of_inputs_is_left_as_it_is(monkeypatch: pytest.MonkeyPatch) -> None:
    text = "g (float[N] x) => (float[M] y) { a = Exp(x) b = Exp(x) c = Exp(x) y = Concat<axis=0>(a, b, c) }"
    monkeypatch.setattr(edit, "_MOST_INPUTS", 2)
    assert not ShareNodes().run(from_text(text), Context())
    monkeypatch.setattr(edit, "_MOST_INPUTS", 3)
    assert len(ShareNodes().run(from_text(text), Context())) == 2
