"""Numbers and reasons as text, and changes grouped by the kind of their reason."""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Sequence

from ..core import Change

_TYPE_NAME = re.compile(r"(u?int|b?float|fp)\d+\w*|\d+-?bits?|[A-Z][a-z]+\w*")
"""Words that are kept when reasons are compared although there is a digit in them: types and operators."""
_NUMBER = re.compile(r"-?\d[\d,.]*%?")


def number(value: int | None) -> str:
    """Return a whole number with separators."""
    return "unknown" if value is None else f"{value:,}"


def small(value: float) -> str:
    """Return a difference with four decimals, or two digits where those would all be zero."""
    return f"{value:.4f}" if value == 0 or abs(value) >= 0.0005 else f"{value:.2g}"


def counted(count: int, noun: str) -> str:
    """Return a number of things: "1 sample", "2,000 samples"."""
    return f"{count:,} {noun}" if count == 1 else f"{count:,} {noun}s"


def kind(reason: str) -> str:
    """Return a reason with the names and numbers that make it one of its kind replaced by "…" and "N"."""
    words: list[str] = []
    for word in reason.split():
        core = word.strip("\"'`()[]{},;:.")
        masked = _masked(core)
        shown = word if masked == core else word.replace(core, masked).replace("'", "")
        if masked == "…":
            shown = shown.rstrip(",;")
        if not (words and masked == "…" and words[-1] == "…"):
            words.append(shown)
    return " ".join(words)


def _masked(word: str) -> str:
    if _NUMBER.fullmatch(word):
        return "N"
    if _TYPE_NAME.fullmatch(word) or word.startswith("--") or not re.search(r"[\d/_:.]", word):
        return word
    return "…"


def grouped(changes: Sequence[Change]) -> dict[tuple[str, str], list[Change]]:
    """Return changes by pass and kind of reason; a kind with one wording only keeps that wording."""
    groups: defaultdict[tuple[str, str], list[Change]] = defaultdict(list)
    for change in changes:
        groups[change.pass_name, kind(change.reason)].append(change)
    return {
        (name, members[0].reason if len({c.reason for c in members}) == 1 else shape): members
        for (name, shape), members in groups.items()
    }
