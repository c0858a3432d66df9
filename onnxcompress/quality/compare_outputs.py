"""Runs two models on the same samples and compares outputs and scores."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any, Protocol

import numpy as np

from ..core import Progress
from ..data.evaluation_set import Evaluation
from ..errors import DataError, UsageError
from . import metrics
from .estimated_drop import ClassScores, OutputKinds
from .output_error import Difference

ESTIMATED = "estimated"
"""What is reported without labels where outputs score classes; the others, and none of these, by cosine."""


class Runs(Protocol):
    """What runs a model: a session, or something that stands in for one."""

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
) -> dict[str, Any]:
    """Run both models as a user would, each with its own state, and compare outputs and score.

    Returns:
        the report's `quality` object; `original` and `compressed` are None where no output can be scored.

    Raises:
        ModelError: a model can't run a feed, or gives another kind of output than the original.
        UsageError: the metric needs labels and there are none.
    """
    name = metric or ("top1" if judged.labels is not None else ESTIMATED)
    score = None if name == ESTIMATED else metrics.resolve_metric(name)
    if score is not None and metrics.needs_labels(name) and judged.labels is None:
        hint = "Give --eval data with an array named label, labels or y"
        raise UsageError(f"metric {name!r} needs labels, and the data has none", hint=hint)
    differences: dict[str, Difference] = {}
    collected: tuple[list[dict[str, Any]], list[dict[str, Any]]] = ([], [])
    keeps = name not in ("cosine", ESTIMATED)
    estimates: dict[str, ClassScores] = {}
    before: dict[str, Any] = {}
    after: dict[str, Any] = {}
    count = len(judged.feeds)
    pairs = zip(judged.stateful(before), judged.stateful(after), strict=True)
    for _ in progress("Comparing", range(count)):
        feed_a, feed_b = next(pairs)
        found = original.run(feed_a)
        before.update(found)
        after.update(found if other is original else other.run(feed_b))
        for output, expected in before.items():
            if isinstance(expected, np.ndarray) and expected.dtype.kind == "f":
                is_sigmoid = output in kinds.sigmoids
                differences.setdefault(output, Difference(output, is_sigmoid=is_sigmoid)).add(expected, after[output])
                if name == ESTIMATED:
                    scores = estimates.setdefault(output, ClassScores(is_logits=output in kinds.logits))
                    scores.add(expected, after[output])
        if keeps:
            collected[0].append(dict(before))
            collected[1].append(dict(after))
    outputs = {output: difference.as_json() for output, difference in differences.items()}
    samples = count if judged.labels is None else len(judged.labels)
    quality: dict[str, Any] = {"metric": name, "samples": samples, "data": judged.source, "outputs": outputs}
    if name == ESTIMATED:
        for output, scores in estimates.items():
            if scores.is_scores:
                outputs[output] |= scores.as_json()
        return quality | _estimated({k: v for k, v in outputs.items() if k not in judged.state.values()})
    if score is None or not keeps:
        scored = {k: v for k, v in outputs.items() if k not in judged.state.values()}
        worst = min((o["cosine"] for o in scored.values() if o["cosine"] is not None), default=None)
        was: float | None = None if worst is None else 1.0
        return quality | {"original": was, "compressed": worst, "drop": None if worst is None else 1.0 - worst}
    named = ":" in name
    was_all, now_all = (_scorable(each, whole=named) for each in collected)
    truth = judged.labels if metrics.needs_labels(name) else was_all
    was, now = _scored(score, was_all, truth, name), _scored(score, now_all, truth, name)
    return quality | {"original": was, "compressed": now, "drop": was - now}


def _estimated(outputs: Mapping[str, Mapping[str, Any]]) -> dict[str, Any]:
    """Return metric, original, compressed and drop of the output that loses most.

    An output that scores classes loses what `estimate` says, any other one 1 - cosine: of its values, or of its
    answers where it is a sigmoid's and near zero everywhere.
    """
    cosines = {n: "cosine_of_answers" if "cosine_of_answers" in found else "cosine" for n, found in outputs.items()}
    losses = {n: found.get("estimated_drop", _one_minus(found[cosines[n]])) for n, found in outputs.items()}
    known = {name: loss for name, loss in losses.items() if loss is not None}
    if not known:
        return {"metric": "cosine", "original": None, "compressed": None, "drop": None}
    worst = max(known, key=lambda name: (known[name], "estimated_drop" in outputs[name]))
    found, cosine = outputs[worst], cosines[worst]
    if "estimated_drop" not in found:
        return {"metric": cosine, "original": 1.0, "compressed": found[cosine], "drop": known[worst]}
    return {
        "metric": ESTIMATED,
        "original": found["confidence"],
        "compressed": found["confidence"] - found["estimated_drop"],
        "drop": found["estimated_drop"],
        "disagreement": found["disagreement"],
    }


def silent_outputs(quality: Mapping[str, Any]) -> list[str]:
    """Return a line for each sigmoid output that says yes on no sample: its quality could not be seen."""
    return [
        f"output {name!r} is at most {found['largest']:.2g} on all samples, and 1 would be a yes: only its noes were "
        "compared; samples with what the model looks for (--data, --eval) would show the rest"
        for name, found in quality["outputs"].items()
        if "cosine_of_answers" in found and not metrics.needs_labels(quality["metric"])
    ]


def _one_minus(value: float | None) -> float | None:
    return None if value is None else 1.0 - value


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
