"""Parts too large to be run as a whole: they are joined, and what holds weights is run piece by piece."""

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from onnx import TensorProto, helper, numpy_helper

import onnxcompress as oc
from onnxcompress.base import size_limits
from onnxcompress.errors import ModelError
from onnxcompress.io import model_io
from onnxcompress.partition import check, manifest
from onnxcompress.runtime import isolation
from onnxcompress.runtime.remote_session import RemoteSession
from tests.helpers import floats, from_text

LAYERS = 4


@pytest.fixture(autouse=True)
def _everything_is_large(monkeypatch):
    monkeypatch.setattr(size_limits, "RUN_BYTES", 0)


def _model(bump=0.0):
    """Return float [2, 32] -> MatMul, Add, Tanh, ... of which two layers share a weight."""
    nodes, weights = [], {}
    for i in range(LAYERS):
        weight = f"w{i % 3}"
        weights[weight] = floats(32, 32, seed=i % 3) / 4
        weights["b"] = floats(32, seed=9)
        nodes += [
            helper.make_node("MatMul", [f"h{i}", weight], [f"m{i}"]),
            helper.make_node("Add", [f"m{i}", "b"], [f"a{i}"]),
            helper.make_node("Tanh", [f"a{i}"], [f"h{i + 1}"]),
        ]
    weights["w1"] = weights["w1"] + bump
    graph = helper.make_graph(
        nodes,
        "g",
        [helper.make_tensor_value_info("h0", TensorProto.FLOAT, [2, 32])],
        [helper.make_tensor_value_info(f"h{LAYERS}", TensorProto.FLOAT, [2, 32])],
        [numpy_helper.from_array(array, name) for name, array in weights.items()],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)


def test_large_parts_are_proved_piece_by_piece(tmp_path):
    found = oc.split(_model(), tmp_path / "parts", parts=3)
    assert len(found.manifest.parts) == 3
    assert any("too large to be run" in note for note in found.notes)


def test_a_wrong_weight_in_a_part_is_found(tmp_path):
    oc.split(_model(bump=0.01), tmp_path / "parts", parts=3)
    whole, feed = model_io.load(_model()), {"h0": floats(2, 32)}
    stored = manifest.read(tmp_path / "parts")
    with pytest.raises(ModelError, match=r"something else.*'h2'|something else.*'[ma]1'"):
        check.proved(whole, tmp_path / "parts", stored, feed, is_synthetic=True)
    whole = model_io.load(_model(bump=0.01))
    assert check.proved(whole, tmp_path / "parts", stored, feed, is_synthetic=True)


def test_what_does_not_run_is_told_and_with_real_data_an_error(tmp_path):
    model = from_text(
        """
        g (float[2, 3] x) => (float[2, 3] y)
        <int64[3] big = {7, 8, 9}, float[3] t = {1, 2, 3}> { b = Gather(t, big) m = Mul(x, b) y = Tanh(m) }
        """
    )
    parts = tmp_path / "parts"
    parts.mkdir()
    model_io.save(model_io.load(model), parts / "part-000.onnx")
    whole, stored = model_io.load(model), _manifest_of("part-000.onnx")
    feed = {"x": floats(2, 3)}
    whole.graph.initializers["t"].const_value = ir.tensor(np.array([1, 2, 4], np.float32), name="t")
    (note,) = check.proved(whole, parts, stored, feed, is_synthetic=True)
    assert note.startswith("the parts were not proved")
    with pytest.raises(ModelError, match="does not run"):
        check.proved(whole, parts, stored, feed, is_synthetic=False)


def _manifest_of(file):
    part = manifest.Part(
        file=file,
        data=[],
        inputs=["x"],
        outputs=["y"],
        optional_inputs=[],
        nodes=3,
        macs=None,
        weight_bytes=0,
        largest_bytes=0,
        peak_bytes=1,
        packs=False,
    )
    return manifest.Manifest(
        model="m", sizes={}, peak_bytes=1, cut_bytes=0, inputs=[], outputs=[], values=[], parts=[part], files={}
    )


def test_parts_are_joined_with_bodies_functions_defaults_and_early_outputs(tmp_path):
    model = from_text(
        """
        g (float[2] x, bool c) => (float[2] early, float[2] x, float[2] k, float[2] y)
        <float[2] k = {1, 2}>
        {
          early = Neg(x)
          a = Exp(early)
          b = If(c)<
            then_branch = t () => (float[2] p) { p = Add(a, k) }, else_branch = e () => (float[2] o) { o = Abs(a) }
          >
          y = Add(b, k)
        }
        """
    )
    oc.split(model, tmp_path / "parts", parts=4)
    whole = model_io.load(model)
    parts = [model_io.load(tmp_path / "parts" / f"part-{i:03d}.onnx") for i in range(4)]
    joined = check.join(parts, whole)
    onnx.checker.check_model(model_io.to_bytes(joined))
    assert [v.name for v in joined.graph.outputs] == ["early", "x", "k", "y"]
    assert [v.name for v in joined.graph.inputs] == ["x", "c"]
    assert [v.name for v in joined.graph.initializers.values()] == ["k"]
    assert len(joined.graph) == len(whole.graph)
    assert np.array_equal(joined.graph.initializers["k"].const_value.numpy(), [1, 2])


@pytest.mark.parametrize(("most", "is_apart"), [(2, True), (1000, False)])
def test_sessions_of_very_many_nodes_live_apart(tmp_path, monkeypatch, most, is_apart):
    monkeypatch.setattr(size_limits, "RUN_BYTES", 1 << 30)
    monkeypatch.setattr(isolation, "MANY_NODES", most)
    made = []
    start = RemoteSession.__init__
    monkeypatch.setattr(RemoteSession, "__init__", lambda self, *given: made.append(1) or start(self, *given))
    oc.split(_model(), tmp_path / "parts", parts=2)
    assert (len(made) >= 3) == is_apart  # to find inputs, the parts, and the whole to compare with
    assert is_apart or not made
