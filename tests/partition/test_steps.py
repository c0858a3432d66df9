"""Steps and companions: what has a place of its own, what is made anew, and what each step holds."""

import numpy as np
import pytest

import onnxcompress as oc
from onnxcompress.errors import ModelError
from onnxcompress.graph import edit, query
from onnxcompress.io import model_io
from onnxcompress.partition import steps as split_steps
from onnxcompress.partition import value_sizes
from tests.helpers import from_text

SHAPES = """
g (float[n, 4] x) => (float[m, 2] y)
<float[4, 4] w = {1,0,0,0, 0,1,0,0, 0,0,1,0, 0,0,0,1}, int64[1] two = {2}, int64[1] minus = {-1}>
{
  h = MatMul(x, w)
  r = Relu(h)
  s = Shape(x)
  t = Concat<axis=0>(minus, two)
  d = Shape(h)
  k = Size(x)
  y = Reshape(r, t)
}
"""


def _flow(model, **feed):
    facts = value_sizes.facts_of(model, feed)
    return split_steps.flow(model, facts), facts


def _types(nodes):
    return [node.op_type for node in nodes]


def test_shape_arithmetic_and_constants_have_no_place_of_their_own():
    found, _ = _flow(from_text(SHAPES), x=np.zeros((3, 4), np.float32))
    assert _types(found.steps) == ["MatMul", "Relu", "Shape", "Reshape"]  # the shape of h is no input's
    assert sorted(_types(found.companions)) == ["Concat", "Shape", "Size"]
    reshape = found.steps[-1]
    assert _types(found.nodes(3, 4)) == ["Concat", "Reshape"]
    assert {value.name for value in found.needs[reshape].constants} == {"two", "minus", "t"}


def test_large_shape_arithmetic_is_handed_over_and_random_numbers_are():
    text = """
    g (float[n, 4] x) => (float[a, b] y, float[c] z)
    {
      s = Shape(x)
      big = ConstantOfShape(s)
      r = RandomNormal<shape=[2]>()
      y = Add(big, x)
      z = Add(r, r)
    }
    """
    model = from_text(text)
    found, _ = _flow(model, x=np.zeros((3, 4), np.float32))
    assert _types(found.companions) == ["Shape", "ConstantOfShape"]
    found, _ = _flow(model, x=np.zeros((300, 4), np.float32))
    assert _types(found.companions) == ["Shape"]
    assert "RandomNormal" in _types(found.steps)


def test_nodes_that_are_not_sorted_are_and_circles_are_refused():
    model = from_text("g (float[2] x) => (float[2] y) { a = Relu(x) b = Neg(a) y = Exp(b) }")
    first = model.graph[0]
    model.graph.remove(first)
    model.graph.append(first)
    assert _types(query.topological(model.graph)) == ["Relu", "Neg", "Exp"]
    first.replace_input_with(0, model.graph.outputs[0])
    with pytest.raises(ModelError, match="its own result"):
        query.topological(model.graph)


def test_an_if_is_one_step_that_reads_what_its_branches_capture():
    text = """
    g (bool c, float[4] x) => (float[4] y)
    {
      a = Neg(x)
      y = If(c)<
        then_branch = t () => (float[4] p) <float[4] w = {1, 2, 3, 4}> { q = Add(a, w) p = Exp(q) },
        else_branch = e () => (float[4] o) { o = Abs(a) }
      >
      late = Relu(y)
    }
    """
    found, facts = _flow(from_text(text), c=np.array(True), x=np.zeros(4, np.float32))
    node = next(node for node in found.steps if node.op_type == "If")
    assert {value.name for value in found.needs[node].values} == {"a", "c"}
    steps = split_steps.steps_of(found, facts)
    step = list(found.steps).index(node)
    assert steps.inner[step] == 2 * 16  # q and p at once
    assert (steps.uses, steps.weights.tolist()) == ([[step]], [16.0])


def test_a_table_counts_by_the_rows_that_are_read():
    text = "g (int64[n] i) => (float[n, 5000] y) { a = Gather(t, i) b = Transpose(t) y = MatMul(a, b) }"
    model = from_text(text.replace("g (int64[n] i)", "g (int64[n] i, float[5000, 64] t)"))
    table = model.graph.inputs[1]
    model.graph.inputs.remove(table)
    edit.set_weight(table, np.zeros((5000, 64), np.float32))
    model.graph.register_initializer(table)
    found, facts = _flow(model_io.clone(model), i=np.array([1, 2]))
    steps = split_steps.steps_of(found, facts)
    assert steps.uses[-1] == [0]
    assert 2 * 256 < steps.weights[-1] < 200_000
    assert steps.weights.max() == 5000 * 64 * 4  # the whole of it where it is transposed
    assert _types(found.companions) == ["Transpose"]


def test_ancestors_are_what_a_step_needs():
    model = from_text("g (float[2] x) => (float[2] y) { a = Relu(x) b = Neg(x) c = Exp(a) y = Add(b, c) }")
    found, _ = _flow(model, x=np.zeros(2, np.float32))
    assert {node.op_type for node in found.ancestors(found.steps[2])} == {"Relu", "Exp"}


QUANTIZED = """
g (float[n, 4] x) => (float[n, 4] y, float[n, 4] z)
<float s = {0.1}, int8 o = {0}, int8[4, 4] w = {1,0,0,0, 0,1,0,0, 0,0,1,0, 0,0,0,1}>
{
  q = QuantizeLinear(x, s, o)
  d = DequantizeLinear(q, s, o)
  f = DequantizeLinear(w, s, o)
  m = MatMul(d, f)
  r = Relu(m)
  p = QuantizeLinear(r, s, o)
  y = DequantizeLinear(p, s, o)
  e = DequantizeLinear(p, s, o)
  z = Relu(e)
}
"""


def test_integers_are_handed_over_and_quantizers_stay_with_their_operator(tmp_path):
    model = from_text(QUANTIZED)
    found, facts = _flow(model, x=np.zeros((3, 4), np.float32))
    assert _types(found.steps) == ["QuantizeLinear", "MatMul", "Relu", "QuantizeLinear", "DequantizeLinear", "Relu"]
    steps = split_steps.steps_of(found, facts)
    assert steps.inner.tolist() == [0, 48, 0, 0, 0, 48]  # the floats of d and e, while they are read
    assert sum(steps.weights[i] for i, uses in enumerate(steps.uses) if uses == [1]) == 16 + 64
    split = oc.split(model, tmp_path / "parts", parts=9)
    assert [tensor.type for tensor in split.manifest.values] == ["tensor(int8)", "tensor(int8)"]
    assert [part.nodes for part in split.manifest.parts] == [1, 5, 1, 2]
