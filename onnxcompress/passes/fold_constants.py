"""Compute at compression time what the model would compute from constants at every run.

A node whose inputs are all constant is run once in onnxruntime and its outputs are stored. Two things are never
folded: what would make the file grow (a ConstantOfShape stands for megabytes in a few bytes, a Cast to a wider type
doubles a weight), and DequantizeLinear, whose folding would undo a quantization.
"""

from __future__ import annotations

from typing import Annotated, Any, ClassVar

import numpy as np
import onnx
import onnx_ir as ir
from pydantic import Field
from pydantic.dataclasses import dataclass

from .. import graph, ops, runtime
from ..core import Action, Change, Context, Need
from ..errors import ModelError

_RUNNABLE = frozenset(
    {
        ir.DataType.FLOAT,
        ir.DataType.DOUBLE,
        ir.DataType.FLOAT16,
        ir.DataType.BOOL,
        ir.DataType.INT8,
        ir.DataType.INT16,
        ir.DataType.INT32,
        ir.DataType.INT64,
        ir.DataType.UINT8,
        ir.DataType.UINT16,
        ir.DataType.UINT32,
        ir.DataType.UINT64,
    }
)
"""Types that can be fed to the runtime as numpy arrays."""


@dataclass(frozen=True, kw_only=True)
class FoldConstants:
    """Replaces nodes that depend on constants only by what they compute."""

    name: ClassVar[str] = "fold-constants"
    lossless: ClassVar[bool] = True
    needs: ClassVar[frozenset[Need]] = frozenset()

    allowance_bytes: Annotated[int, Field(ge=0)] = 1024
    """What a folded node may store beyond the bytes that become free."""

    def run(self, model: ir.Model, context: Context) -> list[Change]:
        """Fold every graph in the order of its nodes, so that what is folded can be folded further."""
        names = graph.Names(model)
        inside = {f.graph for f in model.functions.values()}
        changes: list[Change] = []
        for body in graph.graphs(model):
            if body in inside:
                continue
            folded = (self._fold(node, model, names, context) for node in tuple(body))
            changes += [change for change in folded if change is not None]
        return changes

    def _fold(self, node: ir.Node, model: ir.Model, names: graph.Names, context: Context) -> Change | None:
        if not _is_foldable(node):
            return None
        target = graph.label(node)
        try:
            arrays = _evaluate(node, model)
        except ModelError:
            return None  # the runtime has no kernel for it, or it fails at every run: not ours to decide
        stored = sum(a.nbytes for a in arrays if a is not None)
        freed = _freed_bytes(node)
        if stored > freed + self.allowance_bytes:
            reason = f"its result takes {stored:,} bytes, what it is computed from {freed:,}"
            return Change(pass_name=self.name, target=target, action=Action.SKIPPED, reason=reason)
        if not context.gate.admits(self.name, target):
            return None
        graph.replace_by_constant(node, names, arrays)
        return Change(
            pass_name=self.name,
            target=target,
            action=Action.APPLIED,
            reason=f"{node.op_type} of constants is stored as its result",
            bytes_before=freed,
            bytes_after=stored,
        )


def _is_foldable(node: ir.Node) -> bool:
    """Say whether a node is a pure function of constants that the runtime can be asked for."""
    if node.domain not in graph.STANDARD_DOMAINS or not node.inputs or graph.bodies(node):
        return False
    if graph.is_op(node, "QuantizeLinear", "DequantizeLinear", "Constant"):
        return False
    if ops.is_generator(node) or ops.is_nondeterministic(node) or any(a.is_ref() for a in node.attributes.values()):
        return False
    tensors = [graph.constant_tensor(value) for value in node.inputs if value is not None]
    return all(tensor is not None and tensor.dtype in _RUNNABLE for tensor in tensors)


def _evaluate(node: ir.Node, model: ir.Model) -> list[np.ndarray | None]:
    """Run one node and return its outputs; None for those that nobody reads.

    Raises:
        ModelError: the runtime can't run it, or an output is no array.
    """
    proto = ir.serde.serialize_node(node)
    feed: dict[str, Any] = {}
    inputs: list[onnx.ValueInfoProto] = []
    for index, value in enumerate(node.inputs):
        tensor = graph.constant_tensor(value)
        if tensor is None:
            continue
        array = tensor.numpy()
        name = proto.input[index]
        if name not in feed:
            inputs.append(onnx.helper.make_tensor_value_info(name, int(tensor.dtype), array.shape))
        feed[name] = array
    wanted = [o for o in node.outputs if o.uses() or o.is_graph_output()]
    outputs = [onnx.helper.make_empty_tensor_value_info(o.name or "") for o in wanted]
    opsets = [onnx.helper.make_opsetid(domain, version) for domain, version in model.opset_imports.items()]
    single = onnx.helper.make_model(onnx.helper.make_graph([proto], "fold", inputs, outputs), opset_imports=opsets)
    single.ir_version = model.ir_version
    found = runtime.open_session(single.SerializeToString(), optimize=False).run(feed)
    if not all(isinstance(array, np.ndarray) and array.dtype.kind in "fiub" for array in found.values()):
        raise ModelError("an output is not a tensor of numbers", where=graph.label(node))
    return [found.get(o.name or "") if o in wanted else None for o in node.outputs]


def _freed_bytes(node: ir.Node) -> int:
    """Return the bytes of the constants that nothing reads once the node is gone."""
    alone = [
        value
        for value in node.inputs
        if value is not None and not value.is_graph_output() and all(use.node is node for use in value.uses())
    ]
    return graph.tensor_bytes(alone)
