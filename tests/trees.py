"""A classifier of complete binary trees, as large as a test wants it."""

import numpy as np
import onnx
from onnx import helper

NODES = 1023
"""Of one tree, leaves included."""


def tree_ensemble(*, trees: int, classes: int = 5, features: int = 20, seed: int = 0) -> onnx.ModelProto:
    """Return x float32 [N, features] -> label int64 [N], p float32 [N, classes]; some 41 KB a tree."""
    rng = np.random.default_rng(seed)
    ids, inner, count = np.arange(NODES), NODES // 2, trees * NODES
    leaf = ids >= inner
    lists = {
        "class_ids": rng.integers(0, classes, trees * (NODES - inner)),
        "class_nodeids": np.tile(ids[inner:], trees),
        "class_treeids": np.repeat(np.arange(trees), NODES - inner),
        "class_weights": rng.random(trees * (NODES - inner)),
        "nodes_falsenodeids": np.tile(np.where(leaf, 0, 2 * ids + 2), trees),
        "nodes_featureids": rng.integers(0, features, count),
        "nodes_hitrates": np.ones(count),
        "nodes_missing_value_tracks_true": np.zeros(count, np.int64),
        "nodes_modes": np.tile(np.where(leaf, "LEAF", "BRANCH_LEQ"), trees),
        "nodes_nodeids": np.tile(ids, trees),
        "nodes_treeids": np.repeat(np.arange(trees), NODES),
        "nodes_truenodeids": np.tile(np.where(leaf, 0, 2 * ids + 1), trees),
        "nodes_values": rng.standard_normal(count),
    }
    attributes = {name: values.tolist() for name, values in lists.items()}
    nodes = [
        helper.make_node("Identity", ["x"], ["same"]),
        helper.make_node(
            "TreeEnsembleClassifier",
            ["same"],
            ["label", "scores"],
            domain="ai.onnx.ml",
            classlabels_int64s=list(range(classes)),
            post_transform="NONE",
            **attributes,
        ),
        helper.make_node("Identity", ["scores"], ["p"]),
    ]
    graph = helper.make_graph(
        nodes,
        "trees",
        [helper.make_tensor_value_info("x", 1, ["N", features])],
        [helper.make_tensor_value_info("label", 7, ["N"]), helper.make_tensor_value_info("p", 1, ["N", classes])],
    )
    opsets = [helper.make_opsetid("", 17), helper.make_opsetid("ai.onnx.ml", 1)]
    return helper.make_model(graph, opset_imports=opsets, ir_version=8)
