"""One meter for each kind of output: takes pairs of outputs and tells the loss in points, with its interval."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Protocol

import numpy as np

from ..numerics.statistics.estimate import Estimate
from ..numerics.statistics.ratios import mean_interval
from . import estimated_class_loss as class_loss
from . import estimated_value_loss as value_loss
from .output_kinds import KindDecision, OutputKind
from .raw_detection_loss import AgreementSums

_POINT = 0.01
"""Loss that is one point, in the unit of `drop`."""
_ALL = Estimate.exact(1.0)
"""Loss of an output that can't be compared: its shape or type is another, or it is not finite."""
_MOST_DISTANCE = 100.0
"""Distance of signals that can't be compared, in points (all is lost at that), and in dB."""
_MOST_VECTORS = 256
"""Vectors of one sample of which embeddings are compared."""


@dataclass(frozen=True)
class Loss:
    """The loss of one output.

    Args:
        drop: 0.01 is one point of the kind.
        divergence: a figure of low variance that falls with every repair: KL in nats, or relative squared error.
        figures: what else was measured, by name.
        changes: the share of decisions that fall the other way, expected for errors of the power that was seen.
        note: what the samples can't show.
    """

    drop: Estimate
    divergence: float
    figures: Mapping[str, float] = field(default_factory=dict)
    changes: Estimate | None = None
    note: str = ""


class LossMeter(Protocol):
    """Measures one output."""

    def add(self, one: np.ndarray, other: np.ndarray, reference: np.ndarray | None) -> None:
        """Take the outputs of both models for the next sample, and the input that they resemble."""
        ...

    def errors(self) -> np.ndarray:
        """Return a figure of low variance for each sample, float [samples]; at least one was added."""
        ...

    def loss(self, factors: np.ndarray) -> Loss:
        """Return the loss of all samples, that of each multiplied by a factor, float [samples]."""
        ...


def meter(decision: KindDecision) -> LossMeter:
    """Return the meter for a kind of output."""
    return _METERS[decision.kind](decision)


class _ClassMeter:
    def __init__(self, decision: KindDecision) -> None:
        self._kind = decision.kind
        self._rows = class_loss.RowCollector(-1 if decision.axis is None else decision.axis)

    def add(self, one: np.ndarray, other: np.ndarray, reference: np.ndarray | None) -> None:  # noqa: ARG002
        if self._kind is OutputKind.BINARY_SCORE:
            one, other = class_loss.yes_and_no(one), class_loss.yes_and_no(other)
        self._rows.add(one, other)

    def errors(self) -> np.ndarray:
        rows = self._rows.rows()
        return rows.by_sample(rows.divergence)

    def loss(self, factors: np.ndarray) -> Loss:
        rows = self._rows.rows().scaled(factors)
        common = int(np.bincount(rows.best).argmax())
        drop = (
            class_loss.text_loss(rows, common) if self._kind is OutputKind.TEXT_SCORES else class_loss.class_loss(rows)
        )
        figures = {
            "confidence": float(rows.confidence.mean()),
            "disagreement": float((rows.best != rows.new).mean()),
            "positions": float(len(rows.best)),
            "classes": rows.classes,
        }
        return Loss(drop, class_loss.mean_divergence(rows), figures, class_loss.expected_disagreement(rows))


class _NumbersMeter:
    def __init__(self, decision: KindDecision) -> None:
        least = value_loss.MASK_SPREAD if decision.kind is OutputKind.MASK else 0.0
        self._moments = value_loss.ErrorMoments(decision.axis, least_spread=least)
        self._is_residual = decision.kind is OutputKind.RESIDUAL

    def add(self, one: np.ndarray, other: np.ndarray, reference: np.ndarray | None) -> None:
        if self._is_residual and reference is not None:
            one, other = one.astype(np.float64) - reference, other.astype(np.float64) - reference
        self._moments.add(one, other)

    def errors(self) -> np.ndarray:
        return self._moments.errors

    def loss(self, factors: np.ndarray) -> Loss:
        error = self._moments.relative_error(factors)
        return Loss(error, error.value, {"relative_error": error.value})


class _VectorMeter:
    """Numbers of which the largest may decide: compared as numbers, and by the decisions that change."""

    def __init__(self, decision: KindDecision) -> None:
        self._numbers = _NumbersMeter(decision)
        self._rows = class_loss.RowCollector(-1 if decision.axis is None else decision.axis)

    def add(self, one: np.ndarray, other: np.ndarray, reference: np.ndarray | None) -> None:
        self._numbers.add(one, other, reference)
        self._rows.add(one, other)

    def errors(self) -> np.ndarray:
        return self._numbers.errors()

    def loss(self, factors: np.ndarray) -> Loss:
        found = self._numbers.loss(factors)
        changes = class_loss.expected_disagreement(self._rows.rows().scaled(factors))
        drop = found.drop.at_least(changes.scaled(_POINT / value_loss.SHARE_POINT))
        return Loss(drop, found.divergence, {**found.figures, "expected_changes": changes.value}, changes)


class _ImageMeter:
    def __init__(self, decision: KindDecision) -> None:
        self._numbers = _NumbersMeter(decision)
        self._errors: list[float] = []
        self._sizes: list[int] = []
        self._sums = np.zeros(2)

    def add(self, one: np.ndarray, other: np.ndarray, reference: np.ndarray | None) -> None:
        self._numbers.add(one, other, reference)
        values = one.astype(np.float64)
        self._errors.append(float(np.abs(values - other).sum()))
        self._sizes.append(values.size)
        self._sums += values.sum(), np.square(values).sum()

    def errors(self) -> np.ndarray:
        return self._numbers.errors()

    def loss(self, factors: np.ndarray) -> Loss:
        found = self._numbers.loss(factors)
        mean, square = self._sums / max(sum(self._sizes), 1)
        spread = math.sqrt(max(square - mean**2, value_loss.DEAD * square, value_loss.TINY))
        error = value_loss.share(np.array(self._errors) * np.sqrt(factors), np.array(self._sizes)).scaled(1 / spread)
        drop = error.scaled(_POINT / value_loss.IMAGE_POINT).at_least(found.drop)
        return Loss(drop, found.divergence, {**found.figures, "mean_error": error.value})


class _PairsMeter:
    """Keeps the pairs, for figures that need them all."""

    def __init__(
        self,
        figure: str,
        error: Callable[[value_loss.Pairs, value_loss.Factors], Estimate],
        point: float,
    ) -> None:
        self._figure = figure
        self._error = error
        self._point = point
        self._pairs: list[tuple[np.ndarray, np.ndarray]] = []

    def add(self, one: np.ndarray, other: np.ndarray, reference: np.ndarray | None) -> None:  # noqa: ARG002
        self._pairs.append((one, other))

    def errors(self) -> np.ndarray:
        return np.array([self._error([pair], 1.0).value for pair in self._pairs])

    def loss(self, factors: np.ndarray) -> Loss:
        error = self._error(self._pairs, factors)
        elements = sum(one.size for one, _ in self._pairs) / len(self._pairs)
        return Loss(error.scaled(_POINT / self._point), error.value, {self._figure: error.value, "elements": elements})


class _SignalMeter:
    """Keeps distances only: signals are long."""

    def __init__(self, _: KindDecision) -> None:
        self._found: list[tuple[float, float]] = []

    def add(self, one: np.ndarray, other: np.ndarray, reference: np.ndarray | None) -> None:  # noqa: ARG002
        self._found.append(value_loss.signal_distance(one, other))

    def errors(self) -> np.ndarray:
        return np.array([points for _, points in self._found])

    def loss(self, factors: np.ndarray) -> Loss:
        distances, points = (np.minimum(np.array(part), _MOST_DISTANCE) for part in zip(*self._found, strict=True))
        error = mean_interval(points * factors)
        return Loss(error.scaled(_POINT), error.value, {"level_distance": float(distances.mean())})


class _EmbeddingMeter(_PairsMeter):
    def __init__(self, decision: KindDecision) -> None:
        super().__init__("centred_cosine_distance", value_loss.embedding_error, value_loss.EMBEDDING_POINT)
        self._axis = -1 if decision.axis is None else decision.axis

    def add(self, one: np.ndarray, other: np.ndarray, reference: np.ndarray | None) -> None:
        rows = [np.moveaxis(each, self._axis, -1).reshape(-1, each.shape[self._axis]) for each in (one, other)]
        step = max(1, -(-len(rows[0]) // _MOST_VECTORS))
        super().add(rows[0][::step].copy(), rows[1][::step].copy(), reference)  # a view would keep the whole


class _DetectionMeter(_PairsMeter):
    def __init__(self) -> None:
        super().__init__("matched_distance", value_loss.detection_error, value_loss.DETECTION_POINT)

    def errors(self) -> np.ndarray:
        return value_loss.detection_costs(self._pairs)[:, 0]


class _RawDetectionMeter:
    def __init__(self, decision: KindDecision) -> None:
        assert decision.columns is not None
        self._sums = AgreementSums(decision.columns)

    def add(self, one: np.ndarray, other: np.ndarray, reference: np.ndarray | None) -> None:  # noqa: ARG002
        self._sums.add(one, other)

    def errors(self) -> np.ndarray:
        return self._sums.errors

    def loss(self, factors: np.ndarray) -> Loss:
        lost, scores = self._sums.lost(factors).value, self._sums.score_error(factors).value
        plain = self._sums.lost(factors, weighted=False)
        figures = {
            "detections": self._sums.number,
            "lost_detections": plain.value,
            "lost_detections_at_most": plain.high,
            "lost_by_score": lost,
            "score_error": scores,
        }
        note = "" if self._sums.has_some else "no sample has a detection, so scores are compared as numbers"
        return Loss(self._sums.drop(factors), lost + scores, figures, note=note)


def _share(_: KindDecision) -> LossMeter:
    return _PairsMeter("differing", value_loss.differing_share, value_loss.SHARE_POINT)


_METERS: Mapping[OutputKind, Callable[[KindDecision], LossMeter]] = {
    **dict.fromkeys(
        (OutputKind.CLASS_SCORES, OutputKind.POSITION_SCORES, OutputKind.TEXT_SCORES, OutputKind.BINARY_SCORE),
        _ClassMeter,
    ),
    **dict.fromkeys((OutputKind.NUMBERS, OutputKind.RESIDUAL, OutputKind.MASK, OutputKind.SEQUENCE), _NumbersMeter),
    OutputKind.VECTOR: _VectorMeter,
    OutputKind.IMAGE_8BIT: _ImageMeter,
    OutputKind.EMBEDDING: _EmbeddingMeter,
    **dict.fromkeys((OutputKind.LABELS, OutputKind.BOOLEANS, OutputKind.STRINGS), _share),
    OutputKind.DETECTION_ROWS: lambda _: _DetectionMeter(),
    OutputKind.RAW_DETECTIONS: _RawDetectionMeter,
    OutputKind.SELECTION: lambda _: _PairsMeter("unshared", value_loss.selection_error, value_loss.DETECTION_POINT),
    OutputKind.SIGNAL: _SignalMeter,
    OutputKind.DURATIONS: lambda _: _PairsMeter("duration_error", value_loss.duration_error, value_loss.DURATION_POINT),
}
