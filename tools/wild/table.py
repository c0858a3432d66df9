"""Rows of the trial as tables, and the sums that it is to reach."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from bench.tables import Table

from wild import claims
from wild.runtime_best import points
from wild.steps import ORT, STEPS

_EQUAL_POINTS = 0.0025
"""Loss up to which two results are equally good whatever the intervals say: a quarter of a point."""
_DEFAULT_DROP = 0.01
"""Most that `int8` may lose by default."""
_EQUAL_COST = 0.02
"""Part by which size x latency may be above another's and count as equal: what timings differ by."""

Row = Mapping[str, Any]


def read_rows(results: Path) -> list[Row]:
    """Return all rows of a folder, models in alphabetical order, steps as they are run."""
    rows = [judged(json.loads(path.read_text())) for path in sorted(results.glob("*/*.json"))]
    order = list(STEPS)
    return sorted(rows, key=lambda row: (row["model"], order.index(row["step"]) if row["step"] in order else 99))


def judged(row: dict[str, Any]) -> Row:
    """Return a row with its claims and its outcome by the present rules."""
    if row["step"] == ORT:
        return row
    row["claims"] = claims.wrong_claims(row["told"], row["measured"], row.get("shifts"))
    row["over"] = claims.broken_limits(row)
    return row | {"outcome": claims.outcome(row)}


def by_row(rows: Sequence[Row]) -> Table:
    """Tabulate every step of every model."""
    out = Table(
        "Recipes on models that people have; losses in points of 0.01",
        ["model", "step", "exit", "outcome", "size", "latency", "measured", "loss", "told", "CPU s", "peak MB", "why"],
    )
    for row in rows:
        if row["step"] == ORT:
            _add_best(out, row, rows)
            continue
        measured, told = row["measured"], row["told"]
        latency = measured["latency"] if measured else None
        out.add(
            row["model"],
            row["step"],
            row["limit"] or row["exit_code"],
            row["outcome"],
            _ratio(row["size_ratio"]),
            _ratio(latency["ratio"] if latency else None),
            _figure(measured),
            _percent(points(measured)),
            _told(told),
            f"{row['cpu_seconds']:.0f}",
            f"{row['peak_bytes'] / 1e6:.0f}",
            _why(row),
        )
    return out


def _add_best(out: Table, row: Row, rows: Sequence[Row]) -> None:
    ours = next((each for each in rows if each["model"] == row["model"] and each["step"] == "int8"), None)
    best = best_setting(row, ours)
    if best is None:
        errors = Counter(each["error"][:80] or "loses more than our int8" for each in row["settings"])
        why = row.get("message") or "; ".join(f"{count} x {text}" for text, count in errors.most_common())
        out.add(row["model"], ORT, None, "no setting", *[None] * 7, why[:160])
        return
    measured = best["measured"]
    out.add(
        row["model"],
        ORT,
        None,
        best["setting"],
        _ratio(best["size_ratio"]),
        _ratio(measured["latency"]["ratio"]),
        _figure(measured),
        _percent(points(measured)),
        None,
        f"{best['cpu_seconds']:.0f}",
        f"{best['peak_bytes'] / 1e6:.0f}",
        "",
    )


def sums(rows: Sequence[Row]) -> Table:
    """Tabulate what the trial is to reach."""
    ours = [row for row in rows if row["step"] != ORT]
    out = Table("What the trial is to reach", ["", "found", "of", "which"])

    def count(title: str, which: Sequence[str], total: int) -> None:
        out.add(title, len(which), total, ", ".join(which[:12]) + (" ..." if len(which) > 12 else ""))

    def named(chosen: Sequence[Row]) -> list[str]:
        return [f"{row['model']}/{row['step']}" for row in chosen]

    crashed = [r for r in ours if r["outcome"] in ("internal error", "killed")]
    count("internal errors", named(crashed), len(ours))
    count("refused (exit 3) where onnxruntime runs", named([r for r in ours if r["runs"]]), len(ours))
    count("results that do not run", named([r for r in ours if r["outcome"] == "broken result"]), len(ours))
    compared = [r for r in ours if r["told"] and r["measured"]]
    wrong = [r for r in compared if r["claims"]]
    lost = [r for r in wrong if any(not c.startswith("latency") for c in r["claims"])]
    count("wrong claims: loss", named(lost), len(compared))
    slow = [r for r in wrong if any(c.startswith("latency") for c in r["claims"])]
    count("wrong claims: latency", named(slow), len(compared))
    count("silent nothings", named([r for r in ours if claims.is_silent(r)]), len(ours))
    for limit in ("time", "memory"):
        count(f"over the limit of {limit}", named([r for r in ours if limit in r["over"]]), len(ours))
    races = {row["model"]: is_not_worse(row, rows) for row in ours if row["step"] == "int8"}
    known = {model: well for model, well in races.items() if well is not None}
    worse = [model for model, well in known.items() if not well]
    count("int8 worse than onnxruntime's best of equal quality", worse, len(known))
    return out


def best_setting(row: Row, ours: Row | None) -> Mapping[str, Any] | None:
    """Return the setting of least size x latency of those that are as good as our result, or else as the best one.

    As good: it loses no more than ours, beyond a quarter of a point and the error of the measurement.
    """
    made = [each for each in row["settings"] if not each["error"] and points(each["measured"]) is not None]
    limit = _limit(ours)
    if limit is None and made:
        limit = max(_DEFAULT_DROP, min(_loss(each) for each in made))
    good = [each for each in made if limit is not None and _loss(each) <= limit]
    return min(good, key=_cost) if good else None


def is_not_worse(row: Row, rows: Sequence[Row]) -> bool | None:
    """Say whether our int8 is at least as good as onnxruntime's best at equal quality; None where nothing is known.

    It is worse, too, where it lost more than int8 may by default (by a factor where any error costs more on the
    samples to judge by, see `shift`) and onnxruntime has a result that loses no more than ours, and where it has no
    result and onnxruntime has one.
    """
    other = next((each for each in rows if each["model"] == row["model"] and each["step"] == ORT), None)
    if other is None:
        return None
    found = points(row["measured"])
    if found is None or row["size_ratio"] is None:
        return best_setting(other, None) is None
    latency = row["measured"]["latency"]["ratio"]
    cost = row["size_ratio"] * latency
    best = best_setting(other, row)
    if best is not None and cost > (1 + _EQUAL_COST) * _cost(best):
        return False
    harder = max([1.0, *row.get("shifts", {}).values()])
    return best is None or found[1] <= harder * _DEFAULT_DROP + _EQUAL_POINTS


def _limit(ours: Row | None) -> float | None:
    found = points(ours["measured"]) if ours else None
    return None if found is None else max(found[0] + _EQUAL_POINTS, found[2])


def _loss(setting: Mapping[str, Any]) -> float:
    found = points(setting["measured"])
    assert found is not None
    return found[0]


def _cost(setting: Mapping[str, Any]) -> float:
    ratio: float = setting["size_ratio"] * setting["measured"]["latency"]["ratio"]
    return ratio


def _why(row: Row) -> str:
    if row["claims"]:
        return "; ".join(row["claims"])[:200]
    if row["internal_errors"]:
        return str(row["internal_errors"][0])[:200]
    if row["exit_code"]:
        return str(row["message"])[:200]
    if claims.is_nothing(row) and row["left_alone"]:
        count, name, _, reason = row["left_alone"][0]
        return f"{count} x {name}: {reason}"[:120]
    return ""


def _figure(measured: Mapping[str, Any] | None) -> str | None:
    """Return the figure of the output that loses most."""
    known = [each for each in (measured or {"outputs": {}})["outputs"].values() if each.get("points") is not None]
    if not known:
        return (measured or {}).get("error") or None
    worst = max(known, key=lambda each: each["points"])
    return f"{worst['figure']} {worst['value']:.3g}"


def _told(told: Mapping[str, Any] | None) -> str | None:
    if not told or told["drop"] is None:
        return None
    interval = told["interval"]
    ends = f" ({100 * interval[0]:.2f} to {100 * interval[1]:.2f})" if interval else ""
    return f"{100 * told['drop']:.2f}{ends}"


def _ratio(value: float | None) -> str | None:
    return None if value is None else f"{value:.3f}"


def _percent(found: tuple[float, float, float] | None) -> str | None:
    return None if found is None else f"{100 * found[0]:.2f} ({100 * found[1]:.2f} to {100 * found[2]:.2f})"
