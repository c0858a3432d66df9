"""A user's own function on the graph: what it may do, what is refused, and what its mistakes look like."""

import sys
import textwrap

import numpy as np
import onnx
import onnx_graphsurgeon as gs
import onnx_ir as ir
import pytest
from onnx import TensorProto, helper, numpy_helper

import onnxcompress as oc
from onnxcompress.base.gate import Gate
from onnxcompress.core import Action, Context
from onnxcompress.errors import UsageError
from onnxcompress.graph import edit, query
from onnxcompress.io import graphsurgeon, model_io
from onnxcompress.io.tensors import StoredTensor
from onnxcompress.passes.surgery import Surgery
from tests import helpers

BRANCHES = """
g (float[2, 64] x, bool on) => (float[2, 64] y)
<float[1] w = {0}>
{
  h = Relu(x)
  y = If(on) <
    then_branch = t () => (float[2, 64] p) { p = MatMul(h, w) },
    else_branch = e () => (float[2, 64] q) { m = MatMul(h, w) q = Relu(m) }
  >
}
"""

MODULE = """
    import onnx_graphsurgeon as gs

    def in_place(graph):
        graph.doc_string = None
        for node in graph.nodes:
            node.name = f"mine_{node.name}"

    def drop_relu(graph):
        for body in [graph, *graph.subgraphs(recursive=True)]:
            for node in list(body.nodes):
                if node.op == "Relu" and node.o is not None and node.outputs[0].name == "h":
                    source, target = node.inputs[0], node.outputs[0]
                    node.outputs.clear()
                    target.inputs.clear()
                    for one in [graph, *graph.subgraphs(recursive=True)]:
                        for reader in one.nodes:
                            reader.inputs = [source if i is target else i for i in reader.inputs]
        return graph.cleanup(recurse_subgraphs=True)

    def rename(graph):
        graph.nodes[0].name = "renamed"
        return graph

    def fails(graph):
        wanted = graph.nodes[0]
        raise KeyError("no such layer")

    def leaves(graph):
        raise SystemExit(4)

    def deep(graph):
        import json
        return json.loads("{")

    def wrong(graph):
        return 3

    def broken(graph):
        graph.nodes[0].inputs = [gs.Variable("nowhere", dtype="float32", shape=(2, 64))]
        return graph
"""


@pytest.fixture
def here(tmp_path, monkeypatch):
    """The current folder with the user's module in it; the module's name is returned."""
    name = f"user_surgery_{tmp_path.name.replace('-', '_')}"
    (tmp_path / f"{name}.py").write_text(textwrap.dedent(MODULE))
    monkeypatch.chdir(tmp_path)
    yield name
    sys.modules.pop(name, None)


def _branches():
    model = helpers.from_text(BRANCHES)
    edit.set_weight(model.graph.initializers["w"], helpers.floats(64, 64))
    return model


def _int4():
    weight = helper.make_tensor("w", TensorProto.INT4, [2, 2], [1, 2, 3, -4])
    nodes = [helper.make_node("DequantizeLinear", ["w", "s"], ["y"])]
    outputs = [helper.make_tensor_value_info("y", TensorProto.FLOAT, [2, 2])]
    scale = numpy_helper.from_array(np.float32(0.5), "s")
    made = helper.make_graph(nodes, "g", [], outputs, [weight, scale])
    return model_io.load(helper.make_model(made, opset_imports=[helper.make_opsetid("", 21)], ir_version=10))


def _line(text):
    lines = textwrap.dedent(MODULE).splitlines()
    return f"line {next(i for i, line in enumerate(lines, 1) if text in line)})"


def _apply(model, function, gate=None):
    return Surgery(function=function).run(model, Context(gate=gate or Gate()))


def test_without_a_function_nothing_happens():
    assert Surgery().run(_branches(), Context()) == []


@pytest.mark.parametrize("on", [True, False])
def test_an_edit_reaches_through_if_bodies(here, on):
    model = _branches()
    weight = query.constant(model.graph.initializers["w"])
    [change] = _apply(model, f"{here}:drop_relu")
    assert change.action is Action.APPLIED
    assert change.bytes_before > change.bytes_after > 0
    assert helpers.op_types(model) == ["If", "MatMul", "MatMul", "Relu"]
    x = helpers.floats(2, 64, seed=1)
    expected = x @ weight if on else np.maximum(x @ weight, 0)
    got = helpers.run(model, {"x": x, "on": np.array(on)})["y"]
    np.testing.assert_allclose(got, expected, rtol=1e-5, atol=1e-5)
    assert np.abs(got - np.maximum(x, 0) @ weight).max() > 0.1


def test_a_function_that_returns_nothing_has_edited_in_place(here):
    model = _branches()
    [change] = _apply(model, f"{here}:in_place")
    assert change.action is Action.APPLIED
    assert all(node.name.startswith("mine_") for node in model.graph)


def test_a_closed_gate_keeps_the_function_from_being_called(here):
    assert _apply(_branches(), f"{here}:fails", Gate(limit=0)) == []


def test_int4_is_refused_with_the_reason(here):
    model = _int4()
    before = model_io.to_bytes(model)
    [change] = _apply(model, f"{here}:fails")
    assert change.action is Action.SKIPPED
    assert "INT4" in change.reason
    assert "'w'" in change.reason
    assert model_io.to_bytes(model) == before


def test_what_does_not_come_back_from_graphsurgeon_is_refused(here, monkeypatch):
    honest = graphsurgeon.from_surgeon

    def forgetful(edited, origin=None):
        result = honest(edited, origin)
        node = next(n for n in query.nodes(result) if n.op_type == "MatMul")
        node.replace_input_with(0, result.graph.inputs[0])
        return result

    monkeypatch.setattr(graphsurgeon, "from_surgeon", forgetful)
    [change] = _apply(_branches(), f"{here}:rename")
    assert change.action is Action.SKIPPED
    assert "changes MatMul:p" in change.reason


def test_a_result_that_is_no_model_is_refused(here):
    model = _branches()
    before = model_io.to_bytes(model)
    [change] = _apply(model, f"{here}:broken")
    assert change.action is Action.SKIPPED
    assert "nowhere" in change.reason
    assert model_io.to_bytes(model) == before


def test_external_weights_are_not_read_and_metadata_is_kept(here, tmp_path, monkeypatch):
    proto = onnx.ModelProto.FromString(model_io.to_bytes(_branches()))
    helper.set_model_props(proto, {"author": "me"})
    proto.doc_string = "about it"
    proto.graph.node[0].doc_string = "the first"
    helper.set_model_props(proto, {"author": "me"})
    onnx.save(proto, tmp_path / "m.onnx", save_as_external_data=True, location="m.data", size_threshold=1024)
    model = model_io.load(tmp_path / "m.onnx")
    monkeypatch.setattr(StoredTensor, "numpy", lambda _: pytest.fail("a weight was read"))
    monkeypatch.setattr(StoredTensor, "tobytes", lambda _: pytest.fail("a weight was read"))
    [change] = _apply(model, f"{here}:rename")
    assert change.action is Action.APPLIED
    assert model.metadata_props["author"] == "me"
    assert model.doc_string == "about it"
    assert model.graph[0].name == "renamed"
    assert model.graph[0].doc_string == "the first"
    assert isinstance(model.graph.initializers["w"].const_value, StoredTensor)


@pytest.mark.parametrize(
    ("function", "words"),
    [
        ("fails", ["KeyError", "no such layer", _line("raise KeyError")]),
        ("leaves", ["SystemExit", "4", _line("SystemExit")]),
        ("deep", ["JSONDecodeError", _line("json.loads")]),
        ("wrong", ["returned int"]),
        ("absent", ["no function 'absent'"]),
    ],
)
def test_mistakes_of_the_function_are_usage_errors_that_name_the_line(here, function, words):
    with pytest.raises(UsageError) as caught:
        _apply(_branches(), f"{here}:{function}")
    for word in [here, *words]:
        assert word in str(caught.value)


def test_mistakes_of_the_function_end_a_whole_run(here, tmp_path):
    with pytest.raises(UsageError, match="no such layer"):
        oc.compress(_branches(), recipe="fold", settings=[f"surgery.function={here}:fails"])


def test_a_whole_run_applies_it_and_proves_the_rest(here):
    result = oc.compress(_branches(), recipe="fold", settings=[f"surgery.function={here}:rename"])
    assert [c.action for c in result.changes if c.pass_name == "surgery"] == [Action.APPLIED]
    assert isinstance(result.graph(), gs.Graph)
    assert isinstance(result.model, ir.Model)
