"""Students learn what a teacher gives; what can't be learnt from is said; divergences are what they are defined as."""

import numpy as np
import onnx_ir as ir
import pytest
from scipy.special import softmax

from onnxcompress.distillation import trainable
from onnxcompress.distillation.gradients import reverse
from onnxcompress.distillation.train import affordable, distill
from onnxcompress.graph import edit, query
from onnxcompress.io import model_io
from onnxcompress.quality.divergence import Divergence, DivergenceKind, kinds
from tests.helpers import floats, run, with_constants

TEXT = """g (float[n, 6] x, float[6, 16] a, float[16] c, float[16, 4] b) => (float[n, 4] y) {
    h = Gemm(x, a, c) r = Relu(h) y = MatMul(r, b) }"""
CONV = """g (float[n, 4, 5, 5] x, float[4, 1, 3, 3] d, float[4] e, float[8, 4, 1, 1] a, float[8] c) => (float[n, 8] y) {
    u = Conv<group = 4>(x, d, e) r = Relu(u) v = Conv(r, a, c) p = GlobalAveragePool(v) f = Flatten(p)
    y = Softmax<axis = -1>(f) }"""
FEEDS = [{"x": floats(1, 6, seed=i)} for i in range(160)]


def net(text=TEXT, seed=0, **changed):
    shapes = {"a": (6, 16), "c": (16,), "b": (16, 4)}
    if text != TEXT:
        shapes = {"d": (4, 1, 3, 3), "e": (4,), "a": (8, 4, 1, 1), "c": (8,)}
    made = {name: floats(*shape, seed=seed + i) for i, (name, shape) in enumerate(shapes.items())}
    return with_constants(text, **made | changed)


def shaken(model, part=0.3):
    copy = model_io.clone(model)
    for number, (_name, value) in enumerate(sorted(copy.graph.initializers.items())):
        array = query.constant(value)
        edit.set_weight(value, array + np.float32(part * array.std()) * floats(*array.shape, seed=90 + number))
    return copy


def test_a_student_comes_nearer_to_its_teacher():
    teacher, student = net(), shaken(net())
    judge = Divergence(teacher, [{"x": floats(1, 6, seed=900 + i)} for i in range(50)])
    before = judge.of(student)
    found = distill(student, teacher, FEEDS, steps=150, rate=1e-2)
    assert found.is_applied
    assert found.steps == 150
    assert found.after < 0.5 * found.before
    assert judge.of(student) < 0.5 * before
    assert judge.kinds == {"y": DivergenceKind.LOGITS}


def test_probabilities_behind_a_grouped_convolution_whose_kernel_learns_too():
    teacher = net(CONV)
    student = shaken(teacher)
    feeds = [{"x": floats(1, 4, 5, 5, seed=i)} for i in range(120)]
    kernel = query.constant(student.graph.initializers["d"]).copy()
    bias = query.constant(student.graph.initializers["e"]).copy()
    found = distill(student, teacher, feeds, steps=120, rate=1e-2)
    assert found.after < 0.6 * found.before
    assert (query.constant(student.graph.initializers["d"]) != kernel).any()
    assert (query.constant(student.graph.initializers["e"]) != bias).any()
    assert run(student, feeds[0])["y"].sum() == pytest.approx(1, abs=1e-5)


def test_plain_numbers_are_learnt_by_their_squared_error():
    text = TEXT.replace("y = MatMul(r, b)", "z = MatMul(r, b) y = Tanh(z)")
    teacher = net(text=TEXT).graph.initializers
    weights = {name: query.constant(value) for name, value in teacher.items()}
    original = with_constants(text, **weights)
    student = shaken(original, 0.1)
    found = distill(student, original, FEEDS, steps=150, rate=5e-3)
    assert found.after < 0.7 * found.before
    assert Divergence(original, FEEDS[:4]).kinds == {"y": DivergenceKind.NUMBERS}


def test_what_is_good_already_stays_bit_for_bit():
    teacher, student = net(), net()
    found = distill(student, teacher, FEEDS, steps=20, rate=1e-2)
    assert not found.is_applied
    assert "no gain" in found.reason
    np.testing.assert_array_equal(
        query.constant(student.graph.initializers["a"]), query.constant(teacher.graph.initializers["a"])
    )


def test_the_rate_follows_the_loss_and_seeds_give_the_same():
    teacher = net()
    results = []
    for seed in (1, 1, 2):
        student = shaken(teacher, 0.02)
        distill(student, teacher, FEEDS, steps=30, seed=seed)
        results.append(query.constant(student.graph.initializers["a"]))
    np.testing.assert_array_equal(results[0], results[1])
    assert (results[0] != results[2]).any()
    assert np.abs(results[0] - query.constant(shaken(teacher, 0.02).graph.initializers["a"])).max() < 0.05


@pytest.mark.parametrize(
    ("text", "feeds", "why"),
    [
        (TEXT, FEEDS[:10], "10 samples of one shape are too few"),
        (TEXT.replace("float[n, 6] x", "float[1, 6] x"), FEEDS, "one sample at a time"),
        ("g (float[n, 6] x) => (float[n, 6] y) { y = Relu(x) }", FEEDS, "no linear layer"),
        (
            TEXT.replace("float[n, 4] y", "int64[n] y").replace(
                "y = MatMul(r, b)", "z = MatMul(r, b) y = ArgMax<axis = -1, keepdims = 0>(z)"
            ),
            FEEDS,
            "no output of floats",
        ),
    ],
)
def test_what_can_not_be_learnt_is_said(text, feeds, why):
    own = {"a": floats(6, 16), "c": floats(16), "b": floats(16, 4)} if "float[6, 16] a" in text else {}
    model = with_constants(text, **own)
    found = distill(model_io.clone(model), model, feeds, steps=5)
    assert not found.is_applied
    assert why in found.reason


def test_whole_numbers_are_not_mixed():
    text = """g (int64[n, 3] x, float[10, 6] t, float[6, 4] b) => (float[n, 3, 4] y) {
        e = Gather(t, x) y = MatMul(e, b) }"""
    teacher = with_constants(text, t=floats(10, 6), b=floats(6, 4, seed=1))
    student = shaken(teacher)
    feeds = [{"x": np.random.default_rng(i).integers(0, 10, (1, 3))} for i in range(80)]
    found = distill(student, teacher, feeds, steps=100, rate=1e-2)
    assert found.after < 0.9 * found.before


def test_divergence_is_the_mean_over_outputs_of_its_kinds():
    text = """g (float[n, 6] x, float[6, 4] b) => (float[n, 4] y, float[n, 4] p, float[n, 4] t) {
        y = MatMul(x, b) p = Softmax<axis = -1>(y) t = Tanh(y) }"""
    b = floats(6, 4)
    original, other = with_constants(text, b=b), with_constants(text, b=b + 0.1 * floats(6, 4, seed=1))
    judge = Divergence(original, FEEDS[:10])
    assert judge.kinds == {"y": DivergenceKind.NUMBERS, "p": DivergenceKind.PROBABILITIES, "t": DivergenceKind.NUMBERS}
    assert judge.of(original) == pytest.approx(0, abs=1e-6)
    runs = [(run(original, feed), run(other, feed)) for feed in FEEDS[:10]]
    p, q = (np.concatenate([pair[side]["p"] for pair in runs]) for side in (0, 1))
    divergence = (p * np.log(p / q)).sum(axis=1).mean()
    errors = []
    for name in ("y", "t"):
        one, two = (np.concatenate([pair[side][name] for pair in runs]).astype(np.float64) for side in (0, 1))
        errors.append(0.5 * np.square(one - two).sum() / np.square(one - one.mean(0)).sum())
    assert judge.of(other) == pytest.approx((divergence + sum(errors)) / 3, rel=1e-3)


def test_a_last_product_with_a_winner_in_each_row_gives_logits():
    text = "g (float[n, 6] x, float[6, 6] b) => (float[n, 6] y) { c = Exp(x) d = Mul(c, c) y = MatMul(d, b) }"
    original = with_constants(text, b=np.eye(6, dtype=np.float32))
    judge = Divergence(original, FEEDS[:10])
    assert judge.kinds == {"y": DivergenceKind.LOGITS}
    y = np.concatenate([run(original, feed)["y"] for feed in FEEDS[:10]]).astype(np.float64)
    p, q = softmax(y, -1), softmax(0.9 * y, -1)
    other = with_constants(text, b=0.9 * np.eye(6, dtype=np.float32))
    assert judge.of(other) == pytest.approx((p * np.log(p / q)).sum(1).mean(), rel=1e-4)


def test_outputs_that_are_no_numbers_or_of_another_shape_are_infinitely_far():
    model = net()
    judge = Divergence(model, FEEDS[:3])
    assert judge.of(net(c=np.full(16, np.inf, np.float32))) == np.inf
    assert judge.of(net(b=floats(16, 5))) == np.inf
    assert kinds(model, {"y": np.zeros(0, np.float32), "i": np.ones(3, np.int64)}) == {}


def test_weights_of_nodes_that_are_kept_away_stay():
    teacher, student = net(), shaken(net())
    held = {name: query.constant(value).copy() for name, value in student.graph.initializers.items()}
    distill(student, teacher, FEEDS, steps=60, rate=1e-2, selects=lambda node: node.op_type == "MatMul")
    for name, value in student.graph.initializers.items():
        assert (query.constant(value) != held[name]).any() == (name == "b")


SCALES = """g (float[n, 6] x, float[6, 16] a, float[16] s, float[16] p, float[16, 4] b) => (float[n, 4] y) {
    h = MatMul(x, a) m = Mul(h, s) r = PRelu(m, p) k = Constant<value_float = 0.5>() q = Mul(r, k) y = MatMul(q, b) }"""


def test_scales_slopes_and_weights_in_constant_nodes_learn_too():
    held = {
        "a": floats(6, 16),
        "s": 1 + 0.1 * floats(16, seed=1),
        "p": 0.2 * floats(16, seed=2),
        "b": floats(16, 4, seed=3),
    }
    teacher = with_constants(SCALES, **held)
    node = ir.node("Constant", [], {"value": ir.tensor(held["b"])})
    value = teacher.graph.initializers.pop("b")
    teacher.graph.insert_before(teacher.graph[0], node)
    node.outputs[0].name = "b_of_node"
    value.replace_all_uses_with(node.outputs[0])
    student = shaken(teacher)
    names = {"a", "s", "p", "b_of_node"}
    before = trainable.weights(student)
    assert set(before) == names
    found = distill(student, teacher, FEEDS, steps=100, rate=1e-2)
    assert found.after < 0.6 * found.before
    after = trainable.weights(student)
    assert all((after[name] != before[name]).any() for name in names)


def test_an_operator_without_a_derivative_is_named_with_what_it_costs():
    text = TEXT.replace("y = MatMul(r, b)", "u = com.microsoft.Gelu(r) y = MatMul(u, b)")
    teacher = in_microsofts_domain(text, a=floats(6, 16), c=floats(16, seed=1), b=floats(16, 4, seed=2))
    student = shaken(teacher, 0.1)
    kept = query.constant(student.graph.initializers["a"]).copy()
    found = distill(student, teacher, FEEDS, steps=60, rate=1e-2)
    assert found.is_applied
    assert "2 of 3 weights are not trained: Gelu" in found.reason
    assert "domain 'com.microsoft'" in found.figures(0.1)[-1]
    np.testing.assert_array_equal(query.constant(student.graph.initializers["a"]), kept)
    last = TEXT.replace("y = MatMul(r, b)", "z = MatMul(r, b) y = com.microsoft.Gelu(z)")
    teacher = in_microsofts_domain(last, a=floats(6, 16), c=floats(16, seed=1), b=floats(16, 4, seed=2))
    found = distill(shaken(teacher, 0.1), teacher, FEEDS, steps=60)
    assert not found.is_applied
    assert found.figures(0.1)[0].startswith("not distilled: no weight has a derivative: Gelu ")


def in_microsofts_domain(text, **arrays):
    model = with_constants(text.replace("com.microsoft.Gelu", "Relu"), **arrays)
    node = next(node for node in reversed(model.graph) if node.op_type == "Relu")
    node.op_type, node.domain = "Gelu", "com.microsoft"
    model.opset_imports["com.microsoft"] = 1
    return model


def test_a_failure_of_the_derivative_costs_the_training_only(monkeypatch):
    teacher, student = net(), shaken(net())
    monkeypatch.setattr(reverse._passes, "REVERSE", {})
    monkeypatch.setattr(reverse, "RULES", {})
    found = distill(student, teacher, FEEDS, steps=5)
    assert not found.is_applied
    assert "no weight has a derivative" in found.reason
    monkeypatch.setattr(reverse, "_prepared", lambda _: 1 / 0)
    found = distill(student, teacher, FEEDS, steps=5)
    assert "onnx-ad fails: division by zero" in found.reason


@pytest.mark.parametrize("bad", [3, 7])
def test_a_run_that_fails_costs_the_training_only(bad):
    text = (
        "g (int64[n, 3] x, float[10, 6] t, float[6, 4] b) => (float[n, 3, 4] y) { e = Gather(t, x) y = MatMul(e, b) }"
    )
    teacher = with_constants(text, t=floats(10, 6), b=floats(6, 4, seed=1))
    student = shaken(teacher)
    feeds = [{"x": np.full((1, 3), 99 if i % 8 == bad else i % 10)} for i in range(80)]
    found = distill(student, teacher, feeds, steps=50)
    assert not found.is_applied
    assert "the training can't be run: onnxruntime can't run the model" in found.reason


def test_the_budget_counts_layers_whose_shape_only_a_run_shows():
    text = """g (float[n, 4, 5, 5] x, bool[5] m, float[8, 4, 3, 3] a) => (float[n, 8, 3, 3] y) {
        z = NonZero(m) i = Squeeze(z) u = Gather<axis = 2>(x, i) y = Conv(u, a) }"""
    model = with_constants(text, a=floats(8, 4, 3, 3), m=np.ones(5, bool))
    macs = 8 * 4 * 9 * 9
    feed = {"x": floats(1, 4, 5, 5)}
    assert affordable(model, feed, 100, training_macs=100 * 20.5 * macs) == (100, 20)
    assert affordable(model, feed, 100, training_macs=50 * 16 * macs) == (50, 16)
