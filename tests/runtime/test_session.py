"""onnxruntime behind its door: what is declared, errors in one line, fair timing, and where the time goes."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from onnxcompress.errors import ModelError
from onnxcompress.io import model_io
from onnxcompress.runtime import error_text
from onnxcompress.runtime import session as runtime
from onnxcompress.runtime.profiles import profile
from tests.helpers import floats, from_text

ADD = "g (float[n, 2] x, float[2] w = {1, 2}) => (float[n, 2] y) { y = Add(x, w) }"


def _bytes(text: str) -> bytes:
    return bytes(model_io.to_bytes(from_text(text)))


def _open(text: str, *, optimize: bool = False) -> runtime.Session:
    return runtime.open_session(_bytes(text), optimize=optimize)


def test_inputs_are_what_a_feed_must_hold():
    session = _open(ADD)
    assert [str(spec) for spec in session.inputs] == ["'x' float32 [n, 2]"]
    assert session.inputs[0].shape == ("n", 2)
    assert session.outputs[0].dtype == np.float32


@pytest.mark.parametrize(
    ("kind", "dtype"), [("float16", np.float16), ("bool", np.bool_), ("uint64", np.uint64), ("string", None)]
)
def test_types_are_told(kind: str, dtype: Any):
    spec = _open(f"g ({kind}[2] x) => ({kind}[2] y) {{ y = Identity(x) }}").inputs[0]
    assert spec.dtype == dtype
    assert spec.type == f"tensor({kind})"


def test_only_the_outputs_asked_for_are_computed():
    session = _open("g (float[n] x) => (float[n] a, float[n] b) { a = Neg(x) b = Abs(x) }")
    feed = {"x": floats(3)}
    assert list(session.run(feed)) == ["a", "b"]
    assert list(session.run(feed, ["b"])) == ["b"]


@pytest.mark.parametrize(
    "feed",
    [{}, {"x": floats(2, 3)}, {"x": np.zeros((2, 2))}, {"x": "text"}, {"x": floats(2, 2), "other": floats(1)}],
)
def test_a_feed_that_is_refused_is_one_line(feed: Mapping[str, Any]):
    with pytest.raises(ModelError) as caught:
        _open(ADD).run(feed)
    assert "\n" not in str(caught.value)
    assert caught.value.message.startswith("onnxruntime can't run the model: ")
    assert ".cc:" not in caught.value.message


@pytest.mark.parametrize("model", [b"", b"no model", b"\x08\x08"])
def test_what_is_no_model_is_one_line(model: bytes):
    with pytest.raises(ModelError, match=r"^onnxruntime can't load the model: [^\n]+$"):
        runtime.open_session(model, optimize=False)


def test_a_file_is_named(tmp_path: Path):
    with pytest.raises(ModelError, match=r"m\.onnx: no such file"):
        runtime.open_session(tmp_path / "m.onnx", optimize=False)
    (tmp_path / "m.onnx").write_bytes(b"no model")
    with pytest.raises(ModelError, match=r"m\.onnx: onnxruntime can't load the model"):
        runtime.open_session(tmp_path / "m.onnx", optimize=False)
    (tmp_path / "m.onnx").write_bytes(_bytes(ADD))
    assert runtime.open_session(tmp_path / "m.onnx", optimize=False).inputs[0].name == "x"


def test_optimizations_are_on_or_off():
    text = """g (float[n, 2] x) => (float[n, 2] y) <float[2] w = {1, 2}> {
        a = Identity(x)
        b = Add(a, w)
        y = Identity(b)
    }"""
    assert runtime.optimized_nodes(_bytes(text)) == ["Add"]
    feed, times = {"x": floats(2, 2)}, 1
    assert {op for _, op, _ in profile(_bytes(text), feed, runs=times)} == {"Add"}


def test_nodes_in_bodies_are_counted_and_timed():
    text = """g (bool c, float[n, 2] x) => (float[n, 2] y) {
        y = If(c) <
            then_branch = t () => (float[n, 2] p) { p = Sin(x) },
            else_branch = e () => (float[n, 2] q) { q = Cos(x) }
        >
    }"""
    assert sorted(runtime.optimized_nodes(_bytes(text))) == ["Cos", "If", "Sin"]
    rows = profile(_bytes(text), {"c": np.array(True), "x": floats(400, 2)})
    assert {op for _, op, _ in rows} == {"If", "Sin"}
    assert all(ms >= 0 for *_, ms in rows)
    assert [ms for *_, ms in rows] == sorted((ms for *_, ms in rows), reverse=True)


def test_places_in_the_runtimes_own_sources_are_left_out():
    error = RuntimeError(
        "[ONNXRuntimeError] : 1 : FAIL : /src/core/model.cc:256 onnxruntime::Model::Model(onnx::ModelProto&&, "
        "const Path&) [ONNXRuntimeError] : 10 : INVALID_GRAPH : Model local function definitions must not be recursive."
    )
    assert error_text.reason(error) == "Model local function definitions must not be recursive"
