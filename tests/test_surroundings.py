"""Where commands run: read-only inputs, odd names, recipes from elsewhere, no network."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import helper, numpy_helper

ROOT = Path(__file__).parent.parent
WEIGHT = np.random.default_rng(0).standard_normal((64, 64)).astype(np.float32)

NO_NETWORK = """
import sys
def refuse(event, args):
    if event in ("socket.getaddrinfo", "socket.gethostbyname", "urllib.Request"):
        raise AssertionError("the network was used")
    if event in ("socket.connect", "socket.bind", "socket.sendto") and isinstance(args[1], tuple):
        raise AssertionError("the network was used")
sys.addaudithook(refuse)
open(sys.path[0] + "/seen", "a").write(".")
"""
"""A `sitecustomize.py`: in every Python process that is started, workers too."""


@pytest.fixture
def model(tmp_path):
    path = tmp_path / "modèles à moi" / "ein Modell ö ✓.onnx"
    path.parent.mkdir()
    info = [helper.make_tensor_value_info(name, 1, [1, 64]) for name in "xy"]
    nodes = [helper.make_node("MatMul", ["x", "w"], ["y"], name="n")]
    graph = helper.make_graph(nodes, "g", info[:1], info[1:], [numpy_helper.from_array(WEIGHT, "w")])
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8), path)
    return path


def _run(*words, cwd, path=ROOT):
    environment = os.environ | {"PYTHONPATH": str(path)}
    command = [sys.executable, "-m", "onnxcompress", *map(str, words)]
    return subprocess.run(command, cwd=cwd, env=environment, capture_output=True, text=True, check=False, timeout=120)


COMMANDS = {
    "weights": ["compress {m} -o out.onnx --recipe int8-weights --report r.html --json r.json"],
    "data": ["compress {m} -o out.onnx --recipe int8 --data d.npy --workers 2"],
    "regions": ["compress {m} -o out.onnx --recipe fold --verify regions"],
    "parts": ["split {m} -o parts --parts 2", "run parts --data d.npy"],
    "archive": ["compress {m} -o out.onnxpack --pack --recipe fold", "unpack out.onnxpack -o out.onnx"],
    "others": ["inspect {m}", "compare {m} {m}"],
}


@pytest.mark.parametrize("kind", COMMANDS)
def test_no_network_is_used(model, tmp_path, kind):
    hook = tmp_path / "hook"
    hook.mkdir()
    (hook / "sitecustomize.py").write_text(NO_NETWORK.replace("sys.path[0]", repr(str(hook))))
    np.save(tmp_path / "d.npy", np.random.default_rng(1).standard_normal((8, 1, 64)).astype(np.float32))
    for line in COMMANDS[kind]:
        words = [word.format(m=model) for word in line.split(" ")]
        done = _run(*words, cwd=tmp_path, path=os.pathsep.join([str(hook), str(ROOT)]))
        assert done.returncode == 0, done.stderr
        assert "the network was used" not in done.stderr
    assert (hook / "seen").read_text()
    if kind == "weights":
        page = (tmp_path / "r.html").read_text().replace("http://www.w3.org/", "")
        assert "http://" not in page
        assert "https://" not in page


def test_the_hook_would_see_the_network(tmp_path):
    (tmp_path / "sitecustomize.py").write_text(NO_NETWORK.replace("sys.path[0]", repr(str(tmp_path))))
    code = "import urllib.request; urllib.request.urlopen('http://localhost:9/')"
    done = subprocess.run(
        [sys.executable, "-c", code],
        env=os.environ | {"PYTHONPATH": str(tmp_path)},
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
    )
    assert "the network was used" in done.stderr


def test_odd_names_and_a_recipe_with_windows_line_ends(model):
    recipe = model.with_name("mein Rezept ß.toml")
    recipe.write_bytes(b'[[passes]]\r\nname = "quantize-weights"\r\nmin_elements = 16\r\n')
    words = ("compress", model.name, "-o", "Ergebnis ü.onnx", "--recipe", recipe.name, "--external-data", "always")
    done = _run(*words, cwd=model.parent)
    assert done.returncode == 0, done.stderr
    result = onnx.load(model.with_name("Ergebnis ü.onnx"))
    assert onnx.TensorProto.INT8 in [tensor.data_type for tensor in result.graph.initializer]


def test_the_input_and_its_folder_may_be_read_only(model, tmp_path):
    before = model.read_bytes()
    model.chmod(0o444)
    model.parent.chmod(0o555)
    try:
        done = _run("compress", model, "-o", tmp_path / "out.onnx", "--recipe", "fold", cwd=tmp_path)
        assert (done.returncode, done.stderr) == (0, "")
        assert [path.name for path in model.parent.iterdir()] == [model.name]
        assert model.read_bytes() == before
        if os.geteuid():
            refused = _run("compress", model, "--recipe", "fold", cwd=tmp_path)
            assert refused.returncode == 3
            assert len(refused.stderr.splitlines()) == 1
    finally:
        model.parent.chmod(0o755)
