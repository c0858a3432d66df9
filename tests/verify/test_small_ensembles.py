"""Ensembles that two pieces share are stood in for by a few of their trees; all others are run as they are."""

from __future__ import annotations

import onnx
import onnx_ir as ir
import pytest

from onnxcompress.io import model_io
from onnxcompress.runtime import session as runtime
from onnxcompress.verify.regions import RegionProof
from onnxcompress.verify.small_ensembles import shrink_shared
from tests.helpers import floats
from tests.trees import NODES, tree_ensemble

FEED = {"x": floats(8, 20)}


@pytest.fixture
def path(tmp_path):
    onnx.save(tree_ensemble(trees=20), tmp_path / "trees.onnx")
    return tmp_path / "trees.onnx"


def _trees(model):
    return next(node for node in model.graph if node.op_type == "TreeEnsembleClassifier")


def test_both_get_the_same_first_trees_which_the_runtime_runs(path):
    models = [model_io.clone(model_io.load(path)) for _ in range(2)]
    shrink_shared(*models)
    lists = [{name: attr.value for name, attr in _trees(model).attributes.items()} for model in models]
    assert lists[0] == lists[1]
    assert len(lists[0]["nodes_values"]) == 16 * NODES  # the most that fit 16,384 nodes
    assert set(lists[0]["class_treeids"]) == set(lists[0]["nodes_treeids"]) == set(range(16))
    found = runtime.open_session(model_io.to_bytes(models[0]), optimize=False).run(FEED)
    assert found["p"].shape == (8, 5)
    assert len(set(found["label"])) > 1


def test_ensembles_that_differ_stay(path):
    models = [model_io.clone(model_io.load(path)) for _ in range(2)]
    _trees(models[1]).attributes.add(ir.AttrString("post_transform", "SOFTMAX"))
    shrink_shared(*models)
    assert all(len(_trees(model).attributes["nodes_values"].value) == 20 * NODES for model in models)


def test_lists_that_do_not_fit_each_other_stay(tmp_path):
    proto = tree_ensemble(trees=20)
    values = next(a for node in proto.graph.node for a in node.attribute if a.name == "nodes_hitrates")
    del values.floats[-1:]
    onnx.save(proto, tmp_path / "broken.onnx")
    models = [model_io.clone(model_io.load(tmp_path / "broken.onnx")) for _ in range(2)]
    shrink_shared(*models)
    assert len(_trees(models[0]).attributes["nodes_values"].value) == 20 * NODES


def test_a_right_rewrite_around_the_trees_is_proved_and_a_wrong_one_refused(path):
    model = model_io.load(path)
    right = model_io.clone(model)
    first = next(node for node in right.graph if node.op_type == "Identity")
    first.outputs[0].replace_all_uses_with(first.inputs[0])
    right.graph.remove(first, safe=True)
    assert RegionProof(model, FEED, lossless=True).problem(right) is None
    for op_type in ("Neg", "Abs"):
        wrong = model_io.clone(model)
        node = next(node for node in wrong.graph if node.op_type == "Identity")
        node.op_type = op_type
        assert "differs" in str(RegionProof(model, FEED, lossless=True).problem(wrong))
