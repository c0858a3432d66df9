"""Two models side by side: size, outputs, score and speed.

original, other --run on the same feeds--> differences, scores --race--> Comparison
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

from ..core import Progress
from ..data import evaluation_set, synthetic
from ..data.evaluation_set import DataOptions
from ..errors import ModelError
from ..io import model_io
from ..quality.compare_outputs import measure, quality_notes
from ..quality.kind_overrides import parse_kinds
from ..quality.output_plan import OutputPlan
from ..quality.result import Quality
from ..runtime import latency as timing
from ..runtime import session as runtime
from ..runtime.latency import Latency
from ..runtime.loaded_model import LoadedModel, path_of
from ..shapes import count as counting
from ..shapes.count import ModelFacts, facts
from ..verify.equal_outputs import EqualOutputs
from .limits import check_drop
from .report import Limits

if TYPE_CHECKING:
    from .options import ModelSource


_EQUALITY_FEEDS = 4
"""Feeds on which equality is tested, with the runtime's optimizations off; chosen by judgement, not measured."""
_SYNTHETIC_FEEDS = 2
"""Feeds that are made where the user gives none: two sizes of every dynamic dimension."""


@dataclass(frozen=True, kw_only=True)
class Comparison:
    """Result of `compare`; `difference` names the first output that differs beyond rounding, None where none does."""

    original: ModelFacts
    compressed: ModelFacts
    difference: str | None
    quality: Quality
    latency: Latency
    limits: Limits
    notes: tuple[str, ...] = field(default=())

    def as_json(self) -> dict[str, Any]:
        """Return the comparison as JSON-serialisable values."""
        return {
            "schema": 1,
            "original": self.original.as_json(),
            "compressed": self.compressed.as_json(),
            "equal": self.difference is None,
            "difference": self.difference,
            "limits": self.limits.as_json(),
            "quality": self.quality.as_json(),
            "latency": self.latency.as_json(),
            "notes": list(self.notes),
        }

    def named(self, original: str, compressed: str) -> Comparison:
        """Return the comparison with names in place of the paths of the models."""
        first, second = replace(self.original, path=original), replace(self.compressed, path=compressed)
        return replace(self, original=first, compressed=second)


def compare(
    original: ModelSource,
    other: ModelSource,
    *,
    data: Any = None,
    eval_data: Any = None,
    metric: str | None = None,
    max_drop: float | None = None,
    output_kinds: Iterable[str] = (),
    data_options: DataOptions = DataOptions(),  # noqa: B008 - frozen
    seed: int = 0,
    threads: int = 1,
    progress: Progress = lambda _, items: iter(items),
) -> Comparison:
    """Run two models with the same inputs on the same feeds and say how they differ.

    Args:
        original: the model that is right by definition.
        other: the model that is compared with it.
        data: feeds for both; without any, synthetic ones.
        eval_data: feeds with labels, by which both are scored (default: `data`).
        metric: `top1`, `top5`, `cosine`, `agreement`, one of a task, or `module:function(outputs, labels)`; by default
            `top1` with labels and `cosine` without.
        max_drop: most that the metric may fall, absolute.
        output_kinds: `NAME=KIND` texts, for outputs whose kind is taken for another.
        data_options: how data is read.
        seed: of synthetic feeds.
        threads: of the runtime when it is timed.
        progress: wraps the loop over feeds.

    Raises:
        ModelError: a model can't be read or run, or their inputs or outputs have different names.
        DataError: the data does not fit.
        LimitError: the metric falls by more than `max_drop`; its `report` is the comparison.
    """
    a, b = model_io.load(original), model_io.load(other)
    first = LoadedModel(a, original, threads=threads)
    second = LoadedModel(b, other, threads=threads, like=first)
    _check_interface(first.plain, second.plain)
    source = eval_data if eval_data is not None else data
    if source is None:
        feeds = synthetic.runnable_feeds(a, first.plain, seed=seed, count=_SYNTHETIC_FEEDS)
        judged = evaluation_set.synthetic(feeds, first.plain.feedable)
    else:
        judged = evaluation_set.read(source, first.plain.feedable, data_options, model=original, graph=a)
    difference = EqualOutputs(first, judged.feeds[:_EQUALITY_FEEDS]).mismatch(second)
    plan = OutputPlan.of(a, overrides=parse_kinds(output_kinds), states=judged.carried)
    quality = measure(plan.session(first), plan.session(second), judged, plan=plan, metric=metric, progress=progress)
    largest = judged.largest()
    result = Comparison(
        original=facts(a, counting.count(a, largest), path_of(original)),
        compressed=facts(b, counting.count(b, largest), path_of(other)),
        difference=difference,
        quality=quality,
        latency=timing.race_each(plan.timed(first), plan.timed(second), judged.timed(first.plain.run)),
        limits=Limits(max_drop=max_drop),
        notes=(*judged.notes(), *quality_notes(quality, max_drop)),
    )
    check_drop(quality, max_drop, result)
    return result


def _check_interface(a: runtime.Session, b: runtime.Session) -> None:
    for kind, ours, theirs in (("inputs", a.inputs, b.inputs), ("outputs", a.outputs, b.outputs)):
        names, others = [spec.name for spec in ours], [spec.name for spec in theirs]
        if sorted(names) != sorted(others):
            raise ModelError(
                f"the {kind} are {', '.join(names)} in the first and {', '.join(others)} in the second model"
            )
