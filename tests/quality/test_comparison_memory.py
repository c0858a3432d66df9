"""Memory of a comparison whose outputs are large: what it holds does not grow with the samples."""

import tracemalloc

import numpy as np
import pytest

from onnxcompress.data.evaluation_set import Evaluation
from onnxcompress.data.feeds import Lazy
from onnxcompress.quality.compare_outputs import measure
from onnxcompress.quality.divergence import Divergence
from onnxcompress.quality.output_plan import OutputPlan
from onnxcompress.quality.output_sources import Ending, Source
from tests.helpers import from_text

SIDE = 512
EACH = 4 * 4 * SIDE * SIDE
"""Bytes of an output and of an input."""


class _Large:
    """Gives an output of four megabytes for each feed."""

    def __init__(self, factor):
        self._factor = np.float32(factor)

    def run(self, feed):
        return {"y": np.roll(feed["x"], 1, -1) * self._factor}


def _feed(index):
    return {"x": np.random.default_rng(index).random((1, 4, SIDE, SIDE), np.float32)}


def _peak(work):
    tracemalloc.start()
    try:
        found = work()
        return found, tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()


def test_neither_inputs_nor_outputs_of_the_other_model_wait_for_the_kinds_to_be_decided():
    judged = Evaluation(feeds=Lazy(range(24), _feed), source="test")
    plan = OutputPlan({"y": Source(Ending.OTHER, "Mul")})
    quality, peak = _peak(lambda: measure(_Large(1), _Large(1.01), judged, plan=plan))
    assert quality.outputs["y"].cosine == pytest.approx(1.0)
    assert peak < (16 + 8 + 14) * EACH  # sixteen runs of the original, what stays in memory, what a sample takes


def test_a_divergence_keeps_what_it_expects_in_a_file():
    model = from_text(f"g (float[1, 4, {SIDE}, {SIDE}] x) => (float[1, 4, {SIDE}, {SIDE}] y) {{ y = Neg(x) }}")
    tracemalloc.start()
    try:
        judge = Divergence(model, Lazy(range(40), _feed))
        held, _ = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert held < 12 * EACH
    assert judge.of(model) == 0.0
