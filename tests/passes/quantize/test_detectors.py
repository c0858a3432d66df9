"""End-to-end detectors on int8: convolutions on integers, decoding and choice of boxes on floats, and the loss told."""

import numpy as np
import onnx_ir as ir
import pytest

import onnxcompress as oc
from onnxcompress.core import Context
from onnxcompress.data.evaluation_set import Evaluation
from onnxcompress.passes.quantize.static import QuantizeStatic
from onnxcompress.quality.compare_outputs import measure
from onnxcompress.quality.output_plan import OutputPlan
from onnxcompress.runtime.loaded_model import LoadedModel
from tests import detectors
from tests.helpers import run

CONVOLUTIONS = 5


@pytest.fixture(scope="module", params=detectors.FORMS)
def form(request):
    return request.param


@pytest.fixture(scope="module")
def pair(form):
    """Return a detector and the same on integers."""
    original, quantized = detectors.detector(form), detectors.detector(form)
    QuantizeStatic().run(quantized, Context(feeds=detectors.pictures(16)))
    return original, quantized


def _rows(form, model, feeds):
    return [detectors.found_rows(form, run(model, feed, optimize=True)) for feed in feeds]


def test_convolutions_are_on_integers_and_what_is_behind_them_is_not(pair):
    original, quantized = pair
    decoding = [node.op_type for node in original.graph][2 * CONVOLUTIONS - 2 :]
    last = max(index for index, node in enumerate(quantized.graph) if node.op_type == "QuantizeLinear")
    assert sum(node.op_type == "QuantizeLinear" for node in quantized.graph) >= CONVOLUTIONS
    behind = [node.op_type for node in list(quantized.graph)[last + 1 :] if node.op_type != "DequantizeLinear"]
    assert behind[-len(decoding) + 1 :] == decoding[1:]


def test_what_is_found_is_what_was_found(form, pair):
    feeds = detectors.pictures(24, seed=1)
    rows, others = (_rows(form, model, feeds) for model in pair)
    assert sum(map(len, rows)) > 24
    assert len({len(each) for each in rows}) > 2
    assert detectors.f1(rows, others) > 0.9


def test_the_loss_that_is_told_follows_the_loss_of_boxes(form, pair):
    """A loss of one point must be near F1 .95 (`DETECTION_POINT`), and damage that halves F1 far beyond it."""
    feeds = detectors.pictures(24, seed=1)
    original, quantized = (LoadedModel(model) for model in pair)
    damaged = detectors.detector(form)
    for value in damaged.graph.initializers.values():
        if value.name in ("w2", "w4"):
            array = value.const_value.numpy()
            step = np.abs(array).max() / 3
            rough = (np.round(array / step) * step).astype(np.float32)
            value.const_value = ir.tensor(rough, name=value.name)
    plan = OutputPlan.of(original.model)
    session = plan.session(original)
    evaluation = Evaluation(feeds=feeds, source="test")
    good = measure(session, plan.session(quantized), evaluation, plan=plan).drop
    bad = measure(session, plan.session(LoadedModel(damaged)), evaluation, plan=plan).drop
    rows = _rows(form, pair[0], feeds)
    assert detectors.f1(rows, _rows(form, damaged, feeds)) < 0.8
    assert 0 < good < bad / 2
    kinds = {part.decision.kind for parts in (plan.values or {}).values() for part in parts}
    assert kinds == ({"numbers", "mask"} if form == "raw" else {"detection-rows"})
    assert bad > 0.01


def test_int8_takes_integers_for_a_detector(tmp_path):
    path = tmp_path / "x.npz"
    np.savez(path, x=np.concatenate([feed["x"] for feed in detectors.pictures(16)]))
    result = oc.compress(detectors.detector("rows"), recipe="int8", data=path)
    report = result.report
    assert report.quality.drop <= 0.01
    assert report.output.bytes < 0.5 * report.input.bytes
    feeds = detectors.pictures(24, seed=1)
    assert detectors.f1(_rows("rows", detectors.detector("rows"), feeds), _rows("rows", result.model, feeds)) > 0.9
