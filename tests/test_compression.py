"""The default recipe backs off to its limit, others fail at theirs; classifiers are judged without labels."""

from pathlib import Path

import pytest

import onnxcompress as oc

MODELS = Path(__file__).parent.parent / "models"


@pytest.fixture(scope="module")
def strict():
    return oc.compress(
        MODELS / "vit.onnx", recipe="auto", data=MODELS / "fmnist_calib.npz", metric="cosine", max_drop=4e-6
    )


def test_auto_keeps_the_rewrites_that_its_limit_allows(strict):
    back = [c for c in strict.changes if c.action == "rolled-back"]
    done = [c for c in strict.changes if c.pass_name == "quantize-weights" and c.action == "applied"]
    assert strict.report.quality["drop"] <= 4e-6
    assert back
    assert done
    assert "cosine falls by" in back[0].reason


def test_another_recipe_fails_at_a_limit_that_was_given():
    with pytest.raises(oc.LimitError, match="max-drop") as caught:
        oc.compress(MODELS / "vit.onnx", recipe="int8-weights", data=MODELS / "fmnist_calib.npz", max_drop=1e-7)
    assert caught.value.report.quality["metric"] == "estimated"


def test_within_its_default_limit_auto_takes_nothing_back():
    result = oc.compress(MODELS / "vit.onnx", recipe="auto", data=MODELS / "fmnist_calib.npz")
    assert not [c for c in result.changes if c.action == "rolled-back"]
    assert 0 <= result.report.quality["drop"] <= 0.01
    assert 0 < result.report.quality["disagreement"] < 0.05
