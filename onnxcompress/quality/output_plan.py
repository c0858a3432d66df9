"""The plan of a comparison: which values of a model are compared, each by which kind, and sessions that show them."""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Protocol

import numpy as np
import onnx_ir as ir

from ..core import Feed
from ..errors import UsageError
from ..runtime.loaded_model import LoadedModel
from ..runtime.session import Session
from ..shapes.fixed_values import FixedSession, FixedValues
from . import kind_overrides, output_kinds, pairing, raw_detections, row_tables
from .judged_value import JudgedValue
from .output_kinds import KindDecision, OutputKind
from .output_sources import Ending, Source, show, sources

_KIND_SAMPLES = 16
"""Samples on which it is decided what an output is."""
_KIND_BYTES = 128 << 20
"""Outputs of the original from which on fewer samples have to do. Chosen by judgement."""
_SCORES = (OutputKind.CLASS_SCORES, OutputKind.POSITION_SCORES, OutputKind.TEXT_SCORES)


class Runs(Protocol):
    """Protocol of a session, or something that represents one."""

    def run(self, feed: Mapping[str, Any]) -> dict[str, Any]:
        """Return output name -> array."""
        ...


@dataclass
class OutputPlan:
    """Values of a model that are compared; kinds are decided on the first samples that the original runs.

    Args:
        sources: output -> the computation behind it, in the original.
        overrides: output -> kind, as the user says.
        states: outputs that are fed back, which are not scored.
        fixed: random numbers and amounts, which both models are given.
    """

    sources: Mapping[str, Source]
    overrides: Mapping[str, OutputKind] = field(default_factory=dict)
    states: frozenset[str] = frozenset()
    fixed: FixedValues | None = None
    _timed: FixedSession | None = None
    values: dict[str, tuple[JudgedValue, ...]] | None = None

    @classmethod
    def of(
        cls, model: ir.Model, *, overrides: Mapping[str, OutputKind] | None = None, states: Sequence[str] = ()
    ) -> OutputPlan:
        """Read the sources off the graph.

        Raises:
            UsageError: a kind is given for an output that there is not.
        """
        fixed = FixedValues.of(model)
        found = {name: replace(each, sized_by=fixed.amounts(name)) for name, each in sources(model).items()}
        for name in overrides or {}:
            if name not in found:
                raise UsageError(
                    f"--output-kind names {name!r}, which is no output", hint=f"Outputs: {', '.join(found)}"
                )
        return cls(found, dict(overrides or {}), frozenset(states), fixed or None)

    def session(self, loaded: LoadedModel, *, optimize: bool = True) -> Runs:
        """Return what runs a model and gives the sources that it has in common with the original.

        Nothing is random in it, and its amounts are the original's.

        Args:
            loaded: the original or what was made of it.
            optimize: with the runtime's optimizations.
        """
        judged = None if self.values is None else {part.name for parts in self.values.values() for part in parts}
        shown = show(loaded.model, sources(loaded.model), self.sources, only=judged)
        if self.fixed is not None:
            return _ShownSession(self.fixed.session(loaded, shown.model, optimize=optimize), shown.names)
        if shown.model is loaded.model:
            return loaded.fast if optimize else loaded.plain
        return _ShownSession(loaded.showing(shown.model, optimize=optimize), shown.names)

    def timed(self, loaded: LoadedModel) -> Session | FixedSession:
        """Return what runs a model to be timed: with draws and amounts of the original, so that lengths are equal."""
        if self.fixed is None:
            return loaded.fast
        if loaded.model is not self.fixed.model:
            return self.fixed.session(loaded)
        if self._timed is None:
            self._timed = self.fixed.session(loaded)
        return self._timed

    def decide(self, runs: Sequence[Mapping[str, Any]], feeds: Sequence[Feed]) -> dict[str, tuple[JudgedValue, ...]]:
        """Decide what every output is.

        Args:
            runs: what the original gives for the first samples, sources included.
            feeds: their inputs.
        """
        if self.values is None:
            batches = [pairing.batch_size(feed) for feed in feeds]
            inputs = pairing.InputsApart(feeds, batches)
            found = {
                name: tuple(self._parts(name, source, runs, batches, inputs)) for name, source in self.sources.items()
            }
            self.values = found | self._tables(found, runs, batches, inputs)
        return self.values

    def decide_first(self, runs: Iterable[Mapping[str, Any]], feeds: Iterable[Feed]) -> None:
        """Decide on as many of the first runs as are needed and take little memory; their feeds may be more."""
        if self.values is not None:
            return
        first: list[Mapping[str, Any]] = []
        size_bytes = 0
        for run in runs:
            first.append(run)
            size_bytes += pairing.array_bytes(run)
            if len(first) >= _KIND_SAMPLES or size_bytes >= _KIND_BYTES:
                break
        count = len(first)
        if count:
            self.decide(first, feeds[:count] if isinstance(feeds, Sequence) else list(itertools.islice(feeds, count)))

    def _tables(
        self,
        found: Mapping[str, tuple[JudgedValue, ...]],
        runs: Sequence[Mapping[str, Any]],
        batches: Sequence[int],
        inputs: Sequence[Mapping[str, np.ndarray]],
    ) -> dict[str, tuple[JudgedValue, ...]]:
        """Return how outputs are compared that hold columns of one table of rows, or count its rows."""
        heads = {
            name: next(part for part in parts if part.name == name)
            for name, parts in found.items()
            if name not in self.states and name not in self.overrides and all(name in run for run in runs)
        }
        outputs = {name: ([run[name] for run in runs], head.layout) for name, head in heads.items()}
        samples = {name: pairing.samples_apart(values, batches, how) for name, (values, how) in outputs.items()}
        table = row_tables.find(samples, inputs)
        raw = raw_detections.find_apart(samples, self.sources) if table is None else None
        if table is not None:
            decision = KindDecision(OutputKind.DETECTION_ROWS, 1, table.why)
            joined, names = table.columns, (*table.columns, *table.counts)
        elif raw is not None:
            joined, decision = raw[0], KindDecision.of_detections(raw[1])
            names = joined
        else:
            return {}
        members = tuple((name, heads[name].layout) for name in joined)
        return {name: (replace(heads[name], decision=decision, table=members),) for name in names}

    def _parts(
        self,
        name: str,
        source: Source,
        runs: Sequence[Mapping[str, Any]],
        batches: Sequence[int],
        inputs: Sequence[Mapping[str, np.ndarray]],
    ) -> Iterator[JudgedValue]:
        how = pairing.layout([run[name] for run in runs], batches, counts_rows=source.counts_rows)
        values = pairing.samples_apart([run[name] for run in runs], batches, how)
        if name in self.overrides:
            kind = self.overrides[name]
            problem = kind_overrides.misfit(kind, values)
            if problem:
                raise UsageError(f"{name!r} can't be {kind}: {problem}", where="--output-kind")
            columns = raw_detections.columns(values) if kind is OutputKind.RAW_DETECTIONS else None
            found = replace(
                output_kinds.decide(source, values, inputs), kind=kind, why="--output-kind", columns=columns
            )
            yield JudgedValue(name, found, source, how)
            yield from self._amounts(source, runs, batches)
            return
        if name in self.states:
            yield JudgedValue(name, KindDecision(OutputKind.STATE, None, "fed back as an input"), source, how)
            return
        pieces = [(p, inner) for p, inner in source.pieces if all(p in run for run in runs)]
        decision = output_kinds.decide(source, values, inputs)
        if pieces and decision.kind in (OutputKind.DETECTION_ROWS, OutputKind.RAW_DETECTIONS):
            pieces = []
        parts = list(self._pieces(pieces, runs, batches, inputs))
        if any(part.decision.kind is OutputKind.MASK for part in parts):  # boxes beside scores: no vectors of meaning
            parts = [replace(part, decision=output_kinds.no_vectors(part.decision)) for part in parts]
            decision = output_kinds.no_vectors(decision)
        yield from parts
        behind = [v for v in source.values if all(pairing.is_float(run.get(v)) for run in runs)]
        probes = [self._probe(v, source, runs, batches, inputs) for v in behind]
        yield JudgedValue(name, decision, source, how)
        yield from probes
        yield from self._amounts(source, runs, batches)

    def _amounts(
        self, source: Source, runs: Sequence[Mapping[str, Any]], batches: Sequence[int]
    ) -> Iterator[JudgedValue]:
        """Yield the amounts that size an output: both models are given those of the original, so each has its own."""
        for amount in source.sized_by:
            if all(isinstance(run.get(amount), np.ndarray) for run in runs):
                decision = KindDecision(OutputKind.DURATIONS, None, "amounts that an output's length follows from")
                layout = pairing.layout([run[amount] for run in runs], batches)
                yield JudgedValue(amount, decision, Source(Ending.OTHER, ""), layout)

    def _pieces(
        self,
        pieces: Sequence[tuple[str, Source]],
        runs: Sequence[Mapping[str, Any]],
        batches: Sequence[int],
        inputs: Sequence[Mapping[str, np.ndarray]],
    ) -> Iterator[JudgedValue]:
        """Yield how the pieces of a Concat are compared, each by its own kind."""
        for piece, ending in pieces:
            if all(pairing.is_float(run[piece]) for run in runs):
                layout = pairing.layout([run[piece] for run in runs], batches)
                inner = pairing.samples_apart([run[piece] for run in runs], batches, layout)
                yield JudgedValue(piece, output_kinds.decide(ending, inner, inputs), ending, layout)

    def _probe(
        self,
        name: str,
        source: Source,
        runs: Sequence[Mapping[str, Any]],
        batches: Sequence[int],
        inputs: Sequence[Mapping[str, np.ndarray]],
    ) -> JudgedValue:
        """Return how a float behind an output is compared: as scores of the classes that it chooses from, or as is."""
        axis = source.axis if source.ending is Ending.CHOICE else None
        ending = Source(Ending.PRODUCT if axis is not None else source.ending, source.operator)
        values = [pairing.choices_last(run[name], axis) for run in runs]
        how = pairing.layout(values, batches)
        moved = pairing.samples_apart(values, batches, how)
        found = output_kinds.decide(ending, moved, inputs, classes_last=axis is not None)
        if axis is not None and found.kind not in _SCORES:
            found = KindDecision(OutputKind.VECTOR, -1, found.why)
        return JudgedValue(name, found, source, how, axis=axis)


class _ShownSession:
    """A session whose shown sources have the names that they have in the original."""

    def __init__(self, session: Runs, names: Mapping[str, str]) -> None:
        self._session = session
        self._names = names

    def run(self, feed: Mapping[str, Any]) -> dict[str, Any]:
        """Return output name -> array, sources included."""
        found = self._session.run(feed)
        return {**found, **{name: found[own] for name, own in self._names.items() if own in found}}
