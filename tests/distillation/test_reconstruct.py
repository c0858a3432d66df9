"""Refits of small nets: broken weights are corrected from the original's outputs, others kept with the reason."""

import numpy as np
import pytest

from onnxcompress.activations import partial_run
from onnxcompress.distillation.reconstruct import refit
from onnxcompress.distillation.targets import LayerMatch, RefitEffort
from onnxcompress.errors import DataError
from onnxcompress.graph import query
from onnxcompress.io import model_io
from onnxcompress.ops import linear as layers
from tests.helpers import floats, run, with_constants

NET = """g (float[n, 3, 6, 6] x, float[8, 3, 3, 3] w1, float[8] b1, float[8, 1, 3, 3] w2, float[8] b2,
    float[4, 8] w3) => (float[n, 4] y) {
    c1 = Conv<pads = [1, 1, 1, 1]>(x, w1, b1) r1 = Relu(c1)
    c2 = Conv<group = 8, pads = [1, 1, 1, 1]>(r1, w2, b2) r2 = Relu(c2) s = Add(r1, r2)
    p = GlobalAveragePool(s) f = Flatten(p) y = Gemm<transB = 1>(f, w3) }"""
SHAPES = {"w1": (8, 3, 3, 3), "b1": (8,), "w2": (8, 1, 3, 3), "b2": (8,), "w3": (4, 8)}
FEEDS = [{"x": floats(1, 3, 6, 6, seed=100 + i)} for i in range(60)]
FRESH = {"x": floats(20, 3, 6, 6, seed=7)}


def net(**changed: np.ndarray):
    weights = {name: floats(*shape, seed=i) / 3 for i, (name, shape) in enumerate(SHAPES.items())}
    return with_constants(NET, **weights | changed)


def broken(seed: int = 50):
    return net(**{name: floats(*shape, seed=seed + i) for i, (name, shape) in enumerate(SHAPES.items())})


def distance(student, teacher, feed=FRESH) -> float:
    """Return the squared error of the outputs as a part of their variance."""
    expected, got = (next(iter(run(each, feed).values())) for each in (teacher, student))
    return float(np.square(got - expected).mean() / expected.var())


def test_all_layers_are_found_again_grouped_ones_too():
    teacher, student = net(), broken()
    assert distance(student, teacher) > 1
    changes = refit(student, teacher, FEEDS)
    assert [change.layer for change in changes] == [layer.label for layer in layers.linear_layers(student)]
    assert all(change.is_applied and change.error_after < 0.01 < change.error_before for change in changes)
    assert distance(student, teacher) < 0.02
    # the last layer had no bias: it got one
    assert layers.linear_layers(student)[-1].bias() is not None


def test_the_same_student_is_left_as_it_is():
    teacher, student = net(), net()
    before = model_io.to_bytes(student)
    assert not any(change.is_applied for change in refit(student, teacher, FEEDS))
    assert model_io.to_bytes(student) == before


def test_twice_the_same():
    one, two, other, more = broken(), broken(), broken(), broken()
    changes = [
        refit(student, net(), FEEDS, effort=RefitEffort(rows_per_column=rows, least_rows=1), seed=seed)
        for student, seed, rows in ((one, 0, 8), (two, 0, 8), (other, 1, 8), (more, 0, 16))
    ]
    assert model_io.to_bytes(one) == model_io.to_bytes(two)
    assert model_io.to_bytes(one) != model_io.to_bytes(other)
    assert 8 * 27 <= changes[0][0].rows < 8 * 27 + 48
    assert changes[0][0].rows < changes[3][0].rows


def test_cut_channels_are_made_up_for_by_those_that_are_kept():
    text = """g (float[n, 5] x, float[5, 6] w, float[6, 3] v) => (float[n, 3] y) {
        a = MatMul(x, w) r = Relu(a) y = MatMul(r, v) }"""
    wide = floats(5, 6)
    wide[:, 4:] = wide[:, :2] * [0.5, 2]  # the last two channels follow from the first two
    teacher = with_constants(text, w=wide, v=floats(6, 3, seed=1))
    kept = np.array([3, 0, 2, 1])
    cut = text.replace("5, 6", "5, 4").replace("6, 3", "4, 3")
    student = with_constants(cut, w=wide[:, kept], v=floats(6, 3, seed=1)[kept])
    feeds, fresh = [{"x": floats(1, 5, seed=i)} for i in range(200)], {"x": floats(50, 5, seed=999)}
    before = distance(student, teacher, fresh)
    changes = refit(student, teacher, feeds, LayerMatch(channels={"a": kept}))
    assert [change.is_applied for change in changes] == [False, True]
    assert distance(student, teacher, fresh) < before / 1e4
    lost = refit(student, teacher, feeds)[0]
    assert "4 channels, the teacher 6" in lost.reason


def test_values_of_other_names_are_paired():
    teacher = net()
    student = with_constants(
        NET.replace("c1", "k1").replace("c2", "k2"),
        **{name: floats(*shape, seed=60 + i) for i, (name, shape) in enumerate(SHAPES.items())},
    )
    changes = refit(student, teacher, FEEDS, LayerMatch(values={"k1": "c1"}))
    assert [change.is_applied for change in changes] == [True, False, True]
    assert "'k2'" in changes[1].reason


def test_only_selected_layers_are_touched():
    student = broken()
    before = {layer.label: layer.matrix() for layer in layers.linear_layers(student)}
    changes = refit(student, net(), FEEDS, selects=lambda node: node.op_type == "Gemm")
    assert len(changes) == 1
    for layer in layers.linear_layers(student):
        assert np.array_equal(layer.matrix(), before[layer.label]) == (layer.label != changes[0].layer)


def test_samples_held_out_decide():
    """The rows to solve from come from a net that is not the teacher on other samples: its own weights are better."""
    teacher, student = net(), net(w1=floats(*SHAPES["w1"], seed=0) / 3 + 0.01)
    held_out = [{"x": floats(1, 3, 6, 6, seed=900 + i)} for i in range(5)]
    few = [{"x": np.zeros((1, 3, 6, 6), np.float32)}] * 3
    first = refit(student, teacher, few, held_out=held_out, selects=lambda node: "w1" in [v.name for v in node.inputs])
    assert not first[0].is_applied
    assert "lower the held-out error" in first[0].reason
    many = refit(student, teacher, FEEDS, held_out=held_out)
    assert many[0].is_applied


def test_one_sample_is_not_enough():
    with pytest.raises(DataError, match="two at least"):
        refit(broken(), net(), FEEDS[:1])
    assert len(refit(broken(), net(), FEEDS[:2])) == 3


INTEGERS = """g (float[n, 6] x, int8[5, 6] q, float[5] s, float[5] b, float[3, 5] v) => (float[n, 3] y) {
    w = DequantizeLinear<axis = 0>(q, s) a = Gemm<transB = 1>(x, w, b) r = Relu(a) y = Gemm<transB = 1>(r, v) }"""


def test_of_integer_weights_the_bias_is_corrected():
    scale = np.full(5, 0.01, np.float32)
    integers = np.random.default_rng(0).integers(-99, 99, (5, 6), dtype=np.int8)
    given = {"s": scale, "v": floats(3, 5, seed=3)}
    teacher = with_constants(INTEGERS, q=integers, b=floats(5), **given)
    student = with_constants(INTEGERS, q=(integers // 8) * 8, b=floats(5) + 1, **given)
    feeds = [{"x": floats(1, 6, seed=i) + 1} for i in range(200)]
    changes = refit(student, teacher, feeds)
    first = layers.linear_layers(student)[0]
    assert changes[0].is_applied
    assert changes[0].ratio is None
    assert changes[0].rows > 100
    np.testing.assert_array_equal(first.matrix()[0], (integers // 8 * 8) * np.float32(0.01))
    assert distance(student, teacher, {"x": floats(50, 6, seed=999) + 1}) < 0.02


def test_a_weight_of_two_readers_is_left_to_both():
    text = "g (float[n, 4] x, float[4, 4] w) => (float[n, 4] y) { a = MatMul(x, w) r = Relu(a) y = MatMul(r, w) }"
    teacher, student = (with_constants(text, w=floats(4, 4, seed=i)) for i in (0, 1))
    changes = refit(student, teacher, [{"x": floats(1, 4, seed=i)} for i in range(30)])
    assert not any(change.is_applied for change in changes)
    assert len(student.graph.initializers) == 1


def test_later_layers_make_up_for_what_finish_does():
    def rounded(layer, matrix, bias, data):
        assert data.train.count > data.held_out.count > 0
        assert data.train.xx is not None
        seen.append(layer.label)
        return (np.rint(matrix * 2) / 2, bias) if layer.label == seen[0] else (matrix, bias)

    seen: list[str] = []
    student, teacher = net(), net()
    changes = refit(student, teacher, FEEDS, finish=rounded)
    assert seen == [change.layer for change in changes]
    assert not changes[0].is_applied
    assert all(change.is_applied for change in changes[1:])
    first = layers.linear_layers(student)[0].matrix()
    np.testing.assert_array_equal(first * 2, np.rint(first * 2))
    plain = net(w1=np.rint(floats(*SHAPES["w1"], seed=0) / 3 * 2) / 2)
    assert distance(student, teacher) < distance(plain, teacher) / 2


def test_a_fixed_batch_is_run_sample_by_sample():
    text = NET.replace("float[n, 3, 6, 6]", "float[1, 3, 6, 6]").replace("float[n, 4]", "float[1, 4]")
    weights = {name: floats(*shape, seed=i) / 3 for i, (name, shape) in enumerate(SHAPES.items())}
    teacher = with_constants(text, **weights)
    student = with_constants(text, **{name: array * 2 + 0.1 for name, array in weights.items()})
    refit(student, teacher, FEEDS)
    assert distance(student, teacher, {"x": FRESH["x"][:1]}) < 0.05


def test_targets_in_parts_are_the_same_targets():
    one, two = broken(), broken()
    refit(one, net(), FEEDS)
    refit(two, net(), FEEDS, effort=RefitEffort(target_bytes=1))
    assert model_io.to_bytes(one) == model_io.to_bytes(two)


BRANCHES = """g (bool c, float[n, 4] x, float[4, 4] w, float[4, 4] v) => (float[n, 4] y) {
    a = MatMul(x, w) r = Relu(a) m = Neg(x) w2 = Identity(v) b = MatMul(m, w2)
    z = If (c) <then_branch = t () => (float[n, 4] p) { p = Add(r, b) },
                else_branch = e () => (float[n, 4] q) { q = Identity(r) }>
    y = Sub(z, a) }"""


@pytest.mark.parametrize("memory_bytes", [0, 500, 1 << 20])
def test_a_frontier_gives_what_the_whole_model_gives(memory_bytes, monkeypatch):
    """Values of branches, of bodies' results and of what was computed long before, however much is kept."""
    model = with_constants(BRANCHES, w=floats(4, 4, seed=1), v=floats(4, 4, seed=2))
    feeds = [{"c": np.array(i != 1), "x": floats(3, 4, seed=i)} for i in range(3)]
    names = ["x", "a", "m", "b", "z", "y"]
    values = {v.name: v for node in model.graph for v in node.outputs} | {v.name: v for v in model.graph.inputs}
    expected = list(frontier_free(model, feeds, names))
    walk = partial_run.Frontier(model, feeds, memory_bytes=memory_bytes)
    for place, name in enumerate(names):
        later = [values[each] for each in names[place + 1 :]]
        for got, want in zip(walk.values([values[name]], later), expected, strict=True):
            np.testing.assert_allclose(got[name], want[name], atol=1e-5)


def frontier_free(model, feeds, names):
    from onnxcompress.activations import observe

    return observe.stream(model, feeds, names)


def test_a_frontier_runs_each_node_once(monkeypatch):
    model = net()
    loaded = []
    opened = partial_run.runtime.open_session
    monkeypatch.setattr(
        partial_run.runtime,
        "open_session",
        lambda data, **options: loaded.append(data) or opened(data, **options),
    )
    walk = partial_run.Frontier(model, FEEDS[:3])
    inputs = [layer.x for layer in layers.linear_layers(model)]
    for place, value in enumerate(inputs):
        assert len(list(walk.values([value], inputs[place + 1 :]))) == 3
    ran = [node.op_type for data in loaded for node in query.nodes(model_io.load(model_io.onnx.load_from_string(data)))]
    assert sorted(ran) == sorted(["Conv", "Relu", "Conv", "Relu", "Add", "GlobalAveragePool", "Flatten"])


RESIDUAL = """g (float[n, 4] x, float[4, 6] w, float[6, 4] v, float[6, 4] u) => (float[n, 4] y) {
    a = MatMul(x, w) t = Relu(a) s = MatMul(t, u) h = Neg(s) b = MatMul(t, v) y = Add(ORDER) }"""


@pytest.mark.parametrize("order", ["b, h", "h, b"])
def test_a_layer_makes_up_for_the_error_of_what_it_is_added_to(order):
    """The skip is wrong in the student, and can't be mended: the layer added to it can make up for all of it."""
    weights = {"w": floats(4, 6), "v": floats(6, 4, seed=1), "u": floats(6, 4, seed=2)}
    teacher = with_constants(RESIDUAL.replace("ORDER", order), **weights)
    student = with_constants(RESIDUAL.replace("ORDER", order), **weights | {"u": floats(6, 4, seed=3)})
    feeds, fresh = [{"x": floats(1, 4, seed=i)} for i in range(200)], {"x": floats(50, 4, seed=999)}
    (change,) = refit(student, teacher, feeds, selects=lambda node: "v" in [v.name for v in node.inputs])
    assert change.error_after < 1e-3 < change.error_before
    assert distance(student, teacher, fresh) < 1e-3
    # a skip that is not computed yet is refitted by itself, and the layer learns its own output
    student = with_constants(RESIDUAL.replace("ORDER", order), **weights | {"v": floats(6, 4, seed=3)})
    (change,) = refit(student, teacher, feeds, selects=lambda node: "u" in [v.name for v in node.inputs])
    assert not change.is_applied


def test_a_sum_that_spreads_the_output_is_no_aim():
    text = """g (float[n, 1, 4] x, float[n, 3, 4] z, float[4, 4] w) => (float[n, 3, 4] y) {
        b = MatMul(x, w) y = Add(b, z) }"""
    teacher, student = (with_constants(text, w=floats(4, 4, seed=i)) for i in (0, 1))
    feeds = [{"x": floats(1, 1, 4, seed=i), "z": floats(1, 3, 4, seed=500 + i)} for i in range(100)]
    (change,) = refit(student, teacher, feeds)
    assert change.error_after < 1e-6
    np.testing.assert_allclose(layers.linear_layers(student)[0].matrix()[0], floats(4, 4).T, atol=1e-3)


def test_a_narrow_skip_is_spread_over_the_sum():
    text = """g (float[n, 3, 4] x, float[n, 1, 4] z, float[4, 4] w) => (float[n, 3, 4] y) {
        b = MatMul(x, w) y = Add(z, b) }"""
    teacher, student = (with_constants(text, w=floats(4, 4, seed=i)) for i in (0, 1))
    feeds = [{"x": floats(1, 3, 4, seed=i), "z": floats(1, 1, 4, seed=500 + i)} for i in range(100)]
    (change,) = refit(student, teacher, feeds)
    assert change.error_after < 1e-6
