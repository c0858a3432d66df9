"""Models that people ship: folded without losing a rewrite, and quantized to about a quarter."""

import json
from pathlib import Path

import numpy as np
import pytest

import onnxcompress as oc
from onnxcompress.io import model_io
from onnxcompress.runtime import session as runtime
from tests.tools.test_fetch_models import tool

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


@pytest.mark.parametrize("name", ["vit", "mbv2", "silero_vad_half"])
def test_int4_weights_take_about_a_sixth_of_what_they_were(paths, name):
    result = oc.compress(paths[name], recipe="int4-weights")
    assert [c.reason for c in result.changes if c.action == "rolled-back"] == []
    applied = [c for c in result.changes if c.pass_name == "quantize-blocks" and "scheme" in c.details]
    assert sum(c.bytes_after for c in applied) <= 0.16 * sum(c.bytes_before for c in applied)
    assert result.report.output.bytes < oc.compress(paths[name], recipe="int8-weights").report.output.bytes


def test_few_bits_with_data_keep_the_accuracy_and_times_can_be_replayed(paths, tmp_path):
    data = {"x": np.load(MODELS / "fmnist_calib.npz")["x"][:24]}
    labelled = np.load(MODELS / "fmnist_test.npz")
    options = {"recipe": "int4-weights", "data": data, "metric": "top1"}
    evaluated = {name: labelled[name][:500] for name in labelled.files}
    result = oc.compress(paths["vit"], eval_data=evaluated, **options)
    assert result.report.quality["drop"] <= 0.01
    assert result.report.output.bytes <= 0.19 * result.report.input.bytes
    report = tmp_path / "report.json"
    report.write_text(json.dumps(result.report.as_json()))
    again = oc.compress(paths["vit"], eval_data=evaluated, timings=report, **options)
    assert model_io.to_bytes(again.model) == model_io.to_bytes(result.model)
    limited = oc.compress(paths["vit"], max_bytes=150_000, **options | {"metric": "agreement"})
    assert 140_000 < limited.report.output.bytes <= 150_000
    assert limited.report.quality["samples"] == 24  # 6 held out and 18 seen
    smaller = oc.compress(paths["vit"], max_drop=0.05, **options | {"metric": None})
    assert smaller.report.output.bytes < 0.9 * result.report.output.bytes
    assert smaller.report.quality["drop"] <= 0.05


def test_a_detector_that_finds_nothing_in_noise_is_quantized_all_the_same(paths):
    result = oc.compress(paths["ppocr_det"], recipe="auto")
    assert [c.reason for c in result.changes if c.action == "rolled-back"] == []
    assert result.report.output.bytes <= 0.28 * result.report.input.bytes
    assert result.report.quality["metric"] == "estimated"
    ((name, output),) = result.report.quality["outputs"].items()
    assert (output["kind"], output["why"]) == ("mask", "behind Sigmoid")
    assert (
        f"output {name!r} is at most {output['largest']:.2g} on all samples, and 1 would be a yes: samples with what "
        "the model looks for (--data, --eval) would show the rest"
    ) in result.report.notes
