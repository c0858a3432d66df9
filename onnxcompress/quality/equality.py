"""Compares what two models compute: arrays only, so that a worker that compares need not know models.

    |got - expected| <= MOST_TIMES * noise floor          root mean square, of each output and each of its channels

The noise floor is how much the outputs of the original itself move when only rounding changes: it is measured, see
`verify.noise_floor`, and a result that is within its least value needs no measurement.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from typing import Any

import numpy as np

from ..numerics.statistics import deviation
from ..numerics.statistics.deviation import Deviation

MOST_TIMES = 8.0
"""Multiples of the noise floor that pass for rounding.

Measured on a ResNet, an EfficientNet, a MiniLM, a YOLOv8, a text detector and a segmentation network of 1024x1024:
right rewrites were at most 2.0 times the floor, planted bugs (two channels of a bias swapped, a missing activation,
an epsilon ten times as large, a padding of .01) at least 34 times.
"""

COARSE = 1e-2
"""Part of an output's root mean square from which on its noise floor hides more than it should.

Chosen by judgement: planted bugs of 34 times a floor of 1e-4 moved outputs by less than that.
"""

Runs = Sequence[Mapping[str, Any]]
"""The outputs of a model, name -> value, of each feed."""

Measurement = Callable[[], Runs]
"""Runs the original once more on the same feeds, rounded otherwise."""


class NoiseFloor:
    """Deviation of a model's outputs by rounding alone; measured as far as an answer needs it.

    Args:
        reference: what the model computes.
        measurements: what it computes when it is rounded otherwise, each run when it is first needed.
        unit: relative rounding of the arithmetic.
        bounded: outputs of a Sigmoid or Softmax, which carry the rounding of 1 however small they are: the runtime
            computes a sigmoid as 1/2 plus an odd function.
    """

    def __init__(
        self,
        reference: Runs,
        measurements: Iterable[Measurement] = (),
        *,
        unit: float = deviation.UNIT,
        bounded: Iterable[str] = (),
    ) -> None:
        self._reference = [flattened(each) for each in reference]
        self._left = list(measurements)[::-1]
        self._unstable: set[str] = set()
        self._floor: dict[str, Deviation] = {}
        self._bounded = known = frozenset(bounded)
        for name in dict.fromkeys(name for run in self._reference for name in run):
            absolute = unit if name in known else 0.0
            self._floor[name] = deviation.least_noise(_arrays(self._reference, name), unit=unit, absolute=absolute)

    def mismatch(self, outputs: Runs) -> str | None:
        """Return one line on where outputs are not equal, None where they are: the test for lossless rewrites."""
        found = [flattened(each) for each in outputs]
        for run, other in zip(self._reference, found, strict=True):
            if list(run) != list(other):
                return f"the outputs are {list(other)} and not {list(run)}"
        return next((fault for name in self._floor if (fault := self._fault(name, _arrays(found, name)))), None)

    def _fault(self, name: str, got: Sequence[np.ndarray]) -> str | None:
        """Say where one output is not equal; the floor is measured further while it isn't."""
        expected = _arrays(self._reference, name)
        fault = _broken(expected, got)
        found = None if fault else deviation.deviation(expected, got)
        multiple, channel = np.inf, ""
        while name not in self._unstable:
            if found is not None:
                multiple, channel = deviation.worst(found, self._floor[name])
            if multiple <= MOST_TIMES:
                return None
            if not self._measured_more():
                return f"output {name!r} {fault or _described(expected, got, multiple / MOST_TIMES, channel)}"
        return None

    def unproved(self) -> dict[str, float]:
        """Return the outputs whose floor, as far as it was measured, hides more than `COARSE` of them.

        Returns:
            output name -> floor as part of the output's root mean square; infinite where its shape or what is
            infinite in it changes with the rounding, so that it was not compared.
        """
        found = dict.fromkeys(sorted(self._unstable), np.inf)
        for name, floor in self._floor.items():
            if name not in found and name not in self._bounded:  # what is before these is compared
                size = deviation.least_noise(_arrays(self._reference, name), unit=1.0)[deviation.WHOLE][0]
                part = float(floor[deviation.WHOLE][0] / size) if size > 0 else float(floor[deviation.WHOLE][0])
                if part > COARSE:
                    found[name] = part
        return found

    def _measured_more(self) -> bool:
        """Take the next measurement into the floor; False where all are taken."""
        if not self._left:
            return False
        runs = [flattened(each) for each in self._left.pop()()]
        for name, floor in self._floor.items() if runs else ():
            expected, got = _arrays(self._reference, name), _arrays(runs, name)
            if len(expected) != len(got) or _broken(expected, got):
                self._unstable.add(name)
            else:
                self._floor[name] = deviation.larger(floor, deviation.deviation(expected, got))
        return True


def _arrays(runs: Sequence[Mapping[str, np.ndarray]], name: str) -> list[np.ndarray]:
    """Return an output of all runs that have it: sequences may differ in length from feed to feed."""
    return [run[name] for run in runs if name in run]


def flattened(outputs: Mapping[str, Any]) -> dict[str, np.ndarray]:
    """Return all arrays in outputs by name: the parts of sequences and maps have their place behind it."""
    found: dict[str, np.ndarray] = {}

    def add(name: str, value: Any) -> None:
        if isinstance(value, list):
            found[f"{name} (length)"] = np.array(len(value))
            for index, part in enumerate(value):
                add(f"{name}[{index}]", part)
        elif isinstance(value, dict):
            found[f"{name} (keys)"] = np.array(sorted(map(str, value)), object)
            for key in sorted(value):
                add(f"{name}[{key!r}]", value[key])
        else:
            found[name] = np.asarray(value)

    for name, value in outputs.items():
        add(name, value)
    return found


def _broken(expected: Sequence[np.ndarray], got: Sequence[np.ndarray]) -> str | None:
    """Return what no rounding explains: another type or shape, or other elements that are NaN or infinite."""
    return next((fault for pair in zip(expected, got, strict=True) if (fault := _array_broken(*pair))), None)


def _array_broken(expected: np.ndarray, got: np.ndarray) -> str | None:
    if expected.dtype != got.dtype or expected.shape != got.shape:
        return f"is {got.dtype}{list(got.shape)} and not {expected.dtype}{list(expected.shape)}"
    if expected.dtype.kind not in "fc" or expected.size == 0:
        return None
    finite = np.isfinite(expected)
    same_special = (expected == got) | (np.isnan(expected) & np.isnan(got))
    wrong = ~np.where(finite, np.isfinite(got), same_special)
    if not wrong.any():
        return None
    place = _place(expected, got, wrong.astype(np.float64))
    return f"differs in {int(wrong.sum())} of {expected.size} elements, {place}"


def degenerate(reference: Mapping[str, Any], outputs: Mapping[str, Any], *, sized: Collection[str] = ()) -> str | None:
    """Return what makes lossy outputs unusable: another type or shape, or a NaN or infinity that wasn't there.

    Args:
        reference: output name -> array of the model before.
        outputs: the same of the model after.
        sized: outputs whose sizes, but not their number, follow from what the model computes.
    """
    for name, expected in reference.items():
        got = outputs.get(name)
        if not isinstance(expected, np.ndarray) or not isinstance(got, np.ndarray):
            if type(expected) is not type(got):
                return f"output {name!r} changed from {type(expected).__name__} to {type(got).__name__}"
            continue
        is_other_size = got.ndim != expected.ndim if name in sized else got.shape != expected.shape
        if got.dtype != expected.dtype or is_other_size:
            return f"output {name!r} changed from {expected.dtype}{expected.shape} to {got.dtype}{got.shape}"
        if expected.dtype.kind != "f":
            continue
        finite = np.isfinite(expected) if got.shape == expected.shape else bool(np.isfinite(expected).all())
        if np.any(finite & ~np.isfinite(got)):
            return f"output {name!r} has NaN or infinite elements that were finite before"
    return None


def _described(expected: Sequence[np.ndarray], got: Sequence[np.ndarray], multiple: float, channel: str) -> str:
    """Describe arrays that differ by so many times what rounding explains."""
    distances = [_distance(a, b) for a, b in zip(expected, got, strict=True)]
    index = int(np.argmax([each.max(initial=0) for each in distances]))
    extent = f"by {multiple:.3g} times the tolerance" if np.isfinite(multiple) else "where rounding changes nothing"
    place = f" in {channel}" if channel else ""
    return f"differs {extent}{place}, {_place(expected[index], got[index], distances[index])}"


def _distance(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    if a.dtype.kind not in "fc":
        return np.asarray(a != b, np.float64)
    with np.errstate(invalid="ignore", over="ignore"):
        found = np.abs(b.astype(np.complex128) - a) if a.dtype.kind == "c" else np.abs(b.astype(np.float64) - a)
    return np.asarray(np.where(np.isfinite(found), found, 0))


def _place(expected: np.ndarray, got: np.ndarray, badness: np.ndarray) -> str:
    at = tuple(int(i) for i in np.unravel_index(int(badness.argmax()), badness.shape))
    return f"worst at {list(at)}: {got[at]} and not {expected[at]}"
