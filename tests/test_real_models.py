"""Models that people ship: folded without losing a rewrite, and quantized to about a quarter."""

from pathlib import Path

import pytest

import onnxcompress as oc
from onnxcompress import model_io, runtime

from .test_fetch_models import tool

MODELS = Path(__file__).resolve().parent.parent / "models"
OURS = ("mbv2", "resnet14", "resnet14_bn", "vit")
FETCHED = (
    "ppocr_rec",
    "ppocr_det",
    "ppocr_cls",
    "silero_vad",
    "silero_vad_16k_op15",
    "silero_vad_half",
    "silero_vad_op18_ifless",
    "silero_vad_16k_sequence",
)


@pytest.fixture(scope="session")
def paths():
    return {name: MODELS / f"{name}.onnx" for name in OURS} | dict(tool.fetch(MODELS / "fetched"))


@pytest.mark.parametrize("name", OURS + FETCHED)
def test_folding_loses_no_rewrite_and_costs_no_node(paths, name):
    result = oc.compress(paths[name], recipe="fold")
    assert [c.reason for c in result.changes if c.action == "rolled-back"] == []
    assert result.report.output.bytes <= result.report.input.bytes * 1.01 + 2048
    before = runtime.optimized_nodes(paths[name])
    after = runtime.optimized_nodes(model_io.to_bytes(result.model))
    assert len(after) <= len(before)


@pytest.mark.parametrize("name", [name for name in OURS + FETCHED if name not in ("mbv2", "ppocr_cls")])
def test_int8_weights_take_little_more_than_a_quarter(paths, name):
    result = oc.compress(paths[name], recipe="int8-weights")
    assert [c.reason for c in result.changes if c.action == "rolled-back"] == []
    assert result.report.input.bytes > 1_000_000
    assert result.report.output.bytes <= 0.28 * result.report.input.bytes
    assert result.report.quality["drop"] <= 0.05


def test_a_detector_that_finds_nothing_in_noise_is_quantized_all_the_same(paths):
    result = oc.compress(paths["ppocr_det"], recipe="auto")
    assert [c.reason for c in result.changes if c.action == "rolled-back"] == []
    assert result.report.output.bytes <= 0.28 * result.report.input.bytes
    assert result.report.quality["metric"] == "cosine_of_answers"
    assert any("only its noes were compared" in note for note in result.report.notes)
