"""What tests of channels share: small models, and the exact test of a cut."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Any

import numpy as np
import onnx
import onnx.parser
import onnx_ir as ir
from onnx import numpy_helper

from onnxcompress.channels import groups as channel_groups
from onnxcompress.channels import remove as channel_removal
from onnxcompress.channels.groups import Channels
from onnxcompress.io import model_io
from onnxcompress.runtime import session as runtime
from onnxcompress.shapes import count as counting

from .helpers import floats


def built(body: str, x: str, weights: Mapping[str, Any], *, opset: int = 17, outputs: str = "float[] y") -> ir.Model:
    """Return the model of a graph in ONNX text.

    Args:
        body: its nodes.
        x: dimensions of the float input x.
        weights: name -> array; floats that are given as dimensions (a tuple) are made up.
        opset: of the standard domain.
        outputs: declarations of the outputs.
    """
    header = f'<ir_version: 10, opset_import: ["": {opset}, "com.microsoft": 1]>'
    proto = onnx.parser.parse_model(f"{header} g (float[{x}] x) => ({outputs}) {{ {body} }}")
    rng = np.random.default_rng(7)
    for name, weight in weights.items():
        array = rng.standard_normal(weight).astype(np.float32) if isinstance(weight, tuple) else np.asarray(weight)
        proto.graph.initializer.append(numpy_helper.from_array(array, name))
    session = runtime.open_session(proto.SerializeToString(), optimize=False)
    for output, array in zip(proto.graph.output, session.run(feed_of(x)).values(), strict=True):
        output.type.tensor_type.shape.SetInParent()
        for axis in range(array.ndim):
            output.type.tensor_type.shape.dim.add(dim_param=f"{output.name}{axis}")
    return model_io.load(proto)


def run(model: ir.Model, feed: Mapping[str, Any]) -> dict[str, Any]:
    """Return the outputs in onnxruntime, its optimizations off; operators of its own are no error here."""
    return runtime.open_session(model_io.to_bytes(model), optimize=False).run(feed)


def feed_of(dims: str) -> dict[str, Any]:
    """Return a feed for the input x of such dimensions; those with a name are 2."""
    return {"x": floats(*(int(d) if d.strip().isdigit() else 2 for d in dims.split(",")))}


def some_groups(found: Channels, *, share: float = 0.4, seed: int = 0, inexact: bool = False) -> list[int]:
    """Return random groups that can go together: at most a share of all, at least one where there is one."""
    tally, chosen = found.tally(), []
    for group in np.random.default_rng(seed).permutation(len(found)).tolist():
        is_wanted = inexact or not found.groups[group].inexact
        if is_wanted and len(chosen) < max(1, share * len(found)) and tally.allows(group):
            tally.remove(group)
            chosen.append(group)
    return chosen


def both_ways(
    model: ir.Model, feed: Mapping[str, Any], removed: Collection[int]
) -> tuple[dict[str, Any], dict[str, Any], ir.Model]:
    """Return the outputs after a cut, those after a mask, and the model that was cut."""
    cut, masked = model_io.clone(model), model_io.clone(model)
    channel_removal.cut(channel_groups.find_groups(cut, feed), removed)
    channel_removal.mask(channel_groups.find_groups(masked, feed), removed)
    return run(cut, feed), run(masked, feed), cut


def check_exact(
    model: ir.Model, feed: Mapping[str, Any], *, seed: int = 0, share: float = 0.4, tolerance: float = 1e-5
) -> Channels:
    """Take random groups out, and hold the result against the model in which they are zeroed.

    Also: what is left is what the tally says, and the zeroing has changed something.
    """
    found = channel_groups.find_groups(model, feed)
    removed = some_groups(found, seed=seed, share=share)
    assert removed
    left, zeroed, cut = both_ways(model, feed, removed)
    before = run(model, feed)
    assert list(left) == list(before)
    for name, array in left.items():
        assert array.shape == before[name].shape
        np.testing.assert_allclose(array, zeroed[name], rtol=tolerance, atol=tolerance * np.abs(zeroed[name]).max())
    assert any((before[name] != zeroed[name]).any() for name in before)
    tally = found.tally()
    for group in removed:
        tally.remove(group)
    assert tally.parameters == counting.parameters(cut)
    return found
