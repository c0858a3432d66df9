"""Inputs that fuzzing found, kills at the worst moment, and the same bytes from the same input."""

from __future__ import annotations

import io
import json
import os
import signal
import subprocess
import sys
import time
import zipfile
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import AttributeProto, TensorProto, helper, numpy_helper

import onnxcompress as oc
from onnxcompress.core import Action
from onnxcompress.data import fill_inputs, synthetic
from onnxcompress.errors import DataError, ModelError
from onnxcompress.graph import query
from onnxcompress.io import model_io
from onnxcompress.runtime import profiles
from onnxcompress.runtime import session as runtime
from onnxcompress.shapes import infer as shapes
from onnxcompress.shapes import symbolic

ROOT = Path(__file__).parent.parent
WEIGHT = np.random.default_rng(0).standard_normal((64, 64)).astype(np.float32)


def _model(nodes, *, initializers=(), inputs=(("x", 1, [1, 64]),), outputs=(("y", 1, None),)):
    graph = helper.make_graph(
        nodes,
        "g",
        [helper.make_tensor_value_info(*each) for each in inputs],
        [helper.make_tensor_value_info(*each) for each in outputs],
        list(initializers),
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)


def _untyped_attribute():
    model = _model([helper.make_node("Softmax", ["x"], ["y"], name="n", axis=1)])
    model.graph.node[0].attribute.append(AttributeProto())
    return model


def _sparse(**changes):
    values = helper.make_tensor("s", TensorProto.FLOAT, [2], [1.0, 2.0])
    parts = {"at": [0, 3], "dims": [4], "kind": TensorProto.INT64} | changes
    indices = helper.make_tensor("at", parts["kind"], [len(parts["at"])], parts["at"])
    model = _model([helper.make_node("Abs", ["s"], ["y"])])
    sparse = onnx.SparseTensorProto(values=values, indices=indices, dims=parts["dims"])
    model.graph.sparse_initializer.append(sparse)
    return model


def _elsewhere(**values):
    """A tensor whose values stand where those of another type do, or in two places."""
    tensor = TensorProto(name="c", data_type=TensorProto.INT32, dims=[1], **values)
    return _model([helper.make_node("Abs", ["c"], ["y"])], initializers=[tensor])


def _unnamed_device():
    model = _model([helper.make_node("Relu", ["x"], ["y"], name="n")])
    model.ir_version = 11
    model.graph.node[0].device_configurations.add().pipeline_stage = 1
    return model


def _branch():
    value = helper.make_tensor_value_info("b", 1, None)
    body = helper.make_graph([helper.make_node("Relu", ["x"], ["b"])], "body", [], [value])
    truth = helper.make_tensor("t", TensorProto.BOOL, [], [True])
    return _model([helper.make_node("If", ["t"], ["y"], name="if", then_branch=body)], initializers=[truth])


def _importing(model, *, domain="", version=1):
    """A model that imports nothing but one version of one domain."""
    model.ClearField("opset_import")
    model.opset_import.append(helper.make_opsetid(domain, version))
    return model


CONTRADICTIONS = {
    "has values in float_data; INT32 has them in int32_data": lambda: _elsewhere(float_data=[1.0]),
    "has values in raw_data and int64_data; INT32": lambda: _elsewhere(raw_data=b"abcd", int64_data=[1]),
    "node 'if' has no 'else_branch'": _branch,
    "node 'n' has 1 inputs; Div has 2": lambda: _model([helper.make_node("Div", ["x"], ["y"], name="n")]),
    "node 'n' has 3 outputs; Relu has 1": lambda: _model([helper.make_node("Relu", ["x"], ["y", "a", "b"], name="n")]),
    "has 'axis' as STRING; Softmax has INT": lambda: _model([helper.make_node("Softmax", ["x"], ["y"], axis="one")]),
    "has 'to' as -9, which is no type": lambda: _model([helper.make_node("Cast", ["x"], ["y"], name="n", to=-9)]),
    "is configured for no device": _unnamed_device,
    "an attribute without name or type": _untyped_attribute,
    "need each other's outputs, 'a', 'b' among 2": lambda: _model(
        [helper.make_node("Add", ["x", "b"], ["y"], name="a"), helper.make_node("Relu", ["y"], ["b"], name="b")]
    ),
    "node 'if' has no 'else_branch', which": lambda: _importing(_branch(), domain="ai.onnx.preview.training"),
    "imports version 1099511627776 of 'ai.onnx'": lambda: _importing(_sparse(), version=1 << 40),
    "imports version -2 of 'own'": lambda: _importing(_sparse(), domain="own", version=-2),
    "input 'x' has no type": lambda: _model([helper.make_node("Relu", ["x"], ["y"])], inputs=[("x", 0, [1])]),
    "an index outside of": lambda: _sparse(at=[0, 4]),
    "an index outside": lambda: _sparse(at=[-1, 1]),
    "don't go together": lambda: _sparse(at=[0, 1, 2]),
    "indices that are not int64": lambda: _sparse(kind=TensorProto.INT32),
}


@pytest.mark.parametrize("message", CONTRADICTIONS)
def test_models_that_contradict_themselves_are_refused(message):
    with pytest.raises(ModelError, match=message):
        model_io.load(CONTRADICTIONS[message]())


def test_what_is_only_unusual_is_read():
    backwards = _model([helper.make_node("Relu", ["a"], ["y"]), helper.make_node("Abs", ["x"], ["a"])])
    assert len(model_io.load(backwards).graph) == 2
    assert len(model_io.load(_sparse()).graph) == 1
    own = _model([helper.make_node("Relu", ["x"], ["y", "z"], domain="own")])
    own.opset_import.append(helper.make_opsetid("own", 1))
    assert len(model_io.load(own).graph) == 1


def test_an_input_of_a_type_that_is_only_declared(tmp_path):
    model = _model([helper.make_node("Relu", ["x"], ["y"])])
    model.graph.input[0].type.optional_type.SetInParent()
    onnx.save(model, tmp_path / "m.onnx")
    for verify in ("auto", "regions"):
        with pytest.raises(ModelError, match=r"has no synthetic values|can't load the model"):
            oc.compress(tmp_path / "m.onnx", recipe="fold", verify=verify)
    assert oc.inspect(tmp_path / "m.onnx").nodes == 1


def test_a_body_in_any_order_is_one_node(tmp_path):
    ends = [helper.make_tensor_value_info("go2", 9, []), helper.make_tensor_value_info("acc2", 1, None)]
    starts = [helper.make_tensor_value_info(n, t, d) for n, t, d in (("i", 7, []), ("go", 9, []), ("acc", 1, None))]
    backwards = [
        helper.make_node("Identity", ["go"], ["go2"]),
        helper.make_node("Add", ["r", "acc"], ["acc2"]),
        helper.make_node("Relu", ["x"], ["r"]),
    ]
    body = helper.make_graph(backwards, "body", starts, ends)
    rounds = helper.make_tensor("n", TensorProto.INT64, [], [3])
    nodes = [helper.make_node("Loop", ["n", "", "x"], ["l"], body=body), helper.make_node("Neg", ["l"], ["y"])]
    model = model_io.load(_model(nodes, initializers=[rounds]))
    assert [value.name for value in query.reads(model.graph[0])] == ["n", "x", "x"]
    oc.compress(model, recipe="fold", verify="regions")


def test_numbers_beyond_what_counts_anything():
    axes = _model([helper.make_node("ReduceMax", ["x", "a"], ["y"])], inputs=[("x", 1, [1, 64]), ("a", 7, [1 << 62])])
    axes.opset_import[0].version = 18
    ends = [helper.make_tensor(n, TensorProto.INT64, [], [v]) for n, v in (("f", 0), ("l", (1 << 63) - 1), ("d", -1))]
    ends += [helper.make_tensor("e", TensorProto.INT64, [], [-(1 << 63)])]
    ranges = [helper.make_node("Range", ["f", "l", "d"], ["r"]), helper.make_node("Range", ["l", "e", "d"], ["y"])]
    with pytest.raises(ModelError, match=r"4,611,686,018,427,387,904 elements, too many for synthetic ones"):
        oc.compress(axes, recipe="fold")
    endless = _model(ranges, initializers=ends, inputs=[], outputs=[("y", 7, None), ("r", 7, None)])
    result = oc.compress(endless, recipe="fold")
    assert {change.action for change in result.changes} == {Action.ROLLED_BACK}
    assert not [change for change in result.changes if "internal" in change.reason]
    assert "the computed number of elements exceeds the supported range" in result.report.notes[0]


@pytest.mark.parametrize("op_type", ["Split", "OneHot"])
def test_an_axis_that_there_is_not(op_type):
    inputs = [("x", 1, [6]), ("s", 7, [2])] if op_type == "Split" else [("x", 7, [6]), ("d", 7, []), ("v", 1, [2])]
    outputs = [("y", 1, [2]), ("z", 1, [4])] if op_type == "Split" else [("y", 1, [6, 3])]
    nodes = [helper.make_node(op_type, [i[0] for i in inputs], [o[0] for o in outputs], axis=-(1 << 31))]
    result = oc.compress(_model(nodes, inputs=inputs, outputs=outputs), recipe="fold", verify="regions")
    assert result.changes == ()
    assert result.report.verification.mode == "regions"


def test_a_shape_that_its_numbers_do_not_fill():
    numbers = [helper.make_tensor(n, TensorProto.INT64, [3], v) for n, v in (("c", [3, 5, -1]), ("s", [3, 5, 2]))]
    nodes = [helper.make_node("Reshape", ["c", "s"], ["r"]), helper.make_node("Expand", ["x", "r"], ["y"])]
    model = model_io.load(_model(nodes, initializers=numbers))
    (fact,) = (symbolic.interpret(model, shapes.infer(model)).of(value) for value in model.graph[0].outputs)
    assert fact.content is None


@pytest.mark.parametrize(
    ("ends", "expected"),
    [((0, 5, 1), 5), ((0, 5, 2), 3), ((5, 0, -2), 3), ((5, 0, 1), 0), ((0, 0, 1), 0), ((0, 1 << 20, 1), 1 << 20)],
)
def test_the_length_of_a_range_is_known(ends, expected):
    numbers = [helper.make_tensor(n, TensorProto.INT64, [], [v]) for n, v in zip("fld", ends, strict=True)]
    outputs = [("y", 7, None)]
    model = _model([helper.make_node("Range", [*"fld"], ["y"])], initializers=numbers, inputs=[], outputs=outputs)
    model = model_io.load(model)
    (fact,) = (symbolic.interpret(model, shapes.infer(model)).of(value) for value in model.graph.outputs)
    assert [size.as_int() for size in fact.dims] == [expected]


def test_regions_of_nodes_in_any_order(tmp_path):
    nodes = [
        helper.make_node("Neg", ["b"], ["y"]),
        helper.make_node("Identity", ["a"], ["b"]),
        helper.make_node("Relu", ["x"], ["a"]),
    ]
    result = oc.compress(_model(nodes), recipe="fold", verify="regions")
    assert sorted(node.op_type for node in result.model.graph) == ["Neg", "Relu"]
    assert not [change for change in result.changes if "internal" in change.reason]


def test_a_size_that_is_declared_as_less_than_none(tmp_path):
    nodes = [helper.make_node("MatMul", ["x", "w"], ["a"]), helper.make_node("Relu", ["a"], ["y"])]
    model = _model(nodes, initializers=[numpy_helper.from_array(WEIGHT, "w")], outputs=[("y", 1, [1, -1])])
    onnx.save(model, tmp_path / "m.onnx")
    parts = oc.split(tmp_path / "m.onnx", tmp_path / "parts", parts=2)
    assert json.loads((parts.folder / "manifest.json").read_text())["outputs"][0]["shape"] in ([1, None], [1, 64])


def _rounds(count):
    starts = [helper.make_tensor_value_info(n, t, []) for n, t in (("i", 7), ("go", 9), ("acc", 1))]
    ends = [helper.make_tensor_value_info(n, t, []) for n, t in (("go2", 9), ("acc2", 1))]
    nodes = [helper.make_node("Identity", ["go"], ["go2"]), helper.make_node("Add", ["acc", "acc"], ["acc2"])]
    scalars = [helper.make_tensor("n", TensorProto.INT64, [], [count]), helper.make_tensor("s", 1, [], [1.0])]
    loop = helper.make_node("Loop", ["n", "", "s"], ["y"], body=helper.make_graph(nodes, "body", starts, ends))
    return _model([loop], initializers=scalars)


@pytest.mark.parametrize(("count", "says"), [(1 << 40, "did not end within 2 s"), (2_000, "too many nodes"), (5, None)])
def test_loops_are_inspected_without_end(monkeypatch, count, says):
    monkeypatch.setattr(profiles, "_MOST_PROFILE_BYTES", 500_000)
    started = time.monotonic()
    found = oc.inspect(_rounds(count))
    assert time.monotonic() - started < 30
    assert (found.ms is None) == (says is not None)
    assert says is None or says in " ".join(found.notes)


def test_feeds_that_no_run_takes_are_not_made_up_without_end(monkeypatch):
    inputs = [("x", 1, [1 << 8, "n"]), ("z", 1, [1 << 8, "k", "m"])]
    monkeypatch.setattr(synthetic, "_MOST_REFUSED_ELEMENTS", 100_000)
    shape = numpy_helper.from_array(np.array([7, 11], np.int64), "s")
    nodes = [helper.make_node("Reshape", ["x", "s"], ["r"]), helper.make_node("Add", ["r", "z"], ["y"])]
    model = model_io.load(_model(nodes, initializers=[shape], inputs=inputs))
    session = runtime.open_session(model_io.to_bytes(model), optimize=False)
    made = []
    monkeypatch.setattr(fill_inputs, "_floats", lambda shape, *_: made.append(shape) or np.zeros(shape, np.float32))
    with pytest.raises(ModelError, match="no synthetic inputs"):
        synthetic.runnable_feeds(model, session, seed=0, count=1)
    assert 2 <= len(made) < 20


@pytest.mark.parametrize(
    "header",
    [b"{'descr': '<f4', 'fortran_order': False, 'shape': (3", b"{'descr': [[", b"\x00" * 10, b"(" * 100],
)
def test_an_array_with_a_damaged_header_is_no_bug(tmp_path, header):
    onnx.save(_model([helper.make_node("Relu", ["x"], ["y"])]), tmp_path / "m.onnx")
    file = io.BytesIO(b"\x93NUMPY\x01\x00" + (len(header) + 1).to_bytes(2, "little") + header + b"\n" + b"\0" * 99)
    (tmp_path / "d.npy").write_bytes(file.getvalue())
    with zipfile.ZipFile(tmp_path / "d.npz", "w") as archive:
        archive.writestr("x.npy", file.getvalue())
    for name in ("d.npy", "d.npz"):
        with pytest.raises(DataError, match="not a readable"):
            oc.compress(tmp_path / "m.onnx", recipe="fold", data=tmp_path / name)


@pytest.fixture
def product(tmp_path):
    nodes = [helper.make_node("MatMul", ["x", "w"], ["a"]), helper.make_node("MatMul", ["a", "w2"], ["y"])]
    weights = [numpy_helper.from_array(WEIGHT, "w"), numpy_helper.from_array(WEIGHT.T.copy(), "w2")]
    path = tmp_path / "models with ä" / "m 1.onnx"
    path.parent.mkdir()
    onnx.save(_model(nodes, initializers=weights, outputs=[("y", 1, [1, 64])]), path)
    return path


KILLED = """
import os, signal, sys
from pathlib import Path
from onnxcompress.base import atomic_files
from onnxcompress.jobs import compress as job
def stop(*_, **__):
    os.kill(os.getpid(), signal.SIGKILL)
{}
result = job.compress(sys.argv[1], recipe="fold")
result.pack(sys.argv[2]) if sys.argv[2].endswith("pack") else result.save(sys.argv[2], force=True)
"""


@pytest.mark.parametrize(
    ("name", "where"),
    [
        ("out.onnx", "atomic_files.Pending.commit = stop"),
        ("out.onnxpack", "atomic_files.Pending.commit = stop"),
        ("out.onnxpack", "from onnxcompress.packing import archive; archive.pack = stop"),
    ],
)
def test_what_a_killed_run_leaves_goes_with_the_next(product, name, where):
    target = product.with_name(name)
    command = [sys.executable, "-c", KILLED.format(where), str(product), str(target)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, check=False, timeout=60)
    assert done.returncode == -signal.SIGKILL, done.stderr
    left = [path.name for path in product.parent.iterdir() if path.name.startswith(".")]
    assert len(left) >= 1
    assert not target.exists()
    result = oc.compress(product, recipe="fold")
    result.pack(target) if name.endswith("pack") else result.save(target)
    assert sorted(path.name for path in product.parent.iterdir()) == sorted([product.name, name])


@pytest.mark.parametrize("recipe", ["fold", "int8-weights", "float16"])
def test_the_same_input_gives_the_same_bytes(product, tmp_path, recipe):
    found = []
    for threads in (1, 1, 2):
        target = tmp_path / f"{len(found)}.onnx"
        oc.compress(product, recipe=recipe, threads=threads).save(target)
        found.append(target.read_bytes())
    assert found[0] == found[1] == found[2]


def test_replayed_times_give_the_same_bytes(product, tmp_path):
    np.save(tmp_path / "d.npy", np.random.default_rng(1).standard_normal((24, 1, 64)).astype(np.float32))
    words = [sys.executable, "-m", "onnxcompress", "compress", str(product), "--recipe", "int8"]
    words += ["--data", "d.npy", "--force", "-q"]
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    for extra in (["-o", "a.onnx", "--json", "a.json"], ["-o", "b.onnx", "--timings", "a.json", "--threads", "2"]):
        subprocess.run([*words, *extra], cwd=tmp_path, env=environment, check=True, timeout=120)
    assert (tmp_path / "a.onnx").read_bytes() == (tmp_path / "b.onnx").read_bytes()


def test_two_runs_to_one_place_leave_one_whole_model(product, tmp_path):
    target = tmp_path / "out.onnx"
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    words = [sys.executable, "-m", "onnxcompress", "compress", str(product), "-o", str(target), "--force", "-q"]
    runs = [
        subprocess.Popen([*words, "--recipe", recipe, "--external-data", "always"], cwd=ROOT, env=environment)
        for recipe in ("fold", "float16")
    ]
    assert [run.wait(120) for run in runs] == [0, 0]
    onnx.checker.check_model(str(target))
    (location,) = {e.value for t in onnx.load(target, load_external_data=False).graph.initializer for e in t.external_data if e.key == "location"}  # fmt: skip  # noqa: E501
    assert (tmp_path / location).is_file()
    assert not [path for path in tmp_path.iterdir() if path.name.startswith(".")]


def test_two_splits_to_one_folder_leave_one_whole_model(product, tmp_path):
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    words = [
        sys.executable,
        "-m",
        "onnxcompress",
        "split",
        str(product),
        "-o",
        str(tmp_path / "parts"),
        "--force",
        "-q",
    ]
    runs = [subprocess.Popen([*words, "--parts", count], cwd=ROOT, env=environment) for count in ("1", "2")]
    assert [run.wait(120) for run in runs] == [0, 0]
    with oc.PartitionedModel(tmp_path / "parts") as parts:
        (found,) = parts.run(None, {"x": np.ones((1, 64), np.float32)})
    np.testing.assert_allclose(found, np.ones((1, 64), np.float32) @ WEIGHT @ WEIGHT.T, rtol=1e-3, atol=1e-3)
    stored = json.loads((tmp_path / "parts" / "manifest.json").read_text())
    assert {path.name for path in (tmp_path / "parts").iterdir()} == {"manifest.json", *stored["files"]}
    assert [path.name for path in tmp_path.iterdir() if path.name.startswith(".")] == []
