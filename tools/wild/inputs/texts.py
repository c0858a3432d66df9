"""Sentences and words in many languages, out of Django's translations and Faker's lists of names."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from functools import lru_cache
from types import ModuleType

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
def english(sources: Sources, *, least: int = 30, most: int = 300) -> tuple[str, ...]:
    """Return this half's sentences out of scikit-learn's descriptions of its data sets, in a random order."""
    found = set()
    for content in sources.read("scikit_learn", "sklearn/datasets/descr/*.rst").values():
        plain = re.sub(r"\s+", " ", re.sub(r"[`*:|_=~^-]{2,}|``?|\.\. \w+::", " ", content.decode()))
        found |= {sentence.strip() for sentence in re.split(r"(?<=[.?!]) ", plain) if least <= len(sentence) <= most}
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
    return constants_of(ast.parse(source).body)


def constants_of(statements: list[ast.stmt]) -> dict[str, object]:
    """Return what these statements assign, as far as it is written out."""
    found: dict[str, object] = {}
    for node in statements:
        target = (
            node.target
            if isinstance(node, ast.AnnAssign)
            else node.targets[0]
            if isinstance(node, ast.Assign)
            else None
        )
        if isinstance(target, ast.Name):
            try:
                found[target.id] = ast.literal_eval(node.value)  # type: ignore[union-attr, arg-type]
            except ValueError:
                continue
    return found


def module(source: bytes, name: str) -> ModuleType:
    """Run a Python source of a pinned package and return it as a module: features that only the package defines."""
    made = ModuleType(name)
    exec(compile(source, f"{name}.py", "exec"), made.__dict__)  # noqa: S102
    return made


def class_constants(source: bytes) -> dict[str, object]:
    """Return the constants of the classes in a Python source."""
    bodies = [node.body for node in ast.parse(source).body if isinstance(node, ast.ClassDef)]
    return constants_of([statement for body in bodies for statement in body])
