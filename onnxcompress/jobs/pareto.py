"""Writes the front: the candidates that nothing beats in size, time and quality, each with its model, and an index."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import onnx_ir as ir

from ..base import atomic_files
from ..core import Candidate
from ..io import model_io
from .report import Report

INDEX = "front.json"
_SAFE = re.compile(r"[^A-Za-z0-9.-]+")


def check_front_folder(folder: Path, *, force: bool) -> None:
    """Raise, before any work is done, where the front can't be written to a folder.

    Raises:
        UsageError: it is there and not empty and `force` is off, or its own folder can't be made.
        ModelError: its folder is not writable.
    """
    atomic_files.check_folder(folder, force=force)


def write_front(
    folder: Path, front: Sequence[Candidate], report: Report, problem: Callable[[ir.Model], str | None]
) -> list[dict[str, Any]]:
    """Write the models of a front and `front.json`, which has the figures of each; all of it or nothing.

    Args:
        folder: made anew; one of an earlier run is replaced.
        front: the candidates, smallest first.
        report: of the run, for the figures of the original and the limits.
        problem: says what is wrong with a model; one with a fault is left out, and its entry says why.

    Returns:
        the entries of the index.

    Raises:
        ModelError: a file can't be written.
    """
    pending = atomic_files.PendingFolder(folder)
    try:
        entries = []
        for number, candidate in enumerate(front, start=1):
            fault = problem(candidate.model)
            name = None if fault else f"{number:02d}-{_SAFE.sub('-', candidate.label).strip('-')}.onnx"
            if name is not None:
                data = model_io.to_bytes(candidate.model)
                pending.write(name, [data], len(data))
            entries.append({"model": name, "label": candidate.label, **asdict(candidate.trial), "fault": fault})
        index = {
            "schema": 1,
            "original": report.input.as_json(),
            "metric": None if report.quality is None else report.quality.metric,
            "chosen": next((each.label for each in report.candidates if each.chosen), None),
            "limits": report.limits.as_json(),
            "front": entries,
        }
        content = (json.dumps(index, indent=2) + "\n").encode()
        pending.write(INDEX, [content], len(content))
        pending.commit()
    finally:
        pending.discard()
    return entries
