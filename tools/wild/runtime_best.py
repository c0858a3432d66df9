"""onnxruntime's own quantizers on a model of the trial: every setting, measured as the project's results are."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from bench.process import TOOLS_FOLDER

from wild import watched
from wild.steps import Files

SETTINGS = (
    "dynamic",
    "dynamic, MatMul",
    "static",
    "static, per channel",
    "static, expert",
    "static, expert, entropy",
    "static, expert, percentile",
)
"""The names that `bench.quantizers` knows."""

Judge = Callable[[Path], dict[str, Any]]
"""Path of a result -> its loss and time."""


def measure(
    files: Files, samples: Path, judge: Judge, limits: watched.Limits, *, settings: Sequence[str] = SETTINGS
) -> list[dict[str, Any]]:
    """Quantize a model by every setting.

    Args:
        files: of the model; results are written to its folder and deleted.
        samples: folder of feeds, one a .npz, with all inputs.
        judge: what is asked of every result.
        limits: of every setting.
        settings: those that are tried.

    Returns:
        for each setting its name, size ratio, cost and what the judge says; `error` where there is no result.
    """
    environment = os.environ | {"PYTHONPATH": str(TOOLS_FOLDER)}
    found = []
    for number, setting in enumerate(settings):
        out = files.folder / f"ort-{number}.onnx"
        command = [sys.executable, "-W", "ignore", "-m", "bench.quantizers", setting]
        command += [str(files.model), str(samples), str(out)]
        logs = [files.folder / f"ort-{number}.{stream}" for stream in ("stdout", "stderr")]
        cost = watched.run(command, limits=limits, stdout=logs[0], stderr=logs[1], environment=environment)
        entry: dict[str, Any] = {
            "setting": setting,
            "cpu_seconds": cost.cpu_seconds,
            "peak_bytes": cost.peak_bytes,
            "error": "",
        }
        if cost.exit_code != 0 or not out.exists():
            lines = logs[1].read_text(errors="replace").strip().splitlines()
            entry["error"] = cost.limit or (lines[-1][:300] if lines else f"exit {cost.exit_code}")
        else:
            entry |= {"size_ratio": out.stat().st_size / files.model.stat().st_size, "measured": judge(out)}
            entry["error"] = entry["measured"]["error"]
        for each in files.folder.glob(f"{out.stem}.onnx*"):
            each.unlink()
        found.append(entry)
    return found


def points(measured: Mapping[str, Any] | None) -> tuple[float, float, float] | None:
    """Return the points of the output that loses most, and their interval; None where nothing was measured."""
    if not measured or measured["error"]:
        return None
    told = [each for each in measured["outputs"].values() if each.get("points") is not None]
    if not told:
        return None
    worst = max(told, key=lambda each: each["points"])
    return worst["points"], *worst["points_interval"]
