"""Some of the rows that linear layers multiply, taken from runs on samples."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING

import numpy as np

from ..core import Progress
from ..numerics.linear.patches import choose
from ..numerics.quantization.histograms import ChannelExtremes
from .observe import enough_feeds, observe

if TYPE_CHECKING:
    import onnx_ir as ir

    from ..core import Feed
    from ..ops.linear import LinearLayer

_SAMPLES = 32
"""Feeds that are run at most; chosen by judgement, not measured."""
_ROWS = 256
"""Rows of one layer at most, over all runs; chosen by judgement, not measured."""
_LEAST_ROWS = 32
"""Rows of one layer at least, however large they are; chosen by judgement, not measured."""
_BYTES = 2 << 20
"""Most memory that the rows of one layer take, float32, above `_LEAST_ROWS`."""


class LayerRows:
    """Rows that a layer reads, some of each run, and the extremes of its input channels over all of them."""

    def __init__(self, layer: LinearLayer, *, runs: int, seed: int) -> None:
        self.layer = layer
        self.extremes = ChannelExtremes(layer.input_axis)
        groups, _, columns = layer.shape
        most = min(_ROWS, max(_LEAST_ROWS, _BYTES // (4 * groups * columns)))
        self._each = max(1, -(-most // runs))
        self._random = np.random.default_rng(seed)
        self._rows: list[np.ndarray] = []

    def update(self, x: np.ndarray) -> None:
        """Take in what the layer reads in one run."""
        self.extremes.update(x)
        at = choose(self.layer.count(x.shape), self._each, self._random)
        self._rows.append(self.layer.rows(x, at).astype(np.float32))

    @property
    def is_empty(self) -> bool:
        """True where no run came to the layer."""
        return not self._rows

    def rows(self) -> np.ndarray:
        """Return what was taken, float32 [groups, n, columns]."""
        return np.concatenate(self._rows, axis=1)


class _AllRows:
    """Hands a value on to every layer that reads it."""

    def __init__(self) -> None:
        self.takers: list[LayerRows] = []

    def update(self, array: np.ndarray) -> None:
        for taker in self.takers:
            taker.update(array)


def sample_rows(
    model: ir.Model,
    feeds: Sequence[Feed],
    layers: Iterable[LinearLayer],
    *,
    state: Mapping[str, str] | None = None,
    seed: int = 0,
    progress: Progress = lambda _, items: iter(items),
) -> dict[int, LayerRows]:
    """Return rows of each layer by the id of its node, from at most 32 samples, evenly spread; fewer of large ones.

    Samples that carry a state are run in order from the first.

    Raises:
        ModelError: the model can't be run.
    """
    if state:
        feeds = feeds[:_SAMPLES]
    layers = list(layers)
    step = max(1, -(-len(feeds) // _SAMPLES))
    chosen = feeds[::step]
    if not state:
        chosen = enough_feeds(model, chosen, list(dict.fromkeys(layer.x.name or "" for layer in layers)))
    found = {id(layer.node): LayerRows(layer, runs=len(chosen), seed=seed) for layer in layers}
    by_value: dict[str, _AllRows] = {}
    for taker in found.values():
        by_value.setdefault(taker.layer.x.name or "", _AllRows()).takers.append(taker)
    observe(model, chosen, by_value, state=state, progress=progress)
    return found
