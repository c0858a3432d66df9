"""Inputs with a default: part of the interface through every recipe, fed where the data holds them."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

import onnxcompress as oc
from onnxcompress.data import evaluation_set
from onnxcompress.data.evaluation_set import DataOptions
from onnxcompress.errors import UsageError
from onnxcompress.io import model_io
from onnxcompress.jobs.run import opened
from onnxcompress.ops.optional_inputs import listed_by_habit
from onnxcompress.runtime.session import open_session

_RECIPES = ("fold", "int8", "int8-weights", "int4-weights", "float16", "prune", "sparse", "shallow", "auto")


def _scored(*, ir_version: int = 8, listed: tuple[str, ...] = ("threshold",)) -> onnx.ModelProto:
    """Return a classifier of two layers whose scores below a threshold become zero."""
    rng = np.random.default_rng(0)
    weights = {
        "w1": rng.normal(size=(16, 64)).astype(np.float32) / 4,
        "w2": rng.normal(size=(64, 8)).astype(np.float32) / 8,
        "b2": rng.normal(size=8).astype(np.float32),
        "threshold": np.array([0.05], np.float32),
    }
    nodes = [
        helper.make_node("MatMul", ["x", "w1"], ["h"]),
        helper.make_node("Relu", ["h"], ["r"]),
        helper.make_node("MatMul", ["r", "w2"], ["m"]),
        helper.make_node("Add", ["m", "b2"], ["z"]),
        helper.make_node("Softmax", ["z"], ["p"], axis=1),
        helper.make_node("Sub", ["p", "threshold"], ["d"]),
        helper.make_node("Relu", ["d"], ["y"]),
    ]
    inputs = [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["n", 16])]
    inputs += [helper.make_tensor_value_info(name, TensorProto.FLOAT, list(weights[name].shape)) for name in listed]
    outputs = [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["n", 8])]
    stored = [numpy_helper.from_array(array, name) for name, array in weights.items()]
    graph = helper.make_graph(nodes, "scored", inputs, outputs, stored)
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 13)], ir_version=ir_version)


_EVERY = ("w1", "w2", "b2", "threshold")
_X = np.random.default_rng(1).normal(size=(64, 16)).astype(np.float32)


@pytest.mark.parametrize("recipe", _RECIPES)
def test_a_threshold_that_callers_may_set_has_its_effect_after_every_recipe(recipe: str) -> None:
    result = oc.compress(_scored(), recipe=recipe, data={"x": _X})
    session = open_session(model_io.to_bytes(result.model), optimize=False)
    assert [spec.name for spec in session.optional_inputs] == ["threshold"]

    def scores(**threshold: float) -> np.ndarray:
        fed = {name: np.array([value], np.float32) for name, value in threshold.items()}
        return np.asarray(session.run({"x": _X[:8], **fed})["y"])

    every = scores(threshold=0.0)
    np.testing.assert_allclose(every.sum(axis=1), 1, atol=1e-5)
    np.testing.assert_allclose(scores(threshold=0.15), np.maximum(every - np.float32(0.15), 0), atol=1e-6)
    np.testing.assert_allclose(scores(), np.maximum(every - np.float32(0.05), 0), atol=1e-6)


@pytest.mark.parametrize("recipe", _RECIPES)
def test_freeze_inputs_makes_constants_of_them(recipe: str) -> None:
    result = oc.compress(_scored(), recipe=recipe, data={"x": _X}, freeze_inputs=True)
    assert [value.name for value in result.model.graph.inputs] == ["x"]


def test_a_frozen_input_that_the_data_feeds_is_refused() -> None:
    data = {"x": _X, "threshold": np.full((64, 1), 0.1, np.float32)}
    with pytest.raises(UsageError, match="'threshold', which the data feeds"):
        oc.compress(_scored(), recipe="fold", data=data, freeze_inputs=True)


def test_weights_that_an_exporter_lists_with_all_others_are_weights_and_the_threshold_stays() -> None:
    model = _scored(listed=_EVERY)
    assert listed_by_habit(model_io.load(model)) == {"w1", "w2", "b2"}
    result = oc.compress(model, recipe="int8-weights")
    assert [value.name for value in result.model.graph.inputs] == ["x", "threshold"]
    assert result.report.output.bytes < 0.5 * result.report.input.bytes


def test_one_weight_that_is_listed_alone_stays_an_input() -> None:
    model = model_io.load(_scored(listed=("w2", "threshold")))
    assert listed_by_habit(model) == set()


def test_a_listed_weight_that_the_data_feeds_stays_an_input() -> None:
    data = {"x": _X, "b2": np.zeros((64, 8), np.float32)}
    result = oc.compress(_scored(listed=_EVERY), recipe="int8-weights", data=data)
    assert [value.name for value in result.model.graph.inputs] == ["x", "b2", "threshold"]


def test_no_caller_overrides_initializers_of_old_files() -> None:
    result = oc.compress(_scored(ir_version=3, listed=_EVERY), recipe="fold")
    assert [value.name for value in result.model.graph.inputs] == ["x"]


@pytest.mark.parametrize("is_split", [False, True])
def test_data_feeds_an_input_that_has_a_default(tmp_path: Path, is_split: bool) -> None:
    path = tmp_path / "scored.onnx"
    onnx.save(_scored(), path)
    if is_split:
        oc.split(path, tmp_path / "parts", parts=2)
        path = tmp_path / "parts"
    thresholds = np.linspace(0, 0.3, 64, dtype=np.float32)[:, None]
    data = {"x": _X, "threshold": thresholds}
    with opened(path, max_memory=None, data=None, data_options=DataOptions(), threads=1) as session:
        feeds = evaluation_set.read(data, session.feedable, DataOptions()).feeds
        found = np.concatenate([session.run(feed)["y"] for feed in feeds])
    plain = open_session(_scored().SerializeToString(), optimize=False)
    expected = [plain.run({"x": _X[i : i + 1], "threshold": thresholds[i]})["y"] for i in range(64)]
    np.testing.assert_allclose(found, np.concatenate(expected), atol=1e-6)


def test_an_initial_state_that_is_an_initializer_begins_with_its_value() -> None:
    state = numpy_helper.from_array(np.array([5.0], np.float32), "state")
    nodes = [helper.make_node("Add", ["x", "state"], ["y"])]
    value = helper.make_tensor_value_info
    inputs = [value("x", TensorProto.FLOAT, [1]), value("state", TensorProto.FLOAT, [1])]
    graph = helper.make_graph(nodes, "sum", inputs, [value("y", TensorProto.FLOAT, [1])], [state])
    session = open_session(helper.make_model(graph, ir_version=8).SerializeToString(), optimize=False)
    x = np.arange(1, 4, dtype=np.float32)[:, None]
    data = evaluation_set.read({"x": x}, session.feedable, DataOptions(state={"state": "y"}))
    last: dict[str, np.ndarray] = {}
    for feed in data.stateful(last):
        last |= session.run(feed)
    assert last["y"].item() == 5 + 1 + 2 + 3
