"""Runs a pipeline on samples, with one choice of models or another, and compares the two by the metric of the whole.

{part: file}, samples --run--> predictions, time of each part --score--> statistics by sample --paired--> loss
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..core import Progress, no_progress
from ..errors import DataError, OnnxCompressError
from ..numerics.statistics.estimate import Estimate
from ..quality.task.metric import TaskMetric
from ..recorder.recording import Recorder
from .memory import RunMemory
from .samples import PipelineSample, labels_of
from .sessions import PartSession
from .value import Pipeline


@dataclass(frozen=True, kw_only=True)
class PartTime:
    """CPU time of one part while the whole ran."""

    runs: int
    cpu_ms: float
    """Mean of a run."""


@dataclass(frozen=True, kw_only=True)
class WholeRun:
    """Predictions of a pipeline for some samples."""

    predictions: tuple[Any, ...]
    times: Mapping[str, PartTime]

    @property
    def cpu_ms(self) -> float:
        """CPU milliseconds of all parts together."""
        return sum(each.runs * each.cpu_ms for each in self.times.values())


@dataclass(frozen=True, kw_only=True)
class WholeLoss:
    """Scores of two runs on the same samples, and the loss between them."""

    original: float
    compressed: float
    drop: Estimate


def run_whole(
    pipeline: Pipeline,
    files: Mapping[str, Path],
    samples: Sequence[PipelineSample],
    *,
    threads: int = 1,
    recorder: Recorder | None = None,
    memory: RunMemory | None = None,
    progress: Progress = no_progress,
) -> WholeRun:
    """Run a pipeline on samples.

    Args:
        pipeline: the function that is run.
        files: part -> model.
        samples: what it is run on.
        threads: of the runtime.
        recorder: keeps what each part is fed; None: nothing does.
        memory: of runs of the same files that were made before.
        progress: wraps the loop over the samples.

    Raises:
        ModelError: a part can't be loaded, or refuses what it is fed.
        DataError: the function fails on a sample.
    """
    opened = {name: PartSession.opened(path, threads=threads, memory=memory) for name, path in files.items()}
    sessions: Mapping[str, Any] = opened
    if recorder is not None:
        sessions = {name: recorder.wrap(session, files[name]) for name, session in opened.items()}
    predictions = []
    for index, sample in enumerate(progress("Running the pipeline", samples)):
        try:
            predictions.append(pipeline.run(sessions, sample.inputs))
        except OnnxCompressError as error:
            raise type(error)(error.message, where=error.where or f"sample {index}", hint=error.hint) from error
        except MemoryError:
            raise
        except Exception as error:  # the user's own function may raise anything
            text = " ".join(str(error).split())
            raise DataError(f"run failed: {type(error).__name__}: {text}", where=f"sample {index}") from error
    times = {
        name: PartTime(runs=each.runs, cpu_ms=1e3 * each.cpu_seconds / max(1, each.runs))
        for name, each in opened.items()
    }
    return WholeRun(predictions=tuple(predictions), times=times)


class WholeScale:
    """Scores runs of a pipeline against the original's, on the same samples.

    Without labels the original's own predictions replace them: the loss is how far the result is from it.

    Args:
        metric: of the predictions.
        samples: that are judged by.
        original: its run.
    """

    def __init__(self, metric: TaskMetric, samples: Sequence[PipelineSample], original: WholeRun) -> None:
        self.metric = metric
        labels = labels_of(samples)
        self.has_labels = labels is not None or not metric.needs_labels
        self._references = list(original.predictions) if labels is None else labels
        self._before = metric.statistics(original.predictions, self._references)

    def score(self) -> float:
        """Return the score of the original."""
        return self.metric.total(self._before)

    def loss(self, other: WholeRun) -> WholeLoss:
        """Return the loss of another run, with its interval over the samples."""
        after = self.metric.statistics(other.predictions, self._references)
        drop = self.metric.loss(self._before, after)
        return WholeLoss(original=self.score(), compressed=self.metric.total(after), drop=drop)
