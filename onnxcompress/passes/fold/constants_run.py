"""Compute values that depend on constants only in onnxruntime: many nodes in one session."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir

from ...errors import ModelError
from ...graph import query
from ...runtime import session as runtime

RUNNABLE = frozenset(
    {
        *(ir.DataType.FLOAT, ir.DataType.DOUBLE, ir.DataType.FLOAT16, ir.DataType.BOOL),
        *(ir.DataType.INT8, ir.DataType.INT16, ir.DataType.INT32, ir.DataType.INT64),
        *(ir.DataType.UINT8, ir.DataType.UINT16, ir.DataType.UINT32, ir.DataType.UINT64),
    }
)
"""Types that go into the runtime, and come out, as numpy arrays."""
_FED_ELEMENTS = 1024
"""Most elements of constants that are written into the graph, since kernels may require constant axes; larger ones
are fed. Chosen by judgement; not measured."""


def compute(model: ir.Model, wanted: Sequence[ir.Node]) -> dict[ir.Value, np.ndarray]:
    """Return the outputs of nodes that are read, by value; a node that the runtime can't run is left out.

    Args:
        model: gives the operator versions.
        wanted: nodes without bodies; they and what they depend on lead back to constants only.
    """
    try:
        return _run(model, wanted)
    except ModelError:
        if len(wanted) == 1:
            return {}
    middle = len(wanted) // 2
    return {**compute(model, wanted[:middle]), **compute(model, wanted[middle:])}


def cone(wanted: Sequence[ir.Node]) -> Iterator[ir.Node]:
    """Yield the nodes and all that they depend on, back to constants, each once and after what it reads."""
    seen: set[ir.Node] = set()
    pending = [(node, False) for node in reversed(wanted)]
    while pending:
        node, is_ready = pending.pop()
        if is_ready:
            yield node
        elif node not in seen:
            seen.add(node)
            pending.append((node, True))
            makers = [v.producer() for v in node.inputs if v is not None and query.constant_tensor(v) is None]
            pending += [(maker, False) for maker in makers if maker is not None]


def _run(model: ir.Model, wanted: Sequence[ir.Node]) -> dict[ir.Value, np.ndarray]:
    """Run the nodes in one session.

    Raises:
        ModelError: one of them can't be run, or gives something that is no array of numbers.
    """
    names: dict[ir.Value, str] = {}
    protos: list[onnx.NodeProto] = []
    inputs: list[onnx.ValueInfoProto] = []
    initializers: list[onnx.TensorProto] = []
    feed: dict[str, Any] = {}
    for node in cone(wanted):
        proto = ir.serde.serialize_node(node)
        for port, value in enumerate(node.inputs):
            if value is None:
                continue
            if value not in names:
                names[value] = f"v{len(names)}"
                tensor = query.constant_tensor(value)
                if tensor is None:
                    raise ModelError("depends on more than constants", where=query.label(node))
                if tensor.size <= _FED_ELEMENTS:
                    initializers.append(onnx.numpy_helper.from_array(tensor.numpy(), names[value]))
                else:
                    feed[names[value]] = tensor.numpy()
                    inputs.append(
                        onnx.helper.make_tensor_value_info(names[value], int(tensor.dtype), query.dims(tensor))
                    )
            proto.input[port] = names[value]
        for index, value in enumerate(node.outputs):
            names[value] = f"v{len(names)}"
            proto.output[index] = names[value] if proto.output[index] else ""
        protos.append(proto)
    read = [v for node in wanted for v in node.outputs if v.uses() or v.is_graph_output()]
    outputs = [onnx.helper.make_empty_tensor_value_info(names[v]) for v in read]
    opsets = [onnx.helper.make_opsetid(domain, version) for domain, version in model.opset_imports.items()]
    body = onnx.helper.make_graph(protos, "constants", inputs, outputs, initializers)
    proto_model = onnx.helper.make_model(body, opset_imports=opsets, ir_version=model.ir_version)
    found = runtime.open_session(proto_model.SerializeToString(), optimize=False).run(feed)
    for array in found.values():
        if not isinstance(array, np.ndarray) or array.dtype.kind not in "fiub":
            raise ModelError("an output is not a tensor of numbers")
    return {value: found[names[value]] for value in read}
