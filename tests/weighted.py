"""One small model in which every operator that holds weights occurs, for tests over recipes."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

MICROSOFT = "com.microsoft"
WIDTH, STEPS, SIDE = 32, 6, 8
"""Channels, tokens, and height and width of the model's inputs."""


class ModelOfLayers:
    """Collects layers that read one of three inputs: a picture, a sequence of vectors, a sequence of numbers."""

    def __init__(self) -> None:
        self.nodes: list[onnx.NodeProto] = []
        self.weights: list[onnx.TensorProto] = []
        self.inputs = [
            helper.make_tensor_value_info("picture", TensorProto.FLOAT, [1, WIDTH, SIDE, SIDE]),
            helper.make_tensor_value_info("tokens", TensorProto.FLOAT, [1, STEPS, WIDTH]),
            helper.make_tensor_value_info("ids", TensorProto.INT64, [1, STEPS]),
        ]
        self.outputs: list[onnx.ValueInfoProto] = []
        self.functions: list[onnx.FunctionProto] = []
        self._random = np.random.default_rng(0)

    def array(self, *shape: int, dtype: Any = np.float32) -> np.ndarray:
        """Return normally distributed numbers."""
        return (self._random.standard_normal(shape) * 0.1).astype(dtype)

    def weight(self, name: str, *shape: int, dtype: Any = np.float32) -> str:
        """Add an initializer and return its name."""
        self.weights.append(numpy_helper.from_array(self.array(*shape, dtype=dtype), name))
        return name

    def node(self, op: str, name: str, inputs: Sequence[str], outputs: int = 1, *, domain: str = "", **kw: Any) -> str:
        """Add a node and return its first output."""
        names = [name + "_y" + str(i or "") for i in range(outputs)]
        self.nodes.append(helper.make_node(op, list(inputs), names, name=name, domain=domain, **kw))
        return names[0]

    def out(self, value: str, kind: int = TensorProto.FLOAT) -> None:
        """Make a value an output of the model, by its mean over the last axis so that outputs stay small."""
        self.outputs.append(helper.make_tensor_value_info(value, kind, None))

    def proto(self) -> onnx.ModelProto:
        """Return the model, checked."""
        graph = helper.make_graph(self.nodes, "layers", self.inputs, self.outputs, self.weights)
        opsets = [helper.make_opsetid("", 17), helper.make_opsetid(MICROSOFT, 1), helper.make_opsetid("ai.onnx.ml", 3)]
        opsets += [helper.make_opsetid("local", 1)] if self.functions else []
        return helper.make_model(graph, opset_imports=opsets, ir_version=9, functions=self.functions)


def _convolutions(m: ModelOfLayers) -> None:
    n = WIDTH
    y = m.node("Conv", "conv", ["picture", m.weight("conv_w", n, n, 3, 3), m.weight("conv_b", n)], pads=[1] * 4)
    y = m.node("Relu", "conv_relu", [y])
    y = m.node(
        "BatchNormalization", "batchnorm", [y, *(m.weight(f"bn_{k}", n) for k in "sbm"), _positive(m, "bn_v", n)]
    )
    y = m.node("Sigmoid", "conv_sigmoid", [y])
    y = m.node("Conv", "grouped", [y, m.weight("grouped_w", n, n // 4, 3, 3)], pads=[1] * 4, group=4)
    y = m.node("PRelu", "prelu", [y, m.weight("prelu_slope", n, SIDE, SIDE)])
    y = m.node("Conv", "depthwise", [y, m.weight("depthwise_w", n, 1, 3, 3)], pads=[1] * 4, group=n)
    y = m.node("Sigmoid", "depthwise_sigmoid", [y])
    y = m.node("ConvTranspose", "transposed", [y, m.weight("transposed_w", n, n, 2, 2)], strides=[2, 2])
    y = m.node("InstanceNormalization", "instancenorm", [y, m.weight("in_s", n), m.weight("in_b", n)])
    m.out(m.node("ReduceMean", "picture_mean", [y], axes=[2, 3]))
    bias = m.weight("fused_b", n)
    y = m.node(
        "FusedConv",
        "fused_conv",
        ["picture", m.weight("fused_w", n, n, 1, 1), bias],
        domain=MICROSOFT,
        activation="Relu",
    )
    m.out(m.node("ReduceMean", "fused_mean", [y], axes=[2, 3]))


def _positive(m: ModelOfLayers, name: str, count: int) -> str:
    m.weights.append(numpy_helper.from_array(np.abs(m.array(count)) + 0.5, name))
    return name


def _products(m: ModelOfLayers) -> None:
    n = WIDTH
    m.out(m.node("MatMul", "matmul", ["tokens", m.weight("matmul_w", n, 2 * n)]))
    m.out(m.node("MatMul", "left", [m.weight("left_w", 48, STEPS * 4), _stacked(m)]))
    flat = m.node("Reshape", "flat", ["tokens", _ints(m, "flat_shape", -1, n)])
    m.out(m.node("Gemm", "gemm", [flat, m.weight("gemm_w", 2 * n, n), m.weight("gemm_b", 2 * n)], transB=1))
    heads = m.node("Unsqueeze", "unsqueeze", [flat, _ints(m, "one", 1)])
    m.out(m.node("MatMul", "batched", [heads, m.weight("batched_w", STEPS, n, n)]))
    m.out(m.node("Einsum", "einsum", ["tokens", m.weight("einsum_w", n, 2 * n)], equation="btd,de->bte"))
    split = m.node("Reshape", "split", ["tokens", _ints(m, "split_shape", 1, STEPS, 4, n // 4)])
    y = m.node("Einsum", "einsum_heads", [split, m.weight("einsum_heads_w", 4, n // 4, n)], equation="bthd,hde->bte")
    m.out(y)
    y = m.node("Einsum", "einsum_each", [split, m.weight("einsum_each_w", 4, n // 4, n)], equation="bthd,hde->bthe")
    m.out(y)
    m.out(m.node("Einsum", "einsum_left", [m.weight("einsum_left_w", 64, STEPS), "tokens"], equation="ut,btd->bud"))
    y = m.node(
        "FusedMatMul", "fused_matmul", ["tokens", m.weight("fm_w", 2 * n, n)], domain=MICROSOFT, transB=1, alpha=0.5
    )
    m.out(y)
    y = m.node(
        "FusedGemm",
        "fused_gemm",
        [flat, m.weight("fg_w", n, n), m.weight("fg_b", n)],
        domain=MICROSOFT,
        activation="Relu",
    )
    m.out(y)


def _stacked(m: ModelOfLayers) -> str:
    return m.node("Concat", "stacked", ["tokens"] * 4, axis=1)


def _ints(m: ModelOfLayers, name: str, *numbers: int) -> str:
    m.weights.append(numpy_helper.from_array(np.asarray(numbers, np.int64), name))
    return name


def _sequences(m: ModelOfLayers) -> None:
    n = WIDTH
    m.out(m.node("Gather", "embedding", [m.weight("embedding_w", 200, n), "ids"]))
    steps = m.node("Transpose", "steps", ["tokens"], perm=[1, 0, 2])
    for kind, gates in (("LSTM", 4), ("GRU", 3), ("RNN", 1)):
        weights = [m.weight(f"{kind}_w", 1, gates * n, n), m.weight(f"{kind}_r", 1, gates * n, n)]
        m.out(m.node(kind, kind.lower(), [steps, *weights, m.weight(f"{kind}_b", 1, 2 * gates * n)], hidden_size=n))
    weights = [m.weight("attention_w", n, 3 * n), m.weight("attention_b", 3 * n)]
    m.out(m.node("Attention", "attention", ["tokens", *weights], domain=MICROSOFT, num_heads=4))
    y = m.node("LayerNormalization", "layernorm", ["tokens", m.weight("ln_s", n), m.weight("ln_b", n)])
    norm = [m.weight("skip_s", n), m.weight("skip_b", n), m.weight("skip_bias", n)]
    y = m.node("SkipLayerNormalization", "skip_layernorm", ["tokens", y, *norm], domain=MICROSOFT)
    m.out(m.node("BiasGelu", "bias_gelu", [y, m.weight("gelu_b", n)], domain=MICROSOFT))
    y = m.node("Add", "positions", ["tokens", m.weight("positions_w", 1, STEPS, n)])
    m.out(m.node("LayerNormalization", "positions_norm", [y, m.weight("pn_s", n), m.weight("pn_b", n)]))


def _places(m: ModelOfLayers) -> None:
    """Weights in bodies, in local functions, in Constant nodes, shared, behind other operators, as inputs."""
    n = WIDTH
    inner = helper.make_graph(
        [helper.make_node("MatMul", ["tokens", "then_w"], ["then_y"], name="in_then")],
        "then",
        [],
        [helper.make_tensor_value_info("then_y", TensorProto.FLOAT, None)],
        [numpy_helper.from_array(m.array(n, 64), "then_w")],
    )
    other = helper.make_graph(
        [helper.make_node("MatMul", ["tokens", "else_w"], ["else_y"], name="in_else")],
        "else",
        [],
        [helper.make_tensor_value_info("else_y", TensorProto.FLOAT, None)],
        [numpy_helper.from_array(m.array(n, 64), "else_w")],
    )
    mean = m.node("ReduceMean", "all_mean", ["tokens"], keepdims=0)
    zero = m.node("Sub", "nought", [mean, mean])
    test = m.node("Greater", "test", [mean, zero])
    m.out(m.node("If", "if", [test], then_branch=inner, else_branch=other))
    body = helper.make_graph(
        [
            helper.make_node("MatMul", ["state", "loop_w"], ["loop_p"], name="in_loop"),
            helper.make_node("Tanh", ["loop_p"], ["loop_s"], name="in_loop_tanh"),
            helper.make_node("Identity", ["cond_in"], ["cond_out"], name="in_loop_cond"),
        ],
        "loop_body",
        [
            helper.make_tensor_value_info("turn", TensorProto.INT64, []),
            helper.make_tensor_value_info("cond_in", TensorProto.BOOL, []),
            helper.make_tensor_value_info("state", TensorProto.FLOAT, [1, STEPS, n]),
        ],
        [
            helper.make_tensor_value_info("cond_out", TensorProto.BOOL, []),
            helper.make_tensor_value_info("loop_s", TensorProto.FLOAT, [1, STEPS, n]),
        ],
        [numpy_helper.from_array(m.array(n, n), "loop_w")],
    )
    m.weights.append(numpy_helper.from_array(np.asarray(3, np.int64), "turns"))
    m.out(m.node("Loop", "loop", ["turns", "", "tokens"], body=body))
    held = helper.make_node("Constant", [], ["f_w"], value=numpy_helper.from_array(m.array(n, n)))
    called = helper.make_node("MatMul", ["x", "f_w"], ["y"], name="in_function")
    m.functions.append(
        helper.make_function("local", "Held", ["x"], ["y"], [held, called], [helper.make_opsetid("", 17)])
    )
    m.out(m.node("Held", "call", ["tokens"], domain="local"))
    m.nodes.append(helper.make_node("Constant", [], ["constant_w"], value=numpy_helper.from_array(m.array(n, n))))
    m.out(m.node("MatMul", "by_constant", ["tokens", "constant_w"]))
    shared = m.weight("shared_w", n, n)
    y = m.node("MatMul", "shared_first", ["tokens", shared])
    y = m.node("Sigmoid", "shared_sigmoid", [y])
    m.out(m.node("MatMul", "shared_second", [y, shared]))
    turned = m.node("Transpose", "turned", [m.weight("turned_w", 48, n)], perm=[1, 0])
    m.out(m.node("MatMul", "by_turned", ["tokens", turned]))
    shaped = m.node("Reshape", "shaped", [m.weight("shaped_w", n * 48), _ints(m, "shape", n, 48)])
    m.out(m.node("MatMul", "by_shaped", ["tokens", shaped]))
    m.inputs.append(helper.make_tensor_value_info("default_w", TensorProto.FLOAT, [n, 40]))
    m.out(m.node("MatMul", "by_default", ["tokens", m.weight("default_w", n, 40)]))


def _types(m: ModelOfLayers) -> None:
    n = WIDTH
    half = m.node("Cast", "tokens_half", ["tokens"], to=TensorProto.FLOAT16)
    y = m.node("MatMul", "half", [half, m.weight("half_w", n, n, dtype=np.float16)])
    m.out(m.node("Cast", "half_float", [y], to=TensorProto.FLOAT))
    double = m.node("Cast", "tokens_double", ["tokens"], to=TensorProto.DOUBLE)
    y = m.node("MatMul", "double", [double, m.weight("double_w", n, n, dtype=np.float64)])
    m.out(m.node("Cast", "double_float", [y], to=TensorProto.FLOAT))
    y = m.node("Cast", "half_cast", [m.weight("half_stored_w", n, n, dtype=np.float16)], to=TensorProto.FLOAT)
    m.out(m.node("MatMul", "by_half", ["tokens", y]))
    stored = (m.array(n, n).view(np.uint32) >> 16).astype(np.uint16)
    m.weights.append(helper.make_tensor("brain_w", TensorProto.BFLOAT16, [n, n], stored.tobytes(), raw=True))
    y = m.node("Cast", "brain_cast", ["brain_w"], to=TensorProto.FLOAT)
    m.out(m.node("MatMul", "by_brain", ["tokens", y]))


def _trees(m: ModelOfLayers) -> None:
    trees = 40
    flat = m.node("Reshape", "rows", ["tokens", _ints(m, "rows_shape", -1, WIDTH)])
    ids = [t for t in range(trees) for _ in range(3)]
    modes = ["BRANCH_LEQ", "LEAF", "LEAF"] * trees
    y = m.node(
        "TreeEnsembleRegressor",
        "trees",
        [flat],
        domain="ai.onnx.ml",
        n_targets=1,
        nodes_treeids=ids,
        nodes_nodeids=[0, 1, 2] * trees,
        nodes_featureids=[i % WIDTH for i in range(3 * trees)],
        nodes_modes=modes,
        nodes_values=[0.05 * (i % 7) for i in range(3 * trees)],
        nodes_truenodeids=[1, 0, 0] * trees,
        nodes_falsenodeids=[2, 0, 0] * trees,
        target_treeids=[t for t in range(trees) for _ in range(2)],
        target_nodeids=[1, 2] * trees,
        target_ids=[0] * 2 * trees,
        target_weights=[0.1 * (i % 5) for i in range(2 * trees)],
    )
    m.out(y)


PARTS: dict[str, Callable[[ModelOfLayers], None]] = {
    "convolutions": _convolutions,
    "products": _products,
    "sequences": _sequences,
    "places": _places,
    "types": _types,
    "trees": _trees,
}
"""Kinds of layers -> what adds them to a model."""


def model_of(*parts: str) -> onnx.ModelProto:
    """Return the model with the layers of some kinds, all of them by default."""
    m = ModelOfLayers()
    for part in parts or PARTS:
        PARTS[part](m)
    return m.proto()


def samples(count: int, seed: int = 1) -> dict[str, np.ndarray]:
    """Return inputs with a leading sample axis, as `--data` takes them."""
    random = np.random.default_rng(seed)
    return {
        "picture": random.standard_normal((count, WIDTH, SIDE, SIDE)).astype(np.float32),
        "tokens": random.standard_normal((count, STEPS, WIDTH)).astype(np.float32),
        "ids": random.integers(0, 200, (count, STEPS)),
    }
