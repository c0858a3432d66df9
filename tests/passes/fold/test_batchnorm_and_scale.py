"""FuseAffine: what is merged, what is refused and why, and that the numbers stay."""

from __future__ import annotations

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from onnx import TensorProto, helper

from onnxcompress.core import Context
from onnxcompress.graph import edit
from onnxcompress.io import model_io
from onnxcompress.passes.fold.batchnorm_and_scale import FuseAffine
from onnxcompress.runtime import session as runtime
from tests.lossless import (
    applied,
    kinds,
    parsed,
    proto_of,
    random_feed,
    reasons,
    rewritten,
    run_plain,
    shaped,
)

_RNG = np.random.default_rng(7)


def _build(
    nodes: list[onnx.NodeProto],
    weights: dict[str, np.ndarray],
    x: list[int | str],
    *,
    opset: int = 17,
    outputs: tuple[str, ...] = ("y",),
    dtype: int = TensorProto.FLOAT,
) -> ir.Model:
    made = helper.make_graph(
        nodes,
        "g",
        [helper.make_tensor_value_info("x", dtype, x)],
        [helper.make_tensor_value_info(name, dtype, None) for name in outputs],
        [onnx.numpy_helper.from_array(array, name) for name, array in weights.items()],
    )
    return shaped(helper.make_model(made, opset_imports=[helper.make_opsetid("", opset)], ir_version=8))


def _f(*shape: int) -> np.ndarray:
    return _RNG.standard_normal(shape).astype(np.float32)


def _norm(channels: int, prefix: str = "") -> dict[str, np.ndarray]:
    names = (f"{prefix}scale", f"{prefix}bias", f"{prefix}mean", f"{prefix}var")
    weights = (_f(channels), _f(channels), _f(channels), np.abs(_f(channels)) + 0.5)
    return dict(zip(names, weights, strict=True))


def _node(kind: str, inputs: str, output: str, **attributes: object) -> onnx.NodeProto:
    return helper.make_node(kind, inputs.split(), [output], **attributes)


_CONV = _node("Conv", "x w", "c", pads=[1, 1, 1, 1])
_BN = _node("BatchNormalization", "c scale bias mean var", "y", epsilon=1e-3)


@pytest.mark.parametrize("opset", [7, 8, 9, 14, 15, 17])
@pytest.mark.parametrize("with_bias", [False, True])
def test_batch_norm_after_a_conv(opset: int, with_bias: bool) -> None:
    conv = _node("Conv", "x w b" if with_bias else "x w", "c", pads=[1, 1, 1, 1])
    weights = {"w": _f(5, 3, 3, 3), **_norm(5)} | ({"b": _f(5)} if with_bias else {})
    model = _build([conv, _BN], weights, ["n", 3, 6, 6], opset=opset)
    changes = rewritten(model, FuseAffine())
    assert kinds(model) == ["Conv"]
    assert applied(changes)[0].bytes_before > applied(changes)[0].bytes_after
    assert model.graph.node(0).outputs[0].name == "y"
    assert set(model.graph.initializers) == ({"w", "b"} if with_bias else {"w", "w_bias"})


@pytest.mark.parametrize(
    ("layer", "weight", "x", "channels"),
    [
        (_node("Conv", "x w", "c", group=2), (6, 2, 3, 3), [2, 4, 5, 5], 6),
        (_node("Conv", "x w", "c", group=4), (4, 1, 3, 3), [2, 4, 5, 5], 4),
        (_node("Conv", "x w", "c"), (6, 4, 3), [2, 4, 5], 6),
        (_node("Conv", "x w", "c"), (6, 4, 1, 3, 3), [2, 4, 2, 5, 5], 6),
        (_node("ConvTranspose", "x w", "c", strides=[2, 2]), (4, 6, 3, 3), [2, 4, 5, 5], 6),
        (_node("ConvTranspose", "x w", "c", group=2), (4, 3, 3, 3), [2, 4, 5, 5], 6),
    ],
)
def test_every_convolution_takes_what_follows(
    layer: onnx.NodeProto, weight: tuple[int, ...], x: list[int | str], channels: int
) -> None:
    ones = (1,) * (len(weight) - 2)
    weights = {"w": _f(*weight), "k": _f(channels, *ones), "t": _f(1, channels, *ones), **_norm(channels)}
    nodes = [layer, _node("BatchNormalization", "c scale bias mean var", "d"), _node("Mul", "k d", "e")]
    model = _build([*nodes, _node("Sub", "t e", "y")], weights, x)
    rewritten(model, FuseAffine())
    assert kinds(model) == [layer.op_type]


@pytest.mark.parametrize(
    ("layer", "weight", "x", "channels", "shift"),
    [
        (_node("Conv", "d w", "y", group=2), (6, 2, 3, 3), [2, 4, 5, 5], 4, True),
        (_node("Conv", "d w", "y", auto_pad="VALID"), (6, 4, 3, 3), [2, 4, 5, 5], 4, True),
        (_node("Conv", "d w", "y", group=2, pads=[1, 1, 1, 1]), (6, 2, 3, 3), [2, 4, 5, 5], 4, False),
        (_node("ConvTranspose", "d w", "y", group=2), (4, 3, 3, 3), [2, 4, 5, 5], 4, False),
    ],
)
def test_every_convolution_takes_what_comes_before(
    layer: onnx.NodeProto, weight: tuple[int, ...], x: list[int | str], channels: int, shift: bool
) -> None:
    nodes = [_node("Mul", "x k", "m"), _node("Add", "m t", "d")] if shift else [_node("Div", "x k", "d")]
    weights = {"w": _f(*weight), "k": _f(channels, 1, 1) + 3, "t": _f(channels, 1, 1)}
    model = _build([*nodes, layer], weights if shift else {k: v for k, v in weights.items() if k != "t"}, x)
    rewritten(model, FuseAffine())
    assert kinds(model) == [layer.op_type]


def test_before_padding_the_scale_goes_and_one_shift_stays() -> None:
    nodes = [_node("Mul", "x k", "m"), _node("Add", "m t", "d"), _node("Conv", "d w", "y", pads=[1, 1, 1, 1])]
    model = _build(nodes, {"w": _f(6, 4, 3, 3), "k": _f(4, 1, 1) + 3, "t": _f(4, 1, 1)}, [2, 4, 5, 5])
    rewritten(model, FuseAffine())
    assert kinds(model) == ["Add", "Conv"]


def test_a_shift_alone_before_padding_stays() -> None:
    nodes = [_node("Add", "x t", "d"), _node("Conv", "d w", "y", pads=[1, 1, 1, 1])]
    model = _build(nodes, {"w": _f(6, 4, 3, 3), "t": _f(4, 1, 1)}, [2, 4, 5, 5])
    assert "padding adds zeros" in reasons(rewritten(model, FuseAffine()))
    assert kinds(model) == ["Add", "Conv"]


@pytest.mark.parametrize("trans_a", [0, 1])
@pytest.mark.parametrize("trans_b", [0, 1])
@pytest.mark.parametrize("bias", [None, (5,), (1,), ()])
def test_gemm_takes_both_sides_and_loses_alpha_and_beta(
    trans_a: int, trans_b: int, bias: tuple[int, ...] | None
) -> None:
    inputs = "d w b" if bias is not None else "d w"
    gemm = _node("Gemm", inputs, "c", transA=trans_a, transB=trans_b, alpha=0.5, beta=3.0)
    channel = (4, 1) if trans_a else (4,)
    weights = {"w": _f(5, 4) if trans_b else _f(4, 5), "k": _f(*channel), "t": _f(*channel), **_norm(5)}
    if bias is not None:
        weights["b"] = _f(*bias)
    nodes = [_node("Mul", "x k", "m"), _node("Sub", "m t", "d"), gemm, _BN]
    model = _build(nodes, weights, [4, 7] if trans_a else [7, 4])
    rewritten(model, FuseAffine())
    assert kinds(model) == ["Gemm"]
    assert not {"alpha", "beta"} & set(model.graph.node(0).attributes)


def test_alpha_and_beta_alone_are_enough() -> None:
    model = _build([_node("Gemm", "x w b", "y", alpha=2.0, beta=0.5)], {"w": _f(4, 5), "b": _f(5)}, [3, 4])
    rewritten(model, FuseAffine())
    assert not model.graph.node(0).attributes


def test_a_bias_matrix_of_gemm_is_refused() -> None:
    nodes = [_node("Gemm", "x w b", "c"), _node("Mul", "c k", "y")]
    model = _build(nodes, {"w": _f(4, 5), "b": _f(3, 5), "k": _f(5)}, [3, 4])
    assert "bias [3, 5] is not one number per channel" in reasons(rewritten(model, FuseAffine()))


@pytest.mark.parametrize("x", [["n", 4], ["n", 3, 4], [2, "n", 3, 4], [4]])
def test_matmul_with_its_weight_on_the_right(x: list[int | str]) -> None:
    nodes = [
        _node("Mul", "x k", "m"),
        _node("MatMul", "m w", "c"),
        _node("Add", "c t", "d"),
        _node("Mul", "d s", "y"),
    ]
    model = _build(nodes, {"w": _f(4, 5), "k": _f(4), "t": _f(5), "s": _f(5)}, x)
    rewritten(model, FuseAffine())
    assert kinds(model) == ["MatMul", "Add"], "no bias in MatMul: the sum stays as runtimes know it"


def test_matmul_with_its_weight_on_the_left() -> None:
    nodes = [_node("Mul", "x k", "m"), _node("MatMul", "w m", "c"), _node("Mul", "c s", "y")]
    model = _build(nodes, {"w": _f(5, 4), "k": _f(4, 1), "s": _f(5, 1)}, [2, 4, 3])
    rewritten(model, FuseAffine())
    assert kinds(model) == ["MatMul"]


@pytest.mark.parametrize("weight", [(4,), (2, 4, 5)])
def test_matmul_with_a_vector_or_a_stack_of_matrices(weight: tuple[int, ...]) -> None:
    nodes = [_node("MatMul", "x w", "c"), _node("Mul", "c s", "y")]
    model = _build(nodes, {"w": _f(*weight), "s": _f() if len(weight) == 1 else _f(5)}, [2, 3, 4])
    rewritten(model, FuseAffine())
    assert kinds(model) == ["MatMul"]


def test_a_shift_before_a_matmul_comes_out_behind_it() -> None:
    nodes = [_node("Add", "x t", "m"), _node("MatMul", "m w", "c"), _node("Add", "c u", "y")]
    model = _build(nodes, {"w": _f(4, 5), "t": _f(4), "u": _f(5)}, ["n", 4])
    rewritten(model, FuseAffine())
    assert kinds(model) == ["MatMul", "Add"]
    nodes = [_node("Mul", "x k", "k1"), _node("Add", "k1 t", "m"), _node("MatMul", "m w", "y")]
    model = _build(nodes, {"w": _f(4, 5), "t": _f(4), "k": _f(4)}, ["n", 4])
    rewritten(model, FuseAffine())
    assert kinds(model) == ["MatMul", "Add"]
    assert [o.name for o in model.graph.outputs] == ["y"]


def test_matmul_and_its_bias_stay_as_they_are() -> None:
    nodes = [_node("MatMul", "x w", "c"), _node("Add", "c t", "y")]
    model = _build(nodes, {"w": _f(4, 5), "t": _f(5)}, ["n", 4])
    assert not rewritten(model, FuseAffine())


def test_consecutive_norms_without_a_layer_become_one() -> None:
    nodes = [
        _node("Relu", "x", "r"),
        _node("BatchNormalization", "r scale bias mean var", "a"),
        _node("BatchNormalization", "a 2scale 2bias 2mean 2var", "b"),
        _node("Mul", "b k", "y"),
    ]
    model = _build(nodes, {**_norm(4), **_norm(4, "2"), "k": _f(4, 1)}, [2, 4, 3])
    rewritten(model, FuseAffine())
    assert kinds(model) == ["Relu", "BatchNormalization"]


def test_sums_and_products_of_constants_are_merged() -> None:
    nodes = [
        _node("Add", "x a", "p"),
        _node("Sub", "p b", "q"),
        _node("Mul", "q k", "r"),
        _node("Div", "r s", "y"),
    ]
    model = _build(nodes, {"a": _f(4), "b": _f(), "k": _f(3, 1), "s": _f(1)}, [2, 3, 4])
    rewritten(model, FuseAffine())
    assert kinds(model) == ["Add", "Mul"]
    nodes = [_node("Add", "x a", "p"), _node("Add", "p b", "y")]
    model = _build(nodes, {"a": _f(4), "b": _f(3, 1)}, [2, 3, 4])
    assert not rewritten(model, FuseAffine()), "the sum [3, 4] is larger than both"


def _skewed(kind: str, constant: np.ndarray, x: list[int | str]) -> ir.Model:
    return _build([_CONV, _node(kind, "c k", "y")], {"w": _f(5, 3, 3, 3), "k": constant}, x)


@pytest.mark.parametrize(
    ("kind", "constant", "reason"),
    [
        ("Mul", _f(1, 1, 1, 6), "varies along more than the channels"),
        ("Add", _f(2, 5, 1, 1), "varies along more than the channels"),
        ("Mul", _f(1, 1, 5, 1, 1), "may add axes"),
        ("Div", np.zeros((5, 1, 1), np.float32), "divides by zero"),
        ("Add", np.full((5, 1, 1), np.inf, np.float32), "not finite"),
        ("Mul", np.full((5, 1, 1), 1e38, np.float32), "does not fit float"),
    ],
)
def test_constants_that_do_not_fit(kind: str, constant: np.ndarray, reason: str) -> None:
    model = _skewed(kind, constant, [2, 3, 6, 6])
    if kind == "Mul" and "float" in reason:
        edit.set_weight(model.graph.initializers["w"], _f(5, 3, 3, 3) * np.float32(10))
    before = kinds(model)
    assert reason in reasons(FuseAffine().run(model, Context()))
    assert kinds(model) == before


def test_a_constant_that_widens_one_channel_to_many() -> None:
    nodes = [_node("Mul", "x k", "d"), _node("Conv", "d w", "y")]
    model = _build(nodes, {"w": _f(5, 3, 2, 2), "k": _f(3, 1, 1)}, [2, 1, 6, 6])
    assert "channels of x are not known" in reasons(rewritten(model, FuseAffine()))


@pytest.mark.parametrize(
    ("attributes", "reason"),
    [({"training_mode": 1}, "training mode"), ({}, "variance is not positive")],
)
def test_norms_that_are_no_map(attributes: dict[str, int], reason: str) -> None:
    weights = {"w": _f(5, 3, 3, 3), **_norm(5)}
    if not attributes:
        weights["var"] = np.float32([1, 1, -1, 1, 1])
    outputs = ["y", "m", "v"] if attributes else ["y"]
    inputs = ["c", "scale", "bias", "mean", "var"]
    norm = helper.make_node("BatchNormalization", inputs, outputs, **attributes)
    model = _build([_CONV, norm], weights, [2, 3, 6, 6])
    assert reason in reasons(FuseAffine().run(model, Context()))
    assert kinds(model) == ["Conv", "BatchNormalization"]


def test_a_norm_that_outputs_statistics() -> None:
    norm = helper.make_node("BatchNormalization", ["c", "scale", "bias", "mean", "var"], ["y", "m", "v"])
    model = _build([_CONV, norm], {"w": _f(5, 3, 3, 3), **_norm(5)}, [2, 3, 6, 6], opset=9)
    reason = "BatchNormalization:y stays: it outputs statistics, as in training"
    assert reasons(FuseAffine().run(model, Context())) == reason


def test_values_with_other_readers_stay() -> None:
    weights = {"w": _f(5, 3, 3, 3), **_norm(5)}
    model = _build([_CONV, _BN], weights, [2, 3, 6, 6], outputs=("y", "c"))
    assert "a graph output too" in reasons(rewritten(model, FuseAffine()))
    model = _build([_CONV, _BN, _node("Relu", "c", "z")], weights, [2, 3, 6, 6], outputs=("y", "z"))
    assert "c between them is read by 2 inputs" in reasons(rewritten(model, FuseAffine()))
    nodes = [_node("Mul", "x k", "c"), _node("Conv", "c w", "y"), _node("Relu", "c", "z")]
    model = _build(nodes, {"w": _f(5, 3, 3, 3), "k": _f()}, [2, 3, 6, 6], outputs=("y", "z"))
    assert "c has other readers" in reasons(rewritten(model, FuseAffine()))


def test_a_shared_weight_is_copied_when_it_is_small() -> None:
    nodes = [_CONV, _BN, _node("Conv", "x w", "z", pads=[1, 1, 1, 1])]
    model = _build(nodes, {"w": _f(2, 1, 1, 1), **_norm(2)}, [2, 1, 6, 6], outputs=("y", "z"))
    rewritten(model, FuseAffine())
    assert kinds(model) == ["Conv", "Conv"]
    assert model.graph.node(0).inputs[1] is not model.graph.node(1).inputs[1]


def test_a_large_shared_weight_is_not_copied() -> None:
    nodes = [_CONV, _BN, _node("Conv", "x w", "z", pads=[1, 1, 1, 1])]
    model = _build(nodes, {"w": _f(8, 32, 3, 3), **_norm(8)}, [2, 32, 6, 6], outputs=("y", "z"))
    assert "its weight has other readers" in reasons(rewritten(model, FuseAffine()))
    assert kinds(model) == ["Conv", "BatchNormalization", "Conv"]


def test_a_bias_that_is_larger_than_what_goes() -> None:
    nodes = [_node("Conv", "x w", "c", group=512), _node("Add", "c k", "y")]
    model = _build(nodes, {"w": _f(512, 1, 1, 1), "k": _f()}, [1, 512, 2, 2])
    assert "file would grow" in reasons(rewritten(model, FuseAffine()))


def test_float16_rounds_once_or_refuses() -> None:
    half = np.dtype(np.float16)
    weights = {"w": _f(5, 3).astype(half), "k": _f(5).astype(half)}
    nodes = [_node("Gemm", "x w", "c", transB=1), _node("Mul", "c k", "y")]
    model = _build(nodes, weights, [2, 3], dtype=TensorProto.FLOAT16)
    rewritten(model, FuseAffine(), tolerance=3e-3)
    assert kinds(model) == ["Gemm"]
    for factor in (1e-6, 6e4):
        weights["k"] = np.full(5, factor, half)
        model = _build(nodes, weights, [2, 3], dtype=TensorProto.FLOAT16)
        assert "does not fit float16" in reasons(FuseAffine().run(model, Context()))


def test_generated_weights_stay_generated() -> None:
    model = parsed("""<ir_version: 8, opset_import: ["" : 9]> g (float[2, 3, 5, 5] x) => (float[] y)
        <int64[4] ws = {4, 3, 2, 2}, int64[1] cs = {4}> {
        w = ConstantOfShape<value = float[1] {0.5}>(ws)
        s = ConstantOfShape<value = float[1] {2.0}>(cs)
        m = ConstantOfShape<value = float[1] {0.25}>(cs)
        c = Conv(x, w)
        b = BatchNormalization(c, s, m, m, s)
        u = Unsqueeze<axes = [1, 2]>(s)
        y = Mul(b, u)
    }""")
    size = proto_of(model).ByteSize()
    rewritten(model, FuseAffine())
    assert [t for t in kinds(model) if t != "ConstantOfShape"] == ["Conv"]
    assert proto_of(model).ByteSize() < size + 32, "names only"


def test_a_generated_weight_is_multiplied_in_the_graph_where_two_nodes_go() -> None:
    text = """<ir_version: 8, opset_import: ["" : 13]> g (float[2, 3, 5, 5] x) => (float[] y)
        <int64[4] ws = {{4, 3, 2, 2}}, float[4, 1, 1] k = {{1, 2, 3, 4}},
         float[4, 1, 1] t = {{4, 3, 2, 1}}> {{
        w = ConstantOfShape<value = float[1] {{0.5}}>(ws)
        c = Conv(x, w)
        {}
    }}"""
    model = parsed(text.format("m = Mul(c, k)  y = Add(m, t)"))
    rewritten(model, FuseAffine())
    assert kinds(model) == ["ConstantOfShape", "Mul", "Conv"]
    model = parsed(text.format("y = Mul(c, k)"))
    assert "generated from one number" in reasons(rewritten(model, FuseAffine()))


@pytest.mark.parametrize("spelling", ["n = Div(d, q)", "i = Reciprocal(q) n = Mul(d, i)"])
def test_the_scale_of_a_spelled_layer_norm_is_left_to_it(spelling: str) -> None:
    model = parsed(f"""<ir_version: 8, opset_import: ["" : 13]> g (float[2, 3, 4] d, float[2, 3, 1] q)
        => (float[] y)
        <float[4] k = {{1, 2, 3, 4}}, float[4, 2] w = {{1, 2, 3, 4, 5, 6, 7, 8}}> {{
        {spelling}  m = Mul(n, k)  r = Sqrt(q)  y = MatMul(m, w)
    }}""")
    feed = {k: np.abs(v) + 1 for k, v in random_feed(model).items()}
    if "Div" in spelling:
        model = parsed("""<ir_version: 8, opset_import: ["" : 13]> g (float[2, 3, 4] d, float[2, 3, 1] p)
            => (float[] y) <float[4] k = {1, 2, 3, 4}, float[4, 2] w = {1, 2, 3, 4, 5, 6, 7, 8}> {
            q = Sqrt(p)  n = Div(d, q)  m = Mul(n, k)  y = MatMul(m, w)
        }""")
        feed = {k: np.abs(v) + 1 for k, v in random_feed(model).items()}
    assert "fuses it with what is before" in reasons(rewritten(model, FuseAffine(), feed=feed))
    assert "Mul" in kinds(model)


def test_inside_a_body_with_weights_outside() -> None:
    model = parsed("""<ir_version: 8, opset_import: ["" : 16]> g (float[2, 3] x, bool c) => (float[] y)
        <float[3, 2] w = {1, 2, 3, 4, 5, 6}, float[2] k = {2, 3}> {
        y = If(c) <then_branch = a () => (float[2, 2] p) { m = MatMul(x, w)  p = Mul(m, k) },
                   else_branch = b () => (float[2, 2] q) { n = MatMul(x, w)  q = Neg(n) }>
    }""")
    feeds = {flag: {"x": np.ones((2, 3), np.float32), "c": np.array(flag)} for flag in (True, False)}
    expected = {flag: run_plain(model, feed)["y"] for flag, feed in feeds.items()}
    changes = FuseAffine().run(model, Context())
    assert len(applied(changes)) == 2
    assert kinds(model) == ["If", "MatMul", "MatMul"]
    for flag, y in expected.items():
        found = run_plain(model, feeds[flag])["y"]
        np.testing.assert_allclose(found, y, rtol=1e-6)


def test_a_weight_that_callers_may_override_stays() -> None:
    model = _build([_CONV, _BN], {"w": _f(5, 3, 3, 3), **_norm(5)}, [2, 3, 6, 6])
    model.graph.inputs.append(model.graph.initializers["w"])
    assert not FuseAffine().run(model, Context())


def test_a_wrong_answer_would_fail() -> None:
    class Wrong(FuseAffine):
        def run(self, model: ir.Model, context: Context) -> list:
            changes = super().run(model, context)
            weight = model.graph.initializers["w"]
            if changes:
                edit.set_weight(weight, weight.const_value.numpy() * np.float32(1.0001))
            return changes

    model = _build([_CONV, _BN], {"w": _f(5, 3, 3, 3), **_norm(5)}, [2, 3, 6, 6])
    with pytest.raises(AssertionError, match="Mismatched elements"):
        rewritten(model, Wrong())


def test_a_scaled_product_gets_a_name_of_its_own() -> None:
    """The proof compares values of one name, and the product before the shift isn't what it was."""
    nodes = [_node("MatMul", "x w", "m"), _node("Add", "m b", "a"), _node("Mul", "a s", "y")]
    model = _build(nodes, {"w": _f(3, 4), "b": _f(4), "s": np.array([0.125], np.float32)}, ["n", 3])
    feed = {"x": _f(2, 3)}
    expected = runtime.open_session(model_io.to_bytes(model), optimize=False).run(feed)["y"]
    FuseAffine().run(model, Context())
    assert [node.op_type for node in model.graph] == ["MatMul", "Add"]
    assert "m" not in {value.name for node in model.graph for value in node.outputs}
    found = runtime.open_session(model_io.to_bytes(model), optimize=False).run(feed)["y"]
    np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-6)
