"""Equality of whole models: saturation, dead channels, float16 and random numbers hide no wrong rewrite."""

from __future__ import annotations

import numpy as np
import onnx
import onnx_ir as ir

from onnxcompress.runtime.loaded_model import LoadedModel
from onnxcompress.verify import shadow
from onnxcompress.verify.equal_outputs import EqualOutputs
from onnxcompress.verify.hidden_values import last_activations
from onnxcompress.verify.whole import WholeProof
from tests.helpers import floats, from_text, with_constants


def _problem(before: ir.Model, after: ir.Model, feed: dict[str, np.ndarray]) -> str | None:
    return WholeProof(before, [feed], lossless=True).problem(after)


def test_a_rewrite_before_a_sigmoid_far_out_is_judged_before_it():
    text = """g (float[n, 512] x) => (float[n, 512] y) <float b = {B}> {
        z = Add(x, b)
        p = ACT(z)
        y = Identity(p)
    }"""
    feed = {"x": floats(1, 512) / 4}
    right = from_text(text.replace("B", "-40").replace("ACT", "Sigmoid"))
    assert _problem(right, from_text(text.replace("B", "-40").replace("ACT", "Sigmoid")), feed) is None
    wrong = from_text(text.replace("B", "-40.01").replace("ACT", "Sigmoid"))
    assert "'z (inside)'" in _problem(right, wrong, feed)
    assert _problem(right, from_text(text.replace("B", "-4").replace("ACT", "HardSigmoid")), feed) is not None


def test_the_last_activation_of_another_name_is_found_by_its_place():
    text = """g (float[n, 8] x) => (float[n, 8] y) <float b = {B}> {
        NAME = Mul(x, b)
        y = Softmax(NAME)
    }"""
    feed = {"x": 1e6 * floats(2, 8)}
    before = from_text(text.replace("NAME", "z").replace("B", "9"))
    assert [each.value for each in last_activations(before)] == ["z"]
    assert _problem(before, from_text(text.replace("NAME", "q").replace("B", "9")), feed) is None
    assert "inside" in _problem(before, from_text(text.replace("NAME", "q").replace("B", "9.01")), feed)


def test_a_difference_in_a_dead_channel_is_found():
    text = """g (float[n, 8] x) => (float[n, 8] y) <float b = {B}> {
        z = Sub(x, b)
        r = Relu(z)
        y = Add(r, x)
    }"""
    feed = {"x": floats(2, 8)}
    assert "'z (inside)'" in _problem(from_text(text.replace("B", "50")), from_text(text.replace("B", "51")), feed)


HALF = """g (float[n, 64] x, float16[64] w) => (float[n, 64] y) {
    v = Cast<to = 1>(w)
    y = Mul(x, v)
}"""


def _half(weights: np.ndarray) -> ir.Model:
    return with_constants(HALF, w=weights.astype(np.float16))


def test_float16_weights_are_proved_in_float32():
    weights = np.linspace(0.5, 1.5, 64)
    feed = {"x": floats(2, 64)}
    assert _problem(_half(weights), _half(weights), feed) is None
    weights[3] += 0.001
    assert _problem(_half(np.linspace(0.5, 1.5, 64)), _half(weights), feed) is not None


def test_a_shadow_has_no_float16_left():
    text = """g (float16[n] x, float16[1] w) => (float16[n] y) {
        a = Mul(x, w)
        b = Cast<to = 1>(a)
        y = Cast<to = 10>(b)
    }"""
    proto = ir.to_proto(with_constants(text, w=np.array([1.5], np.float16)))
    assert shadow.has_halves(proto)
    assert shadow.computes_in_halves(proto)
    shadow.float32_shadow(proto)
    assert not shadow.has_halves(proto)
    onnx.checker.check_model(proto, full_check=True)


RANDOM = """g (float[n, 64] x) => (float[n, 64] y) <float s = {S}> {
    NAME = RandomNormalLike(x)
    t = Mul(NAME, s)
    y = Add(x, t)
}"""


def _random(scale: float, name: str = "r") -> ir.Model:
    return from_text(RANDOM.replace("S", str(scale), 1).replace("NAME", name))


def test_random_numbers_are_drawn_alike_in_both_models():
    feed = {"x": floats(2, 64)}
    assert _problem(_random(0.5), _random(0.5), feed) is None
    assert _problem(_random(0.5), _random(0.5, name="other"), feed) is None
    assert _problem(_random(0.5), _random(0.501), feed) is not None


def test_numbers_that_only_one_model_draws_are_told():
    before, after = LoadedModel(from_text(RANDOM.replace("S", "0.5", 1).replace("NAME", "r"))), _random(0.5, name="q")
    node = next(each for each in after.graph if each.op_type == "RandomNormalLike")
    node.attributes["scale"] = ir.AttrFloat32("scale", 2.0)
    equality = EqualOutputs(before, [{"x": floats(2, 64)}])
    assert equality.mismatch(LoadedModel(after)) is not None
    assert equality.notes() == ("'q' (RandomNormalLike) draws random numbers that the original does not draw",)


def test_constants_of_float16_may_be_declared_among_the_values_in_between():
    text = """g (float[n, 64] x, float16[64] w) => (float[n, 64] y) {
        wide = Cast <to = 1> (w)
        y = Mul(x, wide)
    }"""
    proto = ir.to_proto(with_constants(text, w=np.ones(64, np.float16)))
    assert shadow.only_stores_halves(proto)
    proto.graph.value_info.append(onnx.helper.make_tensor_value_info("w", onnx.TensorProto.FLOAT16, [64]))
    assert shadow.only_stores_halves(proto)
    proto.graph.value_info.append(onnx.helper.make_tensor_value_info("other", onnx.TensorProto.FLOAT16, [64]))
    assert not shadow.only_stores_halves(proto)
