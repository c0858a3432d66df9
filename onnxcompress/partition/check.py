"""Proves that the parts of a model give what the model gives: by running them, or where they are large piece by piece.

Parts that take more memory than a process should are joined again, and each piece whose weights were written anew is
run with the old weights and with the new ones, in a worker process.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import onnx_ir as ir

from ..base import size_limits
from ..errors import ModelError
from ..graph import query
from ..io import model_io
from ..ops import table as ops
from ..runtime import isolation
from ..verify.regions import RegionProof
from . import value_sizes
from .manifest import Manifest
from .runner import PartitionedModel

if TYPE_CHECKING:
    from ..core import Feed


def proved(whole: ir.Model, folder: Path, manifest: Manifest, feed: Feed, *, is_synthetic: bool) -> list[str]:
    """Run the parts on the feed and compare them with the whole model, or prove large ones piece by piece.

    Args:
        whole: what was cut.
        folder: the parts.
        manifest: of the folder.
        feed: what is run.
        is_synthetic: the feed was not given, and may be one that the model can't run.

    Returns:
        What could not be checked, or how.

    Raises:
        ModelError: the parts don't run, or give something else.
    """
    if manifest.peak_bytes > size_limits.RUN_BYTES and not value_sizes.fits_whole(whole):
        return _by_regions(whole, folder, manifest, feed, is_synthetic=is_synthetic)
    with isolation.roomy(len(whole.graph)):
        return _by_running(whole, folder, manifest.peak_bytes, feed, is_synthetic=is_synthetic)


def _by_running(whole: ir.Model, folder: Path, most_bytes: int, feed: Feed, *, is_synthetic: bool) -> list[str]:
    fits = value_sizes.fits_whole(whole)
    with PartitionedModel(folder, max_memory=most_bytes, optimize=False, prefetch=False) as parts:
        names = [spec.name for spec in parts.outputs]
        try:
            given = dict(zip(names, parts.run(names, feed), strict=True))
        except ModelError as error:
            if fits or not is_synthetic:
                raise
            return [f"the parts were not run: synthetic inputs don't fit ({error.message}); --data gives real ones"]
    if not fits or any(ops.is_nondeterministic(node) for node in query.nodes(whole)):
        return []
    with value_sizes.opened(whole) as session:
        expected = session.run(feed, names)
    for name in names:
        if not _same(expected[name], given[name]):
            raise ModelError(f"the parts give something else than the whole model for output {name!r}")
    return []


def _by_regions(whole: ir.Model, folder: Path, manifest: Manifest, feed: Feed, *, is_synthetic: bool) -> list[str]:
    proof = RegionProof(whole, feed, lossless=True)
    problem = proof.problem(join([model_io.load(folder / part.file) for part in manifest.parts], whole))
    if problem is None:
        return [
            "the parts are too large to be run here: each piece that holds weights was, and gives what the model gives"
        ]
    if proof.is_blind and is_synthetic:
        return [f"the parts were not proved: synthetic inputs don't fit ({problem}); --data gives real ones"]
    raise ModelError(f"the parts give something else than the whole model: {problem}")


def join(parts: list[ir.Model], whole: ir.Model) -> ir.Model:
    """Return the model that parts were cut from; the parts are used up.

    Args:
        parts: in the order in which they run.
        whole: whose inputs, outputs and their types are taken over.
    """
    known: dict[str, ir.Value] = {}
    nodes: list[ir.Node] = []
    weights: list[ir.Value] = []
    for part in parts:
        body = part.graph
        stored = list(body.initializers.values())
        for value in dict.fromkeys([*body.inputs, *stored]):
            if value.name in known:
                value.replace_all_uses_with(known[value.name], replace_graph_outputs=True)
                continue
            known[str(value.name)] = value
        weights += [value for value in stored if known[str(value.name)] is value]
        own = list(body)
        known.update({str(value.name): value for node in own for value in node.outputs if value.name})
        body.inputs.clear()
        body.outputs.clear()
        body.initializers.clear()
        body.remove(own)
        nodes += own
    inputs = [known[str(v.name)] for v in whole.graph.inputs if str(v.name) in known]
    outputs = [known[str(v.name)] for v in whole.graph.outputs]
    declared = {v.name: v for v in (*whole.graph.inputs, *whole.graph.outputs)}
    for value in (*inputs, *outputs):
        value.type, value.shape = declared[value.name].type, declared[value.name].shape
    functions = {name: function for part in parts for name, function in part.functions.items()}
    body = ir.Graph(
        inputs, outputs, nodes=nodes, initializers=weights, opset_imports=dict(whole.opset_imports), name="joined"
    )
    return ir.Model(body, ir_version=whole.ir_version, functions=list(functions.values()))


def _same(a: Any, b: Any) -> bool:
    """Say whether two outputs are equal to the bit."""
    if isinstance(a, np.ndarray) and isinstance(b, np.ndarray):
        equal = a.dtype == b.dtype and a.shape == b.shape
        return equal and (bool((a == b).all()) if a.dtype.kind == "O" else a.tobytes() == b.tobytes())
    if isinstance(a, list) and isinstance(b, list):
        return len(a) == len(b) and all(_same(x, y) for x, y in zip(a, b, strict=True))
    return bool(a == b)
