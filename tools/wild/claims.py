"""What is wrong with a row: the told against the measured, nothing done without a word, limits that were broken."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

LATENCY_OFF = 0.15
"""Part by which the told ratio of latencies may differ from the measured one, beyond the latter's interval."""
_POINT_SLACK = 0.0025
"""Quarter of a point: below this nobody minds, whatever the intervals say."""
_RELATIVE_SLACK = 0.25
"""Samples to work with and to judge are of other sources: a loss may differ by this part beyond both intervals."""
_SHIFTED = ("relative_rms", "cosine_distance")
"""Figures that the power of an error decides, for which a factor between two sources of samples can be measured."""
_HARMLESS, _GROSS = 0.01, 0.1
"""Where units differ: told as at most the first, measured as at least the second."""
_SMALLER = 0.98
"""Part of the bytes at which something was done."""
_MACS_MISSED = 0.02
"""By which `keep_macs` may be missed."""
MOST_CPU_SECONDS = 600.0
MOST_MODEL_SIZES, MORE_BYTES = 4, 1_000_000_000
"""Memory that a recipe may take: so many times the model, and so much more."""


def wrong_claims(
    told: Mapping[str, Any] | None, measured: Mapping[str, Any] | None, shifts: Mapping[str, float] | None = None
) -> list[str]:
    """Return what the report told and the measurement contradicts, each as one line.

    A told interval is wrong where it and the measured one, both with their slack, have no value in common. Where our
    kind has another unit than the report's, only this is wrong: told harmless, measured gross.

    Args:
        told: see `run.told_by`.
        measured: what `wild.judge` answered.
        shifts: output -> by which factor any error costs more on the samples that were judged (`shift.factors`).
    """
    if not told or not measured or measured["error"]:
        return []
    found = [
        line
        for name, output in told["outputs"].items()
        if output["drop"] is not None and name in measured["outputs"]
        for line in _wrong_loss(name, output, measured["outputs"][name], (shifts or {}).get(name, 1.0))
    ]
    latency, own = told["latency"], measured["latency"]
    if latency is not None and latency["trusted"] and own is not None:
        low, high = own["ratio_interval"]
        nearest = min(max(latency["ratio"], low), high)
        if abs(latency["ratio"] / nearest - 1) > LATENCY_OFF:
            found.append(f"latency: told {latency['ratio']:.3f}, measured {own['ratio']:.3f} ({low:.3f} to {high:.3f})")
    return found


def _wrong_loss(name: str, output: Mapping[str, Any], own: Mapping[str, Any], shift: float) -> list[str]:
    entry = own if own["kind"] == output["kind"] else own.get("as_told")
    low, high = output["interval"] or (output["drop"], output["drop"])
    if entry and entry["same_unit"]:
        if entry["figure"] in _SHIFTED:
            low, high = low * min(shift, 1.0), high * max(shift, 1.0)
        slack = max(_POINT_SLACK, _RELATIVE_SLACK * max(abs(low), abs(high)))
        first, last = entry["points_interval"]
        if first > high + slack:
            word = "understated"
        elif last < low - slack:
            word = "overstated"
        else:
            return []
        return [
            f"{name} ({output['kind']}): loss {word}: told {output['drop']:.4f} ({low:.4f} to {high:.4f}), "
            f"measured {entry['points']:.4f} ({first:.4f} to {last:.4f})"
        ]
    if own.get("points") is not None and high <= _HARMLESS and own["points_interval"][0] >= _GROSS:
        return [
            f"{name}: told harmless as {output['kind']} ({low:.4f} to {high:.4f}), "
            f"measured {own['figure']} {own['value']:.3f} as {own['kind']}"
        ]
    return []


def is_nothing(row: Mapping[str, Any]) -> bool:
    """Say whether a command that ended well did not do what its recipe is named after."""
    if row["exit_code"] != 0 or not row["recipe"] or row["size_ratio"] is None:
        return False
    if row["recipe"] == "prune":
        return bool(row["macs_ratio"] is not None and row["macs_ratio"] > row["keep_macs"] + _MACS_MISSED)
    return bool(row["size_ratio"] > _SMALLER)


def is_silent(row: Mapping[str, Any]) -> bool:
    """Say whether nothing was done and neither a change of the report, nor a note, nor the terminal says why.

    Of `fold` anything that is said will do: there may be nothing to fold.
    """
    if not is_nothing(row):
        return False
    said = bool(row["left_alone"] or row["notes"] or row["stderr_lines"])
    return not said and not (row["recipe"] == "fold" and row["applied"])


def broken_limits(row: Mapping[str, Any]) -> list[str]:
    """Return "time" and "memory" where a recipe takes more than the trial allows."""
    found = []
    if row["limit"] == "time" or (row["cpu_seconds"] or 0) > MOST_CPU_SECONDS:
        found.append("time")
    if row["limit"] == "memory" or (row["peak_bytes"] or 0) > MOST_MODEL_SIZES * row["model_bytes"] + MORE_BYTES:
        found.append("memory")
    return found


def outcome(row: Mapping[str, Any]) -> str:
    """Return one word or two for how a step went."""
    if row["limit"]:
        return f"over {row['limit']}"
    code = row["exit_code"]
    if code is None or code < 0:
        return "killed"
    if code == 70 or row["internal_errors"] or row["traceback"]:
        return "internal error"
    if code:
        return {1: "limit not met", 2: "usage", 3: "refused"}.get(code, f"exit {code}")
    if row["measured"] and row["measured"]["error"].startswith("result"):
        return "broken result"
    if row["claims"]:
        return "wrong claim"
    if is_silent(row):
        return "silent nothing"
    return "nothing" if is_nothing(row) else "done"
