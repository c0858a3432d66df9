"""Windows of a convolution as rows: few of them are picked without a copy of the data, and are the same."""

import tracemalloc

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from onnxcompress.numerics.linear import patches as module
from onnxcompress.numerics.linear.patches import Window, choose, patches


@st.composite
def _windows(draw):
    axes = draw(st.integers(1, 3))

    def each(least, most):
        return draw(st.tuples(*[st.integers(least, most)] * axes))

    window = Window(
        kernel=each(1, 3),
        strides=each(1, 3),
        dilations=each(1, 2),
        pads=tuple(draw(st.tuples(st.integers(0, 2), st.integers(0, 2))) for _ in range(axes)),
    )
    return window, each(5, 8)


@given(_windows(), st.integers(1, 3), st.sampled_from([(2, 1), (4, 2), (3, 3)]), st.integers(0, 9))
def test_few_rows_are_those_of_all(drawn, batch, channels, seed):
    window, sizes = drawn
    random = np.random.default_rng(seed)
    x = random.standard_normal((batch, channels[0], *sizes)).astype(np.float32)
    every = patches(x, window, groups=channels[1])
    at = choose(every.shape[1], 5, random)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(module, "_FEW", 0)
        few = patches(x, window, groups=channels[1], at=at)
        patch.setattr(module, "_FEW", 10**9)
        many = patches(x, window, groups=channels[1], at=at)
    np.testing.assert_array_equal(few, every[:, at])
    np.testing.assert_array_equal(many, few)


def test_few_rows_of_a_large_array_take_little_memory():
    x = np.zeros((1, 16, 256, 256), np.float32)
    window = Window(kernel=(3, 3), strides=(1, 1), dilations=(1, 1), pads=((1, 1), (1, 1)))
    tracemalloc.start()
    patches(x, window, at=choose(256 * 256, 64, np.random.default_rng(0)))
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < x.nbytes / 16
