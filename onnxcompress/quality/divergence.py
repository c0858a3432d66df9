"""How far the outputs of a changed model are from the original's, in one number that falls with every repair.

    scores of classes, probabilities   mean Kullback-Leibler divergence of the original's from the other's, in nats
    everything else                    mean squared error as a part of the output's variance

Unlike a count of hits, it sees damage to any class on a few samples.
"""

from __future__ import annotations

import enum
import math
from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from scipy.special import log_softmax

from ..activations import observe
from ..core import Feed
from ..io import model_io
from ..runtime import session as runtime
from . import estimated_drop

if TYPE_CHECKING:
    import onnx_ir as ir

BATCH = 64
_SMALL = 1e-12
_SUM_TOLERANCE = 1e-3


class DivergenceKind(enum.Enum):
    """What the numbers along the last axis of an output are."""

    LOGITS = "logits"
    PROBABILITIES = "probabilities"
    NUMBERS = "numbers"


def kinds(model: ir.Model, outputs: Mapping[str, Any]) -> dict[str, DivergenceKind]:
    """Return the kind of each output that is an array of floats, by the graph and by what a run gave."""
    logits = estimated_drop.logit_outputs(model)
    found = {}
    for name, value in outputs.items():
        if not isinstance(value, np.ndarray) or value.dtype.kind != "f" or not value.size:
            continue
        is_row = value.ndim > 0 and value.shape[-1] > 1
        if is_row and (value >= 0).all() and (np.abs(value.sum(axis=-1) - 1) < _SUM_TOLERANCE).all():
            found[name] = DivergenceKind.PROBABILITIES
        else:
            found[name] = DivergenceKind.LOGITS if is_row and name in logits else DivergenceKind.NUMBERS
    return found


class Divergence:
    """Compares models with one original on the same feeds.

    Args:
        original: the model.
        feeds: complete feeds.
        state: input -> output whose value it gets from the run before.
        threads: of the runtime.

    Raises:
        ModelError: the original can't be run.
    """

    def __init__(
        self,
        original: ir.Model,
        feeds: Sequence[Feed],
        *,
        state: Mapping[str, str] | None = None,
        threads: int = 1,
    ) -> None:
        self._feeds = feeds if state else observe.batched(original, feeds, BATCH)
        self._state = dict(state or {})
        self._threads = threads
        self._expected = list(self._runs(original))
        self.kinds = kinds(original, self._expected[0] if self._expected else {})
        """The outputs that are compared."""
        self._variances = {
            name: float(np.var(np.concatenate([np.ravel(run[name]) for run in self._expected]), dtype=np.float64))
            for name, kind in self.kinds.items()
            if kind is DivergenceKind.NUMBERS
        }

    def of(self, model: ir.Model) -> float:
        """Return the mean over the outputs; infinity where an output is not a number, or has another shape.

        Raises:
            ModelError: the model can't be run.
        """
        sums = dict.fromkeys(self.kinds, 0.0)
        counts = dict.fromkeys(self.kinds, 0)
        for expected, got in zip(self._expected, self._runs(model), strict=True):
            for name, kind in self.kinds.items():
                one, other = np.asarray(expected[name], np.float64), np.asarray(got[name], np.float64)
                if one.shape != other.shape or not np.isfinite(other).all():
                    return math.inf
                if kind is DivergenceKind.NUMBERS:
                    sums[name] += float(np.square(one - other).sum()) / max(self._variances[name], _SMALL)
                    counts[name] += one.size
                else:
                    p, q = (_log(each, kind) for each in (one, other))
                    sums[name] += float((np.exp(p) * (p - q)).sum())
                    counts[name] += one.size // one.shape[-1]
        if not sums:
            return 0.0
        return sum(sums[name] / max(1, counts[name]) for name in sums) / len(sums)

    def _runs(self, model: ir.Model) -> Iterable[dict[str, Any]]:
        session = runtime.open_session(model_io.to_bytes(model), optimize=True, threads=self._threads)
        last: dict[str, Any] = {}
        for feed in self._feeds:
            carried = {name: last[output] for name, output in self._state.items() if output in last}
            last = session.run({**feed, **carried})
            yield last


def _log(values: np.ndarray, kind: DivergenceKind) -> np.ndarray:
    found = log_softmax(values, axis=-1) if kind is DivergenceKind.LOGITS else np.log(np.maximum(values, _SMALL))
    return np.asarray(found)
