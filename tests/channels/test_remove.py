"""Cuts of whole graphs: generated ones, real ones, and one for each thing that can be in the way."""

import time
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from onnxcompress import passes
from onnxcompress.channels import groups as channel_groups
from onnxcompress.channels import remove as channel_removal
from onnxcompress.core import Context
from onnxcompress.errors import OnnxCompressError
from onnxcompress.graph import edit
from onnxcompress.io import model_io
from tests.helpers import floats, from_text
from tests.pruned import both_ways, built, check_exact, run, some_groups

MODELS = Path(__file__).parents[2] / "models"


def _reasons(found):
    return " | ".join(kept.reason for kept in found.reach().kept)


def _ints(*numbers):
    return np.array(numbers, np.int64)


# Real models, as they were exported and after folding.


@pytest.mark.parametrize(
    ("name", "exact", "inexact"),
    [("resnet14", 0.9999, 0), ("resnet14_bn", 0.9999, 0), ("mbv2", 0.999, 0), ("vit", 0.96, 0.99)],
)
def test_real_models(name, exact, inexact):
    model = model_io.load(MODELS / f"{name}.onnx")
    passes.build("normalize", {}).run(model, Context())
    found = check_exact(model, {"x": floats(2, 1, 28, 28)}, share=0.3)
    reach = found.reach()
    assert reach.parameters_exact >= exact * reach.parameters
    assert reach.parameters_cut >= max(exact, inexact) * reach.parameters
    assert reach.macs_cut == reach.macs
    assert [kept.reason for kept in reach.kept if "number" not in kept.reason] == ["logits: graph output"]


def test_a_cut_holds_at_other_batch_sizes():
    model = model_io.load(MODELS / "vit.onnx")
    passes.build("normalize", {}).run(model, Context())
    found = channel_groups.find_groups(model, {"x": floats(3, 1, 28, 28)})
    masked = model_io.clone(model)
    removed = some_groups(found, seed=3)
    channel_removal.mask(channel_groups.find_groups(masked, {"x": floats(3, 1, 28, 28)}), removed)
    channel_removal.cut(found, removed)
    for size in (1, 5):
        feed = {"x": floats(size, 1, 28, 28)}
        np.testing.assert_allclose(run(model, feed)["logits"], run(masked, feed)["logits"], atol=1e-4)


def test_the_residual_stream_goes_with_its_normalisations():
    model = model_io.load(MODELS / "vit.onnx")
    passes.build("normalize", {}).run(model, Context())
    feed = {"x": floats(2, 1, 28, 28)}
    found = channel_groups.find_groups(model, feed)
    stream = [group for group in found.groups if group.inexact]
    assert len(stream) == 96
    assert {node.op_type for node in stream[0].inexact} == {"LayerNormalization"}
    channel_removal.cut(found, [group.id for group in stream[:30]])
    assert run(model, feed)["logits"].shape == (2, 10)


# Generated graphs.


@st.composite
def graphs(draw):
    """Return the text of a graph over images, with residuals, gates, joins and heads, and its weights."""
    lines, weights, values = ["v0 = Conv(x, w0)"], {"w0": (6, 3, 1, 1)}, [("v0", 6)]
    for number in range(1, draw(st.integers(2, 7))):
        value, width = values[draw(st.integers(0, len(values) - 1))]
        same = [name for name, n in values if n == width]
        other = same[draw(st.integers(0, len(same) - 1))]
        kind = draw(
            st.sampled_from(["conv", "depthwise", "grouped", "add", "mul", "join", "halves", "gate", "shuffle", "norm"])
        )
        out, made = f"v{number}", width
        if kind == "conv":
            made = draw(st.sampled_from([4, 6, 8]))
            lines.append(f"{out} = Conv({value}, w{number}, b{number})")
            weights |= {f"w{number}": (made, width, 1, 1), f"b{number}": (made,)}
        elif kind in ("depthwise", "grouped"):
            groups = width if kind == "depthwise" else 2
            lines.append(f"{out} = Conv<group = {groups}>({value}, w{number})")
            weights[f"w{number}"] = (width, width // groups, 1, 1)
        elif kind in ("add", "mul"):
            lines.append(f"{out} = {kind.title()}({value}, {other})")
        elif kind == "join":
            lines.append(f"{out} = Concat<axis = 1>({value}, {other})")
            made = 2 * width
        elif kind == "halves":
            lines.append(f"a{number}, {out} = Split<axis = 1>({value})")
            made = width // 2
        elif kind == "gate":
            lines.append(f"p{number} = GlobalAveragePool({value}) g{number} = Conv(p{number}, w{number})")
            lines.append(f"s{number} = Sigmoid(g{number}) {out} = Mul({other}, s{number})")
            weights[f"w{number}"] = (width, width, 1, 1)
        elif kind == "shuffle":
            lines.append(
                f"r{number} = Reshape({value}, i{number}) t{number} = Transpose<perm = [0, 2, 1, 3, 4]>(r{number})"
            )
            lines.append(f"{out} = Reshape(t{number}, j{number})")
            weights |= {f"i{number}": _ints(-1, 2, width // 2, 3, 3), f"j{number}": _ints(-1, width, 3, 3)}
        else:
            lines.append(f"{out} = BatchNormalization({value}, s{number}, b{number}, b{number}, q{number})")
            weights |= {f"s{number}": (width,), f"b{number}": (width,), f"q{number}": np.full(width, 2, np.float32)}
        if made >= 2 and made % 2 == 0:
            values.append((out, made))
    value, width = values[-1]
    weights |= {"wl": (4, width, 1, 1)}
    return " ".join([*lines, f"y = Conv({value}, wl)"]), weights


@settings(max_examples=25, deadline=None, derandomize=True)
@given(graphs(), st.integers(0, 5))
def test_generated_graphs(drawn, seed):
    text, weights = drawn
    model = built(text, "n, 3, 3, 3", weights, opset=17)
    feed = {"x": floats(2, 3, 3, 3)}
    removed = some_groups(channel_groups.find_groups(model, feed), seed=seed)
    if removed:  # a shuffle and a sum may make one group of all channels
        left, zeroed, _ = both_ways(model, feed, removed)
        np.testing.assert_allclose(left["y"], zeroed["y"], rtol=1e-4, atol=1e-4 * np.abs(zeroed["y"]).max())


# Attention, taken apart as exporters write it.


def test_heads_and_dimensions_of_decomposed_attention():
    weights = {"wq": (6, 12), "wk": (6, 12), "wv": (6, 12), "wo": (12, 6), "i": _ints(0, 0, 3, 4), "j": _ints(0, 0, 12)}
    model = built(
        """q = MatMul(x, wq) q1 = Reshape(q, i) q2 = Transpose<perm = [0, 2, 1, 3]>(q1)
        k = MatMul(x, wk) k1 = Reshape(k, i) k2 = Transpose<perm = [0, 2, 3, 1]>(k1)
        v = MatMul(x, wv) v1 = Reshape(v, i) v2 = Transpose<perm = [0, 2, 1, 3]>(v1)
        s = MatMul(q2, k2) p = Softmax<axis = -1>(s) a = MatMul(p, v2)
        t = Transpose<perm = [0, 2, 1, 3]>(a) r = Reshape(t, j) y = MatMul(r, wo)""",
        "n, 5, 6",
        weights,
    )
    found = check_exact(model, {"x": floats(2, 5, 6)})
    sizes = sorted((sum(len(s.indices) for s in group.slices)) for group in found.groups)
    heads, scores, values = 3 * [16], 4 * [6], 4 * [6]  # 4 dimensions of four matrices; 3 heads of two matrices
    assert sizes == sorted(heads + scores + values)


def test_queries_that_share_keys_go_with_them():
    weights = {"wq": (6, 16), "wk": (6, 8), "wv": (6, 8), "wo": (16, 6), "i": _ints(0, 0, 4, 4), "j": _ints(0, 0, 2, 4)}
    weights |= {"u": _ints(2), "e": _ints(1, 1, 2, 1, 1), "m": _ints(0, 4, -1, 4), "o": _ints(0, 0, 16)}
    model = built(
        """q = MatMul(x, wq) q1 = Reshape(q, i) q2 = Transpose<perm = [0, 2, 1, 3]>(q1)
        k = MatMul(x, wk) k1 = Reshape(k, j) k2 = Transpose<perm = [0, 2, 1, 3]>(k1)
        k3 = Unsqueeze(k2, u) k4 = Expand(k3, e) k5 = Reshape(k4, m) k6 = Transpose<perm = [0, 1, 3, 2]>(k5)
        v = MatMul(x, wv) v1 = Reshape(v, j) v2 = Transpose<perm = [0, 2, 1, 3]>(v1)
        v3 = Unsqueeze(v2, u) v4 = Expand(v3, e) v5 = Reshape(v4, m)
        s = MatMul(q2, k6) p = Softmax<axis = -1>(s) a = MatMul(p, v5)
        t = Transpose<perm = [0, 2, 1, 3]>(a) r = Reshape(t, o) y = MatMul(r, wo)""",
        "n, 5, 6",
        weights,
    )
    for seed in range(4):
        found = check_exact(model, {"x": floats(2, 5, 6)}, seed=seed)
    assert len(found) == 2 + 2 + 4 + 4  # shared heads, queries of each, dimensions of scores, and of values


# What is in the way, and what is not.


def test_a_shared_weight_is_cut_once_for_all_its_readers():
    weights = {"w0": (6, 6), "w1": (6, 4)}
    model = built("h = MatMul(x, w0) r = Relu(h) g = MatMul(r, w0) s = Relu(g) y = MatMul(s, w1)", "n, 6", weights)
    assert (
        len(channel_groups.find_groups(model, {"x": floats(2, 6)})) == 0
    )  # its rows are those of x, its columns its rows
    tied = built(
        "i = Cast<to = 7>(x) h = Gather(e, i) r = MatMul(h, w) t = Transpose(e) y = MatMul(r, t)",
        "n, 5",
        {"e": (9, 8), "w": (8, 8)},
    )
    found = check_exact(tied, {"x": np.abs(floats(2, 5))})
    assert {len(group.slices) for group in found.groups} == {3}


def test_unknown_operators_pin_and_are_named():
    model = built("h = MatMul(x, w0) y = Det(h)", "4, 4", {"w0": (4, 4)})
    found = channel_groups.find_groups(model, {"x": floats(4, 4)})
    assert len(found) == 0
    assert _reasons(found) == "x: graph input; Det:y: the channels of Det are not followed"


def test_outputs_and_inputs_pin_and_are_named():
    model = built(
        "h = MatMul(x, w0) y = MatMul(h, w1)", "n, 6", {"w0": (6, 8), "w1": (8, 4)}, outputs="float[] y, float[] h"
    )
    found = channel_groups.find_groups(model, {"x": floats(2, 6)})
    assert len(found) == 0
    assert "h: graph output" in _reasons(found)
    model = built("y = MatMul(x, w0)", "n, 6", {"w0": (6, 8)})
    assert "x: graph input" in _reasons(channel_groups.find_groups(model, {"x": floats(2, 6)}))


def test_softmax_over_channels_pins():
    model = built("h = MatMul(x, w0) s = Softmax(h) y = MatMul(s, w1)", "n, 6", {"w0": (6, 8), "w1": (8, 4)})
    assert "Softmax works along this axis" in _reasons(channel_groups.find_groups(model, {"x": floats(2, 6)}))


def test_sizes_that_only_a_run_knows_are_kept():
    model = built(
        "h = MatMul(x, w0) t = Transpose(h) u = Reshape(t, i) y = MatMul(u, w1)",
        "n, 6",
        {"w0": (6, 8), "w1": (2, 4), "i": _ints(-1, 2)},
    )  # at two rows the channels come out as rows, at others they would not
    found = channel_groups.find_groups(model, {"x": floats(2, 6)})
    assert len(found) == 0


CHOICE = """g (float[n, 6] x, bool c) => (float[n, 4] y) {
    h = MatMul(x, w0)
    u = If (c) <then_branch = t () => (float[n, 8] p) { p = Relu(h) },
               else_branch = e () => (float[n, 8] q) { q = MatMul(h, w2) }>
    y = MatMul(u, w1) }"""
LOOP = """g (float[n, 6] x) => (float[n, 6] y) {
    k = Constant<value_int = 3>() on = Constant<value = bool {1}>()
    y = Loop (k, on, x) <body = b (int64 i, bool go, float[n, 6] s) => (bool on2, float[n, 6] z) {
        on2 = Identity(go) a = MatMul(s, w0) r = Relu(a) z = MatMul(r, w1) }> }"""


def _with_weights(text, **sizes):
    start, end = text.index("("), text.index(")")
    declared = ", ".join(f"float[{', '.join(map(str, dims))}] {name}" for name, dims in sizes.items())
    model = from_text(f"{text[: start + 1]}{text[start + 1 : end]}, {declared}{text[end:]}")
    for value in list(model.graph.inputs):
        if value.name in sizes:
            model.graph.inputs.remove(value)
            edit.set_weight(value, floats(*sizes[value.name], seed=len(value.name)))
            model.graph.register_initializer(value)
    return model


@pytest.mark.parametrize("taken", [True, False])
def test_branches_of_an_if_give_the_same_channels(taken):
    model = _with_weights(CHOICE, w0=(6, 8), w1=(8, 4), w2=(8, 8))
    found = check_exact(model, {"x": floats(2, 6), "c": np.array(taken)})
    assert {len(group.slices) for group in found.groups} == {4}


def test_what_a_loop_computes_inside_goes_and_its_state_stays():
    model = _with_weights(LOOP, w0=(6, 8), w1=(8, 6))
    found = check_exact(model, {"x": floats(2, 6)})
    assert len(found) == 8
    assert {(s.value.name, s.axis) for group in found.groups for s in group.slices} == {("w0", 1), ("w1", 0)}


def test_weights_in_constant_nodes_are_cut():
    model = from_text(
        """g (float[n, 2] x) => (float[n, 1] y) {
        w = Constant<value = float[2, 3] {1, 2, 3, 4, 5, 6}>() v = Constant<value = float[3, 1] {1, 2, 3}>()
        h = MatMul(x, w) y = MatMul(h, v) }"""
    )
    found = channel_groups.find_groups(model, {"x": floats(2, 2)})
    channel_removal.cut(found, [1])
    np.testing.assert_allclose(run(model, {"x": np.float32([[1, 1]])})["y"], [[5 * 1 + 9 * 3]])


def test_a_cut_that_leaves_nothing_is_refused_and_the_model_stays():
    model = built("h = MatMul(x, w0) y = MatMul(h, w1)", "n, 6", {"w0": (6, 8), "w1": (8, 4)})
    feed = {"x": floats(2, 6)}
    found = channel_groups.find_groups(model, feed)
    before = run(model, feed)["y"]
    with pytest.raises(OnnxCompressError, match="nothing of an axis of"):
        channel_removal.cut(found, range(8))
    np.testing.assert_array_equal(run(model, feed)["y"], before)
    tally = found.tally()
    assert [tally.allows(group) and not tally.remove(group) for group in range(8)] == [True] * 7 + [False]


def test_groups_tell_who_reads_and_who_makes_them():
    weights = {"w0": (8, 3, 1, 1), "w1": (8, 1, 3, 3), "w2": (4, 8, 1, 1), "w3": (5, 8, 1, 1)}
    model = built(
        "h = Conv(x, w0) d = Conv<group = 8, pads = [1, 1, 1, 1]>(h, w1) a = Conv(d, w2) b = Conv(d, w3) "
        "y = Concat<axis = 1>(a, b)",
        "n, 3, 4, 4",
        weights,
    )
    found = channel_groups.find_groups(model, {"x": floats(2, 3, 4, 4)})
    for place, group in enumerate(found.groups):
        assert [(s.value.name, s.axis, s.indices.tolist()) for s in group.slices] == [
            ("w0", 0, [place]),
            ("w1", 0, [place]),
            ("w2", 1, [place]),
            ("w3", 1, [place]),
        ]
        assert [(use.at.weight.name, use.indices.tolist()) for use in group.reads] == [("w2", [place]), ("w3", [place])]
        assert {use.at.weight.name for use in group.made} == {"w0", "w1"}
        assert group.parameters == 3 + 9 + 4 + 5
        assert group.macs == 2 * 16 * (3 + 9 + 4 + 5)


def test_a_long_graph_takes_linear_time():
    def seconds(count):
        body = (
            "v0 = MatMul(x, w0) "
            + " ".join(f"v{i + 1} = Relu(v{i})" for i in range(count))
            + f" y = MatMul(v{count}, w1)"
        )
        model = from_text(f"g (float[2, 4] x, float[4, 4] w0, float[4, 4] w1) => (float[2, 4] y) {{ {body} }}")
        start = time.process_time()
        channel_groups.find_groups(model, {"x": floats(2, 4)})
        return time.process_time() - start

    seconds(100)
    assert seconds(4000) < 16 * max(seconds(500), 0.02)  # 8 times as long; quadratic time would be 64 times
