"""What is made of a model once is made once; proofs and timing share it."""

import numpy as np
import onnx_ir as ir
import pytest

import onnxcompress as oc
from onnxcompress.data import synthetic
from onnxcompress.errors import ModelError
from onnxcompress.io import model_io
from onnxcompress.runtime import session as runtime
from onnxcompress.runtime.latency import glance, race
from onnxcompress.runtime.loaded_model import LoadedModel
from onnxcompress.shapes import count as counting
from onnxcompress.shapes import resolve
from onnxcompress.verify.whole import WholeProof

TEXT = """
<ir_version: 8, opset_import: ["" : 17]>
g (float[n, 3] x) => (float[n, 3] y)
<float[3] a = {1, 2, 3}>
{
  p = Identity(x)
  y = Add(p, a)
}
"""
FEED = {"x": np.arange(6, dtype=np.float32).reshape(2, 3)}


def _model(text=TEXT):
    return model_io.load(ir.to_proto(ir.from_onnx_text(text)))


@pytest.fixture
def opened_sessions(monkeypatch):
    """Return the list to which every session that is opened adds its optimization."""
    seen = []
    real = runtime.open_session

    def counted(model, *, optimize, **options):
        seen.append(optimize)
        return real(model, optimize=optimize, **options)

    monkeypatch.setattr(runtime, "open_session", counted)
    return seen


def test_bytes_and_sessions_are_made_once(opened_sessions):
    opened = LoadedModel(_model())
    assert opened.plain is opened.plain
    assert opened.fast is opened.fast
    assert opened.data is opened.data
    assert opened.size_bytes == len(opened.data) == model_io.model_bytes(opened.model)
    assert opened_sessions == [False, True]


def test_the_optimized_session_has_the_threads():
    opened = LoadedModel(_model(), threads=2)
    assert (opened.plain.threads, opened.fast.threads) == (1, 2)


def test_a_failure_names_the_path(tmp_path):
    broken = _model(TEXT.replace("Identity", "custom.Op").replace('[""', '["custom" : 1, ""'))
    path = tmp_path / "broken.onnx"
    with pytest.raises(ModelError) as error:
        _ = LoadedModel(broken, path).plain
    assert error.value.where == str(path)


def test_a_fold_opens_original_and_result_twice_each(opened_sessions):
    result = oc.compress(ir.to_proto(ir.from_onnx_text(TEXT)), recipe="fold")
    assert [node.op_type for node in result.model.graph] == ["Add"]
    assert sorted(opened_sessions) == [False, False, True, True]


def test_a_fold_that_changes_nothing_opens_the_original_only(opened_sessions):
    folded = oc.compress(ir.to_proto(ir.from_onnx_text(TEXT)), recipe="fold").model
    opened_sessions.clear()
    again = oc.compress(folded, recipe="fold")
    assert sorted(opened_sessions) == [False, True]
    assert again.report.latency["ratio"] == 1.0
    assert again.report.quality["drop"] == 0.0


def test_the_proof_hands_over_the_candidate_that_it_judged_last():
    model = _model()
    proof = WholeProof(model, [FEED], lossless=True)
    assert proof.problem(model) is None
    assert proof.proved is not None
    assert proof.proved.model is model
    wrong = _model(TEXT.replace("{1, 2, 3}", "{1, 2, 4}"))
    assert "'y'" in proof.problem(wrong)


def test_a_reference_that_is_given_is_the_one_that_is_run():
    wrong = _model(TEXT.replace("{1, 2, 3}", "{1, 2, 4}"))
    proof = WholeProof(wrong, [FEED], lossless=True, reference=LoadedModel(_model()))
    assert proof.problem(_model()) is None
    assert "'y'" in proof.problem(wrong)


def test_a_glance_is_short_and_a_model_against_itself_is_timed_once():
    session = LoadedModel(_model()).fast
    assert glance(session, session, FEED, max_seconds=100) is None  # it never ran: nobody knows how long that takes
    session.run(FEED)
    assert glance(session, session, FEED, max_seconds=0.0) is None
    found = glance(session, session, FEED, max_seconds=20)
    assert (found.ratio, found.ratio_interval) == (1.0, (1.0, 1.0))
    assert found.original_ms == found.compressed_ms > 0
    other = LoadedModel(_model()).fast
    assert race(session, other, FEED, least_pairs=1, max_seconds=0.0).runs == 1
    assert race(session, other, FEED, max_seconds=0.0).runs == 3


def test_shapes_that_only_a_run_would_show_and_that_nothing_needs_are_not_looked_for():
    model = _model('<ir_version: 8, opset_import: ["" : 17]> g (float[2, 3] x) => (float[2, 3] y) { y = Relu(x) }')
    assert resolve.look(model, FEED, counting._touched(model, frozenset({"none"}))) == {}


def test_feeds_of_many_floats_are_not_repeated_with_another_seed():
    def feeds(text):
        model = _model(text)
        return synthetic.runnable_feeds(model, LoadedModel(model).plain, seed=0, count=2)

    header = '<ir_version: 8, opset_import: ["" : 17]> g '
    assert len(feeds(header + "(float[2, 3] x) => (float[2, 3] y) { y = Relu(x) }")) == 2
    assert len(feeds(header + "(float[100, 100] x) => (float[100, 100] y) { y = Relu(x) }")) == 1
    assert len(feeds(header + "(float[n, 10000] x) => (float[n, 10000] y) { y = Relu(x) }")) == 2
    assert len(feeds(header + "(int64[100, 100] x) => (int64[100, 100] y) { y = Neg(x) }")) == 2


def test_what_exporters_leave_behind_is_seen_before_it_is_dropped():
    assert not model_io.has_records(_model())
    described = _model()
    next(iter(described.graph)).metadata_props["source"] = "line 1"
    assert model_io.has_records(described)
    assert model_io.drop_node_records(described, size_bytes=model_io.model_bytes(described)).count == 1
    assert not model_io.has_records(described)
    declared = _model()
    next(iter(declared.graph)).outputs[0].type = ir.TensorType(ir.DataType.FLOAT)
    assert model_io.has_records(declared)
    assert model_io.drop_declared_shapes(declared, size_bytes=model_io.model_bytes(declared)).bytes > 0
    assert not model_io.has_records(declared)
