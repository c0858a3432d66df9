"""Divergence of a changed model's outputs from the original's: one number that falls with every repair.

    scores of classes, probabilities   mean Kullback-Leibler divergence of the original's from the other's, in nats
    everything else                    half of the squared error over the variance, or the error of the output's kind

Unlike a count of hits, it sees damage to any class on a few samples. Integers are compared by the floats behind them.
"""

from __future__ import annotations

import enum
import math
from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from ..activations import observe
from ..base.spilled_arrays import SpilledArrays
from ..core import Feed
from ..runtime.loaded_model import LoadedModel
from . import output_kinds
from .output_kinds import OutputKind
from .output_plan import OutputPlan
from .output_sources import sources
from .probability_rows import are_probabilities
from .verdict import VerdictMeter

if TYPE_CHECKING:
    import onnx_ir as ir

BATCH = 64
"""Samples that are run together where the model allows it."""


class DivergenceKind(enum.Enum):
    """Meaning of the numbers along the last axis of an output."""

    LOGITS = "logits"
    PROBABILITIES = "probabilities"
    NUMBERS = "numbers"


def kinds(model: ir.Model, outputs: Mapping[str, Any]) -> dict[str, DivergenceKind]:
    """Return the kind of each output that is an array of floats, by the graph and by what a run gave."""
    found = {}
    for name, source in sources(model).items():
        value = outputs.get(name)
        if not isinstance(value, np.ndarray) or value.dtype.kind != "f" or not value.size or not value.ndim:
            continue
        rows = value.reshape(-1, value.shape[-1])
        if value.shape[-1] > 1 and are_probabilities(rows):
            found[name] = DivergenceKind.PROBABILITIES
            continue
        decision = output_kinds.decide(source, list(rows), [])
        is_scored = decision.kind is OutputKind.CLASS_SCORES
        found[name] = DivergenceKind.LOGITS if is_scored else DivergenceKind.NUMBERS
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
        self, original: ir.Model, feeds: Sequence[Feed], *, state: Mapping[str, str] | None = None, threads: int = 1
    ) -> None:
        self._feeds = feeds if state else observe.batched(original, feeds, BATCH)
        self._state = dict(state or {})
        self._threads = threads
        self._plan = OutputPlan.of(original, states=tuple(self._state.values()))
        self._expected = SpilledArrays()
        for run in self._runs(original):
            self._expected.append(run)
        self._plan.decide_first(self._expected, self._feeds)
        self.kinds = kinds(original, self._expected[0] if self._expected else {})
        """The outputs that are compared as scores and as numbers."""

    def of(self, model: ir.Model) -> float:
        """Return the mean over the outputs; infinity where an output is not a number, or has another shape.

        Raises:
            ModelError: the model can't be run.
        """
        meter = VerdictMeter(self._plan)
        for feed, expected, got in zip(self._feeds, self._expected, self._runs(model), strict=True):
            meter.add(feed, expected, got)
        found = meter.verdict().divergence
        return 0.0 if found is None or math.isnan(found) else found

    def _runs(self, model: ir.Model) -> Iterable[dict[str, Any]]:
        session = self._plan.session(LoadedModel(model, threads=self._threads))
        last: dict[str, Any] = {}
        for feed in self._feeds:
            carried = {name: last[output] for name, output in self._state.items() if output in last}
            last = session.run({**feed, **carried})
            yield last
