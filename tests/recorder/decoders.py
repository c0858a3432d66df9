"""A small encoder and a causal decoder with a cache, and programs that run them as their users would."""

import numpy as np
import onnx
from onnx import TensorProto as T
from onnx import helper

VOCABULARY, WIDTH = 32, 16


def _save(path, nodes, inputs, outputs, constants=()):
    made = [onnx.numpy_helper.from_array(np.asarray(value), name) for name, value in constants]
    values = [
        [helper.make_tensor_value_info(name, kind, shape) for name, kind, shape in each] for each in (inputs, outputs)
    ]
    graph = helper.make_graph(nodes, path.stem, *values, made)
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8), path)
    return path


def encoder(path, *, seed=0):
    """Write a model of one product: `sound` float32 [1, n, WIDTH] -> `hidden`."""
    weight = np.random.default_rng(seed).standard_normal((WIDTH, WIDTH)).astype(np.float32)
    nodes = [helper.make_node("MatMul", ["sound", "w"], ["hidden"])]
    shape = [1, "n", WIDTH]
    return _save(path, nodes, [("sound", T.FLOAT, shape)], [("hidden", T.FLOAT, shape)], [("w", weight)])


def decoder(path, *, seed=0):
    """Write a decoder of one layer: `ids` int64 [1, s] and `past` float32 [1, p, WIDTH] -> `logits`, `present`.

    A mask of length p + s is added to the scores, so that the sizes depend on each other.
    """
    random = np.random.default_rng(seed)
    draw = lambda *shape: (random.standard_normal(shape) / np.sqrt(shape[0])).astype(np.float32)  # noqa: E731
    node = helper.make_node
    nodes = [
        node("Gather", ["table", "ids"], ["x"]),
        node("MatMul", ["x", "wq"], ["q"]),
        node("MatMul", ["x", "wk"], ["k"]),
        node("Concat", ["past", "k"], ["present"], axis=1),
        node("Transpose", ["present"], ["kt"], perm=[0, 2, 1]),
        node("MatMul", ["q", "kt"], ["raw"]),
        node("Sub", ["one", "mask"], ["hidden_places"]),
        node("Mul", ["hidden_places", "least"], ["bias"]),
        node("Add", ["raw", "bias"], ["scores"]),
        node("Softmax", ["scores"], ["shares"], axis=-1),
        node("MatMul", ["shares", "present"], ["mixed"]),
        node("Add", ["mixed", "x"], ["y"]),
        node("MatMul", ["y", "head"], ["logits"]),
    ]
    inputs = [("ids", T.INT64, [1, "s"]), ("past", T.FLOAT, [1, "p", WIDTH]), ("mask", T.FLOAT, [1, "total"])]
    outputs = [("logits", T.FLOAT, [1, "s", VOCABULARY]), ("present", T.FLOAT, [1, "total", WIDTH])]
    constants = [
        ("table", draw(VOCABULARY, WIDTH) * 4),
        ("wq", draw(WIDTH, WIDTH)),
        ("wk", draw(WIDTH, WIDTH)),
        ("head", draw(WIDTH, VOCABULARY)),
        ("one", np.float32(1)),
        ("least", np.float32(-1e4)),
    ]
    return _save(path, nodes, inputs, outputs, constants)


PROGRAM = """
import os, signal, sys, threading
import numpy as np
import onnxruntime as ort

encoder, decoder = ort.InferenceSession("encoder.onnx"), ort.InferenceSession("decoder.onnx")

def speak(seed):
    random = np.random.default_rng(seed)
    encoder.run(None, {"sound": random.standard_normal((1, 3 + seed % 3, 16)).astype("f")})
    ids = random.integers(0, 32, (1, 3 + seed % 2))
    past = np.zeros((1, 0, 16), "f")
    for step in range(5):
        mask = np.ones((1, past.shape[1] + ids.shape[1]), "f")
        logits, past = decoder.run(["logits", "present"], {"ids": ids, "past": past, "mask": mask})
        ids = logits[:, -1:].argmax(-1)

mode = sys.argv[1]
if mode == "threads":
    threads = [threading.Thread(target=speak, args=(seed,)) for seed in range(6)]
    for each in threads:
        each.start()
    for each in threads:
        each.join()
for seed in range(0 if mode == "threads" else 6):
    speak(seed)
    if seed == 3 and mode == "crash":
        raise RuntimeError("half-way")
    if seed == 3 and mode == "kill":
        os.kill(os.getpid(), signal.SIGKILL)
print("said", *sys.argv[2:])
sys.exit(5 if mode == "five" else 0)
"""
