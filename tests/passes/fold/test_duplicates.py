"""Equal weights are stored once, transposed twins too where a Gemm reads them."""

from __future__ import annotations

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from onnx import TensorProto, helper, numpy_helper

from onnxcompress import compress
from onnxcompress.base.gate import Gate
from onnxcompress.core import Action, Context
from onnxcompress.graph import query
from onnxcompress.io import model_io
from onnxcompress.passes.fold.duplicates import ShareDuplicates
from tests.helpers import floats, from_text, op_types, run
from tests.lossless import applied, run_plain


def build(nodes: list, weights: dict[str, np.ndarray], inputs: dict[str, list], outputs: list[str]) -> ir.Model:
    info = [helper.make_tensor_value_info(n, TensorProto.FLOAT, s) for n, s in inputs.items()]
    made = helper.make_graph(
        nodes, "g", info, [helper.make_tensor_value_info(n, TensorProto.FLOAT, ["P", "Q"]) for n in outputs],
        [numpy_helper.from_array(a, n) for n, a in weights.items()],
    )  # fmt: skip
    proto = helper.make_model(made, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    onnx.checker.check_model(proto)
    return model_io.load(proto)


def stored(model: ir.Model) -> list[str]:
    return [name for body in query.graphs(model) for name in body.initializers]


def sums(weights: dict[str, np.ndarray]) -> ir.Model:
    """y = x + first + second + ..."""
    names, at, nodes = list(weights), "x", []
    for name in names:
        nodes.append(helper.make_node("Add", [at, name], [f"s_{name}"]))
        at = f"s_{name}"
    nodes.append(helper.make_node("Neg", [at], ["y"]))
    return build(nodes, weights, {"x": [None, None]}, ["y"])


def test_equal_weights_are_stored_once() -> None:
    big = floats(64, 1024)
    model = sums({"a": big, "b": big.copy(), "c": big + 1, "d": big.copy()})
    expected = run(model, {"x": floats(64, 1024, seed=1)})["y"]
    changes = ShareDuplicates().run(model, Context())
    assert [(c.target, c.action, c.bytes_before) for c in changes] == [
        ("b", Action.APPLIED, big.nbytes),
        ("d", Action.APPLIED, big.nbytes),
    ]
    assert stored(model) == ["a", "c"]
    np.testing.assert_array_equal(run(model, {"x": floats(64, 1024, seed=1)})["y"], expected)
    assert not ShareDuplicates().run(model, Context())


@pytest.mark.parametrize("at", [0, 5000, 6000, 12000, 20000, 65535])
def test_one_different_number_anywhere_is_seen(at: int) -> None:
    one = floats(64, 1024)
    other = one.copy()
    other.reshape(-1)[at] += 1
    model = sums({"a": one, "b": other})
    assert not ShareDuplicates().run(model, Context())


def test_bits_types_and_shapes_count() -> None:
    zero = np.zeros((1, 4), np.float32)
    model = sums({"a": zero, "b": -zero, "c": zero.reshape(4), "d": zero.reshape(4, 1)})
    assert not ShareDuplicates().run(model, Context())


def test_inputs_and_outputs_stay() -> None:
    model = from_text(
        "g (float[2] x, float[2] a = {1, 2}) => (float[2] y) <float[2] b = {1, 2}> { c = Add(x, a) y = Add(c, b) }"
    )
    assert not ShareDuplicates().run(model, Context())


def two_branches(
    weights: tuple[np.ndarray, np.ndarray], names: tuple[str, str], outer: dict[str, np.ndarray]
) -> ir.Model:
    bodies = []
    for array, name, op in zip(weights, names, ("Add", "Mul"), strict=True):
        bodies.append(
            helper.make_graph(
                [helper.make_node(op, ["x", name], [f"{op}_out"])], op, [],
                [helper.make_tensor_value_info(f"{op}_out", TensorProto.FLOAT, ["P", "Q"])],
                [numpy_helper.from_array(array, name)],
            )
        )  # fmt: skip
    nodes = [helper.make_node("If", ["b"], ["i"], then_branch=bodies[0], else_branch=bodies[1])]
    at = "i"
    for name in outer:
        nodes.append(helper.make_node("Add", [at, name], [f"o_{name}"]))
        at = f"o_{name}"
    nodes.append(helper.make_node("Neg", [at], ["y"]))
    made = helper.make_graph(
        nodes, "g",
        [helper.make_tensor_value_info(n, t, s) for n, t, s in (("b", 9, []), ("x", 1, [None, None]))],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["P", "Q"])],
        [numpy_helper.from_array(a, n) for n, a in outer.items()],
    )  # fmt: skip
    return model_io.load(helper.make_model(made, opset_imports=[helper.make_opsetid("", 17)], ir_version=8))


BIG = floats(32, 32)


@pytest.mark.parametrize(
    ("weights", "names", "outer", "left"),
    [
        ((BIG, BIG), ("w", "w"), {}, 1),
        ((BIG, BIG), ("v", "w"), {}, 1),
        ((BIG, BIG + 1), ("w", "w"), {}, 2),
        ((BIG, BIG), ("v", "w"), {"o": BIG}, 1),
        ((BIG, BIG + 1), ("w", "w"), {"o": BIG}, 2),
        ((BIG[:1], BIG[:1]), ("w", "w"), {}, 2),
        ((BIG[:1], BIG[:1]), ("v", "w"), {"o": BIG[:1]}, 1),
    ],
)
def test_bodies(weights: tuple, names: tuple[str, str], outer: dict, left: int) -> None:
    model = two_branches(weights, names, outer)
    feeds = [{"b": np.array(flag), "x": floats(32, 32, seed=3)} for flag in (True, False)]
    expected = [run(model, feed)["y"] for feed in feeds]
    ShareDuplicates().run(model, Context())
    assert len(stored(model)) == left
    for feed, want in zip(feeds, expected, strict=True):
        np.testing.assert_array_equal(run(model, feed)["y"], want)
    assert not ShareDuplicates().run(model, Context())


def gemm_twins(reader: str, *, third: bool = False) -> ir.Model:
    """A table read by Gather, and its transpose read by a Gemm or a MatMul."""
    table = floats(512, 64)
    turned = np.ascontiguousarray(table.T)
    if third:
        turned[3, 500] += 1
    nodes = [
        helper.make_node("Cast", ["x"], ["i"], to=7),
        helper.make_node("Gather", ["table", "i"], ["e"]),
        helper.make_node(reader, ["e", "turned"], ["y"]),
    ]
    return build(nodes, {"table": table, "turned": turned}, {"x": [None]}, ["y"])


def test_a_transposed_twin_is_read_by_gemm() -> None:
    model = gemm_twins("Gemm")
    feed = {"x": np.array([1, 7, 500], np.float32)}
    expected = run(model, feed)["y"]
    (change,) = ShareDuplicates().run(model, Context())
    assert change.action is Action.APPLIED
    assert stored(model) == ["table"]
    assert op_types(model) == ["Cast", "Gather", "Gemm"]
    np.testing.assert_allclose(run(model, feed)["y"], expected, rtol=1e-5, atol=1e-5)
    assert not ShareDuplicates().run(model, Context())


def test_a_transposed_twin_of_a_matmul_stays_and_says_so() -> None:
    (change,) = ShareDuplicates().run(gemm_twins("MatMul"), Context())
    assert change.action is Action.SKIPPED
    assert "Transpose" in change.reason


def test_an_almost_transposed_twin_is_none() -> None:
    assert not ShareDuplicates().run(gemm_twins("Gemm", third=True), Context())


def test_gate_is_asked() -> None:
    big = floats(64, 64)
    model = sums({"a": big, "b": big, "c": big})
    gate = Gate(denied=frozenset({("share-duplicates", "b")}))
    changes = ShareDuplicates().run(model, Context(gate=gate))
    assert [c.target for c in changes] == ["c"]
    assert stored(model) == ["a", "b"]


def tied_model(columns: int = 64, rows: int = 400) -> ir.Model:
    """A table of embeddings, and the head of a language model, which an exporter stored as its transpose."""
    table = floats(rows, columns)
    body = "e = Gather(table, ids)  r = Relu(e)  y = MatMul(r, head)"
    text = f"<ir_version: 8, opset_import: ['' : 17]> g (int64[B, S] ids) => (float[B, S, {rows}] y) {{ {body} }}"
    proto = onnx.parser.parse_model(text.replace("'", '"'))
    proto.graph.initializer.append(onnx.numpy_helper.from_array(table, "table"))
    proto.graph.initializer.append(onnx.numpy_helper.from_array(np.ascontiguousarray(table.T), "head"))
    return ir.from_proto(proto)


def test_tied_embeddings_and_head_are_stored_once() -> None:
    feed = {"ids": np.array([[1, 5, 399]])}
    model = tied_model()
    before = run_plain(model, feed)["y"]
    assert not applied(ShareDuplicates().run(model, Context()))
    changes = applied(ShareDuplicates(tied=True).run(model, Context()))
    assert [change.target for change in changes] == ["head"]
    assert list(model.graph.initializers) == ["table"]
    np.testing.assert_array_equal(run_plain(model, feed)["y"], before)


@pytest.mark.parametrize(("recipe", "share"), [("int8-weights", 0.29), ("int4-weights", 0.18), ("float16", 0.52)])
def test_recipes_store_tied_weights_once(recipe: str, share: float) -> None:
    """The file takes little more than one copy of the weights, of the two that it had."""
    model = tied_model(128, 2000)
    result = compress(ir.to_proto(model), recipe=recipe)
    tensors = [value.const_value for value in result.model.graph.initializers.values()]
    assert sum(tensor.nbytes for tensor in tensors if tensor is not None) < share * 128 * 2000 * 4
