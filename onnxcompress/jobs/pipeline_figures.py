"""Figures of a run on a pipeline: of each part, of the whole, and of what was tried."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Literal

from ..composite.value import Pipeline
from ..composite.whole import WholeLoss, WholeRun
from ..core import Action, Change
from ..io import save_shared
from ..quality.result import Quality
from ..shapes.count import ModelFacts, count, facts
from .pipeline_parts import PartCandidate, PipelinePart
from .pipeline_report import PartReport, PartTimes, TriedChoice, WholeTime

_LEAST_GAIN = 0.05
"""Share of all bytes from which on weights that parts have in common are stored once unasked. Chosen by judgement."""

ShareWeights = Literal["auto", "always", "never"]


def part_report(part: PipelinePart, chosen: PartCandidate, before: WholeRun, after: WholeRun) -> PartReport:
    """Return the outcome of one part: its figures, what it costs the whole, and its times within it."""
    original, boldest = part.candidates[-1], part.candidates[0]
    facts_of = chosen.report
    is_same = facts_of is None
    size = facts(original.model, count(original.model), str(part.path), size_bytes=original.bytes)
    alone = part.alone.get(boldest.label)
    one, other = before.times[part.name], after.times[part.name]
    return PartReport(
        name=part.name,
        input=size if is_same or facts_of is None else facts_of.input,
        output=size if is_same or facts_of is None else facts_of.output,
        candidate=chosen.label,
        samples=part.samples,
        cpu_seconds=round(sum(each.cpu_seconds for each in part.candidates), 3),
        drop=None if alone is None else alone.value,
        drop_interval=None if alone is None else (alone.low, alone.high),
        times=PartTimes(
            original_runs=one.runs, original_ms=one.cpu_ms, compressed_runs=other.runs, compressed_ms=other.cpu_ms
        ),
        report=boldest.report,
        notes=chosen.notes,
    )


def taken_back(parts: Sequence[PipelinePart], chosen: Mapping[str, PartCandidate], together: float) -> list[Change]:
    """Return a change for each part whose boldest candidate was not taken; `together` is the loss with all of them."""
    found = []
    for part in parts:
        boldest, taken = part.candidates[0], chosen[part.name]
        if taken is not boldest:
            loss = part.alone[boldest.label].value
            found.append(
                Change(
                    pass_name="pipeline",
                    target=part.name,
                    action=Action.ROLLED_BACK,
                    reason=(
                        f"with the boldest candidate of each part the whole loses {together:.4g}, with {boldest.label} "
                        f"here alone {loss:.4g}: {taken.label} is taken in its place"
                    ),
                    bytes_before=boldest.bytes,
                    bytes_after=taken.bytes,
                )
            )
    return found


def tried_choice(
    choice: Mapping[str, PartCandidate], loss: WholeLoss, chosen: Mapping[str, PartCandidate]
) -> TriedChoice:
    """Return one choice that the whole was measured with."""
    labels = {name: each.label for name, each in choice.items()}
    return TriedChoice(
        parts=labels,
        bytes=sum(each.bytes for each in choice.values()),
        drop=loss.drop.value,
        drop_interval=(loss.drop.low, loss.drop.high),
        chosen=labels == {name: each.label for name, each in chosen.items()},
    )


def shared_bytes(pipeline: Pipeline, chosen: Mapping[str, PartCandidate], share: ShareWeights) -> int:
    """Return the bytes that are stored once instead of more often; 0 where parts are to be as they are."""
    places = {name: pipeline.target(name) for name in chosen}
    is_one_folder = len({place.parent for place in places.values()}) == 1
    if share == "never" or len(chosen) < 2 or not is_one_folder:
        return 0
    found = save_shared.shared({places[name]: each.model for name, each in chosen.items()}).saved_bytes
    total = sum(each.bytes for each in chosen.values())
    return found if share == "always" or found >= _LEAST_GAIN * total else 0


def total_facts(pipeline: Pipeline, parts: Sequence[PartReport], stored_once: int) -> tuple[ModelFacts, ModelFacts]:
    """Return the figures of all parts together, before and after; MACs are not known where one part's are not."""
    place = None if pipeline.folder is None else str(pipeline.folder)
    before, after = _sum([each.input for each in parts]), _sum([each.output for each in parts])
    return replace(before, path=place), replace(after, bytes=after.bytes - stored_once)


def whole_quality(metric: str, loss: WholeLoss, *, samples: int, source: str) -> Quality:
    """Return the scores of the whole as the report's `quality` object."""
    return Quality(
        metric=metric,
        samples=samples,
        data=source,
        outputs={},
        original=loss.original,
        compressed=loss.compressed,
        drop=loss.drop.value,
        drop_interval=(loss.drop.low, loss.drop.high),
    )


def whole_time(original: WholeRun, other: WholeRun, *, samples: int, threads: int) -> WholeTime:
    """Return the CPU time of a sample, before and after."""
    times = original.cpu_ms / samples, other.cpu_ms / samples
    return WholeTime(
        original_ms=times[0],
        compressed_ms=times[1],
        ratio=times[1] / max(times[0], 1e-9),
        runs=samples,
        threads=threads,
    )


def _sum(figures: Sequence[ModelFacts]) -> ModelFacts:
    macs = [each.macs for each in figures if each.macs is not None]
    return ModelFacts(
        path=None,
        bytes=sum(each.bytes for each in figures),
        nodes=sum(each.nodes for each in figures),
        parameters=sum(each.parameters for each in figures),
        macs=sum(macs) if len(macs) == len(figures) else None,
    )
