"""One measurement of `split`, in a process of its own: python -m bench.split_run ANSWER.json KIND ARGUMENTS."""

from __future__ import annotations

import json
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np

RUNS = 3


def whole(path: str, optimize: str = "on") -> dict[str, Any]:
    """Load and run a model as onnxruntime does by default, on one thread."""
    from onnxcompress.runtime import session as runtime

    session = None

    def once() -> list[Any]:
        nonlocal session
        if session is None:
            session = runtime.open_session(Path(path), optimize=optimize == "on")
        return list(session.run({"ids": _ids()}).values())

    return _timed(once)


def parts(folder: str, budget: str, prefetch: str, optimize: str) -> dict[str, Any]:
    """Load and run the parts of a model within a budget."""
    import onnxcompress as oc

    model: Any = None

    def once() -> list[Any]:
        nonlocal model
        if model is None:
            model = oc.PartitionedModel(
                folder, max_memory=int(budget), prefetch=prefetch == "on", optimize=optimize == "on"
            )
        outputs: list[Any] = model.run(None, {"ids": _ids()})
        return outputs

    return _timed(once) | {"loads": model.loads, "prefetches": model.prefetches}


def split(path: str, folder: str, budget: str) -> dict[str, Any]:
    """Split a model."""
    import onnxcompress as oc

    found = oc.split(path, folder, max_memory=int(budget))
    return {"parts": len(found.manifest.parts), "peak": found.manifest.peak_bytes}


def equality(path: str, count: str) -> dict[str, Any]:
    """Split a model into parts and compare their outputs with the whole model's, on inputs of other sizes too."""
    import onnxcompress as oc
    from onnxcompress.data import synthetic
    from onnxcompress.io import model_io
    from onnxcompress.runtime import session as runtime

    model = model_io.load(path)
    sessions = {on: runtime.open_session(model_io.to_bytes(model), optimize=on) for on in (False, True)}
    feeds = synthetic.runnable_feeds(model, sessions[False], seed=1, count=3)
    with tempfile.TemporaryDirectory() as name:
        manifest = oc.split(path, Path(name, "parts"), parts=int(count)).manifest
        is_equal, largest = True, 0.0
        for on, session in sessions.items():
            with oc.PartitionedModel(Path(name, "parts"), max_memory=manifest.peak_bytes, optimize=on) as model_parts:
                for feed in feeds:
                    expected = session.run(feed)
                    for a, b in zip(expected.values(), model_parts.run(list(expected), feed), strict=True):
                        if not on:
                            is_equal &= a.dtype == b.dtype and a.tobytes() == b.tobytes()
                        elif a.size and a.dtype.kind == "f":
                            scale = max(float(np.abs(a).max()), 1e-9)
                            largest = max(largest, float(np.abs(a.astype(np.float64) - b).max()) / scale)
    return {
        "parts": len(manifest.parts),
        "whole_bytes": sum(file.bytes for file in manifest.files.values()),
        "peak_bytes": manifest.peak_bytes,
        "cut_bytes": manifest.cut_bytes,
        "equal": is_equal,
        "largest_difference": largest,
    }


def _ids() -> np.ndarray:
    return np.arange(16).reshape(1, 16)


def _timed(once: Any) -> dict[str, Any]:
    from onnxcompress.runtime.processes import peak_memory_bytes

    seconds, outputs = [], []
    for _ in range(1 + RUNS):
        start = time.perf_counter()
        outputs = once()
        seconds.append(time.perf_counter() - start)
    first = outputs[0].astype(np.float64).reshape(-1)[:512]
    return {"cold": seconds[0], "warm": sorted(seconds[1:])[RUNS // 2], "peak": peak_memory_bytes(), "out": list(first)}


if __name__ == "__main__":
    kinds = {"whole": whole, "parts": parts, "split": split, "equality": equality}
    Path(sys.argv[1]).write_text(json.dumps(kinds[sys.argv[2]](*sys.argv[3:])))
