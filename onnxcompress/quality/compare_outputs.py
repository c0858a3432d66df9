"""Runs two models on the same samples and compares outputs and scores."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from ..core import Progress
from ..data.evaluation_set import Evaluation
from ..errors import DataError, UsageError
from . import metrics
from .output_error import Difference
from .output_sources import Ending
from .verdict import OutputPlan, Runs, Verdict, VerdictMeter, samples_needed, unsure

ESTIMATED = "estimated"
"""Name of the metric without labels: the loss of the worst output in points of its kind."""


def measure(
    original: Runs,
    other: Runs,
    judged: Evaluation,
    *,
    plan: OutputPlan,
    metric: str | None = None,
    progress: Progress = lambda _, items: iter(items),
) -> dict[str, Any]:
    """Run both models as a user would, each with its own state, and compare outputs and score.

    Args:
        original: gives the sources of the plan, see `OutputPlan.session`.
        other: the same, or `original` itself.
        judged: samples, and labels where there are any.
        plan: what is compared.
        metric: see `metrics`; by default top1 with labels, else the loss is estimated.
        progress: wraps the loop over the samples.

    Returns:
        the report's `quality` object; `drop` is None where no output can be scored.

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
    collected: tuple[list[dict[str, Any]], list[dict[str, Any]]] = ([], [])
    meter = VerdictMeter(plan)
    before: dict[str, Any] = {}
    after: dict[str, Any] = {}
    count = len(judged.feeds)
    pairs = zip(judged.stateful(before), judged.stateful(after), strict=True)
    for _ in progress("Comparing", range(count)):
        feed_a, feed_b = next(pairs)
        before.update(original.run(feed_a))
        after.update(before if other is original else other.run(feed_b))
        meter.add(feed_a, before, after)
        _add_differences(differences, plan, before, after)
        if score is not None:
            collected[0].append({output: before[output] for output in plan.sources})
            collected[1].append({output: after[output] for output in plan.sources})
    verdict = meter.verdict()
    samples = count if judged.labels is None else len(judged.labels)
    quality: dict[str, Any] = {"metric": name, "samples": samples, "data": judged.source}
    quality["outputs"] = _outputs(differences, verdict)
    quality["divergence"] = verdict.divergence
    if score is None:
        return quality | _estimated(verdict)
    named = ":" in name
    was_all, now_all = (_scorable(each, whole=named) for each in collected)
    truth = judged.labels if metrics.needs_labels(name) else was_all
    was, now = _scored(score, was_all, truth, name), _scored(score, now_all, truth, name)
    interval = metrics.drop_interval(name, was_all, now_all, truth)
    return quality | {"original": was, "compressed": now, "drop": was - now, "drop_interval": interval}


def _add_differences(
    differences: dict[str, Difference], plan: OutputPlan, before: Mapping[str, Any], after: Mapping[str, Any]
) -> None:
    for output, source in plan.sources.items():
        one, other = before[output], after[output]
        if isinstance(one, np.ndarray) and one.dtype.kind == "f" and getattr(other, "shape", None) == one.shape:
            is_sigmoid = source.ending is Ending.SIGMOID
            differences.setdefault(output, Difference(output, is_sigmoid=is_sigmoid)).add(one, other)


def _outputs(differences: Mapping[str, Difference], verdict: Verdict) -> dict[str, Any]:
    nothing = {"max_abs": None, "cosine": None, "sqnr_db": None}
    return {
        output.name: {
            **(differences[output.name].as_json() if output.name in differences else nothing),
            **output.as_json(),
        }
        for output in verdict.outputs
    }


def _estimated(verdict: Verdict) -> dict[str, Any]:
    """Return original, compressed, drop and its interval, of the output that loses most."""
    worst = verdict.worst
    if worst is None or worst.loss is None:
        return {"original": None, "compressed": None, "drop": None, "drop_interval": None}
    loss = worst.loss
    was = loss.figures.get("confidence", 1.0)
    found: dict[str, Any] = {
        "output": worst.name,
        "original": was,
        "compressed": was - loss.drop.value,
        "drop": loss.drop.value,
        "drop_interval": [loss.drop.low, loss.drop.high],
    }
    if "disagreement" in loss.figures:
        found["disagreement"] = loss.figures["disagreement"]
    return found


def quality_notes(quality: Mapping[str, Any], limit: float | None) -> list[str]:
    """Return a line for each thing that the user should know about how sure the figures are."""
    outputs: Mapping[str, Mapping[str, Any]] = quality["outputs"]
    is_estimated = not metrics.needs_labels(quality["metric"])
    lines = [
        f"output {name!r} is at most {found['largest']:.2g} on all samples, and 1 would be a yes: samples with what the "
        "model looks for (--data, --eval) would show the rest"
        for name, found in outputs.items()
        if found.get("largest") is not None and is_estimated
    ]
    if quality["metric"] != ESTIMATED:
        return lines
    lines += [
        f"output {name!r}: the model is unsure about these samples (mean confidence {found['confidence']:.2f}), so its "
        "loss may be told too high; samples of its classes, or labels (--eval), would give a sharper figure"
        for name, found in outputs.items()
        if unsure(found)
    ]
    interval = quality.get("drop_interval")
    needed = samples_needed(quality["drop"], interval, limit, quality["samples"]) if interval and limit else None
    if interval and needed is not None:
        lines.append(
            f"the loss is between {interval[0]:.4g} and {interval[1]:.4g} (90%), so these {quality['samples']} samples "
            f"don't settle whether it is within {limit:g}; about {needed} would"
        )
    if quality["drop"] is None:
        lines.append("no output could be scored, so the loss is unknown")
    return lines


def _scorable(runs: Sequence[Mapping[str, Any]], *, whole: bool) -> Any:
    """Return the first output over all samples; for a function of the user's all outputs, where there are several."""
    joined = {name: np.concatenate([np.atleast_1d(run[name]) for run in runs]) for name in runs[0]}
    return joined if whole and len(joined) > 1 else next(iter(joined.values()))


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
