"""Compression of several models that are one program, judged by what the program gives.

pipeline --run on samples, recorded--> what each part is fed --compress--> candidates of each part
         --run with them--> loss of the whole --shared out among the parts--> PipelineResult --> folder
"""

from __future__ import annotations

import logging
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..base.clock import Clock, cpu_seconds
from ..base.search_terms import SearchStatus, no_status
from ..base.user_code import load_function
from ..base.versions import versions
from ..composite import layouts
from ..composite import samples as pipeline_samples
from ..composite.memory import RunMemory
from ..composite.samples import PipelineSample
from ..composite.value import Pipeline
from ..composite.whole import WholeLoss, WholeRun, WholeScale, run_whole
from ..core import Progress, no_progress
from ..errors import LimitError, OnnxCompressError, UsageError
from ..numerics.statistics.estimate import Estimate
from ..quality.task.known import task_metric
from ..quality.task.metric import TaskMetric
from ..recipe import Recipe
from ..recorder import catalogue
from ..recorder.recording import Recorder
from ..runtime.processes import peak_memory_bytes
from .judge import decisive_drop
from .limits import LatencyLimit, check_drop
from .options import CompressOptions
from .pipeline_figures import (
    ShareWeights,
    part_report,
    shared_bytes,
    taken_back,
    total_facts,
    tried_choice,
    whole_quality,
    whole_time,
)
from .pipeline_parts import PartCandidate, PartChooser, PartCompressor, PipelinePart
from .pipeline_report import ORIGINAL, PipelineReport
from .pipeline_result import PipelineResult
from .report import Limits, ResolvedRecipe

log = logging.getLogger(__name__)

_MOST_RECORDED = 16
"""Runs of each part that it is compressed on: enough that a quarter is held out. Chosen by judgement; not measured."""
_ROUND_MS = 4000.0
"""CPU time of one round over the recorded runs of a part: every candidate is scored on them. Chosen on an encoder of
speech, of .5 s a run, whose search took 150 CPU seconds with 8 runs and more than 250 with 16."""
_LEAST_RECORDED = 4
"""Runs that even a part that takes long is compressed on. Chosen by judgement; not measured."""
_RECORDED_BYTES = 1 << 30
"""Of all recorded runs, on disk: a cache of a speech decoder takes 18 MB a run. Chosen by judgement."""


@dataclass(frozen=True, kw_only=True)
class PipelineOptions(CompressOptions):
    """Options of `compress` for several models.

    Args:
        share_weights: store what parts have in common once, in a data file beside them: "auto" where that gains a
            twentieth of all bytes.
        progress: wraps long loops, for a display.
        show: shows how far a search is.
    """

    share_weights: ShareWeights = "auto"
    progress: Progress = no_progress
    show: Callable[[SearchStatus], None] = no_status


def compress_pipeline(
    source: Pipeline | Path | str, options: PipelineOptions | None = None, **keywords: Any
) -> PipelineResult:
    """Make the models of a pipeline smaller and faster, and prove that the whole is still good.

    Args:
        source: a `Pipeline`, or a folder of a known layout.
        options: see `PipelineOptions`; or each as a keyword.
        keywords: fields of the options.

    Raises:
        ModelError: a part can't be read or run.
        DataError: the data can't be read, or the pipeline fails on it.
        UsageError: the folder has no known layout, or an option is unknown or can't be met by a pipeline.
        LimitError: a limit that was given is not met; its `report` says by how much.
    """
    given = options if options is not None else PipelineOptions(**keywords)
    _check(given)
    with tempfile.TemporaryDirectory(prefix="onnxcompress-") as folder:
        return _PipelineRun(source, given, Path(folder)).result()


def pipeline_of(name: str, models: Sequence[Path]) -> Pipeline:
    """Return the pipeline that `module:function` makes of the models that were given, or is.

    Raises:
        UsageError: it fails, or returns something else.
        OnnxCompressError: it has raised that itself, of a part that can't be a model.
    """
    function: Any = load_function(name)
    try:
        found = function(list(models)) if models else function()
    except (OnnxCompressError, MemoryError):
        raise
    except Exception as error:  # the user's own function may raise anything
        text = " ".join(str(error).split())
        raise UsageError(f"failed: {type(error).__name__}: {text}", where=name) from error
    if not isinstance(found, Pipeline):
        raise UsageError(f"returns a {type(found).__name__}, no onnxcompress.Pipeline", where=name)
    return found


def _check(options: PipelineOptions) -> None:
    for name, option in (("only", "--only"), ("skip", "--skip"), ("output_kinds", "--output-kind")):
        if getattr(options, name):
            hint = f"Compress that part by itself with {option} first"
            raise UsageError(f"{option} is for one model, and a pipeline has several", hint=hint)
    if options.max_latency is not None and not LatencyLimit.parse(options.max_latency).is_ratio:
        raise UsageError("of a pipeline it is a part of the original's time", where="--max-latency", hint="Give 0.5x")


def _thin_out(folder: Path, most: int) -> None:
    """Remove recorded runs beyond a number, evenly over the time at which they were made."""
    files = sorted(folder.glob("*.npz"))
    kept = {files[index * len(files) // most] for index in range(most)} if len(files) > most else set(files)
    for path in files:
        if path not in kept:
            path.unlink()


def _pipeline_in(source: Pipeline | Path | str, metric: str | None) -> Pipeline:
    return source if isinstance(source, Pipeline) else layouts.recognise(Path(source), metric=metric)


class _PipelineRun:
    """One run on a pipeline.

    Args:
        source: the pipeline or its folder.
        options: of the run.
        folder: for what is needed until its end.
    """

    def __init__(self, source: Pipeline | Path | str, options: PipelineOptions, folder: Path) -> None:
        self._started, self._cpu, self._clock = time.monotonic(), cpu_seconds(), Clock(options.time_limit)
        self._options, self._folder = options, folder
        self._recipe = Recipe.load(options.recipe, options.settings)
        self._pipeline = _pipeline_in(source, options.metric)
        self._metric = self._chosen_metric()
        self._working, self._judged, self._data_notes = self._samples()
        self._runs: dict[tuple[str, ...], tuple[WholeRun, WholeLoss]] = {}
        self._memory = RunMemory()
        self._tried: list[tuple[Mapping[str, PartCandidate], WholeLoss]] = []

    def _chosen_metric(self) -> TaskMetric:
        wanted = self._options.metric or self._pipeline.metric
        if wanted is None:
            raise UsageError("a pipeline needs a metric", where="--metric", hint="Give wer, perplexity, bleu ...")
        return task_metric(wanted)

    def _samples(self) -> tuple[list[PipelineSample], list[PipelineSample], list[str]]:
        """Return the samples to work with and to judge by, and what is to be said about them."""
        pipeline, options = self._pipeline, self._options
        data = pipeline.data if options.data is None else options.data
        judged = pipeline.eval_data if options.eval_data is None else options.eval_data
        if data is None and judged is None:
            hint = "Give --data: module:function, a .npz, or a folder of .npz, one a sample"
            raise UsageError("a pipeline is judged by running it, and there are no samples", where="--data", hint=hint)
        specs = pipeline.inputs
        first = pipeline_samples.read(judged if data is None else data, specs, options.data_options)
        if data is not None and judged is not None:
            return first, pipeline_samples.read(judged, specs, options.data_options), []
        working, held_out = pipeline_samples.divided(first)
        note = f"the {len(held_out)} samples that the whole is judged by are those that the parts were compressed on"
        return working, held_out, [note] if len(working) == len(held_out) else []

    def result(self) -> PipelineResult:
        """Do all of it."""
        options, pipeline = self._options, self._pipeline
        parts = self._recorded()
        original = run_whole(
            pipeline,
            pipeline.parts,
            self._judged,
            threads=options.threads,
            memory=self._memory,
            progress=options.progress,
        )
        self._original = original
        self._scale = WholeScale(self._metric, self._judged, original)
        log.info("%s of the original: %.4f", self._metric.name, self._scale.score())
        compressor = PartCompressor(options, self._recipe, self._folder, self._clock)
        sizes = [part.path.stat().st_size for part in parts]
        for index, part in enumerate(parts):
            compressor.begin(part, sizes[index] / max(1, sum(sizes[index:])))
        chooser = PartChooser(parts, compressor, self._measured, self._decisive)
        limit = self._recipe.max_drop if options.max_drop is None else options.max_drop
        chosen = chooser.settle(None if self._recipe.lossless and options.max_drop is None else limit)
        loss = self._measured(chosen)
        report = self._report(parts, chosen, loss)
        self._check_limits(report)
        kept = frozenset(name for name, each in chosen.items() if each.label == ORIGINAL)
        return PipelineResult(pipeline, {name: each.model for name, each in chosen.items()}, report, kept)

    def _recorded(self) -> list[PipelinePart]:
        """Run the original on the samples to work with, and note what each part is fed."""
        pipeline = self._pipeline
        step = max(1, len(self._working) // _MOST_RECORDED)
        recorder = Recorder(
            self._folder / "feeds",
            most=_MOST_RECORDED,
            keep="shapes",
            max_bytes=_RECORDED_BYTES,
            seed=self._options.seed,
        )
        run = run_whole(
            pipeline,
            pipeline.parts,
            self._working[::step][:_MOST_RECORDED],
            threads=self._options.threads,
            recorder=recorder,
            memory=self._memory,
            progress=self._options.progress,
        )
        recorder.close()
        names = {path.absolute(): name for name, path in pipeline.parts.items()}
        for each in catalogue.read(recorder.folder):
            cpu_ms = run.times[names[Path(each.path)]].cpu_ms
            _thin_out(each.folder, max(_LEAST_RECORDED, int(_ROUND_MS / max(cpu_ms, 1e-3))))
        models = {Path(each.path): each for each in catalogue.read(recorder.folder) if each.samples}
        return [
            PipelinePart(name=name, path=path, recorded=models.get(path.absolute()))
            for name, path in pipeline.parts.items()
        ]

    def _measured(self, choice: Mapping[str, PartCandidate]) -> WholeLoss:
        """Return the loss of the whole with a choice of candidates; each is run once."""
        key = tuple(each.label for each in choice.values())
        if key not in self._runs:
            if set(key) == {ORIGINAL}:
                run = self._original
            else:
                files = {name: each.path for name, each in choice.items()}
                run = run_whole(
                    self._pipeline,
                    files,
                    self._judged,
                    threads=self._options.threads,
                    memory=self._memory,
                    progress=self._options.progress,
                )
            loss = self._scale.loss(run)
            self._runs[key] = run, loss
            self._tried.append((dict(choice), loss))
            log.info("%s: %.4f, a loss of %.4f", ", ".join(key), loss.compressed, loss.drop.value)
        return self._runs[key][1]

    def _decisive(self, drop: Estimate) -> float:
        found = decisive_drop(drop.value, (drop.low, drop.high), self._options.confidence)
        assert found is not None
        return found

    def _check_limits(self, report: PipelineReport) -> None:
        options = self._options
        if options.max_bytes is not None and report.output.bytes > options.max_bytes:
            text = f"the parts have {report.output.bytes:,} bytes, more than {options.max_bytes:,}"
            raise LimitError(text, report=report)
        if options.max_latency is not None:
            limit = LatencyLimit.parse(options.max_latency)
            fault = limit.fault(ratio=report.latency.ratio, milliseconds=None)
            if fault is not None:
                raise LimitError(fault, report=report)
        check_drop(report.quality, options.max_drop, report, confidence=options.confidence)

    def _report(
        self, parts: Sequence[PipelinePart], chosen: Mapping[str, PartCandidate], loss: WholeLoss
    ) -> PipelineReport:
        options, run = self._options, self._runs[tuple(each.label for each in chosen.values())][0]
        entries = tuple(part_report(part, chosen[part.name], self._original, run) for part in parts)
        found = shared_bytes(self._pipeline, chosen, options.share_weights)
        notes = [*self._pipeline.notes, *self._data_notes]
        if not self._scale.has_labels:
            notes.append("without labels the loss is the distance from what the original gives")
        source = str(options.eval_data or options.data or "the pipeline's own")
        before, after = total_facts(self._pipeline, entries, found)
        return PipelineReport(
            input=before,
            output=after,
            recipe=ResolvedRecipe.model_validate(self._recipe.as_json()),
            limits=Limits(max_drop=options.max_drop, max_bytes=options.max_bytes, max_latency=options.max_latency),
            quality=whole_quality(self._metric.name, loss, samples=len(self._judged), source=source),
            latency=whole_time(self._original, run, samples=len(self._judged), threads=options.threads),
            seconds=round(time.monotonic() - self._started, 3),
            cpu_seconds=round(cpu_seconds() - self._cpu, 3),
            peak_memory_bytes=peak_memory_bytes(),
            changes=tuple(taken_back(parts, chosen, self._tried[0][1].drop.value)),
            parts=entries,
            choices=tuple(tried_choice(choice, each, chosen) for choice, each in self._tried),
            shared_bytes=found,
            notes=tuple(notes),
            versions=versions(),
        )
