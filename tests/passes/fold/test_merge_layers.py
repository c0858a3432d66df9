"""Layers in a row and side by side become one that gives the same; where that would cost, or differ, they stay."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from onnxcompress.base.gate import Gate
from onnxcompress.core import Action, Change, Context
from onnxcompress.graph import query
from onnxcompress.io import model_io
from onnxcompress.numerics.linear.composition import carried, composed, overlaid, regrouped, scaling
from onnxcompress.passes.fold.merge_layers import MergeLayers
from tests.helpers import floats, from_text, op_types, run, with_constants


def _merged(text: str, opset: int = 17, **shapes: tuple[int, ...]) -> tuple[ir.Model, ir.Model, list[Change]]:
    """Return a model with random constants, itself with layers merged, and the changes."""
    arrays = {name: floats(*shape, seed=n) for n, (name, shape) in enumerate(shapes.items())}
    if "var" in arrays:
        arrays["var"] = np.abs(arrays["var"]) + np.float32(0.5)
    original = with_constants(text, opset=opset, **arrays)
    model = model_io.clone(original)
    return original, model, MergeLayers().run(model, Context())


def _same(one: ir.Model, other: ir.Model, *shape: int) -> None:
    feed = {"x": floats(*shape, seed=77)}
    expected, got = run(one, feed), run(other, feed)
    assert list(expected) == list(got)
    for name, array in expected.items():
        np.testing.assert_allclose(got[name], array, rtol=1e-4, atol=2e-5 * np.abs(array).max())


IMAGE = "float[N, 4, 9, 9] x"


@pytest.mark.parametrize(
    ("body", "shapes", "left"),
    [
        ("a = MatMul(x, u)  y = MatMul(a, v)", {"u": (8, 6), "v": (6, 3)}, ["MatMul"]),
        ("a = MatMul(x, u)  b = Add(a, p)  y = MatMul(b, v)", {"u": (8, 6), "p": (6,), "v": (6, 3)}, ["Add", "MatMul"]),
        (
            "a = MatMul(x, u)  b = Add(p, a)  c = MatMul(b, v)  y = Add(c, q)",
            {"u": (8, 6), "p": (6,), "v": (6, 3), "q": (3,)},
            ["Add", "MatMul"],
        ),
        ("a = Gemm(x, u, p)  y = Gemm(a, v, q)", {"u": (8, 6), "p": (6,), "v": (6, 3), "q": (3,)}, ["Gemm"]),
        (
            "a = Gemm<transB = 1, alpha = 2.0, beta = 3.0>(x, u, p)  y = Gemm<transB = 1, alpha = 0.5>(a, v)",
            {"u": (6, 8), "p": (6,), "v": (3, 6)},
            ["Gemm"],
        ),
        ("a = MatMul(x, u)  y = Gemm(a, v, q)", {"u": (8, 6), "v": (6, 3), "q": (1, 3)}, ["Gemm"]),
        (
            "a = Gemm(x, t, o)  b = MatMul(a, u)  y = Gemm(b, v, q)",
            {"t": (8, 5), "o": (5,), "u": (5, 6), "v": (6, 3), "q": (3,)},
            ["Gemm"],
        ),
    ],
)
def test_products_in_a_row_become_one(body, shapes, left):
    inputs = ", ".join(f"float[{', '.join(map(str, shape))}] {name}" for name, shape in shapes.items())
    original, model, changes = _merged(f"g (float[N, 8] x, {inputs}) => (float[N, 3] y) {{ {body} }}", **shapes)
    assert op_types(model) == left
    assert all(change.action is Action.APPLIED for change in changes)
    assert changes[0].bytes_after < changes[0].bytes_before
    _same(original, model, 5, 8)
    assert not MergeLayers().run(model, Context())


@pytest.mark.parametrize(
    ("body", "shapes", "window"),
    [
        ("a = Conv(x, u, p)  y = Conv(a, v, q)", {"u": (6, 4, 1, 1), "p": (6,), "v": (5, 6, 1, 1), "q": (5,)}, (1, 1)),
        (
            "a = Conv<pads = [1, 1, 1, 1], strides = [2, 1]>(x, u, p)  y = Conv<strides = [2, 2]>(a, v)",
            {"u": (6, 4, 3, 3), "p": (6,), "v": (5, 6, 1, 1)},
            (4, 2),
        ),
        (
            """a = Conv<auto_pad = "SAME_LOWER">(x, u)  y = Conv(a, v, q)""",
            {"u": (6, 4, 2, 4), "v": (3, 6, 1, 1), "q": (3,)},
            (1, 1),
        ),
        (
            "a = Conv(x, u)  y = Conv<pads = [1, 0, 1, 2], strides = [2, 1], dilations = [2, 1]>(a, v, q)",
            {"u": (8, 4, 1, 1), "v": (3, 8, 3, 2), "q": (3,)},
            (2, 1),
        ),
        ("a = Conv(x, u, p)  y = Conv(a, v)", {"u": (8, 4, 1, 1), "p": (8,), "v": (3, 8, 3, 2)}, (1, 1)),
        (
            "a = Conv<group = 4>(x, u, p)  y = Conv<group = 2>(a, v)",
            {"u": (4, 1, 1, 1), "p": (4,), "v": (6, 2, 3, 3)},
            (1, 1),
        ),
        (
            "a = Conv<group = 2>(x, u)  y = Conv<group = 2>(a, v)",
            {"u": (8, 2, 3, 3), "v": (4, 4, 1, 1)},
            (1, 1),
        ),
    ],
)
def test_a_convolution_of_single_positions_goes_into_its_neighbour(body, shapes, window):
    inputs = ", ".join(f"float[{', '.join(map(str, shape))}] {name}" for name, shape in shapes.items())
    out = shapes["v"][0]
    original, model, _ = _merged(f"g ({IMAGE}, {inputs}) => (float[N, {out}, H, W] y) {{ {body} }}", **shapes)
    (node,) = model.graph
    assert tuple(query.attribute(node, "strides")) == window
    _same(original, model, 2, 4, 9, 9)


def test_products_with_the_weight_on_the_left():
    original, model, _ = _merged(
        "g (float[8, N] x, float[6, 8] u, float[6, 1] p, float[3, 6] v) => (float[3, N] y)"
        "{ a = MatMul(u, x)  b = Add(a, p)  y = MatMul(v, b) }",
        u=(6, 8),
        p=(6, 1),
        v=(3, 6),
    )
    assert op_types(model) == ["Add", "MatMul"]
    _same(original, model, 8, 5)


@pytest.mark.parametrize(
    ("body", "shapes", "words"),
    [
        ("a = MatMul(x, u)  y = MatMul(a, v)", {"u": (8, 2), "v": (2, 8)}, "would have 64 numbers, more than their 32"),
        ("a = MatMul(x, u)  b = Relu(a)  y = MatMul(b, v)", {"u": (8, 6), "v": (6, 3)}, None),
        ("a = MatMul(x, u)  b = MatMul(a, v)  y = MatMul(a, v)", {"u": (8, 6), "v": (6, 3)}, None),
        ("a = MatMul(x, u)  y = MatMul(v, a)", {"u": (8, 6), "v": (6, 2)}, None),
    ],
)
def test_products_that_stay(body, shapes, words):
    inputs = ", ".join(f"float[{', '.join(map(str, shape))}] {name}" for name, shape in shapes.items())
    original, model, changes = _merged(f"g (float[2, 8] x, {inputs}) => (float[K, M] y) {{ {body} }}", **shapes)
    assert op_types(model) == op_types(original)
    assert [change.action for change in changes] == ([Action.SKIPPED] if words else [])
    assert words is None or words in changes[0].reason


@pytest.mark.parametrize(
    ("body", "words"),
    [
        ("a = Conv(x, u, p)  y = Conv<pads = [1, 1, 1, 1]>(a, v)", "zeros are padded between them"),
        ("a = Conv<strides = [2, 2]>(x, u)  y = Conv(a, v)", "skips positions"),
        (
            """b = Conv<auto_pad = "SAME_UPPER", strides = [2, 2]>(x, w)  y = Conv<strides = [2, 2]>(b, t)""",
            "depends on the size",
        ),
        ("a = Conv<group = 2>(x, s)  y = Conv<group = 3>(a, r)", "don't nest"),
        ("b = Conv(x, w)  y = Conv(b, v)", None),
    ],
)
def test_convolutions_that_stay(body, words):
    shapes = {
        "u": (6, 4, 1, 1),
        "p": (6,),
        "v": (3, 6, 3, 3),
        "w": (6, 4, 3, 3),
        "t": (3, 6, 1, 1),
        "s": (6, 2, 1, 1),
        "r": (3, 2, 1, 1),
    }
    used = {name: shape for name, shape in shapes.items() if f" {name})" in body or f" {name}," in body}
    inputs = ", ".join(f"float[{', '.join(map(str, shape))}] {name}" for name, shape in used.items())
    original, model, changes = _merged(f"g ({IMAGE}, {inputs}) => (float[N, 3, H, W] y) {{ {body} }}", **used)
    assert op_types(model) == op_types(original)
    assert [words in change.reason for change in changes] == ([True] if words else [])


def test_a_block_in_the_style_of_repvgg_becomes_one_convolution():
    original, model, changes = _merged(
        f"""g ({IMAGE}, float[4, 4, 3, 3] u, float[4] p, float[4, 4, 1, 1] v, float[4] gamma, float[4] beta,
              float[4] mean, float[4] var) => (float[N, 4, 9, 9] y) {{
              a = Conv<pads = [1, 1, 1, 1]>(x, u, p)  b = Conv(x, v)
              c = BatchNormalization(x, gamma, beta, mean, var)  s = Add(a, b)  y = Add(c, s) }}""",
        u=(4, 4, 3, 3),
        p=(4,),
        v=(4, 4, 1, 1),
        gamma=(4,),
        beta=(4,),
        mean=(4,),
        var=(4,),
    )
    assert op_types(model) == ["Conv"]
    assert sum(change.action is Action.APPLIED for change in changes) == 2
    assert "multiple of its input" in changes[1].reason
    _same(original, model, 2, 4, 9, 9)
    assert not MergeLayers().run(model, Context())


@pytest.mark.parametrize(
    ("body", "shapes"),
    [
        ("a = Conv<pads = [1, 1, 1, 1]>(x, u)  y = Add(x, a)", {"u": (4, 4, 3, 3)}),
        ("a = Conv<pads = [1, 1, 1, 1], group = 4>(x, u, p)  y = Add(a, x)", {"u": (4, 1, 3, 3), "p": (4,)}),
        (
            """a = Conv<auto_pad = "SAME_UPPER">(x, u)  c = Mul(x, k)  y = Add(c, a)""",
            {"u": (4, 4, 2, 3), "k": (4, 1, 1)},
        ),
        (
            "a = Conv<pads = [2, 1, 2, 1]>(x, u)  b = Conv<pads = [0, 1, 0, 1]>(x, v, p)  y = Sum(a, b, x)",
            {"u": (4, 4, 5, 3), "v": (4, 4, 1, 3), "p": (4,)},
        ),
        (
            "a = Conv<pads = [2, 2, 2, 2], dilations = [2, 2]>(x, u)  b = Conv(x, v)  y = Add(a, b)",
            {"u": (4, 4, 3, 3), "v": (4, 4, 1, 1)},
        ),
        (
            "a = Conv<group = 4>(x, u)  b = Conv<group = 2>(x, v)  y = Add(a, b)",
            {"u": (4, 1, 1, 1), "v": (4, 2, 1, 1)},
        ),
        (
            "a = Conv<pads = [1, 1, 1, 1], strides = [2, 2]>(x, u)  b = Conv<strides = [2, 2]>(x, v)  y = Add(a, b)",
            {"u": (4, 4, 3, 3), "v": (4, 4, 1, 1)},
        ),
    ],
)
def test_what_is_added_to_a_convolution_goes_into_it(body, shapes):
    inputs = ", ".join(f"float[{', '.join(map(str, shape))}] {name}" for name, shape in shapes.items())
    original, model, _ = _merged(f"g ({IMAGE}, {inputs}) => (float[N, 4, H, W] y) {{ {body} }}", **shapes)
    assert op_types(model) == ["Conv"]
    _same(original, model, 2, 4, 9, 9)


def test_products_side_by_side_become_one():
    original, model, _ = _merged(
        "g (float[N, 3, 8] x, float[8, 8] u, float[8] p, float[8, 8] v, float[8] k) => (float[N, 3, 8] y)"
        "{ a = MatMul(x, u)  b = Add(a, p)  c = MatMul(x, v)  d = Mul(x, k)  y = Sum(b, c, d, x) }",
        u=(8, 8),
        p=(8,),
        v=(8, 8),
        k=(8,),
    )
    assert op_types(model) == ["Add", "MatMul"]
    _same(original, model, 2, 3, 8)


@pytest.mark.parametrize(
    ("body", "shapes", "words"),
    [
        (
            "a = Conv<strides = [2, 2], pads = [1, 1, 1, 1]>(x, u)"
            "  b = Conv<strides = [2, 2], pads = [1, 1, 0, 0]>(x, v)  y = Add(a, b)",
            {"u": (4, 4, 3, 3), "v": (4, 4, 2, 2)},
            None,
        ),
        (
            "a = Conv<pads = [2, 2, 2, 2], dilations = [2, 2]>(x, u)"
            "  b = Conv<pads = [1, 1, 1, 1]>(x, v)  y = Add(a, b)",
            {"u": (4, 4, 3, 3), "v": (4, 4, 3, 3)},
            "windows don't lie over",
        ),
        (
            "a = Conv<pads = [1, 1, 1, 1], group = 4>(x, u)  b = Conv(x, v)  y = Add(a, b)",
            {"u": (4, 1, 3, 3), "v": (4, 4, 1, 1)},
            "more numbers",
        ),
        ("a = Conv(x, u)  b = Tanh(x)  y = Add(a, b)", {"u": (4, 4, 1, 1)}, None),
        ("a = Conv(x, u)  b = Relu(a)  c = Add(a, x)  y = Add(b, c)", {"u": (4, 4, 1, 1)}, None),
        ("b = Tanh(x)  a = Conv(x, u)  c = Conv(b, v)  y = Add(a, c)", {"u": (4, 4, 1, 1), "v": (4, 4, 1, 1)}, None),
        ("a = Conv(x, u)  y = Add(a, x)", {"u": (1, 4, 1, 1)}, "same channels"),
    ],
)
def test_what_is_added_and_stays(body, shapes, words):
    inputs = ", ".join(f"float[{', '.join(map(str, shape))}] {name}" for name, shape in shapes.items())
    original, model, changes = _merged(f"g ({IMAGE}, {inputs}) => (float[N, 4, H, W] y) {{ {body} }}", **shapes)
    if words is None and "strides" in body:
        assert op_types(model) == ["Conv"]
        _same(original, model, 2, 4, 9, 9)
        return
    assert op_types(model) == op_types(original)
    assert [words in change.reason for change in changes] == ([True] if words else [])


def test_a_weight_that_another_layer_reads_stays_as_it_is_for_that_one():
    original, model, _ = _merged(
        "g (float[N, 8] x, float[8, 8] u) => (float[N, 8] y, float[N, 8] z)"
        "{ a = MatMul(x, u)  y = MatMul(a, u)  t = Tanh(x)  z = MatMul(t, u) }",
        u=(8, 8),
    )
    assert op_types(model) == ["MatMul", "MatMul", "Tanh"]
    _same(original, model, 3, 8)


@pytest.mark.parametrize("end", ["Flatten(b)", "Reshape(b, rows)", "Squeeze(b, spatial)"])
def test_a_convolution_over_all_of_its_input_becomes_a_gemm(end):
    original = with_constants(
        f"""g (float[N, 4, 3, 2] x, float[6, 4, 3, 2] u, float[6] p, float[6, 5] v, int64[2] rows, int64[2] spatial)
            => (float[N, 5] y) {{ a = Conv(x, u, p)  b = Relu(a)  c = {end}  y = MatMul(c, v) }}""",
        u=floats(6, 4, 3, 2, seed=1),
        p=floats(6, seed=2),
        v=floats(6, 5, seed=3),
        rows=np.array([-1, 6]),
        spatial=np.array([2, 3]),
    )
    model = model_io.clone(original)
    changes = MergeLayers().run(model, Context())
    assert [node.op_type for node in model.graph] == ["Flatten", "Gemm", "Relu", "MatMul"]
    assert "sees all of its input" in changes[0].reason
    _same(original, model, 2, 4, 3, 2)


def test_chains_of_them_become_gemms_and_then_one():
    original, model, _ = _merged(
        """g (float[N, 4, 3, 3] x, float[6, 4, 3, 3] u, float[5, 6, 1, 1] v, float[5] q) => (float[N, 5] y) {
           a = Conv(x, u)  b = Conv(a, v, q)  y = Flatten(b) }""",
        u=(6, 4, 3, 3),
        v=(5, 6, 1, 1),
        q=(5,),
    )
    assert op_types(model) == ["Flatten", "Gemm"]
    _same(original, model, 2, 4, 3, 3)


@pytest.mark.parametrize(
    "body",
    [
        "a = Conv(x, u)  y = Flatten<axis = 2>(a)",
        "a = Conv<pads = [0, 0, 1, 0]>(x, u)  y = Flatten(a)",
        "a = Conv(x, u)  b = Softmax<axis = 1>(a)  y = Flatten(b)",
        "a = Conv(x, w)  y = Flatten(a)",
        "a = Conv<group = 2>(x, s)  y = Flatten(a)",
    ],
)
def test_convolutions_that_see_less_or_are_not_flattened_stay(body):
    shapes = {"u": (6, 4, 3, 2), "w": (6, 4, 2, 2), "s": (6, 2, 3, 2)}
    used = {name: shape for name, shape in shapes.items() if f" {name})" in body}
    inputs = ", ".join(f"float[{', '.join(map(str, shape))}] {name}" for name, shape in used.items())
    original, model, changes = _merged(f"g (float[N, 4, 3, 2] x, {inputs}) => (float[M, K] y) {{ {body} }}", **used)
    assert op_types(model) == op_types(original)
    assert not changes


def test_in_the_body_of_an_if():
    text = """g (bool c, float[2, 8] x, float[8, 6] u, float[6, 3] v) => (float[2, 3] y) {
        y = If (c) <then_branch = t () => (float[2, 3] p) { a = MatMul(x, u)  p = MatMul(a, v) },
                    else_branch = e () => (float[2, 3] q) { b = MatMul(x, u)  d = Relu(b)  q = MatMul(d, v) }> }"""
    original = with_constants(text, u=floats(8, 6), v=floats(6, 3))
    model = model_io.clone(original)
    (change,) = MergeLayers().run(model, Context())
    assert change.action is Action.APPLIED
    assert op_types(model) == ["If", "MatMul", "MatMul", "MatMul", "Relu"]
    for flag in (True, False):
        feed = {"c": np.array(flag), "x": floats(2, 8, seed=5)}
        np.testing.assert_allclose(run(model, feed)["y"], run(original, feed)["y"], rtol=1e-4, atol=1e-5)


def test_the_gate_keeps_layers_apart():
    text = "g (float[N, 8] x, float[8, 6] u, float[6, 3] v) => (float[N, 3] y) { a = MatMul(x, u)  y = MatMul(a, v) }"
    model = with_constants(text, u=floats(8, 6), v=floats(6, 3))
    assert not MergeLayers().run(model, Context(gate=Gate(limit=0)))
    assert len(model.graph) == 2


def test_weights_that_are_computed_stay():
    model = from_text(
        "g (float[N, 8] x, float[8, 6] u, float[6, 3] v) => (float[N, 3] y) { a = MatMul(x, u)  y = MatMul(a, v) }"
    )
    assert not MergeLayers().run(model, Context())


@settings(max_examples=40, deadline=None)
@given(
    groups=st.sampled_from([(1, 1), (2, 1), (1, 3), (2, 2), (4, 2), (6, 3), (2, 6)]),
    kernel=st.sampled_from([(), (3,), (2, 3)]),
    seed=st.integers(0, 99),
    is_point_first=st.booleans(),
)
def test_composed_operators_give_what_they_give_in_turn(groups, kernel, seed, is_point_first):
    random = np.random.default_rng(seed)
    one, two = groups
    points = (1,) * len(kernel)
    middle, out, into = 12, 12, 12
    first = random.standard_normal((one, middle // one, into // one, *(points if is_point_first else kernel)))
    second = random.standard_normal((two, out // two, middle // two, *(kernel if is_point_first else points)))
    bias = random.standard_normal(middle)
    found = composed(first, second)
    assert found is not None
    x = random.standard_normal((into, *kernel))

    def apply(weight, value):
        parts = value.reshape(weight.shape[0], -1, *value.shape[1:])
        axes = "abc"[: len(kernel)]
        return np.einsum(f"goi{axes},gi{axes}->go", weight, parts).reshape(-1)

    def spread(weight, value):
        parts = value.reshape(weight.shape[0], -1, *value.shape[1:])
        mixed = np.einsum("goi,gi...->go...", weight.reshape(weight.shape[:3]), parts)
        return mixed.reshape(-1, *value.shape[1:])

    if is_point_first:
        expected = apply(second, spread(first, x) + bias.reshape(-1, *points))
    else:
        expected = spread(second, (apply(first, x) + bias)[:, None])[:, 0]
    np.testing.assert_allclose(apply(found, x) + carried(second, bias), expected, rtol=1e-9, atol=1e-9)


def test_groups_that_don_t_nest_have_no_composition():
    assert composed(np.ones((2, 3, 2)), np.ones((3, 1, 2))) is None
    assert overlaid([np.ones((2, 3, 3)), np.ones((3, 2, 2))], [(), ()]) is None


def test_blocks_stand_on_the_diagonal():
    weight = np.arange(1.0, 5.0).reshape(4, 1, 1)
    np.testing.assert_array_equal(regrouped(weight, 1)[0], np.diag([1.0, 2.0, 3.0, 4.0]))
    np.testing.assert_array_equal(regrouped(weight, 2), [np.diag([1.0, 2.0]), np.diag([3.0, 4.0])])
    np.testing.assert_array_equal(regrouped(scaling(np.array([2.0, 3.0]), 0), 1)[0], np.diag([2.0, 3.0]))
