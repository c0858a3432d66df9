"""Drafts: the bound on whole-model runs of a pass in a plan, and what its figures say that they rest on."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from ..core import Change, Feed

_MACS = 1e11
"""Multiply-accumulates of all whole-model runs by which one pass of a plan measures, about; one sample is run even
where that takes more. They are 3 to 10 CPU seconds on ppocr_det, layout_cdla and yolov8n_coco, for which this was
chosen; a model of 60 layers and 400 million is measured on the four samples of `inspect`."""

SAMPLES, SHORTCUT = "draft_samples", "draft"
"""Keys of a change's details: number of samples that a plan's figures rest on, and what was left out."""


def some(feeds: Sequence[Feed], macs: int, runs: int, *, in_order: bool = False) -> Sequence[Feed]:
    """Return the samples on which a pass of a plan measures, evenly spread, one at least.

    Args:
        feeds: complete feeds.
        macs: multiply-accumulates of a run of the model on one of them.
        runs: times that each of them is run.
        in_order: take the first ones, since they carry a state.
    """
    count = min(len(feeds), max(1, int(_MACS / max(1, macs * runs))))
    return [feeds[index if in_order else len(feeds) * index // count] for index in range(count)]


def marked(changes: Sequence[Change], shortcut: str, *, samples: int) -> list[Change]:
    """Return changes that say that they are a draft.

    Args:
        changes: of one pass, in a plan.
        shortcut: what a run does and this did not, for the report.
        samples: number of samples that the figures rest on; 0 for weights alone.
    """
    return [replace(each, details={**each.details, SHORTCUT: shortcut, SAMPLES: samples}) for each in changes]


def notes(changes: Sequence[Change]) -> list[str]:
    """Return a line for each pass whose changes are a draft: on how many samples it rests, and what was left out."""
    found: dict[str, str] = {}
    for change in changes:
        if SHORTCUT in change.details:
            count = change.details[SAMPLES]
            rests = f"{count} sample{'' if count == 1 else 's'}" if count else "the weights alone"
            line = f"{change.pass_name} is a draft that rests on {rests}: {change.details[SHORTCUT]}"
            found.setdefault(change.pass_name, line)
    return list(found.values())
