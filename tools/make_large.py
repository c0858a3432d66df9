"""Write large transformer-like models with seeded random weights, streamed: memory stays below 500 MB.

Each is an embedding table, a convolution over the sequence, and attention and feed-forward blocks of float32
matrices. The inline ones are written as protobuf wire format directly: a ModelProto holds all of its weights.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, BinaryIO

import numpy as np
import onnx
import typer
from onnx import TensorProto, helper

SEQUENCE = 16
HEADS = 16
CLASSES = 256
KERNEL = 3
CHUNK_VALUES = 4 << 20
MODEL_GRAPH, GRAPH_INITIALIZER, TENSOR_RAW_DATA = 7, 5, 9
"""Field numbers of onnx.proto: ModelProto.graph, GraphProto.initializer, TensorProto.raw_data."""


@dataclass(frozen=True, kw_only=True)
class Size:
    """Dimensions of a model; `external` puts the weights into a file beside it."""

    width: int
    blocks: int
    vocabulary: int
    external: bool


SIZES = {
    "external-2500mb": Size(width=2048, blocks=10, vocabulary=50_000, external=True),
    "inline-1900mb": Size(width=2048, blocks=8, vocabulary=26_000, external=False),
    "inline-650mb": Size(width=1024, blocks=10, vocabulary=33_000, external=False),
}


@dataclass(frozen=True)
class Weight:
    """A float32 weight: its values are normal with standard deviation `scale`, or all ones when that is 0."""

    name: str
    shape: tuple[int, ...]
    scale: float

    @property
    def size_bytes(self) -> int:
        """Bytes of the raw data."""
        return 4 * int(np.prod(self.shape))

    def chunks(self, rng: np.random.Generator) -> Iterator[memoryview]:
        """Yield the raw data in pieces of at most 16 MB."""
        remaining = int(np.prod(self.shape))
        while remaining:
            count = min(remaining, CHUNK_VALUES)
            values = rng.standard_normal(count, np.float32) * np.float32(self.scale) if self.scale else None
            yield memoryview(values if values is not None else np.ones(count, np.float32)).cast("B")
            remaining -= count


class Builder:
    """Collects nodes and weights; a weight's values are only made when written."""

    def __init__(self) -> None:
        self.nodes: list[onnx.NodeProto] = []
        self.weights: list[Weight] = []
        self.small: list[onnx.TensorProto] = []

    def node(self, op_type: str, *inputs: str, **attributes: object) -> str:
        """Append a node and return the name of its output."""
        name = f"{op_type.lower()}_{len(self.nodes)}"
        self.nodes.append(helper.make_node(op_type, inputs, [f"{name}_out"], name=name, **attributes))
        return f"{name}_out"

    def weight(self, name: str, *shape: int, fan_in: int) -> str:
        """Declare a weight of unit gain; a `fan_in` of 0 makes it all ones."""
        self.weights.append(Weight(name, shape, fan_in**-0.5 if fan_in else 0.0))
        return name

    def integers(self, name: str, *values: int) -> str:
        """Add a small int64 constant, such as a target shape."""
        self.small.append(helper.make_tensor(name, TensorProto.INT64, [len(values)], values))
        return name

    def linear(self, x: str, name: str, rows: int, columns: int) -> str:
        """Add a MatMul with its own weight of float32 [rows, columns]."""
        return self.node("MatMul", x, self.weight(name, rows, columns, fan_in=rows))

    def norm(self, x: str, name: str, width: int) -> str:
        """Add a LayerNormalization over the last axis."""
        return self.node("LayerNormalization", x, self.weight(name, width, fan_in=0), axis=-1)


def build(size: Size) -> tuple[onnx.ModelProto, list[Weight]]:
    """Build the model without its large weights, and these."""
    b, width = Builder(), size.width
    split = b.integers("heads", 0, SEQUENCE, HEADS, width // HEADS)
    merge = b.integers("merged", 0, SEQUENCE, width)
    x = b.node("Gather", b.weight("embedding", size.vocabulary, width, fan_in=1), "ids")
    x = b.node("Transpose", x, perm=[0, 2, 1])
    kernel = b.weight("conv.weight", width, width, KERNEL, fan_in=width * KERNEL)
    x = b.node("Conv", x, kernel, kernel_shape=[KERNEL], pads=[1, 1])
    x = b.node("Transpose", x, perm=[0, 2, 1])
    for block in range(size.blocks):
        y = b.norm(x, f"block{block}.norm1", width)
        q, k, v = (
            b.node(
                "Transpose",
                b.node("Reshape", b.linear(y, f"block{block}.{part}", width, width), split),
                perm=[0, 2, 3, 1] if part == "k" else [0, 2, 1, 3],
            )
            for part in ("q", "k", "v")
        )
        attention = b.node("Softmax", b.node("MatMul", q, k), axis=-1)
        y = b.node("Transpose", b.node("MatMul", attention, v), perm=[0, 2, 1, 3])
        y = b.linear(b.node("Reshape", y, merge), f"block{block}.out", width, width)
        x = b.node("Add", x, y)
        y = b.linear(b.norm(x, f"block{block}.norm2", width), f"block{block}.up", width, 4 * width)
        x = b.node("Add", x, b.linear(b.node("Relu", y), f"block{block}.down", 4 * width, width))
    b.node("MatMul", x, b.weight("head", width, CLASSES, fan_in=width))
    b.nodes[-1].output[0] = "scores"
    graph = helper.make_graph(
        b.nodes,
        "large",
        [helper.make_tensor_value_info("ids", TensorProto.INT64, ["batch", SEQUENCE])],
        [helper.make_tensor_value_info("scores", TensorProto.FLOAT, ["batch", SEQUENCE, CLASSES])],
        b.small,
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    return model, b.weights


def write_external(model: onnx.ModelProto, weights: list[Weight], path: Path, rng: np.random.Generator) -> None:
    """Write the model with all large weights in `PATH.data`."""
    data = path.with_name(f"{path.name}.data")
    with data.open("wb") as file:
        for weight in weights:
            entry = model.graph.initializer.add(name=weight.name, dims=weight.shape)
            entry.data_type = TensorProto.FLOAT
            entry.data_location = TensorProto.EXTERNAL
            fields = {"location": data.name, "offset": file.tell(), "length": weight.size_bytes}
            for key, value in fields.items():
                entry.external_data.add(key=key, value=str(value))
            file.writelines(weight.chunks(rng))
    path.write_bytes(model.SerializeToString())


def write_inline(model: onnx.ModelProto, weights: list[Weight], path: Path, rng: np.random.Generator) -> None:
    """Write the model with all weights inside; fields of one message may be concatenated."""
    graph = model.graph.SerializeToString()
    model.ClearField("graph")
    headers = []
    for weight in weights:
        header = TensorProto(name=weight.name, dims=weight.shape, data_type=TensorProto.FLOAT)
        headers.append(header.SerializeToString() + _tag(TENSOR_RAW_DATA, weight.size_bytes))
    tensor_bytes = [len(h) + w.size_bytes for h, w in zip(headers, weights, strict=True)]
    entries = [_tag(GRAPH_INITIALIZER, n) for n in tensor_bytes]
    graph_bytes = len(graph) + sum(tensor_bytes) + sum(map(len, entries))
    with path.open("wb") as file:
        file.write(model.SerializeToString() + _tag(MODEL_GRAPH, graph_bytes) + graph)
        for entry, header, weight in zip(entries, headers, weights, strict=True):
            file.write(entry + header)
            _write(file, weight, rng)


def _write(file: BinaryIO, weight: Weight, rng: np.random.Generator) -> None:
    file.writelines(weight.chunks(rng))


def _tag(field: int, length_bytes: int) -> bytes:
    """Encode the key and the length of a length-delimited protobuf field."""
    out = bytearray()
    for number in (field << 3 | 2, length_bytes):
        value = number
        while value >= 0x80:
            out.append(value & 0x7F | 0x80)
            value >>= 7
        out.append(value)
    return bytes(out)


def main(
    folder: Annotated[Path, typer.Argument(help="where the models are written")],
    *,
    only: Annotated[list[str] | None, typer.Option(help=f"some of {', '.join(SIZES)}")] = None,
    seed: Annotated[int, typer.Option(help="of the weights")] = 0,
) -> None:
    """Write models of 2.5 GB (external data), 1.9 GB and 650 MB (inline) for the benchmark of large files.

    Example: python tools/make_large.py LARGE --only inline-650mb
    """
    for name in only or SIZES:
        if name not in SIZES:
            typer.echo(f"error: no size {name!r}; there are {', '.join(SIZES)}", err=True)
            raise typer.Exit(2)
    folder.mkdir(parents=True, exist_ok=True)
    for name in only or SIZES:
        size = SIZES[name]
        model, weights = build(size)
        path = folder / f"{name}.onnx"
        write = write_external if size.external else write_inline
        write(model, weights, path, np.random.default_rng(seed))
        size_bytes = sum(file.stat().st_size for file in folder.glob(f"{name}.onnx*"))
        typer.echo(f"{path}: {size_bytes:,} bytes")


if __name__ == "__main__":
    typer.run(main)
