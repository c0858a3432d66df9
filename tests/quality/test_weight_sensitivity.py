"""The noise of one weight alone, as running the changed model shows it."""

import numpy as np
import pytest

from onnxcompress.io import model_io
from onnxcompress.quality import weight_sensitivity
from onnxcompress.runtime import session as runtime
from tests.helpers import floats, with_constants

TEXT = """g (float[n, 8] x, bool c, float[8, 4] w, float[8, 4] v) => (float[n, 4] y, float[n, 4] h) {
    h = MatMul(x, w)
    z = If (c) <then_branch = t () => (float[n, 4] a) { a = MatMul(x, v) },
                else_branch = e () => (float[n, 4] b) { b = Identity(h) }>
    y = Add(z, h)
}"""


def _model():
    return with_constants(TEXT, w=floats(8, 4), v=floats(8, 4, seed=1))


def _feeds(taken=True):
    return [{"x": floats(2 + i, 8, seed=2 + i), "c": np.array(taken)} for i in range(3)]


def _run(model, feeds):
    session = runtime.open_session(model_io.to_bytes(model), optimize=True)
    return [session.run(feed) for feed in feeds]


def test_it_is_the_noise_of_the_worst_output():
    model, feeds = _model(), _feeds()
    before = model_io.to_bytes(model)
    changed = {"w": floats(8, 4) + 0.01 * floats(8, 4, seed=9), "v": floats(8, 4, seed=1) * np.float32(1.02)}
    found = weight_sensitivity.noises(model, {name: lambda a=array: a for name, array in changed.items()}, feeds)
    assert model_io.to_bytes(model) == before
    for name, array in changed.items():
        other = with_constants(TEXT, **({"w": floats(8, 4), "v": floats(8, 4, seed=1)} | {name: array}))
        ratios = []
        for output in ("y", "h"):
            was = np.concatenate([r[output] for r in _run(model, feeds)]).astype(float)
            now = np.concatenate([r[output] for r in _run(other, feeds)]).astype(float)
            ratios.append(np.square(was - now).sum() / np.square(was).sum())
        assert found[name] == pytest.approx(max(ratios), rel=1e-3)


def test_a_weight_that_no_run_reaches_makes_none():
    found = weight_sensitivity.noises(_model(), {"v": lambda: floats(8, 4, seed=5)}, _feeds(taken=False))
    assert found == {"v": 0.0}


def test_outputs_that_carry_a_state_do_not_count():
    changed = {"v": lambda: floats(8, 4, seed=5)}
    assert weight_sensitivity.noises(_model(), changed, _feeds(), state={"y"}) == {"v": 0.0}
    assert weight_sensitivity.noises(_model(), changed, _feeds(), state={"h"})["v"] > 0.1


def test_labels_are_represented_by_the_scores_that_decide_them():
    model = with_constants(
        "g (float[N, 4] x, float[4, 3] w) => (int64[N] y) { s = MatMul(x, w) y = ArgMax<axis = 1, keepdims = 0>(s) }",
        w=floats(4, 3, seed=5),
    )
    halved = {"w": lambda: 0.5 * floats(4, 3, seed=5)}
    assert weight_sensitivity.noises(model, halved, [{"x": floats(8, 4)}])["w"] == pytest.approx(0.25, rel=1e-5)


def test_without_an_output_that_counts_there_is_no_noise():
    model = with_constants("g (float[1] x, float[1] w) => (float[1] y) { y = Add(x, w) }", w=floats(1))
    assert weight_sensitivity.noises(model, {"w": lambda: floats(1, seed=1)}, [{"x": floats(1)}], state=["y"]) == {
        "w": 0
    }
