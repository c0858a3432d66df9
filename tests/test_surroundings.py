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
import socket, sys
def refuse(*_, **__):
    raise AssertionError("the network was used")
socket.socket.connect = socket.socket.connect_ex = socket.getaddrinfo = refuse
from onnxcompress.cli import main
main()
"""


@pytest.fixture
def model(tmp_path):
    path = tmp_path / "modèles à moi" / "ein Modell ö ✓.onnx"
    path.parent.mkdir()
    info = [helper.make_tensor_value_info(name, 1, [1, 64]) for name in "xy"]
    nodes = [helper.make_node("MatMul", ["x", "w"], ["y"], name="n")]
    graph = helper.make_graph(nodes, "g", info[:1], info[1:], [numpy_helper.from_array(WEIGHT, "w")])
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8), path)
    return path


def _run(*words, cwd, code=None):
    start = ["-m", "onnxcompress"] if code is None else ["-c", code]
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    command = [sys.executable, *start, *map(str, words)]
    return subprocess.run(command, cwd=cwd, env=environment, capture_output=True, text=True, check=False, timeout=120)


def test_no_network_is_used(model):
    words = ("compress", model, "-o", "out.onnx", "--recipe", "int8-weights", "--report", "r.html", "--json", "r.json")
    done = _run(*words, cwd=model.parent, code=NO_NETWORK)
    assert (done.returncode, done.stderr) == (0, "")
    page = (model.parent / "r.html").read_text().replace("http://www.w3.org/", "")
    assert "http://" not in page
    assert "https://" not in page


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
