"""Inputs of models that look at the bytes of files."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from ..catalog import Feed, Sources

KINDS = {
    "django": ("py", "js", "css", "po", "html", "svg", "mo", "txt", "xml", "gz"),
    "scikit_learn": ("rst", "csv", "jpg", "pyi", "h", "gz", "so", "pyx", "css"),
    "scikit_image": ("npz", "npy", "png", "py", "pyi"),
    "magika": ("json",),
}
"""Package -> endings of names in it, by which files of many kinds are found."""


def magika(sources: Sources) -> Iterator[Feed]:
    """Yield "bytes" [1, 2048]: the first and last 1,024 bytes of a file of some kind.

    As in magika.py and standard_v3_3/config.min.json of the package: the first 4,096 bytes without white space
    before, the last without white space behind, 1,024 of each, filled up with 256 behind and before.
    """
    by_kind: dict[str, list[bytes]] = {}
    for key, kinds in KINDS.items():
        for name, content in sources.read(key, *(f"*.{kind}" for kind in kinds)).items():
            if len(content) > 200:
                by_kind.setdefault(name.rpartition(".")[2], []).append(content)
    order = np.random.default_rng(17)
    stock = {kind: sources.half([items[i] for i in order.permutation(len(items))]) for kind, items in by_kind.items()}
    for turn in range(10_000):
        for items in stock.values():
            if turn < len(items):
                yield {"bytes": np.array([_ends(items[turn])], np.int32)}


def _ends(content: bytes) -> list[int]:
    first = content[:4096].lstrip()[:1024]
    last = content[-4096:].rstrip()[-1024:]
    return [*first, *[256] * (1024 - len(first)), *[256] * (1024 - len(last)), *last]
