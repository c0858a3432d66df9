"""Caches never decide the loss where other outputs exist."""

import pytest

from onnxcompress.quality.output_sources import Ending, sources

from ..helpers import from_text

TWO = """g (float[1, n, 4] x) => (float[1, n, 4] a, float[1, n, 4] b) {
    a = Relu(x)
    b = Tanh(x)
}"""


def endings(first, second):
    model = from_text(TWO)
    for value, name in zip(model.graph.outputs, (first, second), strict=True):
        value.name = name
    return {name: source.ending for name, source in sources(model).items()}


@pytest.mark.parametrize(
    "name", ["present.0.decoder.key", "present_key_values", "new_cached_key_1", "cache_k", "past_key_values.3.value"]
)
def test_a_cache_beside_logits_is_a_state(name):
    found = endings("logits", name)
    assert found[name] is Ending.STATE
    assert found["logits"] is not Ending.STATE


@pytest.mark.parametrize("name", ["representation", "presence", "pastel", "newest", "cachet"])
def test_names_that_only_begin_alike_are_results(name):
    assert endings("logits", name)[name] is not Ending.STATE


def test_a_model_of_caches_alone_is_scored_by_them():
    assert Ending.STATE not in endings("present.0", "present.1").values()
