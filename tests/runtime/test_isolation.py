"""A model that makes the runtime crash or hang ends in one line, or in a rewrite that is taken back by name."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import onnx
import onnx.parser
import psutil
import pytest
from onnx import TensorProto, helper, numpy_helper

import onnxcompress as oc
from onnxcompress.base import host
from onnxcompress.errors import ModelError, StuckError
from onnxcompress.io import model_io
from onnxcompress.runtime import isolation
from onnxcompress.runtime import session as runtime
from onnxcompress.runtime.isolation import current, isolated
from onnxcompress.runtime.loaded_model import LoadedModel
from onnxcompress.runtime.profiles import profile
from onnxcompress.runtime.remote_session import RemoteSession

ROOT = Path(__file__).parents[2]
LEAST = np.full(3, -(2**31), np.int32)
"""Divided by -1, this ends onnxruntime's process with SIGFPE."""

CRASHING = """
import numpy as np
import onnx_graphsurgeon as gs

def crash(graph):
    least = gs.Constant("least", np.full(3, -2**31, np.int32))
    quotient = gs.Variable("quotient", np.int32, [3])
    graph.nodes.insert(0, gs.Node("Div", name="quotient", inputs=[least, graph.nodes[0].inputs[1]], outputs=[quotient]))
    graph.nodes[1].inputs[1] = quotient
    return graph
"""
RECIPE = '[[passes]]\nname = "surgery"\n[[passes]]\nname = "remove-noops"\n'


def _model(nodes, initializers, *, inputs=(("x", 6, [3]),), outputs=(("y", 6, [3]),)):
    graph = helper.make_graph(
        nodes,
        "g",
        [helper.make_tensor_value_info(*each) for each in inputs],
        [helper.make_tensor_value_info(*each) for each in outputs],
        [numpy_helper.from_array(array, name) for name, array in initializers.items()],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)


@pytest.fixture
def divides(tmp_path):
    """A model that runs: its divisor is -1, its dividend the input."""
    nodes = [
        helper.make_node("Mul", ["x", "minus"], ["m"], name="product"),
        helper.make_node("Identity", ["m"], ["i"], name="noop"),
        helper.make_node("Add", ["i", "minus"], ["y"], name="sum"),
    ]
    path = tmp_path / "divides.onnx"
    onnx.save(_model(nodes, {"minus": np.full(3, -1, np.int32)}), path)
    return path


def _crashing():
    nodes = [helper.make_node("Sub", ["x", "x"], ["o"]), helper.make_node("Add", ["o", "least"], ["l"])]
    nodes.append(helper.make_node("Div", ["l", "minus"], ["y"], name="quotient"))
    return _model(nodes, {"least": LEAST, "minus": np.full(3, -1, np.int32)})


def _endless():
    scalars = [helper.make_tensor_value_info(name, kind, []) for name, kind in (("i", 7), ("go", 9), ("a", 1))]
    after = [helper.make_tensor_value_info(name, kind, []) for name, kind in (("go2", 9), ("a2", 1))]
    nodes = [helper.make_node("Identity", ["go"], ["go2"]), helper.make_node("Add", ["a", "a"], ["a2"])]
    body = helper.make_graph(nodes, "body", scalars, after)
    loop = [helper.make_node("Loop", ["rounds", "", "x"], ["y"], body=body, name="loop")]
    rounds = {"rounds": np.array(2**62)}
    return _model(loop, rounds, inputs=[("x", TensorProto.FLOAT, [])], outputs=[("y", TensorProto.FLOAT, [])])


def _run(*args, cwd, timeout=60):
    environment = os.environ | {"PYTHONPATH": f"{ROOT}{os.pathsep}{cwd}"}
    command = [sys.executable, "-m", "onnxcompress", *map(str, args)]
    return subprocess.run(
        command, cwd=cwd, env=environment, capture_output=True, text=True, check=False, timeout=timeout
    )


def test_an_original_that_crashes_is_proved_by_regions_where_that_is_enough(tmp_path):
    onnx.save(_crashing(), tmp_path / "m.onnx")
    done = _run("compress", "m.onnx", "-o", "out.onnx", "--recipe", "float16", "--json", "r.json", cwd=tmp_path)
    assert (done.returncode, done.stderr) == (0, "")
    assert "was killed by SIGFPE" in json.loads((tmp_path / "r.json").read_text())["notes"][0]


def test_an_original_that_crashes_is_refused_in_one_line(tmp_path):
    onnx.save(_crashing(), tmp_path / "m.onnx")
    np.save(tmp_path / "d.npy", np.zeros((2, 3), np.int32))
    done = _run("run", "m.onnx", "--data", "d.npy", "-o", "out.npz", cwd=tmp_path)
    assert done.returncode == 3, done.stderr
    assert "was killed by SIGFPE" in done.stderr
    assert len(done.stderr.splitlines()) == 1
    assert not (tmp_path / "out.npz").exists()


def test_a_rewrite_that_crashes_is_taken_back_and_named(tmp_path, divides):
    (tmp_path / "mine.py").write_text(CRASHING)
    (tmp_path / "r.toml").write_text(RECIPE)
    words = ("compress", divides, "-o", "out.onnx", "--recipe", "r.toml", "--json", "r.json")
    done = _run(*words, "--set", "surgery.function=mine:crash", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    report = json.loads((tmp_path / "r.json").read_text())
    (lost,) = [change for change in report["changes"] if change["action"] == "rolled-back"]
    assert lost["pass"] == "surgery"
    assert "SIGFPE" in lost["reason"]
    assert "Div" not in [node.op_type for node in onnx.load(tmp_path / "out.onnx").graph.node]


def test_a_model_that_never_ends_is_left_alone(tmp_path):
    onnx.save(_endless(), tmp_path / "m.onnx")
    started = time.monotonic()
    done = _run("compress", "m.onnx", "-o", "out.onnx", "--recipe", "fold", cwd=tmp_path)
    assert (done.returncode, done.stderr) == (0, "")
    assert "did not end within 2 s" in done.stdout
    assert time.monotonic() - started < 30
    assert onnx.load(tmp_path / "out.onnx").graph.node[0].op_type == "Loop"


def test_a_session_apart_gives_the_same(divides):
    feed = {"x": np.arange(3, dtype=np.int32)}
    here = runtime.open_session(divides, optimize=False)
    with isolated("apart"):
        there = runtime.open_session(divides.read_bytes(), optimize=False)
        part = runtime.open_part(divides, optimize=False, threads=1, pack=True)
    for other in (there, part):
        assert (here.inputs, here.outputs) == (other.inputs, other.outputs)
        np.testing.assert_array_equal(here.run(feed)["y"], other.run(feed)["y"])
        with pytest.raises(ModelError, match="can't run the model"):
            other.run({"x": np.zeros(4, np.int32)})
    assert current() == "none"


def test_looking_at_a_model_apart(divides):
    feed = {"x": np.arange(3, dtype=np.int32)}
    with isolated("apart"):
        assert {row[1] for row in profile(divides, feed, runs=1)} >= {"Mul", "Add"}
        assert runtime.optimized_nodes(divides) == runtime.optimized_nodes(divides.read_bytes()) == ["Mul", "Add"]


@pytest.mark.parametrize(("most", "is_apart"), [(1, True), (100, False)])
def test_sessions_of_very_many_nodes_live_apart(monkeypatch, divides, most, is_apart):
    monkeypatch.setattr(isolation, "MANY_NODES", most)
    opened = LoadedModel(model_io.load(divides))
    feed = {"x": np.arange(3, dtype=np.int32)}
    for session in (opened.plain, opened.fast):
        assert isinstance(session._session, RemoteSession) == is_apart
        np.testing.assert_array_equal(
            session.run(feed)["y"], runtime.open_session(divides, optimize=False).run(feed)["y"]
        )
    assert oc.inspect(divides).time_by_type


def test_a_session_apart_dies_alone(tmp_path):
    with isolated("apart"):
        session = runtime.open_session(_crashing().SerializeToString(), optimize=False)
    with pytest.raises(ModelError, match="was killed by SIGFPE"):
        session.run({"x": np.zeros(3, np.int32)})
    with pytest.raises(ModelError, match="has ended before"):
        session.run({"x": np.zeros(3, np.int32)})


@pytest.mark.parametrize("kind", ["none", "apart"])
def test_a_run_ends_when_its_time_is_up(kind):
    with isolated(kind):
        session = runtime.open_session(_endless().SerializeToString(), optimize=False)
    started = time.monotonic()
    with pytest.raises(StuckError, match="did not end within 1 s"):
        session.run({"x": np.array(1, np.float32)}, max_seconds=0.6)
    assert time.monotonic() - started < 10


SUPERVISED = """
import os, signal, sys, time
from onnxcompress.cli.supervised import ChildDiedError, supervised
def work(kind):
    print(kind, os.getpid(), flush=True)
    {}
try:
    code = supervised(work)
except ChildDiedError as death:
    print(death, flush=True)
    code = 99
sys.exit(code)
"""


def _supervised(work):
    return subprocess.Popen(
        [sys.executable, "-c", SUPERVISED.format(work)],
        cwd=ROOT,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


@pytest.mark.parametrize(
    ("work", "code", "kinds", "says"),
    [
        ("return 7", 7, ["expendable"], ""),
        ("os.abort() if kind == 'expendable' else None; return 3", 3, ["expendable", "apart"], ""),
        ("os.kill(os.getpid(), signal.SIGSEGV)", 99, ["expendable", "apart"], "was killed by SIGSEGV"),
        ("os.kill(os.getpid(), signal.SIGKILL)", 99, ["expendable"], "was killed by SIGKILL"),
        ("sys.exit(5)", 5, ["expendable"], ""),
        ("import atexit; atexit.register(os.abort); return 4", 4, ["expendable"], ""),
    ],
)
def test_work_under_supervision(work, code, kinds, says):
    process = _supervised(work)
    out, err = process.communicate(timeout=30)
    assert process.returncode == code, err
    assert [line.split()[0] for line in out.splitlines() if line.split()[0] in ("expendable", "apart")] == kinds
    assert says in out


def test_no_supervision_where_the_runtime_is_loaded():
    from onnxcompress.cli.supervised import supervised

    assert supervised(lambda kind: {"none": 8}[kind]) == 8


def test_a_child_gets_the_signals_of_its_parent():
    process = _supervised(
        "signal.signal(signal.SIGTERM, lambda *_: os._exit(44)); print('on', flush=True); "
        "[time.sleep(0.05) for _ in range(600)]"  # a signal that comes just before a sleep waits for its end
    )
    process.stdout.readline()
    process.stdout.readline()
    process.send_signal(signal.SIGTERM)
    process.communicate(timeout=30)
    assert process.returncode == 44


def test_a_child_dies_with_its_parent():
    process = _supervised("time.sleep(60)")
    child = psutil.Process(int(process.stdout.readline().split()[1]))
    process.kill()
    process.communicate(timeout=30)
    psutil.wait_procs([child], timeout=10)
    assert not child.is_running() or child.status() == psutil.STATUS_ZOMBIE


@pytest.mark.skipif(sys.platform != "linux", reason="memory is limited on Linux")
def test_a_session_apart_that_takes_too_much_memory_is_refused(monkeypatch):
    """Without a limit the machine would be out of memory, and whatever it ended next."""
    text = """
    <ir_version: 8, opset_import: ["" : 17]>
    g (int64[1] n) => (float[m] y) { s = ConstantOfShape(n) c = Cos(s) y = Exp(c) }
    """
    monkeypatch.setattr(host, "spare_memory_bytes", lambda: 600_000_000)
    with isolated("apart"):
        session = runtime.open_session(onnx.parser.parse_model(text).SerializeToString(), optimize=False)
    assert session.run({"n": np.array([1000])})["y"].shape == (1000,)
    with pytest.raises(ModelError, match=r"memory|alloc"):
        session.run({"n": np.array([1_000_000_000])})
