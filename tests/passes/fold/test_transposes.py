"""Transposes are composed, cancelled and moved behind element-wise nodes only where fewer are left."""

from __future__ import annotations

import numpy as np
import pytest

from onnxcompress.base.gate import Gate
from onnxcompress.core import Context
from onnxcompress.passes.fold.transposes import SimplifyTransposes
from tests.helpers import floats, from_text, op_types, run

THERE, BACK = "Transpose<perm=[0,2,3,1]>", "Transpose<perm=[0,3,1,2]>"


def model_of(expression: str, constants: str = "", inputs: str = "float[N,3,4,5] x", outputs: str = "float[A,B,C,D] y"):
    given = f"<{constants}>" if constants else ""
    return from_text(f"g ({inputs}) => ({outputs}) {given} {{ {expression} }}")


# expression, constants, how many Transposes are left
FEWER = [
    (f"a = {THERE}(x) b = Relu(a) y = {THERE}(b)", "", 1),
    (f"h = Neg(x) a = {THERE}(h) y = {BACK}(a)", "", 0),
    (f"a = {THERE}(x) y = {THERE}(a)", "", 1),
    (f"a = {THERE}(x) b = Relu(a) c = Add(b, k) y = {BACK}(c)", "float[3] k = {1, 2, 3}", 0),
    (f"a = {THERE}(x) b = Mul(k, a) y = {BACK}(b)", "float[5, 1] k = {1, 2, 3, 4, 5}", 0),
    (f"a = {THERE}(x) b = Clip(a, l) y = {BACK}(b)", "float l = {0}", 0),
    (f"a = {THERE}(x) h = Neg(x) b = {THERE}(h) y = Sub(a, b)", "", 1),
    (f"a = {THERE}(x) h = Neg(x) b = {THERE}(h) c = Concat<axis=-1>(a, b) y = {BACK}(c)", "", 0),
    (f"a = {THERE}(x) b = Concat<axis=1>(a, a) y = {BACK}(b)", "", 0),
    (f"a = {THERE}(x) b = ReduceMean<axes=[1,2]>(a) y = {BACK}(b)", "", 0),
    (f"a = {THERE}(x) b = ReduceSum(a, k) y = {BACK}(b)", "int64[1] k = {-1}", 0),
    (f"a = {THERE}(x) b = Relu(a) c = {BACK}(b) d = {BACK}(b) y = Sub(c, d)", "", 0),
    (
        f"a = {THERE}(x) b = Relu(a) c = {BACK}(b) y = Abs(c) e = Softmax<axis=1>(b) z = Neg(e)",
        "",
        1,
    ),
    ("a = Transpose<perm=[0,1,3,2]>(x) b = Softmax<axis=2>(a) y = Transpose<perm=[0,1,3,2]>(b)", "", 0),
]
AS_MANY = [
    f"a = {THERE}(x) y = Relu(a)",
    f"a = {THERE}(x) b = Relu(a) c = {BACK}(b) y = Mul(c, x) z = Neg(a) w = Mul(b, a)",
    f"a = {THERE}(x) b = Softmax<axis=-1>(a) y = {BACK}(b)",
    f"a = {THERE}(x) b = CumSum(a, k) y = {BACK}(b)",
    f"a = {THERE}(x) b = ReduceMean<axes=[1], keepdims=0>(a) y = Unsqueeze(b, m)",
    f"a = {THERE}(x) b = Mul(a, o) y = {BACK}(b)",
]


@pytest.mark.parametrize(("expression", "constants", "left"), FEWER)
def test_fewer(expression: str, constants: str, left: int) -> None:
    outputs = "float[A,B,C,D] y" + (", float[E,F,G,H] z" if "z =" in expression else "")
    model = model_of(expression, constants, outputs=outputs)
    feed = {"x": floats(2, 3, 4, 5)}
    expected = run(model, feed)
    assert SimplifyTransposes().run(model, Context())
    assert op_types(model).count("Transpose") == left
    got = run(model, feed)
    assert sorted(got) == sorted(expected)
    for name in expected:  # sums over another order of the same numbers: a few ulp
        np.testing.assert_allclose(got[name], expected[name], rtol=2e-6, atol=2e-7)
    assert not SimplifyTransposes().run(model, Context())


@pytest.mark.parametrize("expression", AS_MANY)
def test_as_many(expression: str) -> None:
    outputs = "float[A,B,C,D] y" + "".join(f", float[E,F,G,H] {n}" for n in "zw" if f"{n} =" in expression)
    model = model_of(
        expression,
        "int64 k = {1}, int64[1] m = {1}",
        inputs="float[N,3,4,5] x, float[5,3] o",
        outputs=outputs,
    )
    before = op_types(model)
    SimplifyTransposes().run(model, Context())
    assert op_types(model) == before


def test_values_that_mean_the_same_keep_their_names() -> None:
    model = model_of(f"a = {THERE}(x) b = Relu(a) y = {BACK}(b)")
    SimplifyTransposes().run(model, Context())
    names = {o.name for node in model.graph for o in node.outputs}
    assert "y" in names
    assert "b" not in names  # the numbers have another order now


def test_a_shared_constant_is_turned_in_a_copy() -> None:
    model = model_of(
        f"a = {THERE}(x) b = Add(a, k) c = {BACK}(b) y = Mul(c, l)",
        "float[3] k = {1, 2, 3}, float[1,1,1,1] l = {2}",
    )
    other = model_of(
        f"a = {THERE}(x) b = Add(a, k) c = {BACK}(b) d = Transpose(c) e = Add(d, m) y = Transpose(e)",
        "float[3] k = {1, 2, 3}, float[3,1] m = {3, 4, 5}",
    )
    shared = model_of(
        f"a = {THERE}(x) b = Add(a, k) c = {BACK}(b) d = Add(c, j) y = Neg(d) z = Reshape(k, r)",
        "float[3] k = {1, 2, 3}, float j = {1}, int64[4] r = {1, 1, 1, 3}",
        outputs="float[A,B,C,D] y, float[E,F,G,H] z",
    )
    for one in (model, other, shared):
        feed = {"x": floats(2, 3, 4, 5)}
        expected = run(one, feed)
        SimplifyTransposes().run(one, Context())
        assert "Transpose" not in op_types(one)
        for name, array in run(one, feed).items():
            np.testing.assert_array_equal(array, expected[name])


def test_reversing_transposes_need_the_rank() -> None:
    model = from_text("g (float[N,M] x) => (float[P,Q] y) { h = Neg(x) a = Transpose(h) y = Transpose(a) }")
    SimplifyTransposes().run(model, Context())
    assert op_types(model) == ["Neg"]


def test_gemm_takes_a_transpose_in() -> None:
    model = from_text("""g (float[4,N] x, float[3,4] w) => (float[P,Q] y) {
        a = Transpose(x) b = Transpose<perm=[1,0]>(w) y = Gemm<transB=0>(a, b) }""")
    feed = {"x": floats(4, 2), "w": floats(3, 4)}
    expected = run(model, feed)["y"]
    SimplifyTransposes().run(model, Context())
    assert op_types(model) == ["Gemm"]
    np.testing.assert_allclose(run(model, feed)["y"], expected, rtol=1e-6, atol=1e-6)
    shared = from_text("""g (float[4,N] x, float[4,3] w) => (float[P,Q] y, float[R,S] z) {
        a = Transpose(x) y = Gemm(a, w) z = Neg(a) }""")
    assert not SimplifyTransposes().run(shared, Context())


def test_inside_a_body() -> None:
    model = from_text(f"""g (bool b, float[N,3,4,5] x) => (float[A,B,C,D] y) {{
        y = If (b) <then_branch = t () => (float[E,F,G,H] p) {{ q = {THERE}(x) r = Relu(q) p = {BACK}(r) }},
                    else_branch = e () => (float[I,J,K,L] s) {{ s = Neg(x) }}> }}""")
    feed = {"b": np.array(True), "x": floats(2, 3, 4, 5)}
    expected = run(model, feed)["y"]
    SimplifyTransposes().run(model, Context())
    assert op_types(model) == ["If", "Neg", "Relu"]
    np.testing.assert_array_equal(run(model, feed)["y"], expected)


def test_gate_is_asked() -> None:
    model = model_of(f"h = Neg(x) a = {THERE}(h) y = {BACK}(a)")
    assert not SimplifyTransposes().run(model, Context(gate=Gate(limit=0)))
    assert op_types(model).count("Transpose") == 2
