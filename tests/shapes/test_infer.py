"""What is known of shapes comes from the inputs alone, and is said only of the value it holds for."""

from __future__ import annotations

import onnx

from onnxcompress.graph import query
from onnxcompress.io import model_io
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


def test_nodes_need_not_stand_in_order() -> None:
    proto = model_io.to_proto(
        from_text("""g (float[2, 3] x, bool b) => (float[n, m] y) {
        shape = Shape(x)
        z = Neg(x)
        y = If(b) <then_branch = t () => (float[n, m] p) { p = Relu(z) },
                   else_branch = e () => (float[n, m] q) { q = Reshape(z, shape) }>
    }""")
    ).proto
    nodes = [onnx.NodeProto.FromString(node.SerializeToString()) for node in proto.graph.node]
    del proto.graph.node[:]
    proto.graph.node.extend(reversed(nodes))
    model = model_io.load(proto)
    assert [node.op_type for node in model.graph] == ["If", "Neg", "Shape"]
    known = shapes.infer(model)
    assert known.static(model.graph.outputs[0]) == (2, 3)
    assert known.all_static()["z"] == (2, 3)
    assert [node.op_type for node in model.graph] == ["If", "Neg", "Shape"]


def test_nodes_that_need_each_other_leave_what_they_make_unknown() -> None:
    proto = onnx.parser.parse_graph("g (float[2] x) => (float[n] y) { a = Add(x, b) b = Neg(a) y = Relu(x) }")
    model = onnx.helper.make_model(proto, opset_imports=[onnx.helper.make_opsetid("", 17)])
    assert "a" not in shapes.infer_proto(model).all_static()
