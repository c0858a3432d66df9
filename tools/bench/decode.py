"""`python -m bench.decode`: print as JSON the time of single products with few-bit weights, as ratios to float32.

One row of activations is a step of decoding with one new token; more rows are a prompt, or a sentence to encode.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import onnx_ir as ir

from onnxcompress.core import Context, Pass
from onnxcompress.io import model_io
from onnxcompress.passes import build
from onnxcompress.runtime import session as runtime
from onnxcompress.runtime.latency import race

LAYERS = ((192, 768), (768, 192), (384, 1536), (1536, 384))
"""Depth and width: the two products of a block of a small language model, and of a sentence encoder."""
ROWS = (1, 16, 128)
_TEXT = (
    '<ir_version: 10, opset_import: ["": 21]> '
    "g (float[m, {k}] x, float[{k}, {n}] w) => (float[m, {n}] y) {{ y = MatMul(x, w) }}"
)

KINDS: Mapping[str, tuple[str, Mapping[str, Any]]] = {
    "int8, dynamic": ("quantize-dynamic", {"layers": "all"}),
    "8 bits, folded": ("quantize-blocks", {"scheme": "int8/block32/sym", "form": "multiply"}),
    "8 bits, kernel": ("quantize-blocks", {"scheme": "int8/block32/sym", "form": "kernel"}),
    "8 bits, integer": ("quantize-blocks", {"scheme": "int8/block32/sym", "form": "integer"}),
    "4 bits, folded": ("quantize-blocks", {"scheme": "int4/block32/sym", "form": "multiply"}),
    "4 bits, kernel": ("quantize-blocks", {"scheme": "int4/block32/sym", "form": "kernel"}),
    "4 bits, integer": ("quantize-blocks", {"scheme": "int4/block32/sym", "form": "integer"}),
    "2 bits, kernel": ("quantize-blocks", {"scheme": "int2/block32/sym", "form": "kernel"}),
    "2 bits, integer": ("quantize-blocks", {"scheme": "int2/block32/sym", "form": "integer"}),
}


def main(seconds: float) -> list[dict[str, Any]]:
    """Return a row for each layer and number of rows: kind -> ratio."""
    found = []
    for depth, width in LAYERS:
        original = _model(depth, width)
        plain = runtime.open_session(model_io.to_bytes(original), optimize=True)
        others = {kind: _session(original, build(name, options)) for kind, (name, options) in KINDS.items()}
        for rows in ROWS:
            feed = {"x": np.random.default_rng(1).standard_normal((rows, depth)).astype(np.float32)}
            ratios = {kind: race(plain, other, feed, max_seconds=seconds).ratio for kind, other in others.items()}
            found.append({"layer": f"{depth} x {width}", "rows": rows, "ratios": ratios})
    return found


def _model(depth: int, width: int) -> ir.Model:
    model = ir.from_onnx_text(_TEXT.format(k=depth, n=width))
    value = model.graph.inputs.pop()
    weight = np.random.default_rng(0).standard_normal((depth, width)).astype(np.float32)
    value.const_value = ir.tensor(weight, name="w")
    model.graph.register_initializer(value)
    return model


def _session(original: ir.Model, one: Pass) -> runtime.Session:
    model = model_io.clone(original)
    one.run(model, Context())
    return runtime.open_session(model_io.to_bytes(model), optimize=True)


if __name__ == "__main__":
    arguments: Sequence[str] = sys.argv[1:]
    sys.stdout.write(json.dumps(main(float(arguments[0]) if arguments else 0.5)) + "\n")
