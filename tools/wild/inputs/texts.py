"""Sentences and words in many languages, out of Django's translations and Faker's lists of names."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from functools import lru_cache

import numpy as np

from ..catalog import Sources

_MESSAGE = re.compile(r'^msgstr(?:\[\d\])? ((?:"(?:[^"\\]|\\.)*"\s*)+)', re.MULTILINE)
_PLACE = re.compile(r"%\([a-z_]+\)[sdi]|%[sdi]|\{[^}]*\}|<[^>]*>|&\w+;")


@lru_cache(maxsize=16)
def sentences(sources: Sources, language: str, *, least: int = 6) -> tuple[str, ...]:
    """Return this half's messages of Django in a language (a folder of its `locale`), without markup, each once.

    The order is random, the same each time.
    """
    files = sources.read("django", f"django/*/locale/{language}/LC_MESSAGES/django.po")
    found = set()
    for content in files.values():
        for match in _MESSAGE.finditer(content.decode()):
            text = "".join(ast.literal_eval(part) for part in re.findall(r'"(?:[^"\\]|\\.)*"', match[1]))
            text = re.sub(r"\s+", " ", _PLACE.sub(" ", text)).strip()
            if len(text) >= least and "Language-Team" not in text:
                found.add(text)
    return tuple(sources.half(shuffled(sorted(found))))


@lru_cache(maxsize=4)
def english(sources: Sources, *, least: int = 30) -> tuple[str, ...]:
    """Return this half's sentences out of scikit-learn's descriptions of its data sets, in a random order."""
    found = set()
    for content in sources.read("scikit_learn", "sklearn/datasets/descr/*.rst").values():
        plain = re.sub(r"\s+", " ", re.sub(r"[`*:|_=~^-]{2,}|``?|\.\. \w+::", " ", content.decode()))
        found |= {sentence.strip() for sentence in re.split(r"(?<=[.?!]) ", plain) if len(sentence) >= least}
    return tuple(sources.half(shuffled(sorted(found))))


def shuffled(items: list[str]) -> list[str]:
    """Return the items in a random order, the same one in both halves."""
    return [items[index] for index in np.random.default_rng(17).permutation(len(items))]


def repeat(items: tuple[str, ...]) -> Iterator[str]:
    """Yield the items again and again."""
    while True:
        yield from items


def constants(source: bytes) -> dict[str, object]:
    """Return the constants that a Python source assigns at its top level: tables that a package keeps in its code."""
    found: dict[str, object] = {}
    for node in ast.parse(source).body:
        if isinstance(node, ast.Assign) and isinstance(node.targets[0], ast.Name):
            try:
                found[node.targets[0].id] = ast.literal_eval(node.value)
            except ValueError:
                continue
    return found
