"""Removal of what exporters wrote beside the graph itself: declared shapes, and metadata of nodes and values."""

from __future__ import annotations

import onnx_ir as ir

from ..core import Change
from ..io import model_io


def without_metadata(
    model: ir.Model, size_bytes: int, *, keep_node_metadata: bool
) -> tuple[ir.Model, tuple[Change, ...]]:
    """Return a model without metadata, a copy where it has some, and what was removed."""
    start = model_io.clone(model) if model_io.has_records(model) else model
    shapes = model_io.drop_declared_shapes(start, size_bytes=size_bytes)
    found = [("drop-declared-shapes", shapes, "types and shapes declared of values in between")]
    if not keep_node_metadata:
        records = model_io.drop_node_records(start, size_bytes=size_bytes - shapes.bytes)
        found.append(("drop-node-records", records, "records that the exporter wrote beside nodes and values"))
    changes = (
        Change.applied(name, f"{dropped.count} {what} are dropped", bytes_before=dropped.bytes)
        for name, dropped, what in found
        if dropped.count
    )
    return start, tuple(changes)
