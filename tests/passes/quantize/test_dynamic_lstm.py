"""LSTMs become DynamicQuantizeLSTM with all that they read beside their weights."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir
import pytest

from onnxcompress.core import Action, Context
from onnxcompress.graph import edit, query
from onnxcompress.io import model_io
from onnxcompress.passes.quantize.dynamic import QuantizeDynamic
from onnxcompress.runtime import session as runtime
from onnxcompress.shapes import count as counting
from tests.helpers import DB_LESS, floats, op_types

HIDDEN, WIDTH = 96, 80


def _weights(directions):
    gates = 4 * HIDDEN
    return {
        "W": floats(directions, gates, WIDTH, seed=1) / np.float32(np.sqrt(WIDTH)),
        "R": floats(directions, gates, HIDDEN, seed=2) / np.float32(np.sqrt(HIDDEN)),
        "B": floats(directions, 2 * gates, seed=3) / 8,
        "P": floats(directions, 3 * HIDDEN, seed=4) / 8,
    }


def _lstm(*, inputs="x, W, R, B", directions=1, attributes="", outputs="y, h, c", constants="WRBP", scale=None):
    """Return a model with one LSTM over [steps, 3, WIDTH]."""
    weights = {name: array for name, array in _weights(directions).items() if name in constants}
    if scale is not None:
        weights["R"] = weights["R"] * scale
    states = f"float[{directions}, 3, {HIDDEN}]"
    declared = {"x": f"float[s, 3, {WIDTH}]", "lengths": "int32[3]", "h0": states, "c0": states}
    declared |= {name: f"float{list(_weights(directions)[name].shape)}" for name in "WRBP"}
    used = [name for name in declared if name in inputs.replace(" ", "").split(",")]
    made = [f"float {name}" for name in outputs.split(", ") if name]
    kind = 'direction = "bidirectional", ' if directions == 2 else ""
    text = (
        '<ir_version: 8, opset_import: ["" : 17]> '
        f"g ({', '.join(f'{declared[n]} {n}' for n in used)}) => ({', '.join(made)})"
        f"{{{outputs} = LSTM<{kind}hidden_size = {HIDDEN}{attributes}>({inputs})}}"
    )
    model = model_io.load(ir.to_proto(ir.from_onnx_text(text)))
    for name in set(weights) & set(used):
        value = next(v for v in model.graph.inputs if v.name == name)
        model.graph.inputs.remove(value)
        edit.set_weight(value, weights[name])
        model.graph.register_initializer(value)
    return model


def _feed(model, directions=1, steps=9):
    feed = {
        "x": floats(steps, 3, WIDTH),
        "lengths": np.array([steps, steps - 3, 1], np.int32),
        "h0": np.tanh(floats(directions, 3, HIDDEN, seed=7)),
        "c0": floats(directions, 3, HIDDEN, seed=8),
        **_weights(directions),
    }
    return {v.name: feed[v.name] for v in model.graph.inputs}


def _check(model, feed, *, least_db, the_pass=None, kernels=1):
    """Run the pass and compare: each output within so many decibels, its name and shape as before."""
    before = runtime.open_session(model_io.to_bytes(model), optimize=False).run(feed)
    changes = (the_pass or QuantizeDynamic()).run(model, Context(feeds=[feed]))
    assert [c.action for c in changes] == [Action.APPLIED] * len(changes)
    data = model_io.to_bytes(model)
    assert runtime.optimized_nodes(data).count("DynamicQuantizeLSTM") == kernels
    after = runtime.open_session(data, optimize=True).run(feed)
    assert list(after) == list(before)
    for name, expected in before.items():
        assert after[name].shape == expected.shape
        noise = np.square(expected - after[name]).sum() / np.square(expected).sum()
        assert -10 * np.log10(noise) > least_db, name
    assert not QuantizeDynamic().run(model, Context(feeds=[feed]))
    return changes


@pytest.mark.parametrize("directions", [1, 2])
@pytest.mark.parametrize(
    "inputs", ["x, W, R", "x, W, R, B", "x, W, R, B, lengths", "x, W, R, B, , h0, c0", "x, W, R, B, lengths, h0, c0, P"]
)
def test_all_inputs_and_both_directions(inputs, directions):
    model = _lstm(inputs=inputs, directions=directions)
    _check(model, _feed(model, directions), least_db=33)


@pytest.mark.parametrize(
    "attributes",
    [
        ', direction = "reverse"',
        ", clip = 0.7",
        ", input_forget = 1",
        ', activations = ["HardSigmoid", "Tanh", "Relu"], activation_alpha = [0.3], activation_beta = [0.4]',
    ],
)
def test_attributes_are_kept(attributes):
    model = _lstm(attributes=attributes)
    _check(model, _feed(model), least_db=30)


def test_absent_outputs_stay_absent():
    model = _lstm(outputs=", h")
    _check(model, _feed(model), least_db=33)


def _scales(model):
    node = next(n for n in query.nodes(model) if n.op_type == "DynamicQuantizeLSTM")
    return [query.dims(query.constant_tensor(node.inputs[port])) for port in (8, 10)]


def test_the_recurrent_weight_has_one_scale_where_that_is_good_enough():
    even = _lstm(directions=2)
    _check(even, _feed(even, 2), least_db=33)
    assert _scales(even) == [(2, 4 * HIDDEN), (2,)]
    strict = _lstm(directions=2)
    _check(strict, _feed(strict, 2), least_db=35 - DB_LESS, the_pass=QuantizeDynamic(one_scale_db=60))
    assert _scales(strict) == [(2, 4 * HIDDEN), (2, 4 * HIDDEN)]
    uneven = np.ones((1, 4 * HIDDEN, 1), np.float32)
    uneven[:, 5] = 20
    outlier = _lstm(scale=uneven)
    _check(outlier, _feed(outlier), least_db=25)
    assert _scales(outlier) == [(1, 4 * HIDDEN)] * 2


def test_one_scale_for_both_and_fewer_bits_on_request():
    model = _lstm()
    _check(model, _feed(model), least_db=25, the_pass=QuantizeDynamic(scheme="int8/tensor/sym", weight_bits=7))
    assert _scales(model) == [(1,), (1,)]
    assert {np.abs(query.constant(model.graph.initializers[f"{n}_int8"])).max() for n in "WR"} == {63}


def test_weights_are_stored_input_by_gates_and_floats_go():
    model = _lstm()
    before, counts = len(model_io.to_bytes(model)), counting.count(model, _feed(model))
    changes = _check(model, _feed(model), least_db=33)
    assert query.dims(query.constant_tensor(model.graph.initializers["W_int8"])) == (1, WIDTH, 4 * HIDDEN)
    assert "W" not in model.graph.initializers
    after = counting.count(model, _feed(model))
    assert (after.parameters, after.macs) == (counts.parameters, counts.macs)
    assert counts.macs == 9 * 3 * 4 * HIDDEN * (WIDTH + HIDDEN)
    assert len(model_io.to_bytes(model)) < 0.3 * before
    assert changes[0].bytes_after < 0.27 * changes[0].bytes_before


def test_weights_that_are_stored_as_float16():
    model = _lstm()
    first = next(iter(model.graph))
    names = edit.Names(model)
    for port, name in ((1, "W"), (2, "R")):
        stored = edit.add_initializer(model.graph, names, f"{name}_half", _weights(1)[name].astype(np.float16))
        cast = edit.insert_before(first, names, "Cast", [stored], attributes={"to": 1})
        first.replace_input_with(port, cast.outputs[0])
        edit.remove_initializer(model.graph.initializers[name])
    changes = _check(model, _feed(model), least_db=33)
    assert changes[0].bytes_after < 0.54 * changes[0].bytes_before
    assert op_types(model) == ["DynamicQuantizeLSTM"]


def test_bodies_that_share_weights_store_them_once():
    text = (
        '<ir_version: 8, opset_import: ["" : 17]> '
        f"g (float[s, 3, {WIDTH}] x, bool k, float[1, {4 * HIDDEN}, {WIDTH}] W, float[1, {4 * HIDDEN}, {HIDDEN}] R)"
        f" => (float y) {{y = If<then_branch = t () => (float a) {{a = LSTM<hidden_size = {HIDDEN}>(x, W, R)}},"
        f" else_branch = e () => (float b) {{n = Neg(x) b = LSTM<hidden_size = {HIDDEN}>(n, W, R)}}>(k)}}"
    )
    model = model_io.load(ir.to_proto(ir.from_onnx_text(text)))
    for name in "WR":
        value = next(v for v in model.graph.inputs if v.name == name)
        model.graph.inputs.remove(value)
        edit.set_weight(value, _weights(1)[name])
        model.graph.register_initializer(value)
    feed = {"x": floats(9, 3, WIDTH), "k": np.array(False)}
    _check(model, feed, least_db=33, the_pass=QuantizeDynamic(layers="all"), kernels=2)
    assert sorted(model.graph.initializers) == sorted(f"{n}_{k}" for n in "WR" for k in ("int8", "scale", "zero_point"))


@pytest.mark.parametrize(
    ("options", "reason"),
    [
        ({"constants": "RB"}, "its weight W is computed when the model runs"),
        ({"attributes": ", layout = 1"}, "layout 1"),
    ],
)
def test_refusals(options, reason):
    model = _lstm(**options)
    changes = QuantizeDynamic(layers="all").run(model, Context())
    assert [c.action for c in changes] == [Action.SKIPPED]
    assert reason in changes[0].reason
    assert op_types(model) == ["LSTM"]


def test_a_weight_that_others_read_as_floats():
    model = _lstm(outputs="y, h, c")
    weight = model.graph.initializers["R"]
    model.graph.append(made := ir.node("Neg", [weight]))
    made.outputs[0].name = "minus"
    model.graph.outputs.append(made.outputs[0])
    changes = QuantizeDynamic(layers="all").run(model, Context())
    assert "R has readers that need floats" in changes[0].reason


def test_a_step_too_small_stays():
    model = _lstm()
    changes = QuantizeDynamic().run(model_io.clone(model), Context())
    assert changes[0].action is Action.APPLIED  # 3 x 384 x 176 MACs in the one step that is sure
    small = _lstm()
    left_out = QuantizeDynamic().run(small, Context(selects=lambda _: False))
    assert "readers that need floats" in left_out[0].reason
    assert op_types(small) == ["LSTM"]
