"""Times as people write them."""

from __future__ import annotations

import re

from ..errors import UsageError

_SECONDS = {"h": 3600.0, "m": 60.0, "s": 1.0, "": 1.0}


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
