"""Plans of merged layers: weights, windows and offsets are those of the sum or the composition, refusals say why."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir
import pytest

from onnxcompress.graph import edit
from onnxcompress.ops.linear import LinearLayer
from onnxcompress.passes.fold import layer_composition
from onnxcompress.passes.fold.layer_composition import Merged
from tests.helpers import floats, run, with_constants


def _layers(text: str, **shapes: tuple[int, ...]) -> tuple[ir.Model, list[LinearLayer]]:
    model = with_constants(text, **{name: floats(*shape, seed=n) for n, (name, shape) in enumerate(shapes.items())})
    found = [layer_composition.free_layer(node) for node in model.graph]
    return model, [layer for layer in found if layer is not None]


def _image(first: str, second: str, w: tuple[int, ...], v: tuple[int, ...], bias: str = "") -> list[LinearLayer]:
    channels = w[1] if "group" not in first else w[0]
    text = f"""g (float[1, {channels}, 9, 9] x, float[{", ".join(map(str, w))}] w, float[{w[0]}] b,
        float[{", ".join(map(str, v))}] v) => (float[A, B, C, D] y) {{
        a = Conv{first}(x, w{bias})  y = Conv{second}(a, v) }}"""
    return _layers(text, w=w, b=(w[0],), v=v)[1]


def test_a_chain_has_the_weight_and_bias_of_the_composition():
    model, (first, second) = _layers(
        """g (float[N, 6] x, float[6, 5] w, float[5] b, float[5, 3] v, float[3] c) => (float[N, 3] y) {
        a = Gemm(x, w, b)  y = Gemm(a, v, c) }""",
        w=(6, 5), b=(5,), v=(5, 3), c=(3,),
    )  # fmt: skip
    merged = layer_composition.merge_chain(first, second)
    assert isinstance(merged, Merged)
    w, b, v, c = (floats(*shape, seed=n).astype(np.float64) for n, shape in enumerate([(6, 5), (5,), (5, 3), (3,)]))
    np.testing.assert_allclose(merged.weight[0], (w @ v).T, rtol=1e-12)
    np.testing.assert_allclose(merged.bias, b @ v + c, rtol=1e-12)
    assert (merged.layer, merged.window, merged.numbers) == (second, None, 45)
    assert (merged.bytes_before, merged.bytes_after) == (180, 72)
    expected = run(model, {"x": floats(4, 6, seed=9)})["y"]
    x, names = first.x, edit.Names(model)
    between = second.x
    layer_composition.write(merged, x, names)
    edit.remove_unread(between)
    assert len(list(model.graph)) == 1
    np.testing.assert_allclose(run(model, {"x": floats(4, 6, seed=9)})["y"], expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    ("first", "second", "w", "v", "window"),
    [
        ("<strides = [2, 2]>", "", (4, 4, 3, 3), (2, 4, 1, 1), ((3, 3), (2, 2))),
        ("<strides = [2, 2]>", "<strides = [2, 2]>", (4, 4, 3, 3), (2, 4, 1, 1), ((3, 3), (4, 4))),
        ("", "<pads = [1, 1, 1, 1]>", (4, 4, 1, 1), (2, 4, 3, 3), ((3, 3), (1, 1))),
        ("", "<dilations = [2, 2], strides = [2, 1]>", (4, 4, 1, 1), (2, 4, 3, 3), ((3, 3), (2, 1))),
    ],
)
def test_the_window_of_two_is_that_of_the_one_that_sees_several_positions(first, second, w, v, window):
    merged = layer_composition.merge_chain(*_image(first, second, w, v))
    assert isinstance(merged, Merged)
    assert merged.window is not None
    assert (merged.window.kernel, merged.window.strides) == window


@pytest.mark.parametrize(
    ("first", "second", "w", "v", "bias", "reason"),
    [
        ("", "", (4, 4, 3, 3), (2, 4, 3, 3), "", None),
        ("<strides = [2, 2]>", "", (4, 4, 1, 1), (2, 4, 3, 3), "", "the first one skips positions"),
        (
            "",
            "<pads = [1, 1, 1, 1]>",
            (4, 4, 1, 1),
            (2, 4, 3, 3),
            ", b",
            "zeros are padded between them, and the first one has a bias",
        ),
        (
            '<auto_pad = "SAME_UPPER">',
            "<strides = [2, 2]>",
            (4, 4, 3, 3),
            (2, 4, 1, 1),
            "",
            "the padding of the first one depends on the size of the input",
        ),
        (
            "",
            "",
            (2, 8, 1, 1),
            (8, 2, 1, 1),
            "",
            "one layer in their place would have 64 numbers, more than their 32",
        ),
        ("<group = 2>", "<group = 3>", (6, 3, 1, 1), (6, 2, 1, 1), "", "their groups of channels don't nest"),
    ],
)
def test_chains_that_can_not_be_merged_have_a_reason(first, second, w, v, bias, reason):
    assert layer_composition.merge_chain(*_image(first, second, w, v, bias)) == reason


def test_a_sum_holds_the_smaller_kernel_in_the_middle_and_multiples_on_the_diagonal():
    text = """g (float[1, 4, 9, 9] x, float[4, 4, 3, 3] w, float[4, 4, 1, 1] v) => (float[1, 4, 9, 9] y) {
        a = Conv<pads = [1, 1, 1, 1]>(x, w)  b = Conv(x, v)  y = Add(a, b) }"""
    _, layers = _layers(text, w=(4, 4, 3, 3), v=(4, 4, 1, 1))
    merged = layer_composition.merge_parallel(layers, [(np.full(4, 2.0), np.arange(4.0))])
    assert isinstance(merged, Merged)
    expected = floats(4, 4, 3, 3, seed=0).astype(np.float64)
    expected[:, :, 1, 1] += floats(4, 4, 1, 1, seed=1)[:, :, 0, 0] + 2 * np.eye(4)
    np.testing.assert_allclose(merged.weight[0], expected, rtol=1e-12)
    np.testing.assert_array_equal(merged.bias, np.arange(4.0))
    assert merged.layer is layers[0]


@pytest.mark.parametrize(
    ("second", "v", "reason"),
    [
        ("<pads = [1, 1, 1, 1]>", (4, 4, 1, 1), "their windows don't lie over each other"),
        ("<strides = [2, 2]>", (4, 4, 1, 1), "their windows don't lie over each other"),
        ("", (2, 4, 1, 1), "they are not of the same channels"),
    ],
)
def test_sums_that_can_not_be_merged_have_a_reason(second, v, reason):
    text = f"""g (float[1, 4, 9, 9] x, float[4, 4, 3, 3] w, float[{", ".join(map(str, v))}] v) =>
        (float[A, B, C, D] a, float[E, F, G, H] b) {{
        a = Conv<pads = [1, 1, 1, 1]>(x, w)  b = Conv{second}(x, v) }}"""
    _, layers = _layers(text, w=(4, 4, 3, 3), v=v)
    assert layer_composition.merge_parallel(layers, []) == reason
