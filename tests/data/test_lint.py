"""Odd samples are told, ordinary ones are not."""

from __future__ import annotations

import numpy as np
import pytest

import onnxcompress as oc
from onnxcompress.data.lint import oddities
from tests.helpers import floats, from_text

PLAIN = "g (float[N, 3] x) => (float[N, 3] y) { y = Exp(x) }"


def _odd(feeds, body: str = "y = Exp(x)", **options):
    model = from_text(f"g (float[N, 3] x) => (float[N, 3] y) <float c = {{255.0}}, float d = {{0.01}}> {{ {body} }}")
    return oddities(model, [{"x": np.asarray(x, np.float32).reshape(1, 3)} for x in feeds], **options)


def test_ordinary_samples_are_not_odd():
    assert not _odd([floats(3, seed=i) for i in range(5)])
    assert not _odd([])
    assert not _odd([floats(3)])


def test_inputs_that_never_change_are_told():
    assert _odd([[0, 0, 0]] * 4) == ["input 'x' is 0 everywhere in every sample"]
    assert _odd([[0.5] * 3]) == ["input 'x' is 0.5 everywhere in every sample"]
    assert _odd([[1, 2, 3]] * 4) == ["all samples hold the same 'x'"]


def test_a_state_may_be_zero():
    assert not _odd([[0, 0, 0]] * 4, state={"x": "y"})


def test_samples_of_one_number_are_named():
    samples = [floats(3, seed=i) for i in range(6)]
    samples[1] = samples[4] = np.full(3, 7)
    assert _odd(samples) == ["2 of 6 samples hold one number only in 'x' (sample 1, 4)"]


PIXELS = [[0, 17, 200], [255, 3, 4]]


@pytest.mark.parametrize("body", ["y = Exp(x)", "t = Transpose(x)  u = Transpose(t)  y = Exp(u)"])
def test_pixels_that_the_model_does_not_scale_are_told(body):
    (line,) = _odd(PIXELS, body)
    assert line.startswith("input 'x' holds whole numbers up to 255, and the model does not scale them")


@pytest.mark.parametrize(
    "body", ["y = Div(x, c)", "y = Mul(x, d)", "y = Sub(x, c)", "a = Exp(x)  b = Sub(x, c)  y = Add(a, b)"]
)
def test_pixels_that_the_model_scales_are_fine(body):
    assert not _odd(PIXELS, body)


def test_few_whole_numbers_are_no_pixels():
    assert not _odd([[0, 1, 5], [2, 9, 12]])
    assert not _odd([[0, 1, 500], [2, 9, 12]])
    assert not _odd([[0, 1, -120], [2, 9, 120]])


@pytest.mark.parametrize(("body", "factor"), [("y = Div(x, c)", "255"), ("y = Mul(x, d)", "100")])
def test_samples_that_are_scaled_twice_are_told(body, factor):
    (line,) = _odd([[0.1, 0.2, 0.3], [0.9, 1, 0]], body)
    assert line.startswith(f"the model divides input 'x' by {factor}, and the samples lie in 0 to 1 already")


def test_oddities_and_skipped_samples_reach_the_report():
    x = np.zeros((4, 1, 1, 28, 28), np.float32)
    x[2] = np.nan
    notes = oc.compress("models/mbv2.onnx", recipe="fold", data=x).report.notes
    assert any("[2] is skipped" in note or ("2" in note and "NaN" in note) for note in notes)
    assert "input 'x' is 0 everywhere in every sample" in notes
