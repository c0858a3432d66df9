"""Two nodes in a row become one, exactly, for every size of a dynamic axis; near-misses stay two."""

from __future__ import annotations

import itertools

import numpy as np
import pytest

from onnxcompress.base.gate import Gate
from onnxcompress.core import Action, Context
from onnxcompress.graph import query
from onnxcompress.passes.fold.chains import SimplifyChains
from onnxcompress.passes.fold.noops import RemoveNoops
from onnxcompress.shapes import infer as shapes
from tests.helpers import from_text, op_types, run


def numbers(*shape: int) -> np.ndarray:
    """Different numbers, so that one in a wrong place is seen."""
    return np.arange(np.prod(shape), dtype=np.float32).reshape(shape) - 3


def model_of(inputs: str, expression: str, constants: str = "", rank: int = 2, opset: int = 17, out: str = "float"):
    dims = "[" + ", ".join(f"Y{n}" for n in range(rank)) + "]" if rank else ""
    given = f"<{constants}>" if constants else ""
    return from_text(f"g ({inputs}) => ({out}{dims} y) {given} {{ {expression} }}", opset=opset)


# inputs, expression, constants, rank of y, operators left, shapes to try
MERGED = [
    ("float[N,M,K] x", "a = Flatten(x) y = Flatten<axis=0>(a)", "", 2, ["Reshape"], [(3, 4, 5), (0, 4, 5)]),
    (
        "float[N,6] x",
        "a = Reshape(x, s) y = Reshape(a, t)",
        "int64[3] s = {0,2,3}, int64[2] t = {-1,3}",
        2,
        ["Reshape"],
        [(4, 6), (1, 6), (0, 6)],
    ),
    (
        "float[N,6] x",
        "a = Reshape(x, s) y = Reshape(a, t)",
        "int64[3] s = {0,2,3}, int64[3] t = {0,3,2}",
        3,
        ["Reshape"],
        [(4, 6), (0, 6)],
    ),
    (
        "float[N,M,6] x",
        "a = Reshape(x, s) y = Reshape(a, t)",
        "int64[4] s = {0,0,2,3}, int64[3] t = {0,0,6}",
        3,
        [],
        [(4, 5, 6), (0, 5, 6)],
    ),
    (
        "float[N,4,5] x",
        "a = Reshape(x, s) y = Flatten(a)",
        "int64[4] s = {0,2,2,5}",
        2,
        ["Reshape"],
        [(3, 4, 5), (0, 4, 5)],
    ),
    (
        "float[N,4,1,1] x",
        "a = Squeeze(x, s) y = Unsqueeze(a, t)",
        "int64[2] s = {2,3}, int64[1] t = {1}",
        3,
        ["Reshape"],
        [(3, 4, 1, 1)],
    ),
    (
        "float[N,M] x",
        "a = Unsqueeze(x, s) y = Unsqueeze(a, t)",
        "int64[1] s = {1}, int64[2] t = {0,3}",
        5,
        ["Unsqueeze"],
        [(3, 4), (1, 1)],
    ),
    (
        "float[N,M] x",
        "a = Unsqueeze(x, s) y = Unsqueeze(a, t)",
        "int64[1] s = {-1}, int64[1] t = {-2}",
        4,
        ["Unsqueeze"],
        [(3, 4), (2, 1)],
    ),
    (
        "float[1,N,1,M,1] x",
        "a = Squeeze(x, s) y = Squeeze(a, t)",
        "int64[2] s = {0,-1}, int64[1] t = {1}",
        2,
        ["Squeeze"],
        [(1, 3, 1, 4, 1)],
    ),
    (
        "float[N,M] x",
        "b = Neg(x) a = Unsqueeze(b, s) y = Squeeze(a, s)",
        "int64[2] s = {1,-1}",
        2,
        ["Neg"],
        [(3, 4)],
    ),
    (
        "float[N,1] x",
        "b = Neg(x) a = Squeeze(b, s) y = Unsqueeze(a, s)",
        "int64[1] s = {-1}",
        2,
        ["Neg"],
        [(3, 1)],
    ),
    (
        "float[N,M] x",
        "a = Slice(x, s, e, p) y = Slice(a, s, e, q)",
        "int64[1] s = {1}, int64[1] e = {4}, int64[1] p = {0}, int64[1] q = {1}",
        2,
        ["Slice"],
        [(6, 6), (2, 3), (1, 1)],
    ),
    (
        "float[N,M] x",
        "a = Slice(x, s, e, p, k) y = Slice(a, s, f, q, k)",
        "int64[1] s = {1}, int64[1] e = {9223372036854775807}, int64[1] f = {2}, int64[1] p = {0}, "
        "int64[1] q = {0}, int64[1] k = {2}",
        2,
        ["Slice"],
        [(n, 2) for n in range(12)],
    ),
    ("float[N,M] x", "a = Concat<axis=1>(x, x) y = Concat<axis=-1>(x, a, x)", "", 2, ["Concat"], [(3, 4)]),
    (
        "float[N,6] x",
        "b = Neg(x) p, q = Split<axis=1>(b, s) y = Concat<axis=-1>(p, q)",
        "int64[2] s = {2,4}",
        2,
        ["Neg"],
        [(3, 6)],
    ),
    (
        "float[N,6] x",
        "p, q = Split<axis=1>(x, s) y = Concat<axis=1>(x, p, q)",
        "int64[2] s = {2,4}",
        2,
        ["Concat"],
        [(3, 6)],
    ),
    (
        "float[N,M] x",
        "b = Neg(x) p = Slice(b, z, i, a) q = Slice(b, i, f, a) y = Concat<axis=0>(p, q)",
        "int64[1] z = {0}, int64[1] i = {-2}, int64[1] f = {9223372036854775807}, int64[1] a = {0}",
        2,
        ["Neg"],
        [(1, 3), (2, 3), (5, 3)],
    ),
    (
        "float[N,M] x",
        "p = Slice(x, z, i, a) q = Slice(x, i, f, a) y = Concat<axis=0>(p, q)",
        "int64[1] z = {1}, int64[1] i = {2}, int64[1] f = {4}, int64[1] a = {0}",
        2,
        ["Slice"],
        [(n, 3) for n in range(7)],
    ),
    (
        "float[N,M] x",
        "p = Slice(x, z, i, a) q = Slice(x, i, f, a) y = Concat<axis=0>(x, p, q, x)",
        "int64[1] z = {1}, int64[1] i = {2}, int64[1] f = {4}, int64[1] a = {0}",
        2,
        ["Concat", "Slice"],
        [(n, 3) for n in range(7)],
    ),
    (
        "float[N,M,K] x",
        "a = ReduceMean<axes=[-1]>(x) y = Squeeze(a, s)",
        "int64[1] s = {2}",
        2,
        ["ReduceMean"],
        [(3, 4, 5)],
    ),
    (
        "float[N,M] x",
        "a = ReduceSum<keepdims=0>(x, s) y = Unsqueeze(a, s)",
        "int64[1] s = {1}",
        2,
        ["ReduceSum"],
        [(3, 4)],
    ),
    (
        "float[N,M] x",
        "a = Gather<axis=1>(x, i) y = Unsqueeze(a, s)",
        "int64 i = {-1}, int64[1] s = {1}",
        2,
        ["Gather"],
        [(3, 4)],
    ),
    (
        "float[N,M] x",
        "a = Slice(x, i, e, s) y = Squeeze(a, s)",
        "int64[1] i = {-1}, int64[1] e = {9223372036854775807}, int64[1] s = {1}",
        1,
        ["Gather"],
        [(3, 4), (3, 1)],
    ),
    ("float[N,M] x", "a = Relu(x) y = Shape(a)", "", 1, ["Shape"], [(3, 4)]),
    ("float[N,M] x", "a = Transpose(x) y = Size(a)", "", 0, ["Size"], [(3, 4)]),
]
KEPT = [
    (
        "float[N,6] x",
        "a = Reshape(x, s) b = Reshape(a, t) y = Add(b, b) z = Neg(a)",
        "int64[3] s = {0,2,3}, int64[2] t = {-1,3}",
        2,
    ),
    ("float[N,M] x", "a = Reshape(x, s) y = Reshape(a, t)", "int64[3] s = {-1,2,3}, int64[2] t = {0,-1}", 2),
    ("float[N,M,K] x", "a = Unsqueeze(x, s) y = Flatten<axis=2>(a)", "int64[1] s = {1}", 2),
    ("float[N,M,K] x", "a = Squeeze(x, s) y = Unsqueeze(a, t)", "int64[1] s = {1}, int64[1] t = {0}", 3),
    ("float[N,1] x", "a = Squeeze(x) y = Unsqueeze(a, t)", "int64[1] t = {1}", 2),
    (
        "float[N,M] x",
        "a = Slice(x, s, e, p) y = Slice(a, t, e, p)",
        "int64[1] s = {-3}, int64[1] t = {1}, int64[1] e = {9223372036854775807}, int64[1] p = {0}",
        2,
    ),
    (
        "float[N,M] x",
        "a = Slice(x, s, e, p) y = Slice(a, s, f, p)",
        "int64[1] s = {1}, int64[1] e = {-1}, int64[1] f = {2}, int64[1] p = {0}",
        2,
    ),
    (
        "float[N,M] x",
        "a = Slice(x, s, e, p, k) y = Slice(a, z, f, p)",
        "int64[1] s = {-1}, int64[1] e = {-9223372036854775807}, int64[1] z = {0}, int64[1] f = {2}, "
        "int64[1] p = {0}, int64[1] k = {-1}",
        2,
    ),
    ("float[N,M] x", "a = Concat<axis=1>(x, x) y = Concat<axis=0>(a, a)", "", 2),
    (
        "float[N,N] x",
        "a = Concat<axis=0>(x, x) y = Concat<axis=0>(a, a)",
        "",
        2,
    ),
    ("float[N,6] x", "p, q = Split<axis=1>(x, s) y = Concat<axis=1>(q, p)", "int64[2] s = {2,4}", 2),
    ("float[6,6] x", "p, q = Split<axis=1>(x, s) y = Concat<axis=0>(p, q)", "int64[2] s = {3,3}", 2),
    (
        "float[N,M] x",
        "p = Slice(x, z, i, a) q = Slice(x, j, f, a) y = Concat<axis=0>(p, q)",
        "int64[1] z = {0}, int64[1] i = {2}, int64[1] j = {1}, int64[1] f = {5}, int64[1] a = {0}",
        2,
    ),
    (
        "float[N,M] x",
        "p = Slice(x, z, i, a) q = Slice(x, i, f, a) y = Concat<axis=0>(p, q)",
        "int64[1] z = {1}, int64[1] i = {-2}, int64[1] f = {9223372036854775807}, int64[1] a = {0}",
        2,
    ),
    ("float[N,M,K] x", "a = ReduceMean<axes=[1]>(x) y = Squeeze(a, s)", "int64[1] s = {2}", 2),
    ("float[N,M] x", "a = ReduceMean<axes=[1]>(x) b = Squeeze(a, s) y = Mul(a, b)", "int64[1] s = {1}", 2),
    ("float[N,M] x", "a = Gather<axis=1>(x, i) y = Unsqueeze(a, s)", "int64[1] i = {1}, int64[1] s = {1}", 3),
    ("float[N,M] x", "a = Gather<axis=1>(x, i) y = Unsqueeze(a, s)", "int64 i = {1}, int64[1] s = {0}", 2),
    (
        "float[N,M] x",
        "a = Slice(x, i, e, s) y = Squeeze(a, s)",
        "int64[1] i = {0}, int64[1] e = {2}, int64[1] s = {0}",
        1,
    ),
]


@pytest.mark.parametrize(("inputs", "expression", "constants", "rank", "left", "tried"), MERGED)
def test_merged(inputs: str, expression: str, constants: str, rank: int, left: list[str], tried: list) -> None:
    out = "int64" if "y = Shape" in expression or "y = Size" in expression else "float"
    # an input can't be an output: where nothing is left, a node is put in front
    if not left:
        expression, left = "h = Neg(x) " + expression.replace("(x", "(h"), ["Neg"]
    model = model_of(inputs, expression, constants, rank, out=out)
    expected = [run(model, {"x": numbers(*shape)})["y"] for shape in tried]
    assert SimplifyChains().run(model, Context())
    assert op_types(model) == left
    for shape, want in zip(tried, expected, strict=True):
        got = run(model, {"x": numbers(*shape)})["y"]
        assert got.shape == want.shape
        np.testing.assert_array_equal(got, want)
    assert not SimplifyChains().run(model, Context())


@pytest.mark.parametrize(("inputs", "expression", "constants", "rank"), KEPT)
def test_kept(inputs: str, expression: str, constants: str, rank: int) -> None:
    model = model_of(inputs, expression, constants, rank)
    before = op_types(model)
    SimplifyChains().run(model, Context())
    assert op_types(model) == before


CASTS = {
    ("uint8", "int32", "float"): 1, ("float16", "float", "double"): 1, ("int32", "int64", "float"): 1,
    ("int8", "float16", "int8"): 0, ("float16", "float", "float16"): 0, ("bool", "int64", "float"): 1,
    ("float", "int64", "float"): 2, ("float", "float16", "float"): 2, ("int64", "int32", "int64"): 2,
    ("int64", "float", "int64"): 2, ("float16", "float", "int64"): 2, ("int32", "double", "float16"): 2,
    ("uint8", "int8", "int32"): 2, ("float", "bool", "float"): 2,
}  # fmt: skip
NUMBER = {"bool": 9, "uint8": 2, "int8": 3, "int32": 6, "int64": 7, "float16": 10, "float": 1, "double": 11}


@pytest.mark.parametrize(("types", "count"), CASTS.items())
def test_casts(types: tuple[str, str, str], count: int) -> None:
    source, between, goal = types
    model = from_text(
        f"""g ({source}[N] x) => ({goal}[N] y) {{
        h = Reshape(x, t) a = Cast<to={NUMBER[between]}>(h) y = Cast<to={NUMBER[goal]}>(a) }}
        """.replace("=> (", "=> (")
        .replace("{\n", "<int64[2] t = {-1, 1}> {\n", 1)
        .replace("[N] y", "[N,M] y")
    )
    dtype = {"float": "float32", "double": "float64"}.get(source, source)
    feed = {"x": np.array([0, 1, 100, 77, 3], dtype)}
    if np.dtype(dtype).kind == "f":
        feed = {"x": np.array([0.1, -3.7, 1e-4, 300.3, 2], dtype)}
    expected = run(model, feed)["y"]
    SimplifyChains().run(model, Context())
    RemoveNoops().run(model, Context())
    assert op_types(model).count("Cast") == count
    np.testing.assert_array_equal(run(model, feed)["y"], expected)


def test_slices_of_slices_for_every_small_case() -> None:
    """All starts, ends and steps of two slices on an axis of every size: merged or not, the same numbers."""
    rng = np.random.default_rng(0)
    far, merged = 2**63 - 1, 0
    cases = list(itertools.product((0, 1, 3, -2), (2, 5, -1, far), (1, 2), (0, 2, -1), (1, 4, -2, far), (1, 3)))
    for index in rng.permutation(len(cases))[:120]:
        s, e, k, s2, e2, k2 = cases[index]
        model = model_of(
            "float[N,2] x",
            "a = Slice(x, s, e, p, k) y = Slice(a, t, f, p, l)",
            ", ".join(
                f"int64[1] {name} = {{{n}}}" for name, n in zip("sektflp", (s, e, k, s2, e2, k2, 0), strict=True)
            ),
        )
        SimplifyChains().run(model, Context())
        merged += op_types(model) == ["Slice"]
        for size in range(9):
            x = numbers(size, 2)
            np.testing.assert_array_equal(run(model, {"x": x})["y"], x[s:e:k][s2:e2:k2], err_msg=str(cases[index]))
    assert 20 < merged < 120


@pytest.mark.parametrize("size", [3, 7])
def test_slices_of_a_known_size(size: int) -> None:
    model = model_of(
        f"float[{size},2] x",
        "a = Slice(x, s, e, p) y = Slice(a, t, e, p)",
        "int64[1] s = {-5}, int64[1] t = {1}, int64[1] e = {-1}, int64[1] p = {0}",
    )
    SimplifyChains().run(model, Context())
    assert op_types(model) == ["Slice"]
    x = numbers(size, 2)
    np.testing.assert_array_equal(run(model, {"x": x})["y"], x[-5:-1][1:-1])


@pytest.mark.parametrize(
    ("expression", "left", "rank"),
    [
        (
            "a = Slice<starts=[1], ends=[9], axes=[0]>(x) y = Slice<starts=[1], ends=[3], axes=[1]>(a)",
            ["Slice"],
            2,
        ),
        ("a = Unsqueeze<axes=[0]>(x) y = Unsqueeze<axes=[3]>(a)", ["Unsqueeze"], 4),
        ("a = ReduceSum<axes=[1]>(x) y = Squeeze<axes=[1]>(a)", ["ReduceSum"], 1),
        ("a = Slice<starts=[1], ends=[2], axes=[0]>(x) y = Squeeze<axes=[0]>(a)", ["Slice", "Squeeze"], 1),
    ],
)
def test_attributes_of_old_opsets(expression: str, left: list[str], rank: int) -> None:
    model = model_of("float[N,M] x", expression, rank=rank, opset=9)
    expected = run(model, {"x": numbers(4, 5)})["y"]
    SimplifyChains().run(model, Context())
    assert op_types(model) == left
    np.testing.assert_array_equal(run(model, {"x": numbers(4, 5)})["y"], expected)


def test_output_keeps_its_name_and_shared_shape_constant_stays() -> None:
    model = from_text("""
        g (float[N,6] x) => (float[P,Q] y, float[R,S] z) <int64[2] t = {-1,3}, int64[3] s = {0,2,3}> {
        a = Reshape(x, s) y = Reshape(a, t) b = Neg(x) z = Reshape(b, t) }""")
    expected = run(model, {"x": numbers(2, 6)})
    SimplifyChains().run(model, Context())
    assert op_types(model) == ["Neg", "Reshape", "Reshape"]
    for name, array in run(model, {"x": numbers(2, 6)}).items():
        np.testing.assert_array_equal(array, expected[name])


def test_inside_a_body_and_across_its_border() -> None:
    model = from_text("""
        g (bool b, float[N,6] x) => (float[P,Q] y) <int64[3] s = {0,2,3}, int64[2] t = {-1,3}> {
        o = Reshape(x, s)
        y = If (b) <then_branch = e () => (float[A,B] p) { q = Reshape(x, s) p = Reshape(q, t) },
                    else_branch = f () => (float[C,D] r) { r = Reshape(o, t) }> }""")
    feeds = [{"b": np.array(flag), "x": numbers(2, 6)} for flag in (True, False)]
    expected = [run(model, feed)["y"] for feed in feeds]
    SimplifyChains().run(model, Context())
    assert op_types(model) == ["If", "Reshape", "Reshape", "Reshape"]
    for feed, want in zip(feeds, expected, strict=True):
        np.testing.assert_array_equal(run(model, feed)["y"], want)


def test_declared_shapes_are_not_believed() -> None:
    """The exporter says [2, 3] where [N, 3] is meant."""
    model = from_text("g (float[N,3,1] x) => (float[2,3] y) <int64[1] s = {2}> { y = Squeeze(x, s) }")
    assert shapes.infer(model).static(model.graph.outputs[0]) is None
    model = from_text("""
        g (float[N,3,1] x) => (float[2,3] y) <int64[1] s = {2}, int64[1] t = {0}, int64[2] u = {-1,3}> {
        a = Squeeze(x, s) b = Unsqueeze(a, t) y = Reshape(b, u) }""")
    SimplifyChains().run(model, Context())
    assert op_types(model) == ["Reshape"]
    # onnxruntime only warns of the wrong declaration
    assert run(model, {"x": numbers(5, 3, 1)})["y"].shape == (5, 3)


def test_gate_is_asked() -> None:
    model = model_of("float[N,M] x", "a = Unsqueeze(x, s) y = Unsqueeze(a, s)", "int64[1] s = {0}", 4)
    assert not SimplifyChains().run(model, Context(gate=Gate(limit=0)))
    assert op_types(model) == ["Unsqueeze", "Unsqueeze"]
    assert all(node.graph is not None for node in query.nodes(model))


@pytest.mark.parametrize(
    ("inputs", "expression", "constants", "rank", "left", "tried"),
    [
        (
            "float[2,6,8] x",
            "a = Reshape(x, s) y = Transpose<perm=[0,2,1,3]>(a)",
            "int64[4] s = {2,6,1,8}",
            4,
            ["Reshape"],
            [(2, 6, 8)],
        ),
        (
            "float[2,6,8] x",
            "a = Unsqueeze(x, s) y = Transpose<perm=[1,0,2,3]>(a)",
            "int64[1] s = {1}",
            4,
            ["Reshape"],
            [(2, 6, 8)],
        ),
        (
            "float[N,1,8] x",
            "a = Transpose<perm=[1,0,2]>(x) y = Squeeze(a, s)",
            "int64[1] s = {0}",
            2,
            ["Reshape"],
            [(3, 1, 8)],
        ),
        (
            "float[N,1,M] x",
            "a = Transpose<perm=[0,2,1]>(x) y = Flatten(a)",
            "",
            2,
            ["Flatten", "Transpose"],
            [(3, 1, 8), (3, 1, 0)],
        ),
        ("float[1,N,1,8] x", "a = Transpose(x) y = Flatten(a)", "", 2, ["Flatten", "Transpose"], [(1, 3, 1, 8)]),
        ("float[1,8,1] x", "a = Transpose(x) y = Flatten(a)", "", 2, ["Reshape"], [(1, 8, 1)]),
        (
            "float[0,1,8] x",
            "a = Transpose<perm=[1,0,2]>(x) y = Flatten(a)",
            "",
            2,
            ["Flatten", "Transpose"],
            [(0, 1, 8)],
        ),
        ("float[2,1,8] x", "a = Transpose<perm=[1,0,2]>(x) y = Neg(a)", "", 3, ["Neg", "Transpose"], [(2, 1, 8)]),
        (
            "float[2,6,8] x",
            "b = Reshape(x, s) a = Transpose<perm=[0,2,1,3]>(b) y = Add(a, b)",
            "int64[4] s = {2,6,1,8}",
            4,
            ["Add", "Reshape", "Transpose"],
            [(2, 6, 8)],
        ),
    ],
)
def test_a_transpose_that_moves_ones(
    inputs: str, expression: str, constants: str, rank: int, left: list[str], tried: list
) -> None:
    model = model_of(inputs, expression, constants, rank)
    expected = [run(model, {"x": numbers(*shape)})["y"] for shape in tried]
    SimplifyChains().run(model, Context())
    assert op_types(model) == left
    for shape, wanted in zip(tried, expected, strict=True):
        np.testing.assert_array_equal(run(model, {"x": numbers(*shape)})["y"], wanted)
    assert not [c for c in SimplifyChains().run(model, Context()) if c.action is Action.APPLIED]


@pytest.mark.parametrize(
    ("expression", "left"),
    [
        ("s = SequenceConstruct(x, x, z) y = ConcatFromSequence<axis=1>(s)", ["Concat"]),
        ("s = SequenceConstruct(x, z) y = ConcatFromSequence<axis=-2, new_axis=0>(s)", ["Concat"]),
        (
            "s = SequenceConstruct(x, z) n = SequenceLength(s) y = ConcatFromSequence<axis=1>(s)",
            ["Concat", "SequenceConstruct", "SequenceLength"],
        ),
        (
            "s = SequenceConstruct(x, z) y = ConcatFromSequence<axis=1, new_axis=1>(s)",
            ["ConcatFromSequence", "SequenceConstruct"],
        ),
        (
            "r = SequenceConstruct(x) s = SequenceInsert(r, z) y = ConcatFromSequence<axis=1>(s)",
            ["ConcatFromSequence", "SequenceConstruct", "SequenceInsert"],
        ),
    ],
)
def test_a_sequence_that_is_joined(expression: str, left: list[str]) -> None:
    rank = 4 if "new_axis=1" in expression else 3
    model = model_of("float[2,N,4] x, float[2,N,4] z", expression, rank=rank)
    feed = {"x": numbers(2, 3, 4), "z": -numbers(2, 3, 4)}
    expected = run(model, feed)["y"]
    SimplifyChains().run(model, Context())
    assert op_types(model) == left
    np.testing.assert_array_equal(run(model, feed)["y"], expected)
    assert not SimplifyChains().run(model, Context())
