"""Products of one input become one and a Split where onnxruntime keeps fewer nodes; near-misses stay apart."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from onnx import TensorProto, helper, numpy_helper

from onnxcompress.core import Context
from onnxcompress.graph import edit
from onnxcompress.io import model_io
from onnxcompress.io.tensors import StoredTensor
from onnxcompress.passes.fold.merge_matmuls import MergeMatmuls
from onnxcompress.passes.quantize.weights import QuantizeWeights
from onnxcompress.recipe import Recipe
from onnxcompress.runtime import session as runtime
from tests.lossless import applied, kinds, optimized_count, proto_of, reasons, rewritten, shaped

HEADS = "{0}h = Reshape({0}, heads)  {0}t = Transpose<perm = [0, 2, 1, 3]>({0}h)"
PRODUCTS = "q0 = MatMul(x, wq)  k0 = MatMul(x, wk)  v0 = MatMul(x, wv)"
SUMS = "q = Add(q0, bq)  k = Add(bk, k0)  v = Add(v0, bv)"
ATTENTION = (
    f"{PRODUCTS}  {SUMS}  {HEADS.format('q')}  {HEADS.format('k')}  {HEADS.format('v')}"
    "  kx = Transpose<perm = [0, 1, 3, 2]>(kt)  s = MatMul(qt, kx)  p = Softmax(s)  y = MatMul(p, vt)"
)
WHOLE = ("q", "k", "v")


def model_of(
    body: str,
    *,
    x: Sequence[int | str] = ("B", 5, 8),
    outputs: Sequence[str] = ("y",),
    opset: int = 17,
    sizes: Sequence[int] = (8, 8, 8),
    dtype: type = np.float32,
    transposed: bool = False,
) -> ir.Model:
    """Return the nodes of `body` with an input x and the weights wq, wk, wv, bq, bk, bv that they read."""
    generator = np.random.default_rng(1)
    arrays = {"heads": np.asarray([0, 0, 2, -1], np.int64), "two": np.asarray(2, dtype), "row": np.ones((1, 8), dtype)}
    for name, size in zip("qkv", sizes, strict=True):
        shape = (size, int(x[-1])) if transposed else (int(x[-1]), size)
        arrays[f"w{name}"] = generator.standard_normal(shape).astype(dtype)
        arrays[f"b{name}"] = generator.standard_normal(size).astype(dtype)
    element = helper.np_dtype_to_tensor_dtype(np.dtype(dtype))
    parsed = onnx.parser.parse_graph(f"g (float[1] unused) => (float[1] unread) {{ {body} }}")
    read = {name for node in parsed.node for name in node.input}
    made = helper.make_graph(
        list(parsed.node),
        "g",
        [helper.make_tensor_value_info("x", element, x)],
        [helper.make_tensor_value_info(name, element, None) for name in outputs],
        [numpy_helper.from_array(array, name) for name, array in arrays.items() if name in read],
    )
    return shaped(helper.make_model(made, opset_imports=[helper.make_opsetid("", opset)], ir_version=8))


def _weights(model: ir.Model) -> int:
    return sum(t.nbytes for v in model.graph.initializers.values() if (t := v.const_value) is not None)


@pytest.mark.parametrize("opset", [9, 11, 12, 13, 17, 18, 21])
@pytest.mark.parametrize("sizes", [(8, 8, 8), (8, 4, 2)])
def test_query_key_and_value(opset: int, sizes: tuple[int, int, int]) -> None:
    body = ATTENTION if sizes == (8, 8, 8) else f"{PRODUCTS} {SUMS} y = Concat<axis = 2>(q, k, v)"
    model = model_of(body, opset=opset, sizes=sizes)
    before, stored = optimized_count(model), _weights(model)
    changes = applied(rewritten(model, MergeMatmuls()))
    assert [c.reason for c in changes] == ["3 products of x became one"]
    count = Counter(kinds(model))
    assert (count["MatMul"], count["Add"], count["Split"]) == (3 if body == ATTENTION else 1, 1, 1)
    assert optimized_count(model) == before - 3
    assert {o.name for node in model.graph for o in node.outputs} >= set(WHOLE)
    assert _weights(model) <= stored + 3 * 8, "the old weights are still there"


def test_two_products_and_sums() -> None:
    body = "a0 = MatMul(x, wq)  a = Add(a0, bq)  b0 = MatMul(x, wk)  b = Add(b0, bk)  y = Concat<axis = 2>(a, b)"
    model = model_of(body)
    rewritten(model, MergeMatmuls())
    assert kinds(model) == ["MatMul", "Add", "Split", "Concat"]


@pytest.mark.parametrize(
    ("body", "x"),
    [
        ("a = MatMul(x, wq)  b = MatMul(x, wk)  y = Concat<axis = 2>(a, b)", ("B", 5, 8)),
        (
            "a0 = MatMul(x, wq)  a = Add(a0, bq)  b0 = MatMul(x, wk)  b = Add(b0, bk)  y = Concat<axis = 1>(a, b)",
            ("B", 8),
        ),
        ("a = Gemm(x, wq, bq)  b = Gemm(x, wk, bk)  y = Concat<axis = 1>(a, b)", ("B", 8)),
    ],
)
def test_two_that_a_split_would_not_make_fewer(body: str, x: tuple[int | str, ...]) -> None:
    model = model_of(body, x=x)
    before = kinds(model)
    assert not rewritten(model, MergeMatmuls())
    assert kinds(model) == before


@pytest.mark.parametrize("transposed", [False, True])
@pytest.mark.parametrize("bias", [False, True])
def test_gemms(*, transposed: bool, bias: bool) -> None:
    ports = {name: f"{name}{', b' + name[1] if bias else ''}" for name in ("wq", "wk", "wv")}
    gemm = f"Gemm<transB = {int(transposed)}>"
    body = "  ".join(f"{n[1]} = {gemm}(x, {p})" for n, p in ports.items()) + "  y = Concat<axis = 1>(q, k, v)"
    model = model_of(body, x=("B", 8), sizes=(8, 4, 2), transposed=transposed)
    rewritten(model, MergeMatmuls())
    assert kinds(model) == ["Gemm", "Split", "Concat"]


@pytest.mark.parametrize("settings", ["alpha = 2.0", "beta = 0.5", "transA = 1"])
def test_gemms_that_do_more(settings: str) -> None:
    body = "  ".join(f"{n} = Gemm<{settings}>(x, w{n}, b{n})" for n in "qkv") + "  y = Concat<axis = 1>(q, k, v)"
    model = model_of(body, x=(8, 8))
    assert not rewritten(model, MergeMatmuls())
    assert kinds(model).count("Gemm") == 3


@pytest.mark.parametrize(
    ("body", "reason"),
    [
        ("q0 = MatMul(x, wq) k0 = MatMul(x, wk) v0 = MatMul(x, wq) y = Concat<axis = 2>(q0, k0, v0)", "others read"),
        (f"{PRODUCTS}  r = Mul(q0, two)  y = Concat<axis = 2>(r, k0, v0)", "may fuse it with"),
        (f"{PRODUCTS}  r = Add(q0, x)  y = Concat<axis = 2>(r, k0, v0)", "may fuse it with"),
        (f"{PRODUCTS}  r = Relu(v0)  y = Concat<axis = 2>(q0, k0, r)", "may fuse it with"),
    ],
)
def test_refused_with_a_reason(body: str, reason: str) -> None:
    model = model_of(body)
    before = kinds(model)
    changes = rewritten(model, MergeMatmuls())
    assert reason in reasons(changes)
    assert not applied(changes)
    assert kinds(model) == before


def test_one_that_may_not_leaves_the_rest() -> None:
    body = f"{PRODUCTS}  {SUMS}  r = Relu(v)  y = Concat<axis = 2>(q, k, r)"
    model = model_of(body)
    assert [c.reason for c in applied(rewritten(model, MergeMatmuls()))] == ["2 products of x became one"]
    assert sorted(kinds(model)) == ["Add", "Add", "Concat", "MatMul", "MatMul", "Relu", "Split"]


@pytest.mark.parametrize(
    "body",
    [
        "a = Neg(x)  b = Abs(x)  q = MatMul(x, wq)  k = MatMul(a, wk)  v = MatMul(b, wv)  y = Sum(q, k, v)",
        "q = MatMul(wq, x)  k = MatMul(wk, x)  v = MatMul(wv, x)  y = Concat<axis = 1>(q, k, v)",
        f"{PRODUCTS}  q = Add(q0, row)  k = Add(k0, row)  y = Concat<axis = 2>(q, k, v0)",
    ],
)
def test_what_is_no_group(body: str) -> None:
    model = model_of(body, x=("B", 8, 8))
    before = kinds(model)
    assert not applied(rewritten(model, MergeMatmuls()))
    assert kinds(model) == before


def test_results_that_are_graph_outputs() -> None:
    model = model_of(f"{PRODUCTS} {SUMS}", outputs=WHOLE)
    rewritten(model, MergeMatmuls())
    assert kinds(model) == ["MatMul", "Add", "Split"]
    assert [o.name for o in model.graph.outputs] == list(WHOLE)


def test_a_product_that_is_read_besides_its_sum_keeps_its_name() -> None:
    model = model_of(f"{PRODUCTS}  {SUMS}  y = Concat<axis = 2>(q, k, v, q0)")
    rewritten(model, MergeMatmuls())
    assert sorted(kinds(model)) == ["Add", "Add", "Concat", "MatMul", "MatMul", "Split"]


def test_float16() -> None:
    model = model_of(f"{PRODUCTS}  {SUMS}  y = Concat<axis = 2>(q, k, v)", dtype=np.float16)
    rewritten(model, MergeMatmuls(), tolerance=2e-3)
    assert kinds(model) == ["MatMul", "Add", "Split", "Concat"]
    assert {v.dtype for v in model.graph.initializers.values()} == {ir.DataType.FLOAT16}


def test_in_a_body() -> None:
    inner = helper.make_tensor_value_info("y", TensorProto.FLOAT, None)
    proto = proto_of(model_of(f"{PRODUCTS}  {SUMS}  y = Concat<axis = 2>(q, k, v)"))
    branches = [
        helper.make_graph(list(proto.graph.node), "then", [], [inner], list(proto.graph.initializer)),
        helper.make_graph([helper.make_node("Concat", ["x", "x", "x"], ["y"], axis=2)], "else", [], [inner]),
    ]
    node = helper.make_node("If", ["c"], ["z"], then_branch=branches[0], else_branch=branches[1])
    inputs = [helper.make_tensor_value_info("c", TensorProto.BOOL, []), *proto.graph.input]
    outputs = [helper.make_tensor_value_info("z", TensorProto.FLOAT, None)]
    outer = helper.make_graph([node], "g", inputs, outputs)
    model = shaped(helper.make_model(outer, opset_imports=[helper.make_opsetid("", 17)], ir_version=8))
    feed = {"c": np.asarray(True), "x": np.random.default_rng(0).standard_normal((2, 5, 8)).astype(np.float32)}
    rewritten(model, MergeMatmuls(), feed=feed)
    assert sorted(kinds(model)) == ["Add", "Concat", "Concat", "If", "MatMul", "Split"]


def test_large_weights_wait_in_a_file() -> None:
    model = model_of(f"{PRODUCTS}  y = Concat<axis = 2>(q0, k0, v0)", x=("B", 5, 512), sizes=(256, 256, 256))
    for name in ("wq", "wk", "wv"):
        edit.set_weight(model.graph.initializers[name], np.full((512, 256), ord(name[1]), np.float32))
    rewritten(model, MergeMatmuls())
    (weight,) = model.graph.initializers.values()
    assert isinstance(weight.const_value, StoredTensor)
    assert weight.const_value.numpy()[0, ::256].tolist() == [ord("q"), ord("k"), ord("v")]


def test_weights_too_large_to_put_together_stay(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("onnxcompress.passes.fold.merge_matmuls._MOST_BYTES", 3 * 256 - 1)
    model = model_of(f"{PRODUCTS}  y = Concat<axis = 2>(q0, k0, v0)")
    assert "would take 768 bytes" in reasons(rewritten(model, MergeMatmuls()))
    monkeypatch.setattr("onnxcompress.passes.fold.merge_matmuls._MOST_BYTES", 3 * 256)
    assert applied(rewritten(model, MergeMatmuls()))


@pytest.mark.parametrize(("rows", "apart"), [(5461, False), (5462, True), ("N", False)])
def test_results_known_to_be_large_stay_apart(rows: int | str, *, apart: bool) -> None:
    model = model_of(f"{PRODUCTS}  y = Concat<axis = 2>(q0, k0, v0)", x=(1, rows, 8))
    changes = rewritten(model, MergeMatmuls())
    assert ("takes longer than one product saves" in reasons(changes)) is apart
    assert kinds(model).count("MatMul") == (3 if apart else 1)


def test_overridable_weights_stay() -> None:
    model = model_of(f"{PRODUCTS}  y = Concat<axis = 2>(q0, k0, v0)")
    model.graph.inputs.append(model.graph.initializers["wk"])
    assert not MergeMatmuls().run(model, Context())


def test_int8_weights_have_the_scales_that_they_had_apart() -> None:
    def quantized(*, merge: bool) -> dict[str, np.ndarray]:
        model = model_of(f"{PRODUCTS}  y = Concat<axis = 2>(q0, k0, v0)", x=("B", 5, 64), sizes=(64, 64, 64))
        if merge:
            MergeMatmuls().run(model, Context())
        assert len(applied(QuantizeWeights().run(model, Context()))) == (1 if merge else 3)
        feed = {"x": np.random.default_rng(0).standard_normal((2, 5, 64)).astype(np.float32)}
        return runtime.open_session(model_io.to_bytes(model), optimize=False).run(feed)

    np.testing.assert_allclose(quantized(merge=True)["y"], quantized(merge=False)["y"], rtol=0, atol=2e-5)


@pytest.mark.parametrize("name", ["fold", "int8-weights", "auto"])
def test_recipes_merge_before_they_share(name: str) -> None:
    order = [step.name for step in Recipe.load(name).passes]
    assert order.index("fuse-affine") < order.index("merge-matmuls") < order.index("share-duplicates")
