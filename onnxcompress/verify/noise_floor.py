"""Measures how much the outputs of a model move by rounding alone: see `quality.equality`.

The floor is the largest change among: the runtime's optimizations on against off; inputs moved by one unit in the last
place; weights moved likewise; a second run, where something is drawn that can't be seeded. They are made in this order,
each when nothing less settles the matter, and once for each model.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, Protocol

import numpy as np
import onnx

from ..errors import ModelError
from ..numerics.statistics.deviation import UNIT
from ..quality.equality import Measurement, NoiseFloor, Runs
from . import shadow

_SEED = 1
"""Of the directions in which inputs and weights are moved."""


class RunModel(Protocol):
    """Runs the original (`model` is None), or a changed copy of it."""

    def __call__(self, model: onnx.ModelProto | None, feeds: Sequence[Mapping[str, Any]], *, optimize: bool) -> Runs:
        """Run it on feeds, with the runtime's optimizations or without, in a session that has not drawn a number."""
        ...


def noise_floor(
    reference: Runs,
    feeds: Sequence[Mapping[str, Any]],
    run: RunModel,
    message: Callable[[], onnx.ModelProto],
    *,
    rounded: Callable[[], onnx.ModelProto] | None = None,
    unit: float = UNIT,
    bounded: Iterable[str] = (),
) -> NoiseFloor:
    """Return the noise floor of a model, of which nothing is measured yet.

    Args:
        reference: its outputs on `feeds`, with the runtime's optimizations off.
        feeds: what it was run on.
        run: runs it.
        message: gives a copy of the model that may be changed.
        rounded: gives the model with its weights moved as far as a rewrite rounds them, None for what float32 rounds.
        unit: relative rounding of its arithmetic.
        bounded: its outputs that carry the rounding of 1.
    """

    def inputs() -> Runs:
        rng = np.random.default_rng(_SEED)
        other = [{name: shadow.moved(value, rng) for name, value in feed.items()} for feed in feeds]
        is_same = all(other[i][name] is feed[name] for i, feed in enumerate(feeds) for name in feed)
        return [] if is_same else run(None, other, optimize=False)

    def weights() -> Runs:
        copy = message()
        return run(copy, feeds, optimize=False) if shadow.jittered(copy, _SEED) else []

    def tried(measurement: Measurement) -> Measurement:
        def measure() -> Runs:
            try:
                return measurement()
            except ModelError:  # what was moved doesn't run: it says nothing about the noise
                return []

        return measure

    def coarse() -> Runs:
        return [] if rounded is None else run(rounded(), feeds, optimize=False)

    def again() -> Runs:
        return run(None, feeds, optimize=False)

    others = (lambda: run(None, feeds, optimize=True), inputs, weights, coarse, again)
    return NoiseFloor(reference, [tried(each) for each in others], unit=unit, bounded=bounded)
