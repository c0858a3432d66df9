"""Profiles of onnxruntime: the time of each node."""

from __future__ import annotations

import json
import tempfile
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from ..base import host
from ..errors import ModelError
from . import isolation
from .processes import call_isolated
from .remote_session import RUN_SECONDS
from .session import open_profiled

_MOST_PROFILE_BYTES = 24 << 20
"""Longer profiles are not read: parsed, they take many times the memory. Chosen by judgement; not measured."""


def profile(
    model: bytes | Path, feed: Mapping[str, Any], *, threads: int = 1, runs: int = 5
) -> list[tuple[str, str, float]]:
    """Return the time of each node: (node name, operator type, milliseconds per run), slowest first.

    The nodes are those of the optimised graph: fused ones have the runtime's names. A node in a loop body
    counts with all its iterations; If, Loop and Scan count without their bodies.

    Raises:
        ModelError: the model can't be loaded or can't run the feed, or runs too many nodes.

    """
    if isolation.current() == "apart":
        limit = host.spare_memory_bytes()
        isolated = call_isolated(
            _profile, model, dict(feed), threads, runs, timeout_seconds=RUN_SECONDS, memory_bytes=limit
        )
        return isolated.value
    return _profile(model, feed, threads, runs)


def _profile(model: bytes | Path, feed: Mapping[str, Any], threads: int, runs: int) -> list[tuple[str, str, float]]:
    with tempfile.TemporaryDirectory(prefix="onnxcompress-") as folder:
        session = open_profiled(model, threads=threads, prefix=Path(folder, "profile"))
        for _ in range(runs + 1):
            session.run(feed)
        written = session.end_profile()
        if written.stat().st_size > _MOST_PROFILE_BYTES:
            raise ModelError("it runs too many nodes to time each of them")
        events = json.loads(written.read_text(encoding="utf-8"))
    totals: dict[tuple[str, str], float] = defaultdict(float)
    for name, op_type, microseconds in _kernel_times(events, skip_runs=1):
        totals[name, op_type] += microseconds / 1e3 / runs
    return sorted(((*key, ms) for key, ms in totals.items()), key=lambda row: -row[2])


def _kernel_times(events: Sequence[Mapping[str, Any]], *, skip_runs: int) -> Iterator[tuple[str, str, float]]:
    """Yield (node name, operator type, own microseconds) of the profile's events after the first runs.

    The runtime's time for a node with a body includes the body's nodes: theirs is taken off.
    """
    starts = sorted(event["ts"] for event in events if event["name"] == "model_run")
    begin = starts[skip_runs] if len(starts) > skip_runs else 0
    kernels = sorted(
        (event for event in events if event["name"].endswith("_kernel_time") and event["ts"] >= begin),
        key=lambda event: (event["ts"], -event["dur"]),
    )
    own = [float(event["dur"]) for event in kernels]
    parents: list[int] = []
    for index, event in enumerate(kernels):
        while parents and kernels[parents[-1]]["ts"] + kernels[parents[-1]]["dur"] <= event["ts"]:
            parents.pop()
        if parents:
            own[parents[-1]] -= event["dur"]
        if event["args"]["op_name"] in {"If", "Loop", "Scan"}:
            parents.append(index)
    for event, microseconds in zip(kernels, own, strict=True):
        yield event["name"].removesuffix("_kernel_time"), event["args"]["op_name"], max(0.0, microseconds)
