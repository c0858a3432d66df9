"""The default recipe backs off to its limit, others fail at theirs; classifiers are judged without labels."""

from pathlib import Path

import numpy as np
import onnx
import onnx_ir as ir
import pytest

import onnxcompress as oc
from onnxcompress.io import model_io
from onnxcompress.passes.fold.normalize import Normalize
from onnxcompress.passes.quantize.weights import QuantizeWeights
from tests.helpers import floats, from_text, with_constants

MODELS = Path(__file__).parents[2] / "models"


@pytest.fixture(scope="module")
def strict():
    recipe = oc.Recipe("weights", "", (Normalize(), QuantizeWeights()), max_drop=4e-6)
    return oc.compress(MODELS / "vit.onnx", recipe=recipe, data=MODELS / "fmnist_calib.npz", metric="cosine")


def test_a_recipe_with_a_limit_of_its_own_keeps_the_rewrites_that_it_allows(strict):
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
    settings = ["search-best.numbers=['quantize-int8']", "search-best.reductions=[]"]
    result = oc.compress(MODELS / "vit.onnx", data=MODELS / "fmnist_calib.npz", settings=settings)
    assert not [c for c in result.changes if c.action == "rolled-back"]
    assert result.report.recipe["name"] == "auto"
    assert result.report.output.bytes < 0.3 * result.report.input.bytes
    assert 0 <= result.report.quality["drop"] <= 0.01
    assert 0 <= result.report.quality["disagreement"] < 0.05


def _from_text(text, domains=""):
    return ir.from_onnx_text(f'<ir_version: 8, opset_import: ["": 17{domains}]>' + text)


def test_a_model_that_no_made_up_input_runs_passes_through_with_the_reason():
    model = _from_text("g (bfloat16[n] x) => (float[n] y) { y = Cast<to = 1>(x) }")
    result = oc.compress(model, recipe="fold")
    assert [node.op_type for node in result.model.graph] == ["Cast"]
    assert result.report.verification["mode"] == "regions"
    assert any("--data" in str(note) for note in result.report.notes), result.report.notes
    with pytest.raises(oc.ModelError, match="--data"):
        oc.compress(model, recipe="fold", verify="full")


def test_operators_that_the_runtime_does_not_know_stay_and_the_rest_is_folded():
    text = """g (float[n, 4] x) => (float[n, 4] y) <float[4] a = {1, 2, 3, 4}>
    { b = Neg(a) c = Add(x, b) i = Identity(c) m = my.Mystery(i) r = Relu(m) y = Identity(r) }"""
    result = oc.compress(_from_text(text, ', "my": 1'), recipe="fold")
    # what reads the unknown operator's output, of a shape that only it knows, can't be run alone: it stays too
    assert [node.op_type for node in result.model.graph] == ["Add", "Mystery", "Relu", "Identity"]
    assert result.report.quality["samples"] >= 1


def test_a_function_that_calls_itself_is_refused_with_the_reason():
    body = [onnx.helper.make_node("F", ["a"], ["b"], domain="mine")]
    opsets = [onnx.helper.make_opsetid("", 17), onnx.helper.make_opsetid("mine", 1)]
    function = onnx.helper.make_function("mine", "F", ["a"], ["b"], body, opsets)
    x, y = (onnx.helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, [4]) for name in "xy")
    call = onnx.helper.make_node("F", ["x"], ["y"], domain="mine")
    graph = onnx.helper.make_graph([call], "g", [x], [y])
    model = onnx.helper.make_model(graph, opset_imports=opsets, functions=[function], ir_version=8)
    with pytest.raises(oc.ModelError, match="must not be recursive"):
        oc.compress(model, recipe="fold")
    assert oc.inspect(model).as_json()


def test_a_model_that_is_as_small_as_it_gets_says_so():
    model = from_text("g (float[n, 3] x) => (float[n, 3] y) { y = Relu(x) }")
    report = oc.compress(model, recipe="fold").report
    assert report.changes == ()
    assert "nothing to do" in report.notes[0]


@pytest.mark.parametrize("recipe", ["int8", "int8-weights", "float16", "int4-weights", "prune"])
def test_a_lossy_recipe_that_finds_nothing_leaves_no_name_in_the_model(recipe):
    model = from_text("g (float[n, 3] x) => (float[n, 3] y) { y = Relu(x) }")
    feeds = [{"x": np.linspace(-1, 1, 6, dtype=np.float32).reshape(2, 3) * k} for k in range(1, 5)]
    result = oc.compress(model, recipe=recipe, data=feeds)
    assert not result.model.metadata_props
    assert result.report.output.bytes == result.report.input.bytes


def test_a_plan_notes_that_the_figures_of_a_pass_are_a_draft():
    model = with_constants(
        "g (float[n, 32] x, float[32, 64] v) => (float[n, 64] y) { m = MatMul(x, v) y = Relu(m) }", v=floats(32, 64)
    )
    data = {"x": floats(6, 1, 32)}
    planned = oc.compress(model_io.clone(model), recipe="sparse", data=data, plan=True).report
    assert [note for note in map(str, planned.notes) if "draft" in note] == [
        "sparsify is a draft that rests on the weights alone: "
        "smallest first: with samples a run removes what the other weights compensate best"
    ]
    [entry] = (each for each in planned.as_json()["changes"] if each["pass"] == "sparsify")
    assert entry["draft_samples"] == 0
    done = oc.compress(model, recipe="sparse", data=data).report
    assert not any("draft" in str(note) for note in done.notes)
