"""Runs two models on the same samples and compares outputs and scores."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from ..base.spilled_arrays import SpilledArrays
from ..core import Feed, Progress
from ..data.evaluation_set import Evaluation
from ..errors import DataError, UsageError
from . import metrics, pairing
from .output_error import Difference
from .output_plan import OutputPlan, Runs
from .output_sources import Ending
from .result import OutputDifference, Quality
from .verdict import OutputLoss, Verdict, VerdictMeter, samples_needed, unsure

ESTIMATED = "estimated"
"""Name of the metric without labels: the loss of the output that loses most, in points of its kind."""
_RUN_AHEAD_BYTES = 256 << 20
"""Outputs of the original that are kept, most of them in a file, until the other model has run the same feeds.

Models whose runs take much memory are loaded anew at each change between them. Chosen by judgement.
"""
_MOST_DIVERGENCE = 1e9
"""Divergence told of outputs that can't be compared: JSON has no infinity."""


def measure(
    original: Runs,
    other: Runs,
    judged: Evaluation,
    *,
    plan: OutputPlan,
    metric: str | None = None,
    progress: Progress = lambda _, items: iter(items),
) -> Quality:
    """Run both models as a user would, each with its own state, and compare outputs and score.

    `original` and `compressed` of the result are None where no output can be scored.

    Args:
        original: gives the sources of the plan, see `OutputPlan.session`.
        other: the same, or `original` itself.
        judged: samples, and labels where there are any.
        plan: the outputs, and the values behind them, that are compared.
        metric: see `metrics`; by default top1 with labels, else the loss is estimated.
        progress: wraps the loop over the samples.

    Raises:
        ModelError: a model can't run a feed.
        UsageError: the metric needs labels and there are none.
    """
    name = metric or ("top1" if judged.labels is not None else ESTIMATED)
    score = None if name == ESTIMATED else metrics.resolve_metric(name)
    if score is not None and metrics.needs_labels(name) and judged.labels is None:
        hint = "Give --eval data with an array named label, labels or y"
        raise UsageError(f"metric {name!r} needs labels, and the data has none", hint=hint)
    differences: dict[str, Difference] = {}
    runs: tuple[list[dict[str, Any]], list[dict[str, Any]]] = ([], [])
    meter = VerdictMeter(plan)
    for index, (feed, before, after) in enumerate(_run_both(original, other, judged, plan, progress)):
        meter.add(feed, dict(before), dict(after), seen=index < judged.seen)
        _add_differences(differences, plan, before, after)
        if score is not None and name != "cosine":
            for kept, found in zip(runs, (before, after), strict=True):
                kept.append({output: found[output] for output in plan.sources})
    verdict = meter.verdict()
    quality = Quality(
        metric=name,
        samples=len(judged.feeds) if judged.labels is None else len(judged.labels),
        data=judged.source,
        outputs=_outputs(differences, verdict),
        divergence=None if verdict.divergence is None else min(verdict.divergence, _MOST_DIVERGENCE),
        original=None,
        compressed=None,
        drop=None,
    )
    if score is None:
        return quality.model_copy(update=_estimated(verdict))
    if name == "cosine":
        return quality.model_copy(update=_worst_cosine(quality.outputs, plan))
    was_all, now_all = (_scorable(each, whole=":" in name) for each in runs)
    truth = was_all if judged.labels is None or not metrics.needs_labels(name) else _truth(judged.labels, was_all)
    was, now = _scored(score, was_all, truth, name), _scored(score, now_all, truth, name)
    interval = metrics.drop_interval(name, was_all, now_all, truth)
    scores = {"original": was, "compressed": now, "drop": metrics.fall(name, was, now), "drop_interval": interval}
    return quality.model_copy(update=scores)


def _run_both(
    original: Runs, other: Runs, judged: Evaluation, plan: OutputPlan, progress: Progress
) -> Iterator[tuple[dict[str, Any], dict[str, Any], dict[str, Any]]]:
    """Yield the inputs of each feed and the outputs of both models, in dictionaries that the next feed overwrites.

    The kinds of the outputs are decided before the other model runs.
    """
    before: dict[str, Any] = {}
    after: dict[str, Any] = {}
    feeds, others = judged.stateful(before), judged.stateful(after)
    known, place = SpilledArrays(), 0
    carried: list[Feed] = []
    left = len(judged.feeds)
    for _ in progress("Comparing", range(left)):
        if place == len(known):  # one model after the other runs some: both need not be loaded at a time
            known, place, size_bytes = SpilledArrays(), 0, 0
            carried.clear()
            while left and size_bytes < _RUN_AHEAD_BYTES:
                feed = next(feeds)
                before.update(original.run(feed))
                known.append(before)
                size_bytes += pairing.array_bytes(before)
                if judged.state:
                    carried.append(feed)
                left -= 1
            plan.decide_first(known, carried or judged.feeds)
        expected, got = known[place], next(others)
        after.update(expected if other is original else other.run(got))
        yield carried[place] if carried else got, expected, after
        place += 1


def _add_differences(
    differences: dict[str, Difference], plan: OutputPlan, before: Mapping[str, Any], after: Mapping[str, Any]
) -> None:
    for output, source in plan.sources.items():
        one, other = before[output], after[output]
        if isinstance(one, np.ndarray) and one.dtype.kind == "f" and getattr(other, "shape", None) == one.shape:
            is_sigmoid = source.ending is Ending.SIGMOID
            differences.setdefault(output, Difference(output, is_sigmoid=is_sigmoid)).add(one, other)


def _outputs(differences: Mapping[str, Difference], verdict: Verdict) -> dict[str, OutputDifference]:
    return {output.name: _difference(differences.get(output.name), output) for output in verdict.outputs}


def _difference(difference: Difference | None, output: OutputLoss) -> OutputDifference:
    found = OutputDifference(max_abs=None, cosine=None, sqnr_db=None) if difference is None else difference.result()
    known: dict[str, Any] = {"kind": str(output.kind), "why": output.why}
    if output.loss is not None:
        drop, figures = output.loss.drop, dict(output.loss.figures)
        known |= {"drop": drop.value, "drop_interval": (drop.low, drop.high)}
        if "positions" in figures:
            known |= {name: figures.pop(name) for name in ("confidence", "disagreement", "classes")}
            known["positions"] = int(figures.pop("positions"))
        if figures:
            known["figures"] = figures
    return found.model_copy(update=known)


def _estimated(verdict: Verdict) -> dict[str, Any]:
    """Return original, compressed, drop and its interval, of the output that loses most."""
    worst = verdict.worst
    if worst is None or worst.loss is None:
        return {}
    drop, figures = worst.loss.drop, worst.loss.figures
    was = figures.get("confidence", 1.0)
    found = {"output": worst.name, "original": was, "compressed": was - drop.value, "drop": drop.value}
    found |= {"drop_interval": (drop.low, drop.high)}
    return found | ({"disagreement": figures["disagreement"]} if "disagreement" in figures else {})


def _worst_cosine(outputs: Mapping[str, OutputDifference], plan: OutputPlan) -> dict[str, Any]:
    """Return original, compressed and drop, of the output with the least cosine; nothing where none is known."""
    found = [each.cosine for name, each in outputs.items() if name not in plan.states and each.cosine is not None]
    return {"original": 1.0, "compressed": min(found), "drop": 1.0 - min(found)} if found else {}


def quality_notes(quality: Quality, limit: float | None) -> Iterator[str]:
    """Yield a line for each thing that the user should know about how sure the figures are.

    Args:
        quality: as measured.
        limit: most that may be lost, None where nothing is decided by it.
    """
    if not metrics.needs_labels(quality.metric):
        for name, found in quality.outputs.items():
            if found.largest is not None:
                yield (
                    f"output {name!r} is at most {found.largest:.2g} on all samples, and 1 would be a yes: samples "
                    "with what the model looks for (--data, --eval) would show the rest"
                )
    if quality.metric != ESTIMATED:
        return
    if quality.drop is None:
        yield "no output can be scored, so the loss is unknown"
    for name, found in quality.outputs.items():
        if unsure(found.confidence, found.classes):
            yield (
                f"output {name!r}: the model is unsure about these samples (mean confidence {found.confidence:.2f}), "
                "so its loss may be overstated; samples of its classes, or labels (--eval), would give a sharper figure"
            )
    if limit and quality.drop is not None and quality.drop_interval is not None:
        needed = samples_needed(quality.drop, quality.drop_interval, limit, quality.samples)
        low, high = quality.drop_interval
        if needed is not None:
            yield (
                f"the loss is between {low:.4g} and {high:.4g} (90%): {quality.samples} samples don't settle whether "
                f"it is within {limit:g}, about {needed} would"
            )


def _scorable(runs: Sequence[Mapping[str, Any]], *, whole: bool) -> Any:
    """Return the first output over all samples; for a function of the user's all outputs, where there are several.

    Where samples differ in shape a function of the user's is given lists of one array per sample, and other metrics
    rows of scores, see `_rows`.
    """
    found = {name: [np.atleast_1d(run[name]) for run in runs] for name in runs[0]}
    if not whole:
        first = next(iter(found.values()))
        return _rows(first) if _is_ragged(first) else np.concatenate(first)
    ragged = any(_is_ragged(arrays) for arrays in found.values())
    joined = {name: arrays if ragged else np.concatenate(arrays) for name, arrays in found.items()}
    return joined if len(joined) > 1 else next(iter(joined.values()))


def _is_ragged(arrays: Sequence[np.ndarray]) -> bool:
    return len({array.shape[1:] for array in arrays}) > 1


def _rows(arrays: Sequence[np.ndarray]) -> np.ndarray:
    """Return scores of every position of every sample, float64 [positions, classes]; what a sample lacks is -inf."""
    classes = max(array.shape[-1] for array in arrays)
    rows = [array.reshape(-1, array.shape[-1]).astype(np.float64) for array in arrays if array.size]
    wide = [np.pad(each, ((0, 0), (0, classes - each.shape[1])), constant_values=-np.inf) for each in rows]
    return np.concatenate(wide) if wide else np.zeros((0, classes))


def _truth(labels: np.ndarray, scores: Any) -> Any:
    """Return labels in the form of what they are compared with: by sample, by position, or as they are."""
    is_ragged = labels.dtype == object
    if isinstance(scores, list) or (isinstance(scores, dict) and is_ragged):
        return list(labels) if is_ragged else labels
    if not isinstance(scores, np.ndarray) or scores.ndim != 2:
        return np.concatenate(list(labels)) if is_ragged and not _is_ragged(list(labels)) else labels
    return np.concatenate([np.ravel(each) for each in labels]) if is_ragged else labels


def _scored(score: metrics.Metric, outputs: Any, truth: Any, name: str) -> float:
    try:
        value = float(score(outputs, truth))
    except MemoryError:
        raise
    except Exception as error:  # the user's own function may raise anything
        text = " ".join(str(error).split())
        hint = "Labels and outputs have to fit each other"
        raise DataError(f"metric {name!r} failed: {type(error).__name__}: {text}", hint=hint) from error
    if not math.isfinite(value):
        raise DataError(f"metric {name!r} is {value}", hint="Look for outputs or labels that are not numbers")
    return value
