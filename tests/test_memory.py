"""Peak memory and results of commands on models that take the runtime or Python much of it."""

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from .trees import tree_ensemble

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")

MEASURE = """
import json, os, subprocess, sys, time

def tree(pid):
    found, pending = [], [pid]
    while pending:
        found.append(pending.pop())
        try:
            for task in os.listdir(f"/proc/{found[-1]}/task"):
                pending += map(int, open(f"/proc/{found[-1]}/task/{task}/children").read().split())
        except OSError:
            pass
    return found

def own_bytes(pid):
    try:
        line = next(line for line in open(f"/proc/{pid}/smaps_rollup") if line.startswith("Pss:"))
    except (OSError, StopIteration):
        return 0
    return int(line.split()[1]) * 1024

process, peak = subprocess.Popen(sys.argv[1:], stdout=subprocess.DEVNULL), 0
while process.poll() is None:
    peak = max(peak, sum(map(own_bytes, tree(process.pid))))
    time.sleep(0.02)
print(json.dumps([process.returncode, peak]))
"""


def peak_bytes(*words: str | Path) -> int:
    """Return the peak memory of a command of ours, of all its processes together, shared pages counted once."""
    command = [sys.executable, "-c", MEASURE, sys.executable, "-m", "onnxcompress", *map(str, words)]
    done = subprocess.run(command, check=True, capture_output=True, text=True, timeout=600)
    code, peak = json.loads(done.stdout)
    assert code == 0, done.stderr
    return int(peak)


def wide_network(size: int, *, channels: int, layers: int, batch: int | str = 1) -> onnx.ModelProto:
    """Return convolutions [batch, 3, size, size] -> [batch, channels, 1, 1] of few weights and large activations."""
    rng = np.random.default_rng(0)
    nodes, weights, value, count = [], [], "x", 3
    for layer in range(layers):
        weight = rng.normal(0, np.sqrt(2 / count), (channels, count, 1, 1)).astype(np.float32)
        weights.append(numpy_helper.from_array(weight, f"w{layer}"))
        nodes.append(helper.make_node("Conv", [value, f"w{layer}"], [f"c{layer}"], name=f"conv{layer}"))
        nodes.append(helper.make_node("Relu", [f"c{layer}"], [f"r{layer}"], name=f"relu{layer}"))
        value, count = f"r{layer}", channels
    nodes.append(helper.make_node("GlobalAveragePool", [value], ["pooled"]))
    nodes.append(helper.make_node("Identity", ["pooled"], ["y"]))
    graph = helper.make_graph(
        nodes,
        "wide",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, [batch, 3, size, size])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, [batch, channels, 1, 1])],
        weights,
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)


def test_fold_of_a_large_tree_ensemble_takes_what_one_session_takes(tmp_path):
    path = tmp_path / "trees.onnx"
    onnx.save(tree_ensemble(trees=480), path)
    assert 19e6 < path.stat().st_size < 21e6
    peak = peak_bytes("compress", path, "-o", tmp_path / "out.onnx", "--recipe", "fold", "-q")
    folded = onnx.load(tmp_path / "out.onnx")
    assert [node.op_type for node in folded.graph.node] == ["TreeEnsembleClassifier"]
    assert peak < 720e6  # 600 MB; 880 MB where sessions and Python lists are kept


def test_a_model_is_loaded_without_the_lists_of_its_trees(tmp_path):
    path = tmp_path / "trees.onnx"
    onnx.save(tree_ensemble(trees=480), path)
    code = (
        "import resource, sys\n"
        "from onnxcompress.io import model_io\n"
        "before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss\n"
        "model_io.clone(model_io.load(sys.argv[1]))\n"
        "print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before)\n"
    )
    done = subprocess.run([sys.executable, "-c", code, str(path)], check=True, capture_output=True, text=True)
    assert int(done.stdout) * 1024 < 60e6  # 30 MB for one list at a time; all as Python objects take 300 MB


def test_fold_of_a_network_of_large_activations_takes_the_memory_of_one_run(tmp_path):
    path = tmp_path / "wide.onnx"
    onnx.save(wide_network(512, channels=48, layers=6), path)  # two values of a run take 100 MB
    peak = peak_bytes("compress", path, "-o", tmp_path / "out.onnx", "--recipe", "fold", "-q")
    assert len(onnx.load(tmp_path / "out.onnx").graph.node) == 13
    assert peak < 560e6  # 410 MB; 780 MB where sessions keep the memory of their runs


def test_int8_joins_fewer_samples_of_large_activations(tmp_path):
    path = tmp_path / "wide.onnx"
    onnx.save(wide_network(128, channels=48, layers=8, batch="N"), path)  # the values of a sample take 50 MB
    samples = np.random.default_rng(1).standard_normal((48, 3, 128, 128)).astype(np.float32)
    np.savez(tmp_path / "samples.npz", x=samples)
    words = (
        "compress",
        path,
        "-o",
        tmp_path / "out.onnx",
        "--recipe",
        "int8",
        "--data",
        tmp_path / "samples.npz",
        "-q",
    )
    assert peak_bytes(*words) < 700e6  # 470 MB; 1120 MB where 16 samples are joined


@pytest.mark.parametrize(
    ("words", "most"),
    [
        pytest.param(["int4-weights"], 850e6, id="int4-weights"),
        pytest.param(
            ["prune", "--set", "prune-channels.keep_macs=0.7", "--set", "prune-channels.distill_steps=0"],
            950e6,
            id="prune",
        ),
    ],
)
def test_refits_and_channel_choices_stream_samples_of_large_activations(tmp_path, words, most):
    path = tmp_path / "wide.onnx"
    onnx.save(wide_network(160, channels=48, layers=4, batch="N"), path)  # one value of a sample takes 4.9 MB
    samples = np.random.default_rng(1).standard_normal((40, 3, 160, 160)).astype(np.float32)
    np.savez(tmp_path / "samples.npz", x=samples)
    command = ("compress", path, "-o", tmp_path / "out.onnx", "--data", tmp_path / "samples.npz", "-q", "--recipe")
    assert peak_bytes(*command, *words) < most  # 630 and 700 MB; 1250 and 1330 MB where all samples are joined
    assert (tmp_path / "out.onnx").stat().st_size < path.stat().st_size
