"""Inputs of models of tables."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator

import numpy as np

from ..catalog import Feed, Sources
from . import texts


def iris(sources: Sources, *, name: str) -> Iterator[Feed]:
    """Yield [1, 4] rows of Fisher's irises, out of scikit-learn's iris.csv; centimetres, as they are."""
    text = sources.one("scikit_learn", "sklearn/datasets/data/iris.csv").decode()
    rows = [line.split(",")[:4] for line in text.splitlines()[1:]]
    for row in sources.half(rows):
        yield {name: np.array([row], np.float32)}


def points(sources: Sources, *, name: str) -> Iterator[Feed]:
    """Yield [1, 4] settings of a nearest-neighbours classifier: data set, folds, algorithm, neighbours.

    The package gives no scales beside its models; the ranges are those at which the validity model beside this one
    says valid for some and invalid for others.
    """
    random = sources.random
    while True:
        yield {
            name: np.array(
                [[random.integers(0, 5), random.integers(2, 11), random.integers(0, 4), random.integers(1, 60)]],
                np.float32,
            )
        }


def stress(sources: Sources) -> Iterator[Feed]:
    """Yield "float_input" [1, 132] features of Ukrainian words, by the package's own luscinia/featurizer.py.

    The order of features is that of its manifest.json; parts of speech as its predictor does without a tagger: X.
    """
    module = texts.module(sources.one("own", "luscinia/featurizer.py"), "luscinia_featurizer")
    names = json.loads(sources.one("own", "luscinia/data/manifest.json"))["feature_names"]
    words = sorted({w for s in texts.sentences(sources, "uk") for w in re.findall(r"[а-щьюяґєії]{5,}", s.lower())})
    for word in texts.repeat(tuple(texts.shuffled(words))):
        features = module.build_features_universal(word, "X", None)
        yield {"float_input": np.array([[features[name] for name in names]], np.float32)}
