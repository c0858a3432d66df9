"""What is known of shapes comes from the inputs alone, and is said only of the value it holds for."""

from __future__ import annotations

from onnxcompress.graph import query
from onnxcompress.shapes import infer as shapes
from tests.helpers import from_text


def test_one_name_in_two_bodies_is_known_only_where_both_agree() -> None:
    """The custom operator's result has no known shape; its namesake in the other branch has one."""
    model = from_text(
        """
        g (bool b, float[2,3] x) => (float[A,B] y) {
        y = If (b) <then_branch = t () => (float[C,D] p) { q = Neg(x) r = Neg(x) p = Neg(q) },
                    else_branch = e () => (float[E,F] s) { q = Expand(x, k) r = Neg(x) s = Neg(q) }> }
        """.replace("float[2,3] x", "float[2,3] x, int64[K] k")
    )
    known = shapes.infer(model)
    by_name = {o.name: o for node in query.nodes(model) for o in node.outputs}
    assert known.shape(by_name["q"]) is None
    assert known.shape(by_name["r"]) == (2, 3)


def test_declared_shapes_of_outputs_are_not_believed() -> None:
    model = from_text("g (float[N,3] x) => (float[2,3] y) { y = Neg(x) }")
    assert shapes.infer(model).shape(model.graph.outputs[0]) == ("N", 3)
