"""Weights become zero by share, pattern or bound; samples make them do less harm; what is shared or fixed stays."""

import numpy as np
import onnx_ir as ir
import pytest

import onnxcompress as oc
from onnxcompress import passes
from onnxcompress.base.gate import Gate
from onnxcompress.core import Action, Context, Need
from onnxcompress.errors import UsageError
from onnxcompress.graph import edit, query
from onnxcompress.io import model_io
from onnxcompress.passes.prune import sparsify as sparsify_module
from onnxcompress.passes.prune.sparsify import Sparsify
from onnxcompress.passes.quantize.clip_weights import ClipWeights
from tests.helpers import floats, run, with_constants

TEXT = """g (float[n, 8, 6, 6] x, float[16, 8, 3, 3] a, float[16] c, float[16, 32] b, float[32] e, float[32, 4] d)
    => (float[n, 4] y) {
    [conv] u = Conv<pads = [1, 1, 1, 1]>(x, a, c) r = Relu(u) p = GlobalAveragePool(r) f = Flatten(p)
    [gemm] h = Gemm(f, b, e) s = Relu(h) [small] y = MatMul(s, d) }"""
MIXING = (np.eye(8) + 0.7 * floats(8, 8, seed=77)).astype(np.float32)
FEEDS = [{"x": np.einsum("nchw,cd->ndhw", floats(1, 8, 6, 6, seed=i), MIXING)} for i in range(60)]


def net(scale=1.0):
    return with_constants(
        TEXT,
        a=floats(16, 8, 3, 3),
        c=floats(16, seed=1),
        b=np.float32(scale) * floats(16, 32, seed=2),
        e=floats(32, seed=3),
        d=floats(32, 4, seed=4),
    )


def sparsify(model, feeds=FEEDS, selects=lambda _: True, **options):
    copy = model_io.clone(model)
    return copy, Sparsify(**options).run(copy, Context(feeds=feeds, selects=selects))


def weight(model, name):
    return query.constant(model.graph.initializers[name])


def distance(model):
    pairs = [(run(net(), feed)["y"], run(model, feed)["y"]) for feed in FEEDS[:30]]
    expected, got = (np.concatenate(side) for side in zip(*pairs, strict=True))
    return float(np.square(got - expected).mean() / expected.var(axis=0).mean())


def zeros(model, name):
    return float((weight(model, name) == 0).mean())


def test_half_of_the_weights_become_zero_in_every_layer_that_is_large_enough():
    model, changes = sparsify(net())
    assert [c.target for c in changes] == ["conv", "gemm"]
    assert {c.action for c in changes} == {Action.APPLIED}
    for name, change in zip("ab", changes, strict=True):
        assert zeros(model, name) == pytest.approx(0.5, abs=0.01)
        assert change.details["zeros"] == pytest.approx(zeros(model, name), abs=1e-3)
        assert "50.0% zeros" in change.reason
    np.testing.assert_array_equal(weight(model, "d"), weight(net(), "d"))
    assert sparsify(net(), min_elements=100)[1][-1].target == "small"


def test_the_more_is_known_the_less_is_lost():
    by_size = distance(sparsify(net(), criterion="magnitude", ratio=0.6)[0])
    by_use = distance(sparsify(net(), criterion="use", ratio=0.6)[0])
    eliminated = distance(sparsify(net(), ratio=0.6)[0])
    assert eliminated < by_use < by_size
    assert eliminated < 0.5 * by_size


def test_two_of_four_neighbouring_input_channels_stay():
    for criterion in ("elimination", "use", "magnitude"):
        model, _ = sparsify(net(), pattern="2:4", criterion=criterion)
        a = weight(model, "a").transpose(0, 2, 3, 1).reshape(-1, 4)
        assert ((a == 0).sum(axis=1) == 2).all(), criterion
        assert ((weight(model, "b").T.reshape(-1, 4) == 0).sum(axis=1) == 2).all()


def test_across_layers_the_one_with_more_small_weights_loses_more():
    model = net()
    skewed = weight(model, "b").copy()
    skewed[:, ::2] *= 0.01
    edit.set_weight(model.graph.initializers["b"], skewed)
    for norm in ("l1", "l2"):
        found, _ = sparsify(model, (), criterion="magnitude", scope="global", ratio=0.2, norm=norm)
        total = (zeros(found, "a") * 1152 + zeros(found, "b") * 512) / 1664
        assert total == pytest.approx(0.2, abs=0.01)
        assert zeros(found, "b") > 2 * zeros(found, "a")
    even, _ = sparsify(model, (), criterion="magnitude", ratio=0.2)
    assert zeros(even, "a") == pytest.approx(zeros(even, "b"), abs=0.01)


def test_norms_differ_across_layers():
    model = net()
    spiky = np.where(np.arange(512).reshape(16, 32) % 16 == 0, 10, 0.3).astype(np.float32)
    edit.set_weight(model.graph.initializers["b"], spiky * np.sign(weight(model, "b")))
    shares = [
        zeros(sparsify(model, (), criterion="magnitude", scope="global", ratio=0.4, norm=norm)[0], "b")
        for norm in ("l1", "l2")
    ]
    assert shares[0] != shares[1]


def test_bounds_of_norms_absolute_and_relative():
    whole = weight(net(), "b")
    model, changes = sparsify(net(), (), criterion="magnitude", norm="l1", limit_share=0.5)
    assert np.abs(weight(model, "b")).sum() == pytest.approx(0.5 * np.abs(whole).sum(), rel=1e-4)
    assert zeros(model, "b") > 0.2
    assert "l1 norm within its bound" in changes[0].reason
    model, _ = sparsify(net(), (), criterion="magnitude", norm="l2", limit=3.0)
    assert np.linalg.norm(weight(model, "b")) == pytest.approx(3.0, rel=1e-4)
    np.testing.assert_allclose(weight(model, "b") / weight(model, "b")[0, 0], whole / whole[0, 0], rtol=1e-3)


def test_shared_weights_and_unselected_layers_stay():
    text = """g (float[n, 20] x, float[20, 20] w) => (float[n, 20] y) {
        [one] u = MatMul(x, w) r = Relu(u) [two] y = MatMul(r, w) }"""
    model = with_constants(text, w=floats(20, 20))
    feeds = [{"x": floats(1, 20, seed=i)} for i in range(9)]
    copy, changes = sparsify(model, feeds)
    assert [(c.action, c.reason) for c in changes] == [(Action.SKIPPED, "others read its weights too")] * 2
    np.testing.assert_array_equal(weight(copy, "w"), weight(model, "w"))
    _, changes = sparsify(net(), selects=lambda node: query.label(node) == "gemm")
    assert [c.target for c in changes] == ["gemm"]


def test_layers_in_bodies_go_by_size():
    text = """g (float[n, 20] x, bool k, float[20, 20] w) => (float[n, 20] y) {
        y = If(k) <then_branch = t () => (float[n, 20] u) { [inner] u = MatMul(x, w) },
                   else_branch = o () => (float[n, 20] v) { v = Identity(x) }> }"""
    model = with_constants(text, w=floats(20, 20))
    feeds = [{"x": floats(1, 20, seed=i), "k": np.array(True)} for i in range(9)]
    copy, changes = sparsify(model, feeds)
    assert changes[0].reason == "50.0% zeros, smallest first"
    assert zeros(copy, "w") == pytest.approx(0.5)


def test_gate_needs_and_a_second_run():
    gate = Gate(denied=frozenset({("sparsify", "conv")}))
    model = net()
    Sparsify().run(model, Context(feeds=FEEDS, gate=gate))
    assert zeros(model, "a") == 0
    assert zeros(model, "b") == pytest.approx(0.5, abs=0.01)
    assert Sparsify(criterion="magnitude").needs == Sparsify.needs == frozenset({Need.DATA_IF_GIVEN})
    assert Sparsify(criterion="use").needs == Sparsify(criterion="elimination").needs == frozenset({Need.DATA})
    once, _ = sparsify(net(), ())
    twice, _ = sparsify(once, (), criterion="magnitude")
    np.testing.assert_array_equal(weight(once, "a"), weight(twice, "a"))
    with pytest.raises(UsageError, match="pattern"):
        passes.build("sparsify", {"pattern": "5:4"})


def test_few_samples_are_enough_and_more_are_left_out():
    few, _ = sparsify(net(), samples=2)
    many, _ = sparsify(net())
    assert (weight(few, "a") != weight(many, "a")).any()
    assert distance(many) < distance(few)


def test_the_recipe():
    result = oc.compress(net(), recipe="sparse", data=FEEDS, max_drop=1.0)
    done = [c for c in result.changes if c.pass_name == "sparsify" and c.action is Action.APPLIED]
    assert [c.target for c in done] == ["conv", "gemm"]


# Clips.


def clip(model, selects=lambda _: True, **options):
    copy = model_io.clone(model)
    return copy, ClipWeights(**options).run(copy, Context(selects=selects))


def test_a_bound_that_is_given():
    model, changes = clip(net(), alpha=0.5)
    np.testing.assert_array_equal(weight(model, "a"), np.clip(weight(net(), "a"), -0.5, 0.5))
    assert changes[0].details["clipped"] == int((np.abs(weight(net(), "a")) > 0.5).sum())
    assert [c.target for c in changes] == ["conv", "gemm", "small"]
    assert clip(model, alpha=0.5)[1] == []


def test_percentiles_by_channel_and_by_tensor():
    model, _ = clip(net(), percentile=90)
    flat = np.abs(weight(net(), "a").reshape(16, -1))
    expected = np.percentile(flat.astype(np.float64), 90, axis=1)
    np.testing.assert_allclose(np.abs(weight(model, "a").reshape(16, -1)).max(axis=1), expected, rtol=1e-5)
    model, _ = clip(net(), percentile=90, group="tensor")
    assert len(np.unique(np.abs(weight(model, "a").reshape(16, -1)).max(axis=1))) == 1


def test_few_bits_clip_more():
    few, _ = clip(net(), bits=2)
    more, _ = clip(net(), bits=4)
    assert np.abs(weight(few, "a")).max() < np.abs(weight(more, "a")).max() < np.abs(weight(net(), "a")).max()
    default, _ = clip(net())
    eight, _ = clip(net(), bits=8)
    np.testing.assert_array_equal(weight(default, "a"), weight(eight, "a"))


def test_clips_leave_shared_unselected_and_denied_weights():
    text = "g (float[n, 20] x, float[20, 20] w) => (float[n, 20] y) { u = MatMul(x, w) y = MatMul(u, w) }"
    model = with_constants(text, w=floats(20, 20))
    copy, changes = clip(model, alpha=0.1)
    assert {c.reason for c in changes} == {"others read its weights too"}
    np.testing.assert_array_equal(weight(copy, "w"), weight(model, "w"))
    assert [c.target for c in clip(net(), selects=lambda n: query.label(n) == "gemm", alpha=0.1)[1]] == ["gemm"]
    model = net()
    denied = Gate(denied=frozenset({("clip-weights", "conv")}))
    ClipWeights(alpha=0.1).run(model, Context(gate=denied))
    np.testing.assert_array_equal(weight(model, "a"), weight(net(), "a"))
    with pytest.raises(UsageError, match="alpha and bits are given"):
        passes.build("clip-weights", {"alpha": 1.0, "bits": 4})


def grouped(scale):
    """Return a net whose depthwise convolution has channels that are never active, and one that overflows later."""
    text = """g (float[n, 8, 6, 6] x, float[16, 8, 1, 1] a, float[16] c, float[16, 1, 5, 5] b, float[8, 16, 4, 4] d)
        => (float[n, 8, 3, 3] y) {
        [wide] u = Conv(x, a, c) r = Relu(u) [deep] v = Conv<group = 16, pads = [2, 2, 2, 2]>(r, b)
        [last] y = Conv(v, d) }"""
    c = floats(16, seed=1)
    c[[2, 7]] = -1e9  # Relu makes these channels zero on every sample
    return with_constants(
        text, a=floats(16, 8, 1, 1) * np.float32(scale), c=c, b=floats(16, 1, 5, 5, seed=2), d=floats(8, 16, 4, 4)
    )


def test_channels_that_are_never_active_do_not_stop_elimination():
    copy, changes = sparsify(grouped(1.0))
    assert {c.target: c.action for c in changes} == {"deep": Action.APPLIED, "last": Action.APPLIED}
    assert all("the others compensate" in c.reason for c in changes)
    assert (weight(copy, "b")[[2, 7]] == 0).mean() == pytest.approx(0.5, abs=0.03)
    assert zeros(copy, "d") == pytest.approx(0.5, abs=0.01)


def test_a_layer_whose_inputs_overflow_is_made_sparse_by_magnitude_and_says_why():
    model = grouped(1e38)
    infinite = [{"x": 1e3 * feed["x"]} for feed in FEEDS]
    copy, changes = sparsify(model, feeds=infinite)
    reasons = {c.target: c.reason for c in changes}
    assert {c.action for c in changes} == {Action.APPLIED}
    assert "smallest first, since without the samples: the sum over a layer's inputs" in reasons["last"]
    assert np.isfinite(weight(copy, "d")).all()
    np.testing.assert_array_equal(
        weight(copy, "d") == 0, np.abs(weight(model, "d")) <= np.quantile(np.abs(weight(model, "d")), 0.5)
    )


@pytest.mark.parametrize("stored", ["float16", "bfloat16"])
def test_a_weight_behind_a_cast_becomes_sparse_in_its_own_type(stored):
    text = f"""g (float[n, 32] x, {stored}[32, 16] w) => (float[n, 16] y) {{
        f = Cast<to = 1>(w) [one] y = MatMul(x, f) }}"""
    dtype = ir.DataType.FLOAT16 if stored == "float16" else ir.DataType.BFLOAT16
    model = with_constants(text, w=floats(32, 16).astype(dtype.numpy()))
    (change,) = Sparsify(ratio=0.75).run(model, Context())
    assert (change.action, change.target) == (Action.APPLIED, "one")
    tensor = model.graph.initializers["w"].const_value
    assert tensor.dtype == dtype
    assert (tensor.numpy() == 0).mean() == 0.75


def test_a_plan_has_the_zeros_of_a_run_without_samples_and_says_so(monkeypatch):
    _, done = sparsify(net(), ratio=0.5)
    monkeypatch.setattr(sparsify_module, "refit", lambda *_, **__: pytest.fail("a plan fits nothing"))
    planned = Sparsify(ratio=0.5).run(net(), Context(feeds=FEEDS, is_plan=True))
    assert [(c.target, c.details["zeros"]) for c in planned] == [(c.target, c.details["zeros"]) for c in done]
    assert all("smallest first" in c.details["draft"] and c.details["draft_samples"] == 0 for c in planned)
    of_weights = Sparsify(ratio=0.5, criterion="magnitude").run(net(), Context(feeds=FEEDS, is_plan=True))
    assert not any("draft" in c.details for c in of_weights), "a run does no more than that"
