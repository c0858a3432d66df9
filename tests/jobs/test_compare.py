"""Two models side by side: equality, differences, scores, limits, and what can't be compared."""

import json

import numpy as np
import pytest
from rich.console import Console

import onnxcompress as oc
from onnxcompress.errors import DataError, LimitError, ModelError, UsageError
from onnxcompress.graph import edit, query
from onnxcompress.jobs import compare as compare_job
from onnxcompress.report import tables_compare
from onnxcompress.runtime import session as runtime
from tests.helpers import floats, from_text

LINEAR = "g (float[n, 4] x) => (float[n, 3] y, float[n, 4] z) <float[4, 3] w = {%s}> { y = MatMul(x, w) z = Relu(x) }"
ONES = ", ".join(["1"] * 12)
STATE = "g (float[1, 2] x, float[1, 2] h) => (float[1, 2] y, float[1, 2] next) { next = Add(x, h) y = Mul(next, next) }"


def _linear(weights=ONES):
    return from_text(LINEAR % weights)


def _scaled(factor):
    model = _linear()
    weight = model.graph.initializers["w"]
    edit.set_weight(weight, query.constant(weight) * np.float32(factor))
    return model


def _separated():
    """A model and data whose label is the largest input, which the model finds."""
    model = from_text("g (float[n, 3] x) => (float[n, 3] y) <float s = {2}> { y = Mul(x, s) }")
    x = floats(20, 3)
    return model, {"x": x, "label": x.argmax(1)}


def test_equal_models_are_equal():
    found = oc.compare(_linear(), _linear())
    assert found.difference is None
    assert found.quality["metric"] == "estimated"
    assert (found.quality["drop"], found.quality["drop_interval"], found.quality["divergence"]) == (0, [0, 0], 0)
    assert found.quality["data"] == "synthetic"
    assert found.original == found.compressed
    assert found.latency["ratio"] > 0
    assert set(found.quality["outputs"]) == {"y", "z"}


def test_a_difference_is_measured_by_output():
    x = floats(6, 4)
    found = oc.compare(_linear(), _scaled(1.5), data={"x": x})
    assert "output 'y'" in found.difference
    y = found.quality["outputs"]["y"]
    assert y["max_abs"] == pytest.approx(0.5 * np.abs(x.sum(1)).max(), rel=1e-5)
    assert y["cosine"] == pytest.approx(1)
    assert y["sqnr_db"] == pytest.approx(20 * np.log10(2), abs=1e-4)
    assert y["not_finite"] == [0, 0]
    assert found.quality["outputs"]["z"] == {
        "max_abs": 0.0, "cosine": 1.0, "sqnr_db": None, "not_finite": [0, 0],
        "kind": "numbers", "why": "floats without a special meaning",
        "drop": 0.0, "drop_interval": [0.0, 0.0], "figures": {"relative_error": 0.0},
    }  # fmt: skip
    total = x.sum(1)
    assert y["drop"] == pytest.approx(0.5 * (0.5**2 * np.square(total).mean()) / total.var(), rel=1e-4)
    assert (found.quality["output"], found.quality["drop"]) == ("y", y["drop"])


def test_a_cosine_is_that_of_the_worst_output():
    worse = from_text((LINEAR % ONES).replace("z = Relu(x)", "d = Relu(x) z = Neg(d)"))
    found = oc.compare(_linear(), worse, data={"x": floats(6, 4)}, metric="cosine")
    assert (found.quality["original"], found.quality["compressed"], found.quality["drop"]) == (1, -1, 2)


def test_the_worst_output_is_the_score():
    found = oc.compare(_linear(), _scaled(-1), data={"x": floats(6, 4)}, metric="cosine")
    assert found.quality["compressed"] == pytest.approx(-1)
    assert found.quality["drop"] == pytest.approx(2)


def test_what_is_not_finite_is_counted_and_left_out_of_the_sums():
    found = oc.compare(_linear(), _scaled(np.inf), data={"x": np.ones((5, 4), np.float32)})
    assert found.quality["outputs"]["y"]["not_finite"] == [0, 15]
    assert found.quality["outputs"]["y"]["why"] == "numbers that are not finite where the original's are"
    assert (found.quality["output"], found.quality["drop"]) == ("y", 1)
    json.dumps(found.as_json(), allow_nan=False)


def test_labels_give_top1_and_the_limit_holds():
    model, data = _separated()
    worse = from_text("g (float[n, 3] x) => (float[n, 3] y) <float s = {-2}> { y = Mul(x, s) }")
    found = oc.compare(model, worse, eval_data=data)
    assert (found.quality["metric"], found.quality["samples"]) == ("top1", 20)
    assert (found.quality["original"], found.quality["compressed"], found.quality["drop"]) == (1, 0, 1)
    assert oc.compare(model, worse, eval_data=data, max_drop=1.0).limits.as_json() == {"max_drop": 1.0}
    with pytest.raises(LimitError, match=r"top1 falls by 1, more than --max-drop 0\.9") as caught:
        oc.compare(model, worse, eval_data=data, max_drop=0.9)
    assert caught.value.report.quality == found.quality


@pytest.mark.parametrize(("metric", "score"), [("top5", None), ("agreement", 1.0), ("cosine", 1.0)])
def test_other_metrics(metric, score):
    model, data = _separated()
    found = oc.compare(model, model, eval_data=data, metric=metric)
    assert found.quality["original"] == found.quality["compressed"]
    assert score is None or found.quality["original"] == score


@pytest.mark.parametrize("outputs", ["one", "several"])
def test_a_function_of_the_users_gets_one_array_or_all_outputs(tmp_path, monkeypatch, outputs):
    (tmp_path / f"scoring_{outputs}.py").write_text(
        "def score(outputs, labels):\n"
        "    if isinstance(outputs, dict):\n"
        "        return float(sorted(outputs) == ['y', 'z'] and len(outputs['z']) == len(labels))\n"
        "    return float(outputs.shape == (20, 3)) / 2\n"
    )
    monkeypatch.chdir(tmp_path)
    model, data = _separated()
    if outputs == "several":
        model, data = _linear(), {"x": floats(20, 4), "y": np.zeros(20)}
    found = oc.compare(model, model, eval_data=data, metric=f"scoring_{outputs}:score")
    assert found.quality["compressed"] == {"one": 0.5, "several": 1.0}[outputs]


def test_each_model_carries_its_own_state_and_state_is_not_scored():
    model = from_text(STATE)
    twice = from_text(STATE.replace("next = Add(x, h)", "d = Add(x, x) next = Add(d, h)"))
    x = np.ones((3, 1, 2), np.float32)
    options = oc.DataOptions(state={"h": "next"})
    found = oc.compare(model, twice, data={"x": x}, data_options=options)
    assert found.quality["outputs"]["next"]["max_abs"] == 3
    assert found.quality["outputs"]["y"]["max_abs"] == 36 - 9
    negated = from_text(STATE.replace("y = Mul(next, next)", "y = Mul(next, next) ").replace("Add(x, h)", "Sub(h, x)"))
    found = oc.compare(model, negated, data={"x": x}, data_options=options)
    assert found.quality["outputs"]["next"]["cosine"] == pytest.approx(-1)
    assert found.quality["compressed"] == pytest.approx(1)


def test_models_with_other_names_or_shapes_can_not_be_compared():
    renamed = from_text((LINEAR % ONES).replace(" z", " q"))
    with pytest.raises(ModelError, match="outputs are y, z in the first and y, q"):
        oc.compare(_linear(), renamed)
    wider = from_text((LINEAR % ONES).replace("y = MatMul(x, w)", "m = MatMul(x, w) y = Concat<axis = 1>(m, m)"))
    quality = oc.compare(_linear(), wider).quality
    assert quality["outputs"]["y"]["why"] == "[3] of the original and [6] of the result"
    assert (quality["output"], quality["drop"], quality["drop_interval"]) == ("y", 1, [1, 1])
    with pytest.raises(LimitError) as caught:
        oc.compare(_linear(), wider, max_drop=0.5)
    assert caught.value.message == "estimated falls by 1, more than --max-drop 0.5 allows"


def test_a_metric_has_to_fit_the_data():
    model, data = _separated()
    with pytest.raises(UsageError, match="needs labels"):
        oc.compare(model, model, data={"x": data["x"]}, metric="top1")
    with pytest.raises(DataError, match="metric 'top1' failed"):
        oc.compare(model, model, data={"x": data["x"], "label": np.full(20, 7)})
    with pytest.raises(UsageError, match="unknown metric"):
        oc.compare(model, model, metric="topp")


def test_numbers_that_overflow_are_left_out():
    huge = from_text("g (double[n] x) => (double[n] y) <double s = {1e200}> { y = Mul(x, s) }")
    found = oc.compare(huge, huge, data={"x": np.full((4, 2), 1e100)})
    assert found.quality["outputs"]["y"]["cosine"] is None
    assert found.quality["drop"] == 0
    json.dumps(found.as_json(), allow_nan=False)


def test_samples_that_are_not_finite_are_named():
    x = floats(4, 4)
    x[2, 1] = np.nan
    found = oc.compare(_linear(), _linear(), data={"x": x})
    assert found.quality["samples"] == 3
    assert "[2]" in found.notes[0]


def test_threads_reach_the_runtime(monkeypatch):
    seen = []
    honest = runtime.open_session

    def spying(model, *, optimize, threads=1, **options):
        seen.append((optimize, threads))
        return honest(model, optimize=optimize, threads=threads, **options)

    monkeypatch.setattr(compare_job.runtime, "open_session", spying)
    assert oc.compare(_linear(), _linear(), threads=2).latency["threads"] == 2
    assert seen == [(False, 1), (False, 1), (True, 2), (True, 2)]


def test_tables_say_all_of_it(capsys):
    found = oc.compare(_linear(), _scaled(1.5), data={"x": floats(6, 4)})
    console = Console(width=200, highlight=False)
    for part in tables_compare.comparison_tables(found):
        console.print(part)
    printed = capsys.readouterr().out
    for words in ("latency, ms (1 thread)", "estimated (6 samples)", "largest difference", "not equal: output 'y'"):
        assert words in printed


SIGMOID = "g (float[n, 4] x) => (float[n, 4] p) <float[4] shift = {%s}> { y = Add(x, shift) p = Sigmoid(y) }"


def test_a_sigmoid_near_zero_is_scored_by_its_answers():
    x = floats(6, 4)
    quiet, louder, yes = (from_text(SIGMOID % ", ".join([shift] * 4)) for shift in ("-12", "-9", "9"))
    found = oc.compare(quiet, louder, data={"x": np.where(x > 0, x, 3 * x)})
    output = found.quality["outputs"]["p"]
    assert output["cosine"] < 1
    assert output["largest"] < 1e-3
    assert (output["kind"], output["why"]) == ("mask", "behind Sigmoid")
    assert found.quality["drop"] < 0.01
    assert found.notes == (
        f"output 'p' is at most {output['largest']:.2g} on all samples, and 1 would be a yes: samples with what the "
        "model looks for (--data, --eval) would show the rest",
    )
    assert oc.compare(quiet, yes, data={"x": x}).quality["drop"] > 1e3
    assert oc.compare(yes, quiet, data={"x": x}).notes == ()
