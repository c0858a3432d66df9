"""Small pipelines: an encoder with a decoder that has a cache, and a causal decoder with one."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

WIDTH, TOKENS, END = 64, 48, 1
FLOAT, INT = TensorProto.FLOAT, TensorProto.INT64


def _weights(*shape, seed):
    return np.random.default_rng(seed).standard_normal(shape).astype(np.float32)


def _save(path, nodes, inputs, outputs, constants):
    graph = helper.make_graph(
        [helper.make_node(op, ins, outs, **attributes) for op, ins, outs, attributes in nodes],
        "toy",
        [helper.make_tensor_value_info(*each) for each in inputs],
        [helper.make_tensor_value_info(*each) for each in outputs],
        [numpy_helper.from_array(array, name) for name, array in constants.items()],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    onnx.checker.check_model(model)
    path.parent.mkdir(parents=True, exist_ok=True)
    onnx.save(model, path)
    return path


def encoder(path: Path) -> Path:
    """x float32 [1, length, 64] -> last_hidden_state, two layers."""
    nodes = [
        ("MatMul", ["x", "w1"], ["h"], {}),
        ("Relu", ["h"], ["r"], {}),
        ("MatMul", ["r", "w2"], ["last_hidden_state"], {}),
    ]
    constants = {
        "w1": _weights(WIDTH, 4 * WIDTH, seed=1) / 8,
        "w2": _weights(4 * WIDTH, WIDTH, seed=2) / 8,
    }
    inputs = [("x", FLOAT, [1, "length", WIDTH])]
    return _save(path, nodes, inputs, [("last_hidden_state", FLOAT, [1, "length", WIDTH])], constants)


def _sum_of_tokens(past):
    """Nodes that add up the embeddings of all tokens so far: `cache` [1, 1, total, width], `sums` [1, n, width]."""
    return [
        ("Gather", ["table", "input_ids"], ["embedded"], {}),
        ("Unsqueeze", ["embedded", "one"], ["new"], {}),
        *([("Concat", [past, "new"], ["cache"], {"axis": 2})] if past else [("Identity", ["new"], ["cache"], {})]),
        ("CumSum", ["cache", "two"], ["all_sums"], {}),
        ("Shape", ["input_ids"], ["count"], {"start": 1, "end": 2}),
        ("Neg", ["count"], ["minus"], {}),
        ("Slice", ["all_sums", "minus", "far", "axis"], ["late"], {}),
        ("Squeeze", ["late", "one"], ["sums"], {}),
    ]


def _shared(seed):
    return {
        "table": _weights(TOKENS, WIDTH, seed=seed),
        "head": _weights(WIDTH, TOKENS, seed=seed + 1),
        "one": np.array([1]),
        "two": np.array(2),
        "far": np.array([2**31]),
        "axis": np.array([2]),
    }


def decoder(path: Path, *, past: bool) -> Path:
    """Decode the sum of the tokens so far and of the encoder's states; both halves share their weights."""
    states = "past_key_values.0.encoder.key" if past else "encoder_hidden_states"
    nodes = [
        *_sum_of_tokens("past_key_values.0.decoder.key" if past else None),
        ("Identity", ["cache"], ["present.0.decoder.key"], {}),
        ("ReduceMean", [states], ["mean"], {"axes": [1], "keepdims": 1}),
        ("Add", ["sums", "mean"], ["joined"], {}),
        ("MatMul", ["joined", "head"], ["logits"], {}),
    ]
    cache = [1, 1, "total", WIDTH]
    inputs = [("input_ids", INT, [1, "n"]), (states, FLOAT, [1, "length", WIDTH])]
    outputs = [("logits", FLOAT, [1, "n", TOKENS]), ("present.0.decoder.key", FLOAT, cache)]
    if past:
        inputs.append(("past_key_values.0.decoder.key", FLOAT, [1, 1, "past", WIDTH]))
    else:
        nodes.append(("Identity", [states], ["present.0.encoder.key"], {}))
        outputs.append(("present.0.encoder.key", FLOAT, [1, "length", WIDTH]))
    return _save(path, nodes, inputs, outputs, _shared(10))


def causal(path: Path, *, past: bool = True) -> Path:
    """Score the next token by the sum of the tokens so far."""
    name = "past_key_values.0.key"
    nodes = [*_sum_of_tokens(name if past else None), ("MatMul", ["sums", "head"], ["logits"], {})]
    inputs, outputs = [("input_ids", INT, [1, "n"])], [("logits", FLOAT, [1, "n", TOKENS])]
    if past:
        nodes.append(("Identity", ["cache"], ["present.0.key"], {}))
        inputs += [("attention_mask", INT, [1, "total"]), (name, FLOAT, [1, 1, "past", WIDTH])]
        outputs.append(("present.0.key", FLOAT, [1, 1, "total", WIDTH]))
    return _save(path, nodes, inputs, outputs, _shared(20))


def translation(folder: Path) -> Path:
    """A folder as exporters leave one: three models, a configuration, a tokenizer."""
    encoder(folder / "encoder_model.onnx")
    decoder(folder / "decoder_model.onnx", past=False)
    decoder(folder / "decoder_with_past_model.onnx", past=True)
    settings = {"decoder_start_token_id": 0, "eos_token_id": END, "max_length": 12}
    (folder / "generation_config.json").write_text(json.dumps(settings), encoding="utf-8")
    (folder / "tokenizer.json").write_text("{}", encoding="utf-8")
    return folder


def sentences(count: int, *, seed: int = 0) -> list[dict[str, np.ndarray]]:
    """Inputs of the encoder, of differing lengths."""
    rng = np.random.default_rng(seed)
    return [{"x": rng.standard_normal((1, 3 + index % 4, WIDTH)).astype(np.float32)} for index in range(count)]


def texts(count: int, *, seed: int = 0) -> list[dict[str, np.ndarray]]:
    """Sequences of tokens, of differing lengths."""
    rng = np.random.default_rng(seed)
    return [{"input_ids": rng.integers(2, TOKENS, (1, 6 + index % 5))} for index in range(count)]
