"""Two models side by side: size, outputs, score and speed.

original, other --run on the same feeds--> differences, scores --race--> Comparison
"""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np
import onnx_ir as ir

from ..data import evaluation_set, synthetic
from ..data.evaluation_set import DataOptions, Evaluation
from ..errors import DataError, LimitError, ModelError, UsageError
from ..io import model_io
from ..quality import equality, metrics
from ..quality.estimated_drop import ClassScores, OutputKinds
from ..quality.output_error import Difference
from ..runtime import session as runtime
from ..shapes import count as counting
from .report import ModelFacts

if TYPE_CHECKING:
    import onnx
    import onnx_graphsurgeon as gs

Progress = Callable[[str, Sequence[Any]], Iterator[Any]]

LARGEST_BYTES = 2**31 - 1
"""What onnxruntime can be given in one piece."""

ESTIMATED = "estimated"
"""What is reported without labels where outputs score classes; the others, and none of these, by cosine."""

_EQUALITY_FEEDS = 4
"""Feeds on which equality is tested, with the runtime's optimizations off."""
_SYNTHETIC_FEEDS = 2


@dataclass(frozen=True, kw_only=True)
class Comparison:
    """What `compare` found; `difference` says where outputs differ beyond rounding, None where nowhere."""

    original: ModelFacts
    compressed: ModelFacts
    difference: str | None
    quality: Mapping[str, Any]
    latency: Mapping[str, Any]
    limits: Mapping[str, Any]
    notes: tuple[str, ...] = field(default=())

    def as_json(self) -> dict[str, Any]:
        """Return the comparison as JSON-serialisable values."""
        return {
            "schema": 1,
            "original": self.original.as_json(),
            "compressed": self.compressed.as_json(),
            "equal": self.difference is None,
            "difference": self.difference,
            "limits": dict(self.limits),
            "quality": dict(self.quality),
            "latency": dict(self.latency),
            "notes": list(self.notes),
        }


def compare(
    original: str | os.PathLike[str] | onnx.ModelProto | ir.Model | gs.Graph,
    other: str | os.PathLike[str] | onnx.ModelProto | ir.Model | gs.Graph,
    *,
    data: Any = None,
    eval_data: Any = None,
    metric: str | None = None,
    max_drop: float | None = None,
    data_options: DataOptions = DataOptions(),  # noqa: B008 - frozen
    seed: int = 0,
    threads: int = 1,
    progress: Progress = lambda _, items: iter(items),
) -> Comparison:
    """Run two models with the same inputs on the same feeds and say how they differ.

    Args:
        original: the model that is right by definition.
        other: the model that is compared with it.
        data: feeds for both; without any, made-up ones.
        eval_data: feeds with labels, by which both are scored (default: `data`).
        metric: `top1`, `top5`, `cosine`, `agreement`, or `module:function(outputs, labels)`; by default `top1`
            with labels and `cosine` without.
        max_drop: most that the metric may fall, absolute.
        data_options: how data is read.
        seed: of made-up feeds.
        threads: of the runtime when it is timed.
        progress: wraps the loop over feeds.

    Raises:
        ModelError: a model can't be read or run, or their inputs or outputs have different names.
        DataError: the data does not fit.
        LimitError: the metric falls by more than `max_drop`; its `report` is the comparison.
    """
    a, b = model_io.load(original), model_io.load(other)
    plain_a, plain_b = open_one(a, original, optimize=False), open_one(b, other, optimize=False)
    _check_interface(plain_a, plain_b)
    source = eval_data if eval_data is not None else data
    if source is None:
        feeds = synthetic.runnable_feeds(a, plain_a, seed=seed, count=_SYNTHETIC_FEEDS)
        judged = Evaluation(feeds=feeds, source="synthetic")
    else:
        judged = evaluation_set.read(source, plain_a.inputs, data_options)
    difference = next(
        (
            fault
            for feed in judged.feeds[:_EQUALITY_FEEDS]
            if (fault := equality.mismatch(plain_a.run(feed), plain_b.run(feed)))
        ),
        None,
    )
    fast_a = open_one(a, original, optimize=True, threads=threads)
    fast_b = open_one(b, other, optimize=True, threads=threads)
    quality = measure(fast_a, fast_b, judged, metric=metric, kinds=OutputKinds.of(a), progress=progress)
    largest = judged.largest()
    result = Comparison(
        original=facts(a, counting.count(a, largest), path_of(original)),
        compressed=facts(b, counting.count(b, largest), path_of(other)),
        difference=difference,
        quality=quality,
        latency=runtime.race(fast_a, fast_b, largest).as_json(),
        limits={"max_drop": max_drop},
        notes=(*judged.notes(), *silent_outputs(quality)),
    )
    check_drop(quality, max_drop, result)
    return result


def path_of(source: object) -> str | None:
    """Return the path of a source that is one."""
    return os.fspath(source) if isinstance(source, str | os.PathLike) else None


def open_one(model: ir.Model, source: object, *, optimize: bool, threads: int = 1) -> runtime.Session:
    """Load a model in the runtime: from memory, or from its file where it is over 2 GiB."""
    path = path_of(source)
    if path is not None and model_io.model_bytes(model) > LARGEST_BYTES:
        return runtime.open_session(Path(path), optimize=optimize, threads=threads)
    return open_bytes(model_io.to_bytes(model), source, optimize=optimize, threads=threads)


def open_bytes(data: bytes, source: object, *, optimize: bool, threads: int = 1) -> runtime.Session:
    """Load a serialized model in the runtime; a failure names the path that it came from."""
    try:
        return runtime.open_session(data, optimize=optimize, threads=threads)
    except ModelError as error:
        raise ModelError(error.message, where=error.where or path_of(source) or "", hint=error.hint) from error


def facts(model: ir.Model, counts: counting.Counts, path: str | None, *, size_bytes: int | None = None) -> ModelFacts:
    """Return the figures of a model; bytes are those of its file, external data included.

    Args:
        model: the model.
        counts: what `stats.count` found in it.
        path: the file that it was loaded from, None where there is none.
        size_bytes: what `model_io.model_bytes` says of it, where the caller knows it already.
    """
    found = ModelFacts(
        path=path,
        bytes=model_io.model_bytes(model) if size_bytes is None else size_bytes,
        nodes=counts.nodes,
        parameters=counts.parameters,
        macs=counts.macs,
    )
    on_disk = 0 if path is None else Path(path).stat().st_size
    return replace(found, bytes=on_disk) if on_disk >= found.bytes // 2 else found


def check_drop(quality: Mapping[str, Any], max_drop: float | None, report: object) -> None:
    """Raise LimitError, with the report, where the metric falls by more than it may."""
    drop = quality.get("drop")
    if max_drop is not None and drop is not None and drop > max_drop:
        text = f"{quality['metric']} falls by {drop:.4g}, more than --max-drop {max_drop:g} allows"
        raise LimitError(text, report=report)


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


def _check_interface(a: runtime.Session, b: runtime.Session) -> None:
    for kind, ours, theirs in (("inputs", a.inputs, b.inputs), ("outputs", a.outputs, b.outputs)):
        names, others = [spec.name for spec in ours], [spec.name for spec in theirs]
        if sorted(names) != sorted(others):
            raise ModelError(
                f"the {kind} are {', '.join(names)} in the first and {', '.join(others)} in the second model"
            )
