"""Region-wise proof: finds wrong rewrites, accepts right ones, also where inputs of a piece depend on each other."""

import subprocess
import sys

import numpy as np
import onnx_ir as ir
import pytest

from onnxcompress.graph import edit, query
from onnxcompress.io import model_io
from onnxcompress.verify.regions import RegionProof

TEXT = """
<ir_version: 8, opset_import: ["" : 17]>
g (float[n, 8] x) => (float[n, 8] y)
<float[8] a, float[8] b, float[8] c>
{
  p = Add(x, a)
  q1 = Relu(p)
  q2 = Relu(p)
  r = Mul(q1, b)
  s = Sub(q2, c)
  t = Sub(r, s)
  y = Mul(t, t)
}
"""
FEED = {"x": np.linspace(-1, 1, 16, dtype=np.float32).reshape(2, 8)}


def _model():
    model = ir.from_onnx_text(TEXT.replace("<float[8] a, float[8] b, float[8] c>", _weights()))
    return model_io.load(ir.to_proto(model))


def _weights():
    rng = np.random.default_rng(0)
    lines = [f"float[8] {name} = {{{', '.join(f'{v:.6f}' for v in rng.standard_normal(8))}}}" for name in "abc"]
    return f"<{', '.join(lines)}>"


def _node(model, output):
    return next(node for node in model.graph if node.outputs[0].name == output)


def _problem(candidate, *, lossless=True):
    proof = RegionProof(_model(), FEED, lossless=lossless)
    return proof.problem(candidate), proof.measured


def test_an_unchanged_model_needs_no_run():
    problem, measured = _problem(_model())
    assert problem is None
    assert measured.regions == 0


def test_a_changed_weight_is_found_and_named():
    model = _model()
    edit.set_weight(model.graph.initializers["b"], query.constant(model.graph.initializers["b"]) * 1.01)
    problem, _ = _problem(model)
    assert problem is not None
    assert problem.startswith("'r'")


def test_a_right_rewrite_is_accepted_after_running_only_its_region():
    model = _model()
    node = _node(model, "s")  # q2 - c = q2 + (-c)
    weight = edit.add_initializer(model.graph, edit.Names(model), "minus_c", -query.constant(node.inputs[1]))
    added = edit.insert_before(node, edit.Names(model), "Add", [node.inputs[0], weight])
    edit.replace_value(node.outputs[0], added.outputs[0])
    added.outputs[0].name, node.outputs[0].name = "s", None
    edit.remove_node(node)
    problem, measured = _problem(model)
    assert problem is None
    assert measured.regions == 1
    assert measured.peak_memory_bytes > 10_000_000


def test_equal_nodes_may_be_merged_although_their_values_are_drawn_apart():
    model = _model()
    edit.replace_node(_node(model, "q2"), [_node(model, "q1").outputs[0]])
    assert _problem(model)[0] is None


def test_merging_nodes_that_differ_is_found():
    model = _model()
    edit.replace_node(_node(model, "s"), [_node(model, "r").outputs[0]])
    assert _problem(model)[0] is not None


@pytest.mark.parametrize(("factor", "fine"), [(1.001, True), (3.0, False)])
def test_a_lossy_rewrite_is_measured_and_refused_only_when_it_is_broken(factor, fine):
    model = _model()
    edit.set_weight(model.graph.initializers["b"], query.constant(model.graph.initializers["b"]) * np.float32(factor))
    problem, measured = _problem(model, lossless=False)
    assert (problem is None) is fine
    if fine:
        assert measured.least_sqnr_db == pytest.approx(60, abs=0.1)  # an error of one in a thousand


def test_a_folded_region_may_become_a_constant():
    text = """
    <ir_version: 8, opset_import: ["" : 17]>
    g (float[n, 2] x) => (float[n, 2] y) <float[2] a = {1, 2}> { b = Neg(a) y = Mul(x, b) }
    """
    before = model_io.load(ir.to_proto(ir.from_onnx_text(text)))
    for values, fine in (([-1, -2], True), ([-1, 2], False)):
        after = model_io.clone(before)
        node = _node(after, "b")
        edit.replace_by_constant(node, edit.Names(after), [np.float32(values)])
        proof = RegionProof(before, {"x": np.ones((3, 2), np.float32)}, lossless=True)
        assert (proof.problem(after) is None) is fine


def test_large_weights_are_read_by_the_worker_where_they_lie(tmp_path, monkeypatch):
    rng = np.random.default_rng(0)
    model = ir.from_onnx_text(
        '<ir_version: 8, opset_import: ["" : 17]> g (float[n, 600] x, float[600, 600] w) => (float[n, 600] y)'
        "{ h = MatMul(x, w) y = Relu(h) }"
    )
    weight = next(v for v in model.graph.inputs if v.name == "w")
    model.graph.inputs.remove(weight)
    weight.const_value = ir.tensor(rng.standard_normal((600, 600)).astype(np.float32), name="w")
    model.graph.register_initializer(weight)
    model_io.save(model, tmp_path / "m.onnx")
    before = model_io.load(tmp_path / "m.onnx")
    written = []
    honest = model_io.save_scratch
    monkeypatch.setattr(
        model_io, "save_scratch", lambda piece, path: (honest(piece, path), written.append(path.stat()))
    )
    for factor, fine in ((1.0, True), (1.01, False)):
        after = model_io.clone(before)
        edit.set_weight(after.graph.initializers["w"], query.constant(before.graph.initializers["w"]) * factor)
        proof = RegionProof(before, {"x": np.ones((2, 600), np.float32)}, lossless=True)
        assert (proof.problem(after) is None) is fine
    sizes = [status.st_size for status in written]
    assert min(sizes) < 10_000  # the original's piece holds no weight
    assert max(sizes) > 600 * 600 * 4


def test_a_worker_imports_nothing_that_reads_models():
    names = "('onnx_ir', 'onnxcompress.graph.edit', 'onnxcompress.io.model_io', 'scipy')"
    code = f"import sys, onnxcompress.verify.region_worker; print([name for name in {names} if name in sys.modules])"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout == "[]\n"


@pytest.mark.parametrize(("step", "is_wrong"), [(0, False), (1, True)])
def test_a_change_of_whole_numbers_shows_in_the_values_behind_them(step, is_wrong):
    """The Gather reads the same names before and after; only the numbers that it looks up with are others."""
    text = """
    <ir_version: 8, opset_import: ["" : 17]>
    g (float[2, 8] x) => (float[2, 8] y) <int64 step = {%s}, float[4] t = {1, 2, 3, 4}>
    { n = Cast<to = 7>(x) i = %s f = Gather(t, i) y = Mul(f, x) }
    """
    before, after = (
        model_io.load(ir.to_proto(ir.from_onnx_text(text % (number, made))))
        for number, made in ((0, "Add(n, step)"), (step, "Add(step, n)"))
    )
    proof = RegionProof(before, {"x": np.linspace(0, 2.9, 16, dtype=np.float32).reshape(2, 8)}, lossless=True)
    problem = proof.problem(after)
    assert (problem is not None) == is_wrong
    assert is_wrong or proof.measured.regions == 1


@pytest.mark.parametrize(("reads", "is_right"), [("c", True), ("x", False)])
def test_what_does_not_run_is_unchanged_where_it_reads_the_same_under_another_name(reads, is_right):
    text = """
    <ir_version: 8, opset_import: ["" : 17, "my" : 1]>
    g (float[2, 4] x) => (float[2, 4] y) { c = Neg(x) i = Identity(c) m = my.Mystery(%s) y = Relu(m) }
    """
    before, after = (model_io.load(ir.to_proto(ir.from_onnx_text(text % name))) for name in ("i", reads))
    proof = RegionProof(before, {"x": np.zeros((2, 4), np.float32)}, lossless=True)
    assert (proof.problem(after) is None) == is_right
    assert proof.is_blind != is_right
