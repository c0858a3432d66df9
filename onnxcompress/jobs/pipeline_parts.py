"""Candidates of the parts of a pipeline, and the choice of one for each by what they cost the whole.

part, recorded samples --compress--> candidate -,
                       --gentler recipe--> next -+-> choice within the loss that the whole may have
                                       original -'
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import onnx_ir as ir

from ..base.clock import Clock, cpu_seconds
from ..composite.shares import Choice, PartOption, choose
from ..composite.whole import WholeLoss
from ..errors import OnnxCompressError
from ..io import model_io
from ..numerics.statistics.estimate import Estimate
from ..recipe import Recipe
from ..recorder.catalogue import RecordedModel
from .compress import compress
from .options import CompressOptions
from .pipeline_report import ORIGINAL
from .report import Report

log = logging.getLogger(__name__)

_GENTLER = "int8-weights"
"""Recipe of the candidate between the one that was asked for and the original: weights alone, 8 bits, no data."""
_SHARE_OF_TIME = 0.8
"""Of the time that is left, what the parts may take; the rest is for running the whole. Chosen by judgement."""


@dataclass(frozen=True, kw_only=True)
class PartCandidate:
    """A model that a part could be replaced with."""

    label: str
    path: Path
    bytes: int
    model: ir.Model
    report: Report | None = None
    cpu_seconds: float = 0.0
    notes: tuple[str, ...] = ()


@dataclass(kw_only=True)
class PipelinePart:
    """One part of a pipeline, its recorded samples, and its candidates from the boldest to the original."""

    name: str
    path: Path
    recorded: RecordedModel | None
    candidates: list[PartCandidate] = field(default_factory=list)
    alone: dict[str, Estimate] = field(default_factory=dict)
    """Label of a candidate -> loss of the whole with it and all other parts as they were."""
    is_complete: bool = False
    """Whether the gentler candidate was tried."""

    @property
    def samples(self) -> int:
        """Number of runs that were recorded."""
        return 0 if self.recorded is None else self.recorded.samples


class PartCompressor:
    """Makes candidates of parts.

    Args:
        options: of the run.
        recipe: that was asked for.
        folder: for the files of candidates.
        clock: of all of it.
    """

    def __init__(self, options: CompressOptions, recipe: Recipe, folder: Path, clock: Clock) -> None:
        self._options, self._recipe, self._folder, self._clock = options, recipe, folder, clock

    def begin(self, part: PipelinePart, share: float) -> None:
        """Give a part its original as a candidate, and before it what the recipe makes of it.

        Args:
            part: the part.
            share: of the time that is left, if there is a limit.
        """
        model = model_io.load(part.path)
        size_bytes = model_io.model_bytes(model)
        part.candidates = [PartCandidate(label=ORIGINAL, path=part.path, bytes=size_bytes, model=model)]
        notes = []
        if part.recorded is None:
            notes.append("no sample reached it, so it was compressed without data")
        if part.recorded is None and self._recipe.needs_data:
            note = f"no sample reached it, and recipe {self._recipe.name!r} needs some: it is as it was"
            part.candidates[0] = replace(part.candidates[0], notes=(note,))
            part.is_complete = True
            return
        self._add(part, self._recipe, share, tuple(notes))

    def add_gentler(self, part: PipelinePart) -> bool:
        """Add the candidate between the boldest and the original; False where there is none."""
        if part.is_complete:
            return False
        part.is_complete = True
        if self._recipe.lossless or self._recipe.name == _GENTLER:
            return False
        return self._add(part, Recipe.load(_GENTLER), 1.0, ())

    def _add(self, part: PipelinePart, recipe: Recipe, share: float, notes: tuple[str, ...]) -> bool:
        is_asked = recipe is self._recipe
        left = _SHARE_OF_TIME * share * self._clock.left_seconds if self._clock.is_limited else None
        given = vars(self._options)
        names = ("target", "prefer", "effort", "seed", "threads", "keep_node_metadata", "freeze_inputs", "verify")
        started = cpu_seconds()
        log.info("%s: %s", part.name, recipe.name)
        try:
            result = compress(
                part.path,
                recipe=recipe,
                data=None if part.recorded is None else part.recorded.folder,
                settings=self._options.settings if is_asked and not isinstance(self._options.recipe, Recipe) else (),
                time_limit=left,
                **{name: given[name] for name in names},
            )
        except OnnxCompressError as error:
            raise type(error)(
                error.message, where=f"part {part.name}: {error.where}".rstrip(": "), hint=error.hint
            ) from (error)
        path = self._folder / f"{part.name}-{len(part.candidates)}-{recipe.name}.onnx"
        saved = result.save(path, force=True)
        candidate = PartCandidate(
            label=recipe.name,
            path=saved,
            bytes=model_io.model_bytes(result.model),
            model=result.model,
            report=result.report,
            cpu_seconds=cpu_seconds() - started,
            notes=(*notes, *result.report.notes),
        )
        log.info("%s: %s, %d of %d bytes", part.name, recipe.name, candidate.bytes, part.candidates[-1].bytes)
        if candidate.bytes >= part.candidates[-1].bytes and len(part.candidates) > 1:
            return False
        part.candidates.insert(len(part.candidates) - 1, candidate)
        return True


class PartChooser:
    """Chooses a candidate for each part so that the whole loses no more than it may.

    Args:
        parts: with their first candidates.
        compressor: makes gentler ones.
        measure: runs the whole with a choice, by labels.
        decisive: the loss of an estimate that a limit is compared with.
    """

    def __init__(
        self,
        parts: Sequence[PipelinePart],
        compressor: PartCompressor,
        measure: Callable[[Mapping[str, PartCandidate]], WholeLoss],
        decisive: Callable[[Estimate], float],
    ) -> None:
        self._parts, self._compressor, self._measure, self._decisive = parts, compressor, measure, decisive

    def settle(self, limit: float | None) -> dict[str, PartCandidate]:
        """Return one candidate for each part: all the boldest ones, where the whole bears them."""
        bold = {part.name: part.candidates[0] for part in self._parts}
        if limit is None or self._is_within(bold, limit):
            return bold
        for part in self._parts:
            self._cost(part, part.candidates[0])
        refused: list[dict[str, str]] = [_labels(bold)]
        while True:
            choice = self._shared_out(limit, refused)
            back = [p for p in self._parts if choice[p.name].label == ORIGINAL and self._compressor.add_gentler(p)]
            for part in back:
                self._cost(part, part.candidates[-2])
            if back:
                continue
            if all(each.label == ORIGINAL for each in choice.values()) or self._is_within(choice, limit):
                return choice
            refused.append(_labels(choice))

    def _shared_out(self, limit: float, refused: Sequence[Mapping[str, str]]) -> dict[str, PartCandidate]:
        options = [
            [PartOption(bytes=each.bytes, loss=self._loss(part, each)) for each in part.candidates]
            for part in self._parts
        ]
        places = [self._places(labels) for labels in refused]
        found = choose(options, limit, places)
        if found is None:  # nothing is gentler than what was refused: the original loses nothing
            found = tuple(len(part.candidates) - 1 for part in self._parts)
        return {part.name: part.candidates[place] for part, place in zip(self._parts, found, strict=True)}

    def _places(self, labels: Mapping[str, str]) -> Choice:
        return tuple([each.label for each in part.candidates].index(labels[part.name]) for part in self._parts)

    def _loss(self, part: PipelinePart, candidate: PartCandidate) -> float:
        return 0.0 if candidate.label == ORIGINAL else self._decisive(part.alone[candidate.label])

    def _cost(self, part: PipelinePart, candidate: PartCandidate) -> None:
        """Measure what a candidate costs the whole where all other parts are as they were."""
        if candidate.label != ORIGINAL and candidate.label not in part.alone:
            choice = {each.name: each.candidates[-1] for each in self._parts} | {part.name: candidate}
            part.alone[candidate.label] = self._measure(choice).drop

    def _is_within(self, choice: Mapping[str, PartCandidate], limit: float) -> bool:
        return self._decisive(self._measure(choice).drop) <= limit


def _labels(choice: Mapping[str, PartCandidate]) -> dict[str, str]:
    return {name: each.label for name, each in choice.items()}
