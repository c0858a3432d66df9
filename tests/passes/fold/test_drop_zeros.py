"""Zeros that an operator would take anyway are no inputs; other numbers, and required inputs, stay."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir
import pytest

from onnxcompress.base.gate import Gate
from onnxcompress.core import Context, Feed
from onnxcompress.passes.fold.drop_zeros import DropZeros
from tests.helpers import floats, from_text, op_types, run


def _drop(model: ir.Model, feed: Feed) -> list[str]:
    """Run the pass, check exact outputs, a second run and a closed gate, and return the targets."""
    before = run(model, feed)
    assert not DropZeros().run(model, Context(gate=Gate(limit=0)))
    targets = [change.target for change in DropZeros().run(model, Context())]
    for name, expected in before.items():
        np.testing.assert_array_equal(run(model, feed)[name], expected)
    assert not DropZeros().run(model, Context())
    return targets


_LSTM = (
    "g (float[S, B, 2] x) => (float[S, D, B, 1] y) <float[1, 4, 2] w = {1, 2, 3, 4, 5, 6, 7, 8}, "
    "float[1, 4, 1] r = {1, 2, 3, 4}, int64[1] one = {1}, int64 at = {1}, int64[1] zero = {0}, float[1, 1] f = {FILL}> "
    "{ s = Shape(x) b = Gather(s, at) u = Unsqueeze(b, zero) t = Concat<axis=0>(one, u, one) "
    "z = ConstantOfShape<value = float[1] {FILL}>(t) e = Expand(f, t) "
    "[lstm] y = LSTM<hidden_size=1>(x, w, r, , , z, e) }"
)


@pytest.mark.parametrize(("fill", "count"), [("0", 2), ("1", 0)])
def test_initial_states(fill: str, count: int) -> None:
    model = from_text(_LSTM.replace("FILL", fill))
    targets = _drop(model, {"x": floats(3, 4, 2)})
    assert targets == ["lstm:5", "lstm:6"][:count]
    assert op_types(model) == (["LSTM"] if count else sorted(op_types(model)))
    assert len(model.graph[len(model.graph) - 1].inputs) == (3 if count else 7)


@pytest.mark.parametrize(("bias", "opset", "ports"), [("0, 0", 17, 2), ("0, 1", 17, 3), ("0, 0", 10, 3)])
def test_bias_of_a_gemm(bias: str, opset: int, ports: int) -> None:
    model = from_text(
        f"g (float[N, 2] x) => (float[N, 2] y) <float[2, 2] w = {{1, 2, 3, 4}}, float[2] b = {{{bias}}}> "
        "{ y = Gemm(x, w, b) }",
        opset=opset,
    )
    _drop(model, {"x": floats(3, 2)})
    assert len(model.graph[0].inputs) == ports


def test_a_shared_bias_in_a_body_stays_for_its_other_reader() -> None:
    model = from_text(
        "g (bool c, float[1, 1, 4] x) => (float[1, 1, 4] y) <float[1, 1, 1] w = {2}, float[1] b = {0}> { y = If(c) <"
        "then_branch = t () => (float[1, 1, 4] p) { p = Conv(x, w, b) }, "
        "else_branch = e () => (float[1, 1, 4] q) { q = Add(x, b) }> }"
    )
    assert len(_drop(model, {"c": np.array(True), "x": floats(1, 1, 4)})) == 1
    assert "b" in model.graph.initializers


def test_zeros_that_callers_may_override_stay() -> None:
    model = from_text(
        "g (float[1, 1, 4] x, float[1] b) => (float[1, 1, 4] y) <float[1, 1, 1] w = {2}, float[1] b = {0}> "
        "{ y = Conv(x, w, b) }"
    )
    assert not _drop(model, {"x": floats(1, 1, 4)})
