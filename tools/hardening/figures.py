"""Puts a table where BENCHMARKS.md keeps it, between two marks."""

from __future__ import annotations

from pathlib import Path


def put(path: Path, name: str, text: str) -> None:
    """Replace what stands between `<!-- NAME -->` and `<!-- /NAME -->` in a file.

    Raises:
        ValueError: the file has no such marks.
    """
    content = path.read_text()
    start, end = f"<!-- {name} -->", f"<!-- /{name} -->"
    if start not in content or end not in content:
        msg = f"{path} has no place for {name}: {start} and {end}"
        raise ValueError(msg)
    before, _, rest = content.partition(start)
    _, _, after = rest.partition(end)
    path.write_text(f"{before}{start}\n{text.strip()}\n{end}{after}")
