"""Inputs of models of tables."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator

import numpy as np

from ..catalog import Feed, Sources
from . import texts


def iris(sources: Sources, *, name: str, rows: int = 1, columns: int = 4) -> Iterator[Feed]:
    """Yield [rows, columns] of Fisher's irises, out of scikit-learn's iris.csv; centimetres, as they are.

    onnxruntime's logreg_iris.onnx takes three flowers' sepals, length and width, as its input's shape and the
    example that it comes from say (sklearn-onnx, plot_iris: X[:, :2]).
    """
    text = sources.one("scikit_learn", "sklearn/datasets/data/iris.csv").decode()
    flowers = np.array([line.split(",")[:columns] for line in text.splitlines()[1:]], np.float32)
    flowers = np.array(sources.half(list(flowers)))
    while True:
        yield {name: flowers[sources.random.choice(len(flowers), rows, replace=False)]}


def neighbours(sources: Sources, *, name: str, by_name: bool = False) -> Iterator[Feed]:
    """Yield [1, 4] settings of a nearest-neighbours classifier, as k_neighbors_classifier.onnx.meta.json tells them.

    Those are the number of neighbours, the algorithm and the data set by their numbers in that file, and the folds.
    The validity model takes the columns in the order of their names: its thresholds of up to 140 are in the last one,
    and only neighbours are that many.
    """
    told = json.loads(sources.one("own", "*/k_neighbors_classifier.onnx.meta.json"))
    coded = {key: sorted(numbers.values()) for key, numbers in told["param_encodings"].items()}
    ranges = {"n_neighbors": list(range(3, 151)), "cv": [2, 3, 4, 5, 8, 10], **coded}
    columns = sorted(told["param_names"]) if by_name else told["param_names"]
    while True:
        yield {name: np.array([[sources.random.choice(ranges[key]) for key in columns]], np.float32)}


def stress(sources: Sources) -> Iterator[Feed]:
    """Yield "float_input" [1, 132] features of Ukrainian words, by the package's own luscinia/featurizer.py.

    The order of features is that of its manifest.json; parts of speech as its predictor does without a tagger: X.
    """
    module = texts.module(sources.one("own", "luscinia/featurizer.py"), "luscinia_featurizer")
    names = json.loads(sources.one("own", "luscinia/data/manifest.json"))["feature_names"]
    words = sorted(
        {
            w
            for s in texts.sentences(sources, "uk")
            for w in re.findall(r"[\u0430-\u044f\u0454\u0456\u0457\u0491]{5,}", s.lower())
        }
    )
    for word in texts.repeat(tuple(texts.shuffled(words))):
        features = module.build_features_universal(word, "X", None)
        yield {"float_input": np.array([[features[name] for name in names]], np.float32)}
