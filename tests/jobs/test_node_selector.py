"""`--only` and `--skip`: what they match, and what they say when they match nothing."""

import pytest

from onnxcompress.errors import UsageError
from onnxcompress.graph import query
from onnxcompress.jobs.node_selector import selector
from tests.helpers import from_text

TEXT = """
g (float[2, 3] x, bool on) => (float[2, 3] y) {
  a = Relu(x)
  b = Sigmoid(a)
  y = If(on) <
    then_branch = t () => (float[2, 3] p) { p = Tanh(b) },
    else_branch = e () => (float[2, 3] q) { q = Relu(b) }
  >
}
"""


def _model():
    model = from_text(TEXT)
    for node, name in zip(query.nodes(model), ["enc/a", "enc/b[0]", "choice", "dec/t", ""], strict=True):
        node.name = name
    return model


def _chosen(only=(), skip=()):
    model = _model()
    selects = selector(model, only, skip)
    return [query.label(node) for node in query.nodes(model) if selects(node)]


ALL = ["enc/a", "enc/b[0]", "choice", "dec/t", "Relu:q"]


@pytest.mark.parametrize(
    ("only", "skip", "chosen"),
    [
        ((), (), ALL),
        (["enc/*"], (), ["enc/a", "enc/b[0]"]),
        (["op:Relu"], (), ["enc/a", "Relu:q"]),
        (["op:*n*"], (), ["dec/t"]),
        (["enc/b[0]"], (), ["enc/b[0]"]),
        ((), ["enc/*", "choice"], ["dec/t", "Relu:q"]),
        (["op:Relu", "choice"], ["enc/?"], ["choice", "Relu:q"]),
        (["Relu:q"], (), ["Relu:q"]),
    ],
)
def test_nodes_are_chosen_in_bodies_too(only, skip, chosen):
    assert _chosen(only, skip) == chosen


@pytest.mark.parametrize(
    ("only", "skip", "words"),
    [
        (["ecn/*"], (), ["--only 'ecn/*'", "'enc/"]),
        ((), ["op:Rleu"], ["--skip 'op:Rleu'", "'op:Relu'"]),
        ((), ["op:Convolution9"], ["op:If", "op:Tanh"]),
        (["#"], (), ["such as 'enc/a'"]),
        (["enc/*"], ["relu"], ["--skip 'relu'"]),
        (["ENC/*"], (), ["--only 'ENC/*'"]),
    ],
)
def test_a_pattern_without_a_match_names_the_nearest(only, skip, words):
    with pytest.raises(UsageError) as caught:
        _chosen(only, skip)
    for word in words:
        assert word in str(caught.value)
