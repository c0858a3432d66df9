"""Distillation from a teacher into any student, without labels: in closed form first, then by gradients.

    student, teacher --pair layers--> refit, layer by layer --> distill, end to end --> the best of what was measured

Each stage is kept only where the outputs of samples that it did not see come nearer to the teacher's.
"""

from __future__ import annotations

import math
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import onnx_ir as ir

from ..core import Context, Feed, Progress
from ..data import evaluation_set
from ..data.evaluation_set import DataOptions, Evaluation
from ..distillation import match_layers, reconstruct, sample_split, train
from ..distillation.match_layers import Pair
from ..distillation.reconstruct import RefitChange
from ..distillation.targets import RefitEffort
from ..distillation.train import Distilled
from ..errors import ModelError, UsageError
from ..graph import edit
from ..io import model_io
from ..passes.fold.normalize import Normalize
from ..quality.divergence import Divergence
from ..runtime import session as runtime
from . import compare as compare_job
from . import limits
from .compare import Comparison

if TYPE_CHECKING:
    from .options import ModelSource


@dataclass(frozen=True, kw_only=True)
class TransferStages:
    """Stages of a transfer, and the one that is kept.

    Args:
        pairs: layers of the student with what they were to give.
        unpaired: layers of the student for which the teacher has nothing to give.
        refits: what became of each layer.
        distilled: how the training went; None where it was not asked for.
        divergences: stage -> divergence of the outputs from the teacher's on samples that were not learnt from.
        kept: the stage with the least divergence, which is the result.
    """

    pairs: Sequence[Pair]
    unpaired: Sequence[str]
    refits: Sequence[RefitChange]
    distilled: Distilled | None
    divergences: Mapping[str, float]
    kept: str


@dataclass(frozen=True, kw_only=True)
class TransferReport(TransferStages):
    """Report of a transfer: its stages, and the comparison of the teacher with the result."""

    comparison: Comparison

    def as_json(self) -> dict[str, Any]:
        """Return the report as JSON-serialisable values."""
        outcomes = {each.layer: each for each in self.refits}
        layers = []
        for pair in self.pairs:
            found = outcomes.get(pair.layer)
            figures = {} if found is None else {"before": found.error_before, "after": found.error_after}
            layers.append(
                pair.as_json()
                | {"reason": None if found is None else found.reason}
                | {f"error_{name}": value if math.isfinite(value) else None for name, value in figures.items()}
            )
        trained = self.distilled
        return {
            "schema": 1,
            "layers": layers,
            "unpaired": list(self.unpaired),
            "distillation": None
            if trained is None
            else {"applied": trained.is_applied, "reason": trained.reason, "steps": trained.steps},
            "divergence": {name: value if math.isfinite(value) else None for name, value in self.divergences.items()},
            "kept": self.kept,
            "comparison": self.comparison.as_json(),
        }


@dataclass(frozen=True)
class Transferred:
    """A student that has learnt, and the report of it."""

    model: ir.Model
    report: TransferReport

    def save(self, path: str | os.PathLike[str], *, force: bool = False) -> Path:
        """Write the model atomically and return its path.

        Raises:
            UsageError: the file exists and `force` is not given.
            ModelError: it can't be written.
        """
        return Path(model_io.save(self.model, Path(path), force=force).path)


def distill(
    student: ModelSource,
    teacher: ModelSource,
    *,
    data: Any,
    eval_data: Any = None,
    metric: str | None = None,
    max_drop: float | None = None,
    steps: int = 400,
    data_options: DataOptions = DataOptions(),  # noqa: B008 - frozen
    seed: int = 0,
    threads: int = 1,
    progress: Progress = lambda _, items: iter(items),
) -> Transferred:
    """Teach a model what another one gives.

    Args:
        student: the model that learns: of the same layers, fewer channels, another depth or kind; never changed.
        teacher: the model that knows; inputs and outputs correspond by name, or else by their order.
        data: samples, in any form that `--data` takes; labels are not used.
        eval_data: samples, with labels, by which the result is scored (default: a part of `data` that is held back).
        metric: see `compare`.
        max_drop: most that the metric may be below the teacher's.
        steps: batches of the training from end to end; 0 for closed forms only.
        data_options: how data is read.
        seed: of the choice of rows and samples.
        threads: of the runtime.
        progress: wraps long loops.

    Raises:
        ModelError: a model can't be read or run, or their inputs or outputs don't correspond.
        DataError: the data does not fit.
        LimitError: the metric is further below the teacher's than `max_drop`; its `report` is the report.
    """
    if steps < 0:
        raise UsageError(f"{steps} steps are fewer than none")
    pupil = model_io.clone(model_io.load(student))
    master = _with_names_of(pupil, model_io.load(teacher))
    Normalize().run(pupil, Context())
    working, held_out = _samples(pupil, data, data_options)
    divergence = Divergence(master, held_out.feeds, threads=threads)
    lesson = _Lesson(pupil, master, working.feeds, divergence, seed, threads, progress)
    result, stages = lesson.run(steps)
    compared = compare_job.compare(
        master,
        result,
        eval_data=list(held_out.feeds) if eval_data is None else eval_data,
        metric=metric,
        data_options=DataOptions() if eval_data is None else data_options,
        threads=threads,
        progress=progress,
    )
    report = TransferReport(**vars(stages), comparison=compared.named("teacher", "student"))
    limits.check_drop(compared.quality, max_drop, report)
    return Transferred(result, report)


def _samples(student: ir.Model, data: Any, data_options: DataOptions) -> tuple[Evaluation, Evaluation]:
    """Return samples to learn from, and others to judge by."""
    session = runtime.open_session(model_io.to_bytes(student), optimize=False)
    given = evaluation_set.read(data, session.feedable, data_options)
    if given.state:
        raise UsageError("samples that carry a state can't be learnt from", hint="Leave --state away")
    return given.divided()


@dataclass(frozen=True)
class _Lesson:
    """A student, its teacher, the samples from which it learns, and the divergence on others."""

    student: ir.Model
    teacher: ir.Model
    feeds: Sequence[Feed]
    divergence: Divergence
    seed: int
    threads: int
    progress: Progress

    def run(self, steps: int) -> tuple[ir.Model, TransferStages]:
        """Return the stage with the least divergence, and what became of all."""
        pairs = match_layers.pair_layers(self.student, self.teacher, self.feeds, seed=self.seed)
        refitted, refits = self.reconstructed(pairs)
        stages = {"given": (self.student, self.divergence.of(self.student))}
        stages["refitted"] = (refitted, self.divergence.of(refitted))
        trained: Distilled | None = None
        if steps:
            taught, trained = self.trained(min(stages.values(), key=lambda stage: stage[1])[0], steps)
            if trained.is_applied:
                stages["distilled"] = (taught, self.divergence.of(taught))
        kept = min(stages, key=lambda name: stages[name][1])
        paired = {pair.layer for pair in pairs}
        report = TransferStages(
            pairs=pairs,
            unpaired=[each.layer for each in refits if each.layer not in paired],
            refits=refits,
            distilled=trained,
            divergences={name: value for name, (_, value) in stages.items()},
            kept=kept,
        )
        return stages[kept][0], report

    def reconstructed(self, pairs: Sequence[Pair]) -> tuple[ir.Model, list[RefitChange]]:
        """Return a copy of the student whose layers that have a pair are refitted, and what became of each layer."""
        model = model_io.clone(self.student)
        fitted, held_out = sample_split.divided(self.feeds)
        changes = reconstruct.refit(
            model,
            self.teacher,
            fitted,
            match_layers.layer_match(pairs),
            held_out=held_out,
            effort=RefitEffort(threads=self.threads),
            seed=self.seed,
            progress=self.progress,
        )
        return model, changes

    def trained(self, start: ir.Model, steps: int) -> tuple[ir.Model, Distilled]:
        """Return a copy of a model that is trained from end to end, for fewer steps where these would take too long."""
        model = model_io.clone(start)
        most, batch = train.affordable(model, self.feeds[0], steps)
        found = train.distill(
            model,
            self.teacher,
            self.feeds,
            steps=most,
            batch=batch,
            seed=self.seed,
            threads=self.threads,
            progress=self.progress,
        )
        return model, found


def _with_names_of(student: ir.Model, teacher: ir.Model) -> ir.Model:
    """Return the teacher with the student's names of inputs and outputs.

    Raises:
        ModelError: they have not as many of them, or only some of the names are the same.
    """
    kinds = (("inputs", _inputs(student), _inputs(teacher)), ("outputs", _outputs(student), _outputs(teacher)))
    for kind, ours, theirs in kinds:
        if len(ours) != len(theirs) or set(ours) & set(theirs) not in (set(), set(ours)):
            raise ModelError(
                f"the {kind} are {', '.join(ours)} in the student and {', '.join(theirs)} in the teacher",
                hint="Give both the same names",
            )
    renamed = model_io.clone(teacher)
    values = {v.name: v for v in renamed.graph.inputs} | {v.name: v for n in renamed.graph for v in n.outputs}
    names = edit.Names(renamed)
    for _, ours, theirs in kinds:
        for new, old in zip(ours, theirs, strict=True) if set(ours) != set(theirs) else ():
            if new in values:
                values[new].name = names.fresh(f"{new}_of_teacher")
            values[old].name = new
    return renamed


def _inputs(model: ir.Model) -> list[str]:
    return [value.name or "" for value in model.graph.inputs if not value.is_initializer()]


def _outputs(model: ir.Model) -> list[str]:
    return [value.name or "" for value in model.graph.outputs]
