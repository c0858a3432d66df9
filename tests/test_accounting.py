"""Every recipe answers for every layer with weights: it is changed, or the report says why it is not.

One model has all operators that hold weights, in all places where weights occur (`weighted`); each recipe runs on it,
and each layer of the folded model has to be named by each pass that the recipe is named after, or to take fewer bytes.
"""

from __future__ import annotations

import onnx_ir as ir
import pytest

import onnxcompress as oc
from onnxcompress.core import Action
from onnxcompress.ops.weight_layers import weighted_layers
from tests import weighted

NAMED_AFTER = {
    "int8": ("quantize-int8",),
    "int8-weights": ("quantize-weights",),
    "int4-weights": ("quantize-blocks", "quantize-weights"),
    "float16": ("convert-float16",),
    "cluster": ("cluster",),
    "prune": ("prune-channels",),
    "sparse": ("sparsify",),
    "shallow": ("low-rank",),
    "auto": ("search-best",),
}
"""Recipe -> the passes that it is named after."""
INSIDE = {
    "quantize-int8": ("quantize-int8", "quantize-static", "quantize-dynamic", "quantize-weights"),
    "search-best": ("search-best", "quantize-weights"),
}
"""Pass -> the passes whose changes count as its own."""
WITH_DATA = ("int8", "prune", "sparse", "shallow", "int4-weights")


@pytest.fixture(scope="module")
def proto():
    return weighted.model_of()


@pytest.fixture(scope="module")
def folded(proto):
    return oc.compress(proto, recipe="fold").model


def _stored(model: ir.Model) -> dict[str, int]:
    return {w.name: w.bytes for layer in weighted_layers(model) for w in layer.weights}


@pytest.mark.parametrize("recipe", list(NAMED_AFTER))
def test_each_layer_is_changed_or_has_a_reason(recipe, proto, folded):
    data = weighted.samples(12) if recipe in WITH_DATA else None
    settings = ["low-rank.distill_steps=0", "low-rank.refit=false"] if recipe == "shallow" else []
    result = oc.compress(proto, recipe=recipe, data=data, settings=settings)
    assert result.report.internal_errors == ()
    layers, left = weighted_layers(folded), _stored(result.model)
    assert len(layers) > 40
    for name in NAMED_AFTER[recipe]:
        mine = [c for c in result.changes if c.pass_name in INSIDE.get(name, (name,))]
        named = {c.target for c in mine}
        assert all(c.reason for c in mine)
        silent = [
            layer.label
            for layer in layers
            if layer.label not in named
            and not any(w.name in named for w in layer.weights)
            and all(left.get(w.name, 0) >= w.bytes for w in layer.main)
        ]
        assert silent == []


@pytest.mark.parametrize("recipe", ["fold", *(name for name in NAMED_AFTER if name not in ("shallow", "int8"))])
def test_bytes_saved_add_up_with_the_files(recipe, proto):
    data = weighted.samples(12) if recipe in WITH_DATA else None
    report = oc.compress(proto, recipe=recipe, data=data).report
    saved = sum(c.bytes_before - c.bytes_after for c in report.changes if c.action is Action.APPLIED)
    assert saved <= report.input.bytes
    assert abs(saved - (report.input.bytes - report.output.bytes)) < 0.03 * report.input.bytes
