"""The range that each activation is quantized by: what was seen, or less where the layers behind gain by it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from ...activations.layer_inputs import LayerRows, sample_rows
from ...core import Progress
from ...numerics.quantization.affine_activations import LEAST_SPAN, IntegerGrid
from ...numerics.quantization.clipping import ClipCandidate, LayerInput, candidates, guarded, layer_error
from ...ops import linear as layers
from .known_ranges import known_ranges

if TYPE_CHECKING:
    import onnx_ir as ir

    from ...activations.calibration import Calibration
    from ...core import Feed
    from ...numerics.quantization.histograms import Histogram

_TRIED = 2
"""Clips with the least squared error that are tried on layers, beside those by percentile."""


def choose_ranges(
    model: ir.Model,
    feeds: Sequence[Feed],
    calibration: Calibration,
    grid: IntegerGrid,
    *,
    least_span: float = LEAST_SPAN,
    state: Mapping[str, str] | None = None,
    seed: int = 0,
    progress: Progress = lambda _, items: iter(items),
) -> dict[str, ClipCandidate]:
    """Return how to quantize every value that was calibrated; those that no run computed are left out.

    Values whose operators give them a range get that (see `known_ranges`). Values that linear layers read get the range
    with which the layers' outputs change least on samples: the extremes, unless a clip is clearly better. All others
    keep their extremes.

    Raises:
        ModelError: the model can't be run.
        ValueError: a range is too wide for a float32 scale.
    """
    readers: dict[str, list[layers.LinearLayer]] = {}
    for layer in layers.linear_layers(model):
        name = layer.x.name or ""
        if name in calibration.histograms:
            readers.setdefault(name, []).append(layer)
    ranges = known_ranges(model)
    asked = [layer for name, found in readers.items() if name not in ranges for layer in found]
    rows = sample_rows(model, feeds, asked, state=state, seed=seed, progress=progress)
    chosen: dict[str, ClipCandidate] = {}
    for name, histogram in calibration.histograms.items():
        if histogram.low > histogram.high:
            continue
        found = candidates(histogram, grid, known=ranges.get(name), least_span=least_span)
        seen = [rows[id(layer.node)] for layer in readers.get(name, ()) if id(layer.node) in rows]
        seen = [each for each in seen if not each.is_empty]
        chosen[name] = _best(found, seen, histogram) if len(found) > 1 and seen else found[0]
    return chosen


def _best(found: Sequence[ClipCandidate], seen: Sequence[LayerRows], histogram: Histogram) -> ClipCandidate:
    inputs = [LayerInput(e.rows(), e.layer.matrix(), e.extremes.lows, e.extremes.highs) for e in seen]
    clips = [c for c in found[1:] if c.method == "mse"][:_TRIED] + [c for c in found[1:] if c.method != "mse"]
    return guarded([found[0], *clips], lambda affine: layer_error(affine, inputs, histogram))
