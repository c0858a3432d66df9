"""Runs two models on the same samples and compares outputs and scores."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, Protocol

import numpy as np

from ..core import Progress
from ..data.evaluation_set import Evaluation
from ..errors import DataError, UsageError
from . import metrics
from .estimated_drop import ClassScores, OutputKinds
from .output_error import Difference
from .result import OutputDifference, Quality

ESTIMATED = "estimated"
"""What is reported without labels where outputs score classes; the others, and none of these, by cosine."""


class Runs(Protocol):
    """A model that can be run: a session, or a stand-in for one."""

    def run(self, feed: Mapping[str, Any]) -> dict[str, Any]:
        """Return output name -> array."""
        ...


def measure(
    original: Runs,
    other: Runs,
    judged: Evaluation,
    *,
    metric: str | None = None,
    kinds: OutputKinds = OutputKinds(),  # noqa: B008 - frozen
    progress: Progress = lambda _, items: iter(items),
) -> Quality:
    """Run both models as a user would, each with its own state, and compare outputs and score.

    `original` and `compressed` of the result are None where no output can be scored.

    Raises:
        ModelError: a model can't run a feed, or gives another kind of output than the original.
        UsageError: the metric needs labels and there are none.
    """
    name = metric or ("top1" if judged.labels is not None else ESTIMATED)
    score = None if name == ESTIMATED else metrics.resolve_metric(name)
    if score is not None and metrics.needs_labels(name) and judged.labels is None:
        hint = "Give --eval data with an array named label, labels or y"
        raise UsageError(f"metric {name!r} needs labels, and the data has none", hint=hint)
    by_outputs = score is None or name == "cosine"
    sums = _OutputSums(kinds, estimates=name == ESTIMATED)
    runs: tuple[list[dict[str, Any]], list[dict[str, Any]]] = ([], [])
    for before, after in _run_both(original, other, judged, progress):
        sums.add(before, after)
        if not by_outputs:
            runs[0].append(dict(before))
            runs[1].append(dict(after))
    outputs = sums.results()
    samples = len(judged.feeds) if judged.labels is None else len(judged.labels)
    make = functools.partial(Quality, samples=samples, data=judged.source, outputs=outputs)
    scored = {output: found for output, found in outputs.items() if output not in judged.state.values()}
    if name == ESTIMATED:
        return _estimated(make, scored)
    if score is None or by_outputs:
        worst = min((found.cosine for found in scored.values() if found.cosine is not None), default=None)
        return _by_cosine(make, name, worst)
    was_all, now_all = (_scorable(each, whole=":" in name) for each in runs)
    truth = judged.labels if metrics.needs_labels(name) else was_all
    was, now = _scored(score, was_all, truth, name), _scored(score, now_all, truth, name)
    return make(metric=name, original=was, compressed=now, drop=was - now)


def _run_both(
    original: Runs, other: Runs, judged: Evaluation, progress: Progress
) -> Iterator[tuple[dict[str, Any], dict[str, Any]]]:
    """Yield the outputs of both models for each feed, in two dictionaries that the next feed overwrites."""
    before: dict[str, Any] = {}
    after: dict[str, Any] = {}
    pairs = zip(judged.stateful(before), judged.stateful(after), strict=True)
    for _ in progress("Comparing", range(len(judged.feeds))):
        feed_a, feed_b = next(pairs)
        found = original.run(feed_a)
        before.update(found)
        after.update(found if other is original else other.run(feed_b))
        yield before, after


class _OutputSums:
    """Running sums of all float outputs.

    Args:
        kinds: what the outputs are.
        estimates: also estimate the loss of outputs that score classes.
    """

    def __init__(self, kinds: OutputKinds, *, estimates: bool) -> None:
        self._kinds = kinds
        self._estimates = estimates
        self._differences: dict[str, Difference] = {}
        self._scores: dict[str, ClassScores] = {}

    def add(self, before: Mapping[str, Any], after: Mapping[str, Any]) -> None:
        """Count the outputs of both models for one feed."""
        for name, expected in before.items():
            if not (isinstance(expected, np.ndarray) and expected.dtype.kind == "f"):
                continue
            difference = self._differences.setdefault(name, Difference(name, is_sigmoid=name in self._kinds.sigmoids))
            difference.add(expected, after[name])
            if self._estimates:
                scores = self._scores.setdefault(name, ClassScores(is_logits=name in self._kinds.logits))
                scores.add(expected, after[name])

    def results(self) -> dict[str, OutputDifference]:
        """Return the sums so far by output."""
        scores = {name: each.as_json() for name, each in self._scores.items() if each.is_scores}
        return {
            name: OutputDifference(**difference.as_json(), **scores.get(name, {}))
            for name, difference in self._differences.items()
        }


def _estimated(make: Callable[..., Quality], outputs: Mapping[str, OutputDifference]) -> Quality:
    """Return the quality by the output that loses most.

    An output that scores classes loses its estimated drop, any other one 1 - cosine: of its values, or of its
    answers where it is a sigmoid's and near zero everywhere.
    """
    losses = {name: _loss(found) for name, found in outputs.items()}
    known = {name: loss for name, loss in losses.items() if loss is not None}
    if not known:
        return _by_cosine(make, "cosine", None)
    worst = max(known, key=lambda name: (known[name], outputs[name].estimated_drop is not None))
    found = outputs[worst]
    if found.estimated_drop is None or found.confidence is None:
        name = "cosine_of_answers" if _is_silent(found) else "cosine"
        return _by_cosine(make, name, found.cosine_of_answers if _is_silent(found) else found.cosine)
    return make(
        metric=ESTIMATED,
        original=found.confidence,
        compressed=found.confidence - found.estimated_drop,
        drop=found.estimated_drop,
        disagreement=found.disagreement,
    )


def _loss(found: OutputDifference) -> float | None:
    if found.estimated_drop is not None:
        return found.estimated_drop
    cosine = found.cosine_of_answers if _is_silent(found) else found.cosine
    return None if cosine is None else 1.0 - cosine


def _by_cosine(make: Callable[..., Quality], name: str, cosine: float | None) -> Quality:
    drop = None if cosine is None else 1.0 - cosine
    return make(metric=name, original=None if cosine is None else 1.0, compressed=cosine, drop=drop)


def _is_silent(found: OutputDifference) -> bool:
    """Say whether an output is a sigmoid's that is below 0.5 on all samples."""
    return "cosine_of_answers" in found.model_fields_set


def silent_outputs(quality: Quality) -> list[str]:
    """Return a line for each sigmoid output that says yes on no sample: its quality could not be seen."""
    if metrics.needs_labels(quality.metric):
        return []
    return [
        f"output {name!r} is at most {found.largest:.2g} on all samples, and 1 would be a yes: only its noes were "
        "compared; samples with what the model looks for (--data, --eval) would show the rest"
        for name, found in quality.outputs.items()
        if _is_silent(found)
    ]


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
