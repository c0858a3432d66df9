"""What an inspection finds: bytes, parameters, MACs and time where they are, and what each pass could reach."""

import json
from io import StringIO
from pathlib import Path

import numpy as np
import onnx
import onnx.parser
import pytest
from onnx import TensorProto, helper, numpy_helper
from rich.console import Console

import onnxcompress as oc
from onnxcompress.base import size_limits
from onnxcompress.errors import DataError, ModelError
from onnxcompress.io import model_io
from onnxcompress.io.tensors import StoredTensor
from onnxcompress.jobs import inspect_passes
from onnxcompress.report import tables_inspect
from onnxcompress.runtime import session as runtime
from onnxcompress.runtime.remote_session import RemoteSession
from onnxcompress.search import drafts
from tests.helpers import floats

MODELS = Path(__file__).parents[2] / "models"


def _info(name, dims, kind=TensorProto.FLOAT):
    return helper.make_tensor_value_info(name, kind, dims)


def _model(*, node_docs=False):
    """y = If(on, relu(x @ a), relu(x @ b)) + half: weights outside, inside, in a Constant node, and half unread."""
    then = [helper.make_node("MatMul", ["x", "a"], ["t"], name="inner")]
    constant = helper.make_node("Constant", [], ["b"], value=numpy_helper.from_array(floats(64, 64), "b"))
    other = [constant, helper.make_node("MatMul", ["x", "b"], ["e"], name="stored")]
    branch = helper.make_node(
        "If",
        ["on"],
        ["m"],
        name="choice",
        then_branch=helper.make_graph(then, "then", [], [_info("t", ["n", 64])]),
        else_branch=helper.make_graph(other, "else", [], [_info("e", ["n", 64])]),
    )
    nodes = [
        branch,
        helper.make_node("Cast", ["half"], ["full"], name="cast", to=TensorProto.FLOAT),
        helper.make_node("Add", ["m", "full"], ["y"], name="plus"),
    ]
    if node_docs:
        nodes[0].doc_string = "a stack trace of the exporter's"
    graph = helper.make_graph(
        nodes,
        "g",
        [_info("x", ["n", 64]), _info("on", [], TensorProto.BOOL)],
        [_info("y", ["n", 64])],
        [
            numpy_helper.from_array(floats(64, 64, seed=1), "a"),
            numpy_helper.from_array(np.ones(64, np.float16), "half"),
        ],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8, producer_name="me")


def _printed(found, **options):
    console = Console(file=StringIO(), width=250, highlight=False)
    for part in tables_inspect.inspection_tables(found, **options):
        console.print(part)

    return console.file.getvalue()


def test_everything_is_attributed_to_the_node_that_computes_with_it():
    found = oc.inspect(_model(), data=[{"x": floats(3, 64), "on": np.array(True)}])
    assert (found.nodes, found.subgraphs, found.functions) == (5, 2, 0)
    assert found.parameters == 2 * 64 * 64 + 64
    assert found.macs == 2 * 3 * 64 * 64
    assert found.shapes_of_macs == {"x": (3, 64), "on": ()}
    layers = {share.name: (share.op_type, share.bytes, share.parameters, share.macs) for share in found.layers}
    assert layers == {
        "inner": ("MatMul", 64 * 64 * 4, 64 * 64, 3 * 64 * 64),
        "stored": ("MatMul", 64 * 64 * 4, 64 * 64, 3 * 64 * 64),
        "plus": ("Add", 128, 64, 0),
    }
    operators = {share.name: (share.nodes, share.bytes) for share in found.operators}
    assert operators == {"MatMul": (2, 2 * 64 * 64 * 4), "Add": (1, 128), "If": (1, 0), "Cast": (1, 0)}
    assert found.weight_port_bytes == 2 * 64 * 64 * 4


def test_the_header_is_read():
    found = oc.inspect(_model())
    assert found.opsets == {"": 17}
    assert (found.ir_version, found.producer, found.path) == (8, "me", None)
    assert found.inputs == ("x: float32[n, 64]", "on: bool[]")
    assert found.dynamic == ("x[0] n",)
    assert {name: (s.tensors, s.elements, s.bytes) for name, s in found.dtypes.items()} == {
        "float32": (2, 8192, 32768),
        "float16": (1, 64, 128),
    }
    assert list(found.dtypes) == ["float32", "float16"]
    assert (found.weights_in_nodes, found.weights_in_nodes_bytes) == (1, 64 * 64 * 4)
    assert found.bytes == len(model_io.to_bytes(model_io.load(_model())))


def test_the_exporters_records_are_weighed():
    plain, noted = oc.inspect(_model()), oc.inspect(_model(node_docs=True))
    assert (plain.node_records, plain.node_record_bytes) == (0, 0)
    assert noted.node_records == 1
    assert noted.node_record_bytes == noted.bytes - plain.bytes > 30


def test_time_is_measured_where_the_model_runs():
    found = oc.inspect(_model())
    assert found.ms > 0
    assert sum(share.ms for share in found.time_by_type) == pytest.approx(found.ms)
    assert {"MatMul"} <= {share.op_type for share in found.slowest}


def test_each_pass_says_what_it_reaches_and_what_is_in_the_way():
    found = oc.inspect(MODELS / "mbv2.onnx")
    reach = {one.pass_name: one for one in found.passes}
    assert "surgery" not in reach
    assert reach["normalize"].rewrites == 28 == found.weights_in_nodes
    quantized = reach["quantize-weights"]
    result = oc.compress(MODELS / "mbv2.onnx", recipe="int8-weights")
    done = [c for c in result.changes if c.pass_name == "quantize-weights" and c.action == "applied"]
    assert quantized.rewrites == len(done)
    assert quantized.reached_bytes == sum(c.bytes_before for c in done) > 0.8 * found.bytes
    assert 0.5 * found.bytes < quantized.saved_bytes < found.bytes


def test_reach_of_channel_pruning_and_what_keeps_the_rest():
    found = oc.inspect(MODELS / "vit.onnx")
    reach = found.channels
    assert 0.96 < reach.parameters_exact / reach.parameters < 0.97 < 0.999 < reach.parameters_cut / reach.parameters
    assert reach.macs_exact < reach.macs_cut == reach.macs >= found.macs
    [of_output] = [kept for kept in reach.kept if kept.reason == "logits: graph output"]
    assert (of_output.parameters, of_output.examples) == (10, ("fc.bias",))
    assert found.as_json()["channels"]["kept"][0]["parameters"] == 10
    printed = _printed(found)
    assert "channel pruning, after folding: 1,072 groups of channels" in printed
    assert "logits: graph output" in printed


def test_refusals_of_a_pass_are_grouped():
    weight = numpy_helper.from_array(floats(64, 64), "a")
    nodes = [
        helper.make_node("MatMul", ["x", "a"], ["m"], name="mm"),
        helper.make_node("Add", ["m", "a"], ["y"], name="also"),
    ]
    graph = helper.make_graph(nodes, "g", [_info("x", [64, 64])], [_info("y", [64, 64])], [weight])
    found = oc.inspect(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8))
    [blocked] = next(one for one in found.passes if one.pass_name == "quantize-weights").blocked
    assert "also" in blocked.reason
    assert (blocked.count, blocked.examples) == (1, ("a",))
    assert "1 x also read by" in _printed(found)


def test_data_sets_the_shapes_and_has_to_fit():
    assert oc.inspect(_model(), data={"x": floats(5, 7, 64), "on": np.array(False)}).macs == 2 * 7 * 64 * 64
    with pytest.raises(DataError, match="x"):
        oc.inspect(_model(), data={"x": floats(5, 7, 63), "on": np.array(False)})


def test_the_seed_changes_nothing_but_made_up_values():
    one, two = (oc.inspect(_model(), seed=seed) for seed in (0, 1))
    assert (one.macs, one.layers, one.passes) == (two.macs, two.layers, two.passes)


def test_a_model_that_does_not_run_is_inspected_all_the_same():
    model = _model()
    model.graph.node[2].op_type = "Frobnicate"
    model.graph.node[2].domain = "my.own"
    model.opset_import.append(helper.make_opsetid("my.own", 1))
    found = oc.inspect(model)
    assert found.ms is None
    assert any("not run" in note for note in found.notes)
    assert {"my.own:Frobnicate"} <= {share.name for share in found.operators}
    assert found.macs > 0
    assert "note: not run" in _printed(found)


def test_large_models_are_neither_read_nor_run_nor_tried(tmp_path, monkeypatch):
    onnx.save(_model(), tmp_path / "m.onnx")
    whole = oc.inspect(tmp_path / "m.onnx")
    monkeypatch.setattr(size_limits, "INSPECT_BYTES", 1000)
    for method in ("numpy", "tobytes"):
        monkeypatch.setattr(StoredTensor, method, lambda _: pytest.fail("a weight was read"))
    found = oc.inspect(tmp_path / "m.onnx")
    assert (found.passes, found.channels, found.ms) == (None, None, None)
    assert any("over 1,000" in note for note in found.notes)
    assert (found.bytes, found.parameters, found.operators) == (whole.bytes, whole.parameters, whole.operators)
    assert found.path == str(tmp_path / "m.onnx")


@pytest.mark.parametrize("name", ["resnet14_bn", "vit"])
def test_real_models_as_json_and_as_tables(name):
    found = oc.inspect(MODELS / f"{name}.onnx")
    document = json.loads(json.dumps(found.as_json(), allow_nan=False))
    assert document["schema"] == 1
    assert sum(each["bytes"] for each in document["operators"]) <= document["bytes"]
    assert sum(each["parameters"] for each in document["operators"]) == document["parameters"]
    assert sum(each["macs"] for each in document["operators"]) == document["macs"]
    printed = _printed(found)
    for title in (
        "operators",
        "the largest layers",
        "the slowest nodes",
        "what each pass could do",
        "quantize-weights",
    ):
        assert title in printed
    assert len(_printed(found, everything=True)) >= len(printed)


def test_what_is_no_model_is_an_error(tmp_path):
    with pytest.raises(ModelError, match="no such file"):
        oc.inspect(tmp_path / "nowhere.onnx")


def test_passes_that_change_nothing_share_a_copy(monkeypatch):
    """A graph of many nodes is copied for passes that do something, not for each pass that there is."""
    copies = []
    copy = inspect_passes.Still.copy
    monkeypatch.setattr(inspect_passes.Still, "copy", lambda self: copies.append(1) or copy(self))
    found = oc.inspect(onnx.parser.parse_model(NOTHING_TO_DO))
    assert len(found.passes) > 15
    applied = sum(reach.rewrites > 0 for reach in found.passes)
    assert applied < 5
    assert len(copies) <= applied + 2


NOTHING_TO_DO = """
<ir_version: 8, opset_import: ["" : 17]>
g (float[4, 8] x, float[4, 8] z) => (float[4, 8] y) { a = Add(x, z) y = Tanh(a) }
"""


def test_a_model_of_some_size_runs_apart_and_heavy_passes_are_not_tried(monkeypatch):
    whole = oc.inspect(_model())
    monkeypatch.setattr(size_limits, "APART_BYTES", 1000)
    monkeypatch.setattr(inspect_passes, "_MOST_TENSOR_BYTES", 1000)
    made = []
    start = RemoteSession.__init__
    monkeypatch.setattr(RemoteSession, "__init__", lambda self, *given: made.append(1) or start(self, *given))
    found = oc.inspect(_model())
    assert made
    assert found.time_by_type
    tried = {reach.pass_name for reach in found.passes}
    assert {"normalize", "fuse-affine", "quantize-weights", "convert-float16"} <= tried
    untried = {reach.pass_name for reach in whole.passes} - tried
    assert {"cluster", "sparsify", "quantize-blocks", "prune-channels"} <= untried
    (note,) = (note for note in found.notes if "too much memory" in note)
    assert all(name in note for name in untried)
    monkeypatch.setattr(inspect_passes, "_MOST_TENSOR_BYTES", 1 << 30)
    monkeypatch.setattr(inspect_passes, "_MOST_BYTES", 1000)
    assert {reach.pass_name for reach in oc.inspect(_model()).passes} == tried


LAYERS = """
<ir_version: 8, opset_import: ["" : 17]>
g (float[n, 64] x) => (float[n, 16] y) { a = MatMul(x, u) b = Relu(a) c = MatMul(b, v) d = Relu(c) y = MatMul(d, w) }
"""


def _layers():
    model = onnx.parser.parse_model(LAYERS)
    shapes = {"u": (64, 96), "v": (96, 64), "w": (64, 16)}
    model.graph.initializer.extend(
        numpy_helper.from_array(floats(*dims, seed=index), name) for index, (name, dims) in enumerate(shapes.items())
    )
    return model


def test_passes_that_would_measure_are_drafts_and_a_note_says_on_how_many_samples():
    found = oc.inspect(_layers(), data={"x": floats(9, 1, 64)})
    drafts_of = {one.pass_name: one.draft_samples for one in found.passes if one.draft is not None}
    assert drafts_of == {"low-rank": 4, "quantize-blocks": 4, "prune-channels": 4, "sparsify": 0}
    assert "quantize-blocks is a draft that rests on 4 samples: rounded to the nearest" in _printed(found)
    assert "sparsify is a draft that rests on the weights alone: smallest first" in _printed(found)
    document = {one["pass_name"]: one for one in found.as_json()["passes"]}
    assert document["prune-channels"]["draft"] == "cut once, neither refitted nor trained"
    assert (document["fuse-affine"]["draft"], document["fuse-affine"]["draft_samples"]) == (None, None)
    without = oc.inspect(_layers())
    assert {one.pass_name for one in without.passes if one.draft_samples} == set()


def test_a_costly_model_is_run_less_often_and_the_passes_reach_the_same(monkeypatch):
    runs = []
    run = runtime.Session.run
    monkeypatch.setattr(runtime.Session, "run", lambda self, *a, **k: runs.append(1) or run(self, *a, **k))
    feeds = [{"x": floats(1 + index, 64, seed=index)} for index in range(4)]  # not of one shape: none are joined
    whole = oc.inspect(_layers(), data=feeds)
    many = len(runs)
    runs.clear()
    monkeypatch.setattr(drafts, "_MACS", 1)
    found = oc.inspect(_layers(), data=feeds)
    assert len(runs) < many - 3 * 3 * 3, "three passes measure three layers on three samples less"
    assert [(p.pass_name, p.draft_samples) for p in found.passes if p.draft_samples] == [
        ("low-rank", 1),
        ("quantize-blocks", 1),
        ("prune-channels", 1),
    ]
    one, all_four = ({p.pass_name: p for p in each.passes} for each in (found, whole))
    assert one["quantize-blocks"].saved_bytes == all_four["quantize-blocks"].saved_bytes > 0
