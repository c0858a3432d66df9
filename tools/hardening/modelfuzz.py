"""Mutations of a ModelProto that stay well-formed messages and lie about everything else."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Sequence
from typing import TypeVar

import numpy as np
import onnx
from google.protobuf.message import DecodeError
from onnx import AttributeProto, TensorProto, helper

Rng = np.random.Generator
T = TypeVar("T")
SIZES = (-1, 0, 1, 3, 1 << 16, (1 << 31) - 1, 1 << 31, 1 << 40, (1 << 62) + 1, (1 << 63) - 1, -(1 << 63))
NAMES = ("", " ", "x", "../x", "a\nb", "\x1b[31m", "\u202e", "n" * 3000, "\0", "#raw_data", "op:Add", "*", "ä/ö")
NUMBERS = (0, 1, -1, 2, 7, 255, 1 << 20, (1 << 31) - 1, -(1 << 31), 1 << 40, (1 << 63) - 1, -(1 << 63))


def mutate(data: bytes, rng: Rng) -> bytes:
    """Apply one to three mutations to a model."""
    model = onnx.ModelProto.FromString(data)
    for _ in range(int(rng.choice([1, 1, 2, 3]))):
        with contextlib.suppress(ValueError, OverflowError, DecodeError):  # no such message can be made
            MUTATIONS[int(rng.integers(len(MUTATIONS)))](model, rng)
    return model.SerializeToString()


def _pick(items: Sequence[T], rng: Rng) -> T | None:
    return items[int(rng.integers(len(items)))] if items else None


def _graphs(graph: onnx.GraphProto) -> Iterator[onnx.GraphProto]:
    yield graph
    for node in graph.node:
        for attribute in node.attribute:
            if attribute.type == AttributeProto.GRAPH:
                yield from _graphs(attribute.g)


def _nodes(model: onnx.ModelProto) -> list[onnx.NodeProto]:
    nodes = [node for graph in _graphs(model.graph) for node in graph.node]
    return nodes + [node for function in model.functions for node in function.node]


def _tensors(model: onnx.ModelProto) -> list[TensorProto]:
    found = [tensor for graph in _graphs(model.graph) for tensor in graph.initializer]
    return found + [a.t for node in _nodes(model) for a in node.attribute if a.type == AttributeProto.TENSOR]


def _values(model: onnx.ModelProto) -> list[onnx.ValueInfoProto]:
    return [v for g in _graphs(model.graph) for group in (g.input, g.output, g.value_info) for v in group]


def _names(model: onnx.ModelProto) -> list[str]:
    return [name for node in _nodes(model) for name in (*node.output, *node.input)]


def tensor_dims(model: onnx.ModelProto, rng: Rng) -> None:
    """Give a tensor an absurd dimension, or one too many."""
    if (tensor := _pick(_tensors(model), rng)) is None:
        return
    if tensor.dims and rng.random() < 0.7:
        tensor.dims[int(rng.integers(len(tensor.dims)))] = SIZES[int(rng.integers(len(SIZES)))]
    else:
        tensor.dims.append(SIZES[int(rng.integers(len(SIZES)))])


def value_dims(model: onnx.ModelProto, rng: Rng) -> None:
    """Declare an absurd shape of an input, an output or a value in between."""
    value = _pick([v for v in _values(model) if v.type.WhichOneof("value") == "tensor_type"], rng)
    if value is None:
        return
    shape = value.type.tensor_type.shape
    if shape.dim and rng.random() < 0.7:
        dim = shape.dim[int(rng.integers(len(shape.dim)))]
        if rng.random() < 0.5:
            dim.dim_param = NAMES[int(rng.integers(len(NAMES)))]
        else:
            dim.dim_value = SIZES[int(rng.integers(len(SIZES)))]
    elif rng.random() < 0.5:
        value.type.tensor_type.ClearField("shape")
    else:
        for _ in range(int(rng.integers(1, 40))):
            shape.dim.add().dim_value = 1 + int(rng.integers(3))


def cycle(model: onnx.ModelProto, rng: Rng) -> None:
    """Let a node read what it, or any other node, makes."""
    node = _pick([n for n in _nodes(model) if n.input], rng)
    name = _pick(_names(model), rng)
    if node is not None and name is not None:
        node.input[int(rng.integers(len(node.input)))] = name


def output_name(model: onnx.ModelProto, rng: Rng) -> None:
    """Let two nodes make the same value, or one a value without a name."""
    node = _pick([n for n in _nodes(model) if n.output], rng)
    if node is not None:
        name = _pick([*_names(model), *NAMES], rng)
        node.output[int(rng.integers(len(node.output)))] = name or ""


def any_name(model: onnx.ModelProto, rng: Rng) -> None:
    """Rename something."""
    holders = [*_nodes(model), *_tensors(model), *_values(model), *_graphs(model.graph), *model.functions]
    holder = _pick(holders, rng)
    if holder is not None:
        holder.name = _pick([*NAMES, *_names(model)], rng) or ""


def everywhere(model: onnx.ModelProto, rng: Rng) -> None:
    """Rename a value wherever it stands."""
    old, new = _pick(_names(model), rng), _pick(list(NAMES), rng) or ""
    for node in _nodes(model):
        for names in (node.input, node.output):
            for index, name in enumerate(names):
                if name == old:
                    names[index] = new
    for holder in (*_values(model), *_tensors(model)):
        if holder.name == old:
            holder.name = new


def tensor_type(model: onnx.ModelProto, rng: Rng) -> None:
    """Change the type of a tensor or of a declared value."""
    holder = _pick([*_tensors(model), *_values(model)], rng)
    kind = int(rng.integers(-1, 30))
    if isinstance(holder, TensorProto):
        holder.data_type = kind
    elif holder is not None:
        holder.type.tensor_type.elem_type = kind


def tensor_data(model: onnx.ModelProto, rng: Rng) -> None:
    """Give a tensor too few or too many data, or data in two places."""
    if (tensor := _pick(_tensors(model), rng)) is None:
        return
    match int(rng.integers(4)):
        case 0:
            tensor.raw_data = tensor.raw_data[: int(rng.integers(len(tensor.raw_data) + 1))]
        case 1:
            tensor.raw_data = tensor.raw_data + rng.bytes(int(rng.integers(1, 3000)))
        case 2:
            tensor.int32_data.extend([1] * int(rng.integers(1, 2000)))
        case _:
            tensor.string_data.append(b"\xff\xfe")


def integers(model: onnx.ModelProto, rng: Rng) -> None:
    """Put extreme numbers where sizes, positions and numbers of rounds stand."""
    tensor = _pick([t for t in _tensors(model) if t.data_type in (6, 7)], rng)
    if tensor is None or not 0 < np.prod(tensor.dims, dtype=float) < 1000:
        return
    try:
        values = np.array(onnx.numpy_helper.to_array(tensor))
    except (ValueError, TypeError, RuntimeError, onnx.checker.ValidationError):
        return
    info = np.iinfo(values.dtype)
    if values.size:
        values.reshape(-1)[int(rng.integers(values.size))] = np.clip(
            NUMBERS[int(rng.integers(len(NUMBERS)))], info.min, info.max
        )
        tensor.CopyFrom(onnx.numpy_helper.from_array(values, tensor.name))


def floats(model: onnx.ModelProto, rng: Rng) -> None:
    """Put numbers that are not finite, or vanish, into a weight."""
    tensor = _pick([t for t in _tensors(model) if t.data_type == TensorProto.FLOAT and t.raw_data], rng)
    if tensor is None or len(tensor.raw_data) % 4:
        return
    values = np.frombuffer(tensor.raw_data, "<f4").copy()
    values[int(rng.integers(values.size))] = (np.nan, np.inf, -np.inf, 1e-45, 3e38, 0.0)[int(rng.integers(6))]
    tensor.raw_data = values.tobytes()


def attribute(model: onnx.ModelProto, rng: Rng) -> None:
    """Change, drop or add an attribute."""
    node = _pick([n for n in _nodes(model) if n.attribute], rng)
    if node is None:
        return
    at = int(rng.integers(len(node.attribute)))
    old = node.attribute[at]
    match int(rng.integers(6)):
        case 0:
            del node.attribute[at]
        case 1:
            node.attribute.append(old)
        case 2:
            old.type = int(rng.integers(0, 16))
        case 3 if old.ints:
            old.ints[int(rng.integers(len(old.ints)))] = NUMBERS[int(rng.integers(len(NUMBERS)))]
        case 4:
            old.ints.extend([NUMBERS[int(rng.integers(len(NUMBERS)))]] * int(rng.integers(1, 5)))
        case _:
            old.i = NUMBERS[int(rng.integers(len(NUMBERS)))]
            old.f = (np.nan, np.inf, -1.0, 0.0)[int(rng.integers(4))]


def operator(model: onnx.ModelProto, rng: Rng) -> None:
    """Exchange the operator of a node."""
    node = _pick(_nodes(model), rng)
    if node is not None:
        schemas = [schema.name for schema in onnx.defs.get_all_schemas() if schema.domain == ""]
        node.op_type = _pick([*schemas, *schemas, *NAMES, node.op_type + "x"], rng) or ""
        if rng.random() < 0.2:
            node.domain = _pick(["ai.onnx", "com.microsoft", "my.domain", "ai.onnx.ml", *NAMES], rng) or ""


def order(model: onnx.ModelProto, rng: Rng) -> None:
    """Remove, repeat or reorder nodes, or change how many inputs and outputs one has."""
    nodes = list(model.graph.node)
    node = _pick(nodes, rng)
    if node is None:
        return
    match int(rng.integers(5)):
        case 0:
            nodes.remove(node)
        case 1:
            nodes.insert(int(rng.integers(len(nodes))), node)
        case 2:
            rng.shuffle(nodes)  # type: ignore[arg-type]
        case 3 if node.input:
            del node.input[int(rng.integers(len(node.input))) :]
        case _:
            node.input.extend([_pick(_names(model), rng) or ""] * int(rng.integers(1, 4)))
            node.output.extend([f"extra{i}" for i in range(int(rng.integers(3)))])
    copies = [onnx.NodeProto.FromString(each.SerializeToString()) for each in nodes]
    del model.graph.node[:]
    model.graph.node.extend(copies)


def interface(model: onnx.ModelProto, rng: Rng) -> None:
    """Remove, repeat or exchange inputs, outputs and initializers."""
    graph = model.graph
    group = (graph.input, graph.output, graph.initializer)[int(rng.integers(3))]
    if not group:
        return
    at = int(rng.integers(len(group)))
    match int(rng.integers(3)):
        case 0:
            del group[at]
        case 1:
            group.append(group[at])
        case _:
            name = _pick([*_names(model), *[v.name for v in _values(model)]], rng)
            group[at].name = name or "gone"


def version(model: onnx.ModelProto, rng: Rng) -> None:
    """Change the versions that the model is of."""
    if rng.random() < 0.3:
        model.ir_version = int(_pick([-1, 0, 1, 3, 9, 13, 99, 1 << 40], rng) or 0)
    if model.opset_import and rng.random() < 0.8:
        model.opset_import[0].version = int(_pick([-5, 0, 1, 6, 9, 11, 13, 17, 21, 25, 1 << 40], rng) or 0)
    elif model.opset_import:
        model.opset_import.append(model.opset_import[0])


def nesting(model: onnx.ModelProto, rng: Rng) -> None:
    """Wrap the output in branches within branches, or a type in types."""
    depth = int(_pick([2, 10, 24, 30], rng) or 2)
    if rng.random() < 0.3:
        kind = onnx.TypeProto()
        kind.tensor_type.elem_type = 1
        for _ in range(depth):
            outer = onnx.TypeProto()
            outer.sequence_type.elem_type.CopyFrom(kind)
            kind = outer
        if model.graph.output:
            model.graph.output[0].type.CopyFrom(kind)
        return
    float_type = helper.make_tensor_value_info("deep", TensorProto.FLOAT, None)
    body = helper.make_graph([helper.make_node("Constant", [], ["deep"], value_float=1.0)], "inner", [], [float_type])
    for level in range(depth):
        make = helper.make_node("If", ["truth"], ["deep"], name=f"if{level}", then_branch=body, else_branch=body)
        if level > 4:  # both branches would double the size with each level
            make = helper.make_node("If", ["truth"], ["deep"], name=f"if{level}", then_branch=body)
        body = helper.make_graph([make], f"level{level}", [], [float_type])
    model.graph.initializer.append(helper.make_tensor("truth", TensorProto.BOOL, [], [True]))
    model.graph.node.append(helper.make_node("If", ["truth"], ["deep"], then_branch=body, else_branch=body))
    model.graph.output.append(float_type)


def function(model: onnx.ModelProto, rng: Rng) -> None:
    """Add a local function that calls itself, or another that calls it back."""
    names = ["f"] if rng.random() < 0.5 else ["f", "g"]
    imports = [*model.opset_import, helper.make_opsetid("local", 1)]
    for index, name in enumerate(names):
        called = names[(index + 1) % len(names)] if rng.random() < 0.7 else "h"
        node = helper.make_node(called, ["a"], ["b"], domain="local")
        model.functions.append(helper.make_function("local", name, ["a"], ["b"], [node], imports))
    model.opset_import.append(helper.make_opsetid("local", 1))
    source = _pick([v.name for v in model.graph.input], rng)
    if source:
        model.graph.node.append(helper.make_node("f", [source], ["called"], domain="local"))
        if model.graph.output and rng.random() < 0.7:
            model.graph.output[0].name = "called"


def huge(model: onnx.ModelProto, rng: Rng) -> None:
    """Add a node that makes something huge out of a few bytes."""
    size = int(_pick([1 << 20, 1 << 22, 1 << 31, 1 << 36, 1 << 50], rng) or 1)
    model.graph.initializer.append(helper.make_tensor("huge_shape", TensorProto.INT64, [1], [size]))
    kind = _pick(["ConstantOfShape", "Expand", "Tile", "Range"], rng)
    if kind == "ConstantOfShape":
        model.graph.node.append(helper.make_node(kind, ["huge_shape"], ["huge"]))
    elif kind == "Range":
        for name, value in (("start", 0), ("limit", size), ("step", 1)):
            model.graph.initializer.append(helper.make_tensor(name, TensorProto.INT64, [], [value]))
        model.graph.node.append(helper.make_node(kind, ["start", "limit", "step"], ["huge"]))
    else:
        model.graph.initializer.append(helper.make_tensor("one", TensorProto.FLOAT, [1], [1.0]))
        model.graph.node.append(helper.make_node(str(kind), ["one", "huge_shape"], ["huge"]))
    element = TensorProto.INT64 if kind == "Range" else TensorProto.FLOAT
    if rng.random() < 0.5:
        model.graph.node.append(helper.make_node("ReduceMax", ["huge"], ["small"], keepdims=0))
        model.graph.output.append(helper.make_tensor_value_info("small", element, None))
    else:
        model.graph.output.append(helper.make_tensor_value_info("huge", element, None))


def rounds(model: onnx.ModelProto, rng: Rng) -> None:
    """Add a loop that ends late or never."""
    count = int(_pick([0, 5, 5, 1 << 12, 1 << 12, 1 << 40, (1 << 63) - 1, -1], rng) or 0)
    model.graph.initializer.append(helper.make_tensor("rounds", TensorProto.INT64, [], [count]))
    scalar = [helper.make_tensor_value_info(n, t, []) for n, t in (("i", 7), ("go", 9), ("acc", 1))]
    after = [helper.make_tensor_value_info(n, t, []) for n, t in (("go2", 9), ("acc2", 1))]
    nodes = [helper.make_node("Identity", ["go"], ["go2"]), helper.make_node("Add", ["acc", "acc"], ["acc2"])]
    if rng.random() < 0.3:
        after.append(helper.make_tensor_value_info("acc3", 1, []))
        nodes.append(helper.make_node("Identity", ["acc"], ["acc3"]))
    body = helper.make_graph(nodes, "body", scalar, after)
    model.graph.initializer.append(helper.make_tensor("start_value", TensorProto.FLOAT, [], [1.0]))
    outputs = ["looped", "all"][: len(after) - 1]
    model.graph.node.append(helper.make_node("Loop", ["rounds", "", "start_value"], outputs, body=body))
    model.graph.output.append(helper.make_tensor_value_info("looped", 1, None))


def sparse(model: onnx.ModelProto, rng: Rng) -> None:
    """Add a sparse initializer that says more, or other, than it holds."""
    count = int(rng.integers(0, 4))
    values = helper.make_tensor("sparse", TensorProto.FLOAT, [count], [1.0] * count)
    at = [int(_pick([0, 1, 5, -1, 1 << 40], rng) or 0) for _ in range(count)]
    dims = [int(_pick([0, 2, 10, 1 << 40, -3], rng) or 0)]
    indices = helper.make_tensor("at", TensorProto.INT64, [count], at)
    model.graph.sparse_initializer.append(onnx.SparseTensorProto(values=values, indices=indices, dims=dims))
    model.graph.node.append(helper.make_node("Abs", ["sparse"], ["sparse_out"]))
    model.graph.output.append(helper.make_tensor_value_info("sparse_out", 1, None))


MUTATIONS: tuple[Callable[[onnx.ModelProto, Rng], None], ...] = (
    *(tensor_dims, value_dims, cycle, output_name, any_name, everywhere, tensor_type, tensor_data, integers, floats),
    *(attribute, operator, order, interface, version, nesting, function, huge, rounds, sparse),
    *(attribute, operator, integers, cycle),
)
