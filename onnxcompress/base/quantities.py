"""Sizes as people write them."""

from __future__ import annotations

import re

from ..errors import UsageError

_SECONDS = {"h": 3600.0, "m": 60.0, "s": 1.0, "": 1.0}


_UNITS = (("gib", 2**30), ("mib", 2**20), ("kib", 2**10), ("gb", 10**9), ("mb", 10**6), ("kb", 10**3), ("b", 1))


def parse_bytes(text: str, *, where: str = "--max-bytes") -> int:
    """Return the number of bytes of "5MB", "500KB", "1.5 MiB" or "70000".

    Raises:
        UsageError: it has another form, or is no byte at all; `where` names the option.
    """
    match = re.fullmatch(r"\s*(\d+(?:\.\d+)?)\s*([a-z]*)\s*", text.lower())
    units = {"": 1, **dict(_UNITS)}
    if match is None or match[2] not in units:
        raise UsageError(f"{text!r} is no size", where=where, hint="Write it as 5MB, 500KB, 1.5MiB or 70000")
    count = int(float(match[1]) * units[match[2]])
    if count < 1:
        raise UsageError(f"{text!r} leaves no byte", where=where)
    return count


def show_bytes(count: float) -> str:
    """Return a size in the unit in which it has one to three digits before the point."""
    for unit, factor in (("GB", 10**9), ("MB", 10**6), ("KB", 10**3)):
        if count >= factor:
            return f"{count / factor:.1f} {unit}"
    return f"{count:.0f} bytes"


def parse_seconds(text: str, *, where: str = "--time-limit") -> float:
    """Return the seconds of "10m", "90s", "1h30m" or "600".

    Raises:
        UsageError: it has another form, or is no time at all; `where` names the option.
    """
    plain = text.strip().lower()
    parts = re.findall(r"(\d+(?:\.\d+)?)\s*([hms]?)\s*", plain)
    if not re.fullmatch(r"(\d+(?:\.\d+)?\s*[hms]\s*)+|\d+(?:\.\d+)?", plain):
        raise UsageError(f"{text!r} is no time", where=where, hint="Write it as 10m, 90s, 1h30m or 600")
    seconds = sum(float(number) * _SECONDS[unit] for number, unit in parts)
    if seconds <= 0:
        raise UsageError(f"{text!r} leaves no time", where=where)
    return seconds
