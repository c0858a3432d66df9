"""Distance of the loss estimated without labels from the loss by labels, on a bank of damaged models."""

from __future__ import annotations

import importlib
import json
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from scipy.stats import spearmanr

from bench.tables import Table
from bench.verdict_bank import SUBJECTS, Case, cases
from onnxcompress.data.evaluation_set import Evaluation
from onnxcompress.quality import compare_outputs
from onnxcompress.quality.output_plan import OutputPlan
from onnxcompress.quality.output_sources import Ending, Source

COUNTS = (16, 32, 64, 128, 256)
"""Samples to judge by."""
_DRAWS = 20
"""Choices of samples for each damaged model, where there are more than are wanted."""
_MOST_LOSS = 0.15
"""Models that lose more are not counted in errors and ranks: nobody asks how much worse than destroyed they are."""
_LARGE, _PASSED, _SMALL = 0.02, 0.01, 0.005
"""Losses over the first must not be told as under the second; those under the third should be."""
_UNSURE = 0.01
"""Part of the labelled answers that change to and fro, beside those that are lost: for the error of the true loss."""
_Z90 = 1.645
"""Standard errors in half of a 90% interval of a normal distribution."""

Runs = Sequence[Mapping[str, np.ndarray]]
"""For each sample the outputs by name."""
Told = tuple[float, float, float]
"""Estimate, lower and upper end of its 90% interval; the ends are NaN where there is none."""
Estimator = Callable[[Runs, Runs, Mapping[str, Any]], Told | None]
"""(the original's outputs, the result's, facts of the original: `logits`, `sigmoids`, `state`) -> an estimate, None
where nothing can be estimated."""


@dataclass(frozen=True, kw_only=True)
class Draw:
    """Estimate for one damaged model by one choice of samples."""

    model: str
    damage: str
    samples: int
    loss: float
    error: float
    told: Told

    @property
    def off(self) -> float:
        """Excess of the estimate over the true loss."""
        return self.told[0] - self.loss


class _Replay:
    """A session that gives recorded outputs one after another."""

    def __init__(self, runs: Runs) -> None:
        self._runs = iter(runs)

    def run(self, _: Mapping[str, Any]) -> dict[str, Any]:
        return dict(next(self._runs))


def judge(original: Runs, result: Runs, facts: Mapping[str, Any]) -> Told | None:
    """Estimate as reports and searches do."""
    endings = dict.fromkeys(facts["logits"], Ending.PRODUCT) | dict.fromkeys(facts["sigmoids"], Ending.SIGMOID)
    sources = {name: Source(endings.get(name, Ending.OTHER), "the last layer") for name in original[0]}
    plan = OutputPlan(sources, states=frozenset(facts["state"].values()))
    samples = Evaluation(feeds=[{} for _ in original], source="bank", state=facts["state"])
    quality = compare_outputs.measure(_Replay(original), _Replay(result), samples, plan=plan)
    if quality.drop is None or quality.drop_interval is None:
        return None
    return quality.drop, *quality.drop_interval


def estimator(name: str) -> Estimator:
    """Return `judge`, or `module:function`.

    Raises:
        ValueError: there is no such function.
    """
    if name == "judge":
        return judge
    module, _, function = name.partition(":")
    try:
        found: Estimator = getattr(importlib.import_module(module), function)
    except (ImportError, AttributeError) as error:
        raise ValueError(f"no estimator {name!r}: {error}") from error
    return found


def measure(bank: Path, tell: Estimator, keys: Sequence[str], counts: Sequence[int] = COUNTS) -> Iterator[Draw]:
    """Ask an estimator about every damaged model, on several choices of samples that no recipe saw.

    Where there are fewer samples than wanted but at least half as many, all are taken.
    """
    for case in cases(bank, [key for key in SUBJECTS if key in keys]):
        unseen = np.flatnonzero(~case.damaged.seen)
        generator = np.random.default_rng(0)
        for count in counts:
            if len(unseen) < count / 2:
                continue
            for _ in range(_DRAWS if len(unseen) > count else 1):
                chosen = np.sort(generator.permutation(unseen)[:count])
                pair = [[each.samples[index] for index in chosen] for each in (case.original, case.damaged)]
                told = tell(pair[0], pair[1], case.facts)
                if told is not None:
                    yield Draw(
                        model=case.model,
                        damage=case.damage,
                        samples=count,
                        loss=case.loss,
                        error=_standard_error(case),
                        told=told,
                    )


def _standard_error(case: Case) -> float:
    """Return about how far the loss by labels may be off, since the labels are so few."""
    return math.sqrt((abs(case.loss) + _UNSURE) / case.labelled)


def by_count(draws: Sequence[Draw]) -> Table:
    """Tabulate the errors for each number of samples; every original weighs the same."""
    out = Table("Loss told without labels against loss by labels, in points, by number of samples", _columns("samples"))
    for count in sorted({draw.samples for draw in draws}):
        _add(out, str(count), [draw for draw in draws if draw.samples == count])
    return out


def by_model(draws: Sequence[Draw], count: int) -> Table:
    """Tabulate the same for each original."""
    out = Table(f"The same by model, {count} samples", _columns("model"))
    for model in dict.fromkeys(draw.model for draw in draws):
        _add(out, model, [draw for draw in draws if draw.samples == count and draw.model == model])
    return out


def by_damage(draws: Sequence[Draw], count: int) -> Table:
    """Tabulate the estimates for each damaged model."""
    out = Table(
        f"Every damaged model, {count} samples, in points", ["model", "damage", "loss", "+-", "told", "interval"]
    )
    for key in dict.fromkeys((draw.model, draw.damage) for draw in draws):
        group = [draw for draw in draws if draw.samples == count and (draw.model, draw.damage) == key]
        if group:
            told, low, high = (100 * float(np.median([draw.told[k] for draw in group])) for k in range(3))
            interval = None if math.isnan(low) else f"{low:.2f} to {high:.2f}"
            out.add(*key, 100 * group[0].loss, 100 * group[0].error, told, interval)
    return out


def _columns(first: str) -> list[str]:
    errors = [first, "damaged models", "bias", "median error", "90% error", "interval holds", "width"]
    return [*errors, f"over {100 * _LARGE:g} told under {100 * _PASSED:g}", f"under {100 * _SMALL:g} told over", "rank"]


def _add(out: Table, title: str, draws: Sequence[Draw]) -> None:
    """Add a row; destroyed models count only where it is asked whether large losses are seen."""
    mild = [draw for draw in draws if draw.loss <= _MOST_LOSS]
    if not mild:
        return
    off, weights = np.array([draw.off for draw in mild]), _weights(mild)
    large = [draw for draw in draws if draw.loss - draw.error > _LARGE]
    small = [draw for draw in draws if draw.loss + draw.error < _SMALL]
    ranges = [draw for draw in mild if not math.isnan(draw.told[1])]
    held = [d.told[1] - _Z90 * d.error <= d.loss <= d.told[2] + _Z90 * d.error for d in ranges]
    widths = np.array([draw.told[2] - draw.told[1] for draw in ranges])
    out.add(
        title,
        len({(draw.model, draw.damage) for draw in mild}),
        100 * float(weights @ off),
        100 * quantile(np.abs(off), weights, 0.5),
        100 * quantile(np.abs(off), weights, 0.9),
        _share(held, ranges),
        100 * quantile(widths, _weights(ranges), 0.5) if ranges else None,
        _share([draw.told[0] <= _PASSED for draw in large], large),
        _share([draw.told[0] > _PASSED for draw in small], small),
        _rank(mild),
    )


def _weights(draws: Sequence[Draw]) -> np.ndarray:
    """Return a weight for each draw, so that originals weigh the same, and so do the damages of each."""
    models: dict[str, set[str]] = {}
    draws_of: dict[tuple[str, str], int] = {}
    for draw in draws:
        models.setdefault(draw.model, set()).add(draw.damage)
        draws_of[draw.model, draw.damage] = draws_of.get((draw.model, draw.damage), 0) + 1
    shares = [1 / len(models[draw.model]) / draws_of[draw.model, draw.damage] for draw in draws]
    return np.array(shares) / max(1, len(models))


def quantile(values: np.ndarray, weights: np.ndarray, part: float) -> float:
    """Return the value below which lies that part of the weight."""
    order = np.argsort(values)
    place = np.searchsorted(np.cumsum(weights[order]), part * weights.sum())
    return float(values[order][min(int(place), len(values) - 1)])


def _share(flags: Sequence[bool], draws: Sequence[Draw]) -> float | None:
    return float(_weights(draws) @ np.array(flags, float)) if draws else None


def _rank(draws: Sequence[Draw]) -> float | None:
    """Return the mean over originals of the rank correlation of told and true losses, one draw of each damage."""
    found = []
    for model in {draw.model for draw in draws}:
        told: dict[str, list[Draw]] = {}
        for draw in draws:
            if draw.model == model:
                told.setdefault(draw.damage, []).append(draw)
        rounds = min(len(each) for each in told.values())
        for index in range(rounds) if len(told) > 2 else ():
            row = [each[index] for each in told.values()]
            found.append(float(spearmanr([d.loss for d in row], [d.told[0] for d in row]).statistic))
    known = [value for value in found if not math.isnan(value)]
    return float(np.mean(known)) if known else None


def as_json(draws: Sequence[Draw]) -> str:
    """Return all figures as JSON."""
    return json.dumps([asdict(draw) for draw in draws]) + "\n"
