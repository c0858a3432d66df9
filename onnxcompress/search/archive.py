"""The candidates of a run: each is built and measured once, and those that nothing beats are kept with their models.

pass --label, build--> built() --judge--> Candidate --offer()--> what was tried, and the front
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from typing import Any

import onnx_ir as ir

from ..core import Built, Candidate, Judge, Prefer, Trial
from . import candidates as search
from .checkpoint import Checkpoint


@dataclass(frozen=True, kw_only=True)
class TriedCandidate:
    """Figures of one candidate, whether it may be the result (`objection`: why not) and is."""

    label: str
    trial: Trial
    objection: str | None
    chosen: bool = False

    def as_json(self) -> dict[str, Any]:
        """Return the entry of `candidates` in the JSON report."""
        return {"label": self.label, **asdict(self.trial), "objection": self.objection, "chosen": self.chosen}


class Archive:
    """Takes the candidates of one run.

    Args:
        checkpoint: where candidates are kept that an interrupted run need not build again.
        keeps_models: whether the front is wanted, and so the models on it are to be kept in memory.
    """

    def __init__(self, checkpoint: Checkpoint | None = None, *, keeps_models: bool = False) -> None:
        self._checkpoint = checkpoint
        self._keeps_models = keeps_models
        self._tried: dict[str, TriedCandidate] = {}
        self._front: list[Candidate] = []

    def has(self, label: str) -> bool:
        """Say whether an earlier, interrupted run has built a candidate."""
        return self._checkpoint is not None and self._checkpoint.has_built(label)

    def built(self, label: str, build: Callable[[], Built]) -> Built:
        """Return what was built under a label in an earlier, interrupted run, or build it.

        The label says everything that tells this candidate from others of the run: the same label is the same model.
        """
        found = None if self._checkpoint is None else self._checkpoint.built(label)
        if found is None:
            found = build()
            if self._checkpoint is not None:
                self._checkpoint.note_built(label, found)
        return found

    def offer(self, candidate: Candidate, *, prefer: Prefer, limit: float | None, place: str = "") -> None:
        """Take a measured candidate into the report and, where nothing beats it, onto the front.

        Args:
            candidate: what was measured.
            prefer: what the best is.
            limit: most that the score may fall.
            place: the pass, which tells its labels from those of others.
        """
        label = _full(candidate.label, place)
        why = search.objection(candidate.trial, prefer, limit)
        self._tried[label] = TriedCandidate(label=label, trial=candidate.trial, objection=why)
        if self._keeps_models:
            named = Candidate(label=label, model=candidate.model, changes=candidate.changes, trial=candidate.trial)
            others = [c for c in self._front if c.label != label]
            self._front = search.front([(c, c.trial) for c in (*others, named)])

    def within(self, place: str) -> ScopedArchive:
        """Return an archive for a pass that makes a part of candidates: it can't choose the result."""
        return ScopedArchive(self, place)

    def choose(self, candidate: Candidate, *, place: str = "") -> None:
        """Note that a candidate of a pass became the model."""
        label = _full(candidate.label, place)
        self._tried = {name: replace(tried, chosen=name == label) for name, tried in self._tried.items()}

    @property
    def tried(self) -> tuple[TriedCandidate, ...]:
        """Every candidate that was measured, in order."""
        return tuple(self._tried.values())

    @property
    def front(self) -> tuple[Candidate, ...]:
        """The candidates that no other one beats in size, time and drop, smallest first; empty where not wanted."""
        return tuple(sorted(self._front, key=lambda c: (c.trial.bytes, c.trial.latency_ratio or 1.0)))


class ScopedArchive(Archive):
    """Passes candidates to another archive, under a prefix of their own."""

    def __init__(self, outer: Archive, place: str) -> None:
        super().__init__()
        self._outer = outer
        self._place = place

    def has(self, label: str) -> bool:
        """Say whether an earlier, interrupted run has built a candidate."""
        return self._outer.has(_full(label, self._place))

    def built(self, label: str, build: Callable[[], Built]) -> Built:
        """Return what was built under a label, or build it."""
        return self._outer.built(_full(label, self._place), build)

    def offer(self, candidate: Candidate, *, prefer: Prefer, limit: float | None, place: str = "") -> None:
        """Pass a candidate on."""
        self._outer.offer(candidate, prefer=prefer, limit=limit, place=_full(place, self._place))

    def choose(self, candidate: Candidate, *, place: str = "") -> None:
        """Leave the choice to whoever made this."""


def _full(label: str, place: str) -> str:
    return f"{place}/{label}" if place else label


class ScopedJudge:
    """Judges for a pass that makes a part of a candidate: whether the whole is accepted is decided later."""

    def __init__(self, outer: Judge, place: str) -> None:
        self._outer = outer
        self._place = place
        self.limit = outer.limit
        self.prefer: Prefer = outer.prefer

    def __call__(self, model: ir.Model, label: str) -> Trial:
        """Score and time a candidate."""
        return self._outer(model, f"{self._place}/{label}")

    def score(self, model: ir.Model, *, most: int | None = None) -> Trial:
        """Score a candidate without timing it."""
        return self._outer.score(model, most=most)

    def fault(self, model: ir.Model) -> str | None:  # noqa: ARG002 - the protocol's signature
        """Find none."""
        return None
