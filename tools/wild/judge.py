"""`python -m wild.judge REQUEST.json`: print as JSON the loss and time of a result beside its original.

Uses nothing of the project. The request:

    original, result   paths of models; the result may be a .npz that `onnxcompress run` wrote
    judge, work        samples that no recipe saw, and those that it did (the largest of these is timed)
    state              name of an input -> name of the output that it gets one feed later
    kinds              name of an output -> kind, where rules would be mistaken
    told               name of an output -> kind by the report: its points are told, too
    samples            most samples that are run
    seconds            CPU time after which no further sample is run
    pair_seconds       CPU time after which no further pair of runs is timed; 0: nothing is timed
    as_numbers         every output of floats is measured as numbers
"""

from __future__ import annotations

import json
import statistics
import sys
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from wild import feeds as io
from wild import loss
from wild.boxes import joined
from wild.kinds import decide, plain

_LEAST_SAMPLES = 8
_MOST_SAMPLES = 128
_MOST_BYTES = 1 << 30
"""Outputs of both models that are held, together; after that no further sample is run."""
_LEAST_PAIRS, _MOST_PAIRS = 7, 301
"""Pairs of runs that are timed."""
_FIRST_CHECK = 21
"""Pairs after which the race may end by precision; then after twice as many each."""
_PRECISION = 0.02
"""Width of the interval, as a part of the ratio, at which no more pairs are run."""
_DETECTIONS = ("boxes", "scores", "classes")
"""Kinds of outputs that make one table."""


def main(request: Mapping[str, Any]) -> dict[str, Any]:
    """Answer a request; `error` says where a model does not run."""
    state = request.get("state", {})
    original, result = Path(request["original"]), Path(request["result"])
    answer: dict[str, Any] = {"error": "", "outputs": {}, "latency": None}
    try:
        first = io.Run(original, state)
    except Exception as error:  # noqa: BLE001 - what the runtime refuses is an answer
        return answer | {"error": f"original: {_line(error)}"}
    try:
        second: io.Run | Recorded = Recorded(result, first) if result.suffix == ".npz" else io.Run(result, state)
    except Exception as error:  # noqa: BLE001 - as above
        return answer | {"error": f"result: {_line(error)}"}
    if second.outputs != first.outputs:
        return answer | {"error": f"outputs {first.outputs} became {second.outputs}"}
    try:
        most = request.get("samples", _MOST_SAMPLES), request.get("seconds", 60.0)
        pairs = list(_pairs(first, second, Path(request["judge"]), state, *most))
    except _RunError as error:
        return answer | {"error": str(error)}
    answer["samples"] = len(pairs)
    answer["outputs"] = _losses(pairs, request)
    seconds = request.get("pair_seconds", 6.0)
    if isinstance(second, io.Run) and seconds:
        answer["latency"] = _race(original, result, Path(request["work"]), state, seconds)
    return answer


class _RunError(Exception):
    """One of both models does not run a sample."""


class Recorded:
    """Outputs that `onnxcompress run` wrote, handed out sample by sample."""

    def __init__(self, path: Path, original: io.Run) -> None:
        with np.load(path, allow_pickle=False) as arrays:
            self._arrays = {name: arrays[name] for name in arrays.files}
        heads = {name.rpartition("/")[0] for name in self._arrays}
        self.outputs = [name for name in original.outputs if name in self._arrays or name in heads]
        self._at = 0
        self._index = dict.fromkeys(self.outputs, 0)

    def step(self, like: Mapping[str, Any]) -> dict[str, Any]:
        """Return the next sample's outputs, as long as the original's."""
        found = {}
        for name in self.outputs:
            if name in self._arrays:
                start, rows = self._index[name], len(np.atleast_1d(plain(like[name])))
                found[name] = self._arrays[name][start : start + rows].reshape(np.shape(plain(like[name])))
                self._index[name] += rows
            else:
                found[name] = self._arrays[f"{name}/{self._at:05d}"]
        self._at += 1
        return found


def _pairs(
    first: io.Run, second: io.Run | Recorded, judge: Path, state: io.State, samples: int, seconds: float
) -> Iterator[tuple[dict[str, np.ndarray], dict[str, np.ndarray]]]:
    """Yield the outputs of both for one sample after another, without carried states."""
    deadline, held = time.process_time() + seconds, 0
    for index, feed in enumerate(io.read(judge, first.inputs, state)):
        is_over = time.process_time() > deadline or held > _MOST_BYTES
        if index >= samples or (index >= _LEAST_SAMPLES and is_over):
            return
        try:
            one = first.step(feed)
        except Exception as error:
            raise _RunError(f"original: sample {index}: {_line(error)}") from error
        try:
            other = second.step(feed if isinstance(second, io.Run) else one)
        except Exception as error:
            raise _RunError(f"result: sample {index}: {_line(error)}") from error
        shown = [name for name in first.outputs if name not in state.values()]
        pair = [{name: plain(found[name]) for name in shown} for found in (one, other)]
        held += sum(map(io.bytes_of, pair))
        yield pair[0], pair[1]


def _losses(
    pairs: list[tuple[dict[str, np.ndarray], dict[str, np.ndarray]]], request: Mapping[str, Any]
) -> dict[str, Any]:
    """Return what each output loses by its kind, and in the unit of the kind that the report told."""
    declared = dict(request.get("kinds", {}))
    declared |= {name: "state" for name in pairs[0][0] if declared.get(name) == "ignore"}
    found: dict[str, Any] = {}
    table = {kind: name for name, kind in declared.items() if kind in _DETECTIONS}
    for name in pairs[0][0]:
        values = [(one[name], other[name]) for one, other in pairs]
        kind = declared.get(name) or decide([one for one, _ in values])
        if request.get("as_numbers") and values[0][0].dtype.kind == "f":
            kind = "numbers"
        told = request.get("told", {}).get(name)
        is_own = kind in loss.KINDS
        entry = loss.measure(kind, values) if is_own else {"kind": kind, "points": None}
        if told in loss.KINDS and told != kind:
            entry["as_told"] = _measured_as(told, values)
        found[name] = entry
    if {"boxes", "scores"} <= set(table):
        found["detections"] = loss.measure(
            "detection-rows",
            [tuple(_joined(each, table) for each in pair) for pair in pairs],  # type: ignore[misc]
        )
    return found


def _measured_as(kind: str, values: list[loss.Pair]) -> dict[str, Any] | None:
    """Return the loss by a kind that is not ours; None where the values are no such thing."""
    try:
        return loss.measure(kind, values)
    except (ValueError, IndexError, TypeError):
        return None


def _joined(outputs: Mapping[str, np.ndarray], table: Mapping[str, str]) -> np.ndarray:
    classes = outputs[table["classes"]] if "classes" in table else None
    return joined(outputs[table["boxes"]], outputs[table["scores"]], classes)


def _race(original: Path, result: Path, work: Path, state: io.State, seconds: float) -> dict[str, Any]:
    """Time both models in turns, A B A B, on the largest feed, by the CPU clock of this thread."""
    runs = [io.Run(original, state), io.Run(result, state)]
    feed = max(io.read(work, runs[0].inputs, state), key=io.bytes_of)
    full = [run.full(feed) for run in runs]
    for run, each in zip(runs, full, strict=True):
        run.session.run(None, each)
    times: list[tuple[float, float]] = []
    deadline, check = time.thread_time() + seconds, _FIRST_CHECK
    while len(times) < _MOST_PAIRS and (len(times) < _LEAST_PAIRS or time.thread_time() < deadline):
        pair = []
        for run, each in zip(runs, full, strict=True):
            start = time.thread_time()
            run.session.run(None, each)
            pair.append(time.thread_time() - start)
        times.append((pair[0], pair[1]))
        if len(times) == check:
            low, high = _interval(np.array(times))
            if high - low <= _PRECISION * low:
                break
            check = 2 * check
    first, second = (statistics.median(column) for column in zip(*times, strict=True))
    return {
        "original_ms": 1e3 * first,
        "result_ms": 1e3 * second,
        "ratio": second / first,
        "ratio_interval": list(_interval(np.array(times))),
        "pairs": len(times),
    }


def _interval(times: np.ndarray) -> tuple[float, float]:
    """Return the 95% interval of the ratio of medians, of float64 [pairs, 2] seconds, by resampling the pairs."""
    drawn = np.maximum(times, 1e-9)[np.random.default_rng(0).integers(0, len(times), (400, len(times)))]
    medians = np.median(drawn, axis=1)
    low, high = np.percentile(medians[:, 1] / medians[:, 0], (2.5, 97.5))
    return float(low), float(high)


def _line(error: BaseException) -> str:
    return f"{type(error).__name__}: {' '.join(str(error).split())}"[:300]


if __name__ == "__main__":
    sys.stdout.write(json.dumps(main(json.loads(Path(sys.argv[1]).read_text()))) + "\n")
