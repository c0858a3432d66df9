"""The route that measures best is taken; layers that hurt stay float; times can be replayed."""

import json
from pathlib import Path

import numpy as np
import pytest
from onnx import helper, numpy_helper

import onnxcompress as oc
from onnxcompress.base.gate import Gate
from onnxcompress.core import Context, Trial
from onnxcompress.errors import ModelError
from onnxcompress.graph import edit
from onnxcompress.io import model_io
from onnxcompress.passes.quantize.int8 import QuantizeInt8
from onnxcompress.passes.quantize.int8_refit import refitted
from onnxcompress.passes.quantize.static import QuantizeStatic
from tests.helpers import floats, from_text, op_types, run, with_constants

MODELS = Path(__file__).parents[3] / "models"
BASE = {"bytes": 1, "size_ratio": 0.3, "latency_ratio": 0.5, "drop": 0.0, "divergence": 1e-4}


class _Judge:
    """Gives the trials that a test wants, by the route's name or by what is left in floats."""

    def __init__(self, trials=None, *, drop=lambda _: 0.0, limit=0.01, prefer="balanced", fault=lambda _: None):
        self.trials, self.drop, self.limit, self.prefer, self.fault = trials or {}, drop, limit, prefer, fault
        self.labels = []

    def __call__(self, model, label):
        self.labels.append(label.removeprefix("quantize-int8/"))
        found = self.trials.get(self.labels[-1]) or self.trials.get(self.labels[-1].split()[0], {})
        if isinstance(found, Exception):
            raise found
        return Trial(**{**BASE, "drop": self.drop(model), **found})

    def score(self, model, *, most=None):  # noqa: ARG002
        drop = self.drop(model)
        return Trial(**{**BASE, "drop": drop, "divergence": 10 ** (100 * drop - 4)})


@pytest.fixture(scope="module")
def net():
    """Two convolutions, the second with a wider range of weights, and a product that is large enough for int8."""
    model = _net(np.random.default_rng(0))
    for node, name in zip(model.graph, ("first", "relu1", "second", "relu2", "flat", "product"), strict=True):
        node.name = name
    return model


def _net(rng):
    weights = {
        "w1": rng.standard_normal((32, 16, 3, 3)) / 12,
        "w2": rng.standard_normal((32, 32, 3, 3)) / 17,
        "w3": rng.standard_normal((512, 256)) / 22,
    }
    nodes = [
        helper.make_node("Conv", ["x", "w1"], ["a"], pads=[1, 1, 1, 1]),
        helper.make_node("Relu", ["a"], ["b"]),
        helper.make_node("Conv", ["b", "w2"], ["c"], pads=[1, 1, 1, 1]),
        helper.make_node("Relu", ["c"], ["d"]),
        helper.make_node("Flatten", ["d"], ["e"]),
        helper.make_node("MatMul", ["e", "w3"], ["y"]),
    ]
    body = helper.make_graph(
        nodes,
        "g",
        [helper.make_tensor_value_info("x", 1, ["n", 16, 4, 4])],
        [helper.make_tensor_value_info("y", 1, ["n", 256])],
        [numpy_helper.from_array(array.astype(np.float32), name) for name, array in weights.items()],
    )
    return model_io.load(helper.make_model(body, opset_imports=[helper.make_opsetid("", 17)], ir_version=8))


FEEDS = [{"x": floats(1, 16, 4, 4, seed=seed)} for seed in range(8)]


def _run(net, judge, **options):
    model = model_io.clone(net)
    changes = QuantizeInt8(**options).run(model, Context(feeds=FEEDS, judge=judge))
    return model, changes


def _said(changes, action="skipped"):
    return [c.reason for c in changes if c.pass_name == "quantize-int8" and c.action == action]


def test_the_route_with_the_least_cost_is_taken(net):
    judge = _Judge({"dynamic": {"latency_ratio": 0.9}, "mixed": {"latency_ratio": 0.4}, "weights": {"size_ratio": 0.2}})
    model, changes = _run(net, judge)
    assert judge.labels == ["static", "mixed", "dynamic", "weights"]
    assert _said(changes, "applied")[0].startswith("weights: 0.200 of the size, 0.50 of the time")
    assert len(_said(changes)) == 3
    assert "DynamicQuantizeLinear" not in op_types(model)
    model, changes = _run(net, _Judge({"mixed": {"latency_ratio": 0.2}}))
    assert _said(changes, "applied")[0].startswith("mixed")
    assert {"DynamicQuantizeLinear", "QuantizeLinear"} <= set(op_types(model))
    expected = run(net, FEEDS[0])["y"]
    assert np.abs(run(model, FEEDS[0])["y"] - expected).max() < 0.05 * np.abs(expected).max()


def test_only_the_routes_that_were_asked_for_are_tried(net):
    judge = _Judge()
    _, changes = _run(net, judge, routes=("weights",))
    assert judge.labels == ["weights"]
    assert _said(changes, "applied")


def test_a_route_that_has_nothing_of_its_own_is_not_tried():
    model = from_text("g (float[n, 4] x) => (float[n, 4] y) { y = Relu(x) }")
    judge = _Judge()
    changes = QuantizeInt8(routes=("static", "mixed", "dynamic")).run(
        model, Context(feeds=[{"x": floats(1, 4)}], judge=judge)
    )
    assert judge.labels == []
    assert [c.action for c in changes if c.action == "applied"] == []


def test_slower_routes_are_refused_and_the_model_stays(net):
    slow = {"latency_ratio": 1.5}
    model, changes = _run(net, _Judge(dict.fromkeys(("static", "mixed", "dynamic", "weights"), slow)))
    assert op_types(model) == op_types(net)
    assert len([r for r in _said(changes) if "slower than the original" in r]) == 4
    assert not _said(changes, "applied")


def test_a_route_that_the_runtime_refuses_costs_only_itself(net):
    _, changes = _run(net, _Judge({"static": ModelError("it broke")}))
    assert any(r == "static: it broke" for r in _said(changes))
    assert _said(changes, "applied")


def _hurts(name):
    """A layer costs 0.02 while it is on integers, which its DequantizeLinear shows."""

    def drop(model):
        node = next(n for n in model.graph if n.name == name)
        return (
            0.02
            if node.inputs[1].producer() is not None and node.inputs[1].producer().op_type == "DequantizeLinear"
            else 0.0
        )

    return drop


def test_the_layer_that_hurts_stays_float(net):
    _, changes = _run(net, _Judge(drop=_hurts("second")), routes=("static",))
    assert _said(changes, "applied")[0].startswith("static, without 1 layer")
    assert any("loses too much: static, without 1 layer instead" in r for r in _said(changes))
    second = [c for c in changes if c.target == "second" and c.pass_name == "quantize-static"]
    assert [(c.action, c.reason) for c in second] == [("skipped", "float: it hurts the output most for what it saves")]


def test_weights_that_hurt_stay_float_where_nothing_runs_on_integers(net):
    def drop(model):
        stored = {node.name for node in model.graph if node.name in ("first", "second", "product")}
        float_names = {n.name for n in model.graph if n.name in stored and n.inputs[1].is_initializer()}
        return 0.0 if "second" in float_names else 0.05

    copy, changes = _run(net, _Judge(drop=drop), routes=("weights",))
    reasons = {c.target: c.reason for c in changes if c.pass_name == "quantize-int8" and c.action == "skipped"}
    assert "hurts the output most" in reasons["second"]
    assert set(reasons) & {"first", "product"} == set()
    assert not any("--only" in change.reason for change in changes), "nobody gave it"
    by_name = {node.name: node for node in copy.graph}
    assert by_name["second"].inputs[1].is_initializer()
    assert not by_name["product"].inputs[1].is_initializer()


def test_before_layers_are_left_out_what_saves_little_is(net):
    trials = {"static": {"drop": 0.02}, "static, carefully": {"drop": 0.001, "latency_ratio": 0.45}}
    trials["weights"] = {"latency_ratio": 1.0}
    judge = _Judge(trials)
    _, changes = _run(net, judge, routes=("static", "weights"))
    assert judge.labels == ["static", "weights", "static, carefully"]
    assert _said(changes, "applied")[0].startswith("static, carefully: 0.300 of the size, 0.45 of the time")


class _Recovering(_Judge):
    """Sees less noise in every other way than in the one before."""

    def score(self, model, *, most=None):  # noqa: ARG002
        return Trial(**{**BASE, "drop": 0.004, "divergence": 10 ** (-4 - len(self.labels) / 10)})

    def __call__(self, model, label):
        super().__call__(model, label)
        tried = len(self.labels)
        return Trial(**{**BASE, "drop": 0.005 - tried / 1e4, "divergence": 10 ** (-3.9 - tried / 10)})


def test_what_lowers_the_error_is_kept_where_a_route_loses_something(net):
    _, changes = _run(net, _Recovering(), routes=("static",))
    assert _said(changes, "applied")[0].startswith("static, clipped, equalized, refitted: ")
    _, changes = _run(net, _Recovering(), routes=("static",), recover=False)
    assert _said(changes, "applied")[0].startswith("static: ")


def test_layers_are_refitted_for_running_on_integers(net):
    """Activations are cut at a third of their range, for which the product behind can make up in part."""
    rng = np.random.default_rng(3)
    base = rng.standard_normal((1, 16, 4, 4)).astype(np.float32)
    feeds = [{"x": base + 0.3 * floats(1, 16, 4, 4, seed=seed)} for seed in range(64)]
    context = Context(feeds=feeds[:48])

    def quantized(model):
        copy = model_io.clone(model)
        changes = QuantizeStatic().run(copy, context)
        for value in copy.graph.initializers.values():
            if value.name.endswith("_scale") and value.const_value.size == 1:
                edit.set_weight(value, value.const_value.numpy() / 3)
        return copy, [c.target for c in changes if "sqnr_db" in c.details]

    def error(model):
        return np.mean([np.square(run(model, f)["y"] - run(net, f)["y"]).mean() for f in feeds[48:]])

    plain, labels = quantized(net)
    before = error(plain)
    mended = refitted(net, plain, labels, context)
    after, _ = quantized(mended)
    assert error(after) < 0.8 * before
    assert refitted(net, quantized(net)[0], [], context) is None
    assert refitted(net, quantized(net)[0], labels, Context(feeds=feeds[:4])) is None


def test_what_no_layer_can_mend_is_refused(net):
    model, changes = _run(net, _Judge(drop=lambda _: 0.5), routes=("static", "weights"))
    assert op_types(model) == op_types(net)
    figures = "0.300 of the size, 0.50 of the time, drop 0.5000"
    assert _said(changes) == [
        f"no route is within the limit of 0.01; --max-drop 0.5 takes static: {figures}",
        f"static: {figures}; the loss is 0.5, more than 0.01",
        f"weights: {figures}; the loss is 0.5, more than 0.01",
    ]


def test_the_users_own_samples_can_refuse_a_candidate(net):
    faults = iter(["labels fall by 0.1", None])
    _, changes = _run(net, _Judge(fault=lambda _: next(faults)), routes=("static", "weights"))
    assert any("labels fall by 0.1" in r for r in _said(changes))
    assert _said(changes, "applied")[0].startswith("weights")


def test_layers_are_left_out_until_the_users_own_samples_agree(net):
    hurt = _hurts("second")
    judge = _Judge(drop=lambda m: hurt(m) / 4, fault=lambda m: "top1 falls" if hurt(m) else None)
    _, changes = _run(net, judge, routes=("static",))
    assert _said(changes, "applied")[0].startswith("static, without 1 layer")


@pytest.fixture(scope="module")
def words():
    """A table, and a product that reads one channel far larger than the others, as a residual connection does."""
    weights = {"table": floats(600, 256, seed=1), "w": floats(256, 256, seed=2) / 16, "v": floats(256, 64, seed=3) / 16}
    weights["g"] = np.where(np.arange(256) == 7, 60, 1).astype(np.float32)
    weights["w"][7] /= 60
    text = """g (int64[n, t] ids, float[600, 256] table, float[256] g, float[256, 256] w, float[256, 64] v)
        => (float[n, t, 64] y) {
        e = Gather(table, ids)  x = Mul(e, g)  a = MatMul(x, w)  b = Add(a, x)  c = Tanh(b)  y = MatMul(c, v) }"""
    return with_constants(text, **weights)


def _on_words(words, judge):
    model = model_io.clone(words)
    feeds = [{"ids": np.random.default_rng(seed).integers(0, 600, (4, 16))} for seed in range(8)]
    changes = QuantizeInt8(routes=("dynamic",)).run(model, Context(feeds=feeds, judge=judge))
    return model, changes


def _noise_on(words):
    """Return what says which part of the output's power a model loses."""
    feed = {"ids": np.arange(64).reshape(4, 16)}
    expected = run(words, feed)["y"]
    return lambda model: float(np.square(run(model, feed)["y"] - expected).sum() / np.square(expected).sum())


class _Hearing(_Judge):
    """Measures the noise of the output, which is the drop."""

    def score(self, model, *, most=None):  # noqa: ARG002
        noise = self.drop(model)
        return Trial(**{**BASE, "drop": noise, "divergence": noise})

    def __call__(self, model, label):
        super().__call__(model, label)
        return self.score(model)


def test_channels_are_scaled_before_products_with_ranges_of_each_run(words):
    noise = _noise_on(words)
    judge = _Hearing(drop=noise, limit=1e-3)
    model, changes = _on_words(words, judge)
    assert judge.labels[:2] == ["dynamic", "dynamic, equalized"]
    assert any("by a Mul" in c.reason for c in changes if c.pass_name == "equalize")
    plain, _ = _on_words(words, _Hearing(drop=noise, limit=1.0))
    assert noise(model) < noise(plain) / 2


def test_large_tables_get_four_bits_where_that_is_allowed(words):
    small = {"dynamic, tables of 4 bits": {"size_ratio": 0.2}}
    judge = _Judge(small, limit=0.01)
    model, changes = _on_words(words, judge)
    assert _said(changes, "applied") == ["dynamic, tables of 4 bits: 0.200 of the size, 0.50 of the time, drop 0.0000"]
    assert [c.target for c in changes if c.pass_name == "quantize-blocks" and c.action == "applied"] == ["table"]
    assert "MatMulInteger" in op_types(model)
    judge = _Judge({**small, "dynamic, tables of 4 bits": {"size_ratio": 0.2, "drop": 0.02}}, limit=0.01)
    _, changes = _on_words(words, judge)
    assert _said(changes, "applied") == ["dynamic: 0.300 of the size, 0.50 of the time, drop 0.0000"]


def test_without_measurements_the_first_route_is_taken_and_said(net):
    model, changes = _run(net, None, routes=("dynamic", "static"))
    assert "DynamicQuantizeLinear" in op_types(model)
    assert "nothing was measured" in _said(changes)[0]


def test_a_gate_that_is_shut_leaves_the_model_alone(net):
    for judge in (None, _Judge()):
        model = model_io.clone(net)
        assert QuantizeInt8().run(model, Context(gate=Gate(limit=0), feeds=FEEDS, judge=judge)) == []
        assert op_types(model) == op_types(net)


def test_the_recipe_makes_a_classifier_faster_and_replays_to_the_same_bytes(tmp_path):
    data = np.load(MODELS / "fmnist_calib.npz")
    few = {"x": data["x"][:24]}
    first = oc.compress(MODELS / "resnet14.onnx", recipe="int8", data=few)
    assert first.report.latency["ratio"] < 1
    assert first.report.output.bytes < 0.4 * first.report.input.bytes
    assert first.report.quality["samples"] == 24  # 6 held out and 18 seen
    assert first.report.quality["drop"] <= 0.01
    report = tmp_path / "report.json"
    report.write_text(json.dumps(first.report.as_json()))
    again = oc.compress(MODELS / "resnet14.onnx", recipe="int8", data=few, timings=report)
    assert model_io.to_bytes(again.model) == model_io.to_bytes(first.model)
    assert again.report.timings == first.report.timings
