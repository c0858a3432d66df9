"""A sample of `tools/sweep.py`: networks at random, and real ones, through every shipped recipe."""

from __future__ import annotations

import importlib
import sys
from pathlib import Path

import onnx
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx import TensorProto, helper, numpy_helper

from onnxcompress.jobs import compress as compress_job
from onnxcompress.ops import table as ops
from onnxcompress.recipe import shipped

TOOLS = Path(__file__).parents[2] / "tools"
FINE = ("applied", "unchanged", "refused", "rolled back", "over limit")
SIMPLE = Path(onnx.__file__).parent / "backend" / "test" / "data" / "simple"
UNARY = sorted(ops.SAME_SHAPE)


@pytest.fixture(scope="module")
def tools():
    sys.path.insert(0, str(TOOLS))
    yield importlib.import_module("sweep"), importlib.import_module("hardening.generate")
    sys.path.remove(str(TOOLS))


@pytest.mark.filterwarnings("ignore")
@settings(max_examples=12, deadline=None, derandomize=True, database=None)
@given(seed=st.integers(0, 10_000), recipe=st.sampled_from(sorted(shipped())))
def test_generated_networks(tools, tmp_path_factory, seed, recipe):
    sweep, generate = tools
    path = tmp_path_factory.mktemp("sweep") / "m.onnx"
    onnx.save(generate.model(seed, UNARY), path)
    onnx.checker.check_model(str(path), full_check=True)
    found = sweep.judge(path, None, recipe)
    assert found["outcome"] in FINE, found


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("recipe", sorted(shipped()))
def test_a_model_of_the_onnx_package(tools, recipe):
    names = sorted(path.name for path in SIMPLE.iterdir() if "sequence" not in path.name)
    chosen = names[sorted(shipped()).index(recipe) % len(names)]
    found = tools[0].judge(SIMPLE / chosen / "model.onnx", None, recipe)
    assert found["outcome"] in (*FINE, "not run"), found


def test_what_is_wrong_is_called_so(tools, tmp_path, monkeypatch):
    weight = helper.make_tensor("w", TensorProto.FLOAT, [4], [1.0, 2.0, 3.0, 4.0])
    values = [helper.make_tensor_value_info(name, 1, [4]) for name in "xy"]
    graph = helper.make_graph([helper.make_node("Mul", ["x", "w"], ["y"])], "g", values[:1], values[1:], [weight])
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    onnx.save(model, tmp_path / "m.onnx")
    assert tools[0].judge(tmp_path / "m.onnx", None, "fold")["outcome"] == "unchanged"

    def spoil(*args, **options):
        changed = onnx.ModelProto.FromString(model.SerializeToString())
        changed.graph.initializer[0].CopyFrom(numpy_helper.from_array(numpy_helper.to_array(weight) * 1.5, "w"))
        return real(changed, **options)

    real = compress_job.compress
    monkeypatch.setattr(compress_job, "compress", spoil)
    assert tools[0].judge(tmp_path / "m.onnx", None, "fold")["outcome"] == "wrong"
