"""Noise in a model's outputs from a change of one weight, for many weights with one session.

Each weight becomes an input that has its old value as default, so that a run gets another value in its place without
the model being loaded again.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import onnx_ir as ir

from ..activations import observe
from ..core import Feed
from ..graph import constants as float_constants
from ..graph import edit, query
from ..numerics import snr
from ..runtime.session import Session
from ..shapes import fixed_values
from ..shapes.fixed_values import FixedSession
from .output_sources import with_sources

_TOGETHER = 8
"""Feeds that are joined at most."""


def noises(
    model: ir.Model,
    changed: Mapping[str, Callable[[], np.ndarray]],
    feeds: Sequence[Feed],
    *,
    state: Collection[str] = (),
    threads: int = 1,
    progress: Callable[[str, Sequence[Any]], Iterator[Any]] = lambda _, items: iter(items),
) -> dict[str, float]:
    """Return for each weight the noise that its change makes in the worst output, as a part of the output's power.

    Outputs that are no floats are represented by those that decide them; without any, all noises are 0.

    Args:
        model: left as it is; each name of a weight is one constant in it, bodies included.
        changed: name of a weight -> makes what it is changed to, in its shape and type.
        feeds: complete feeds.
        state: outputs that carry a state to the next run, and don't count.
        threads: threads of the runtime.
        progress: wraps the loop over the weights.

    Raises:
        ModelError: the runtime can't run the model.
    """
    joined = feeds if state else list(observe.batched(model, feeds, _TOGETHER))
    copy = with_sources(model)
    inputs = _opened(copy, changed)
    session = fixed_values.opened(model, copy, threads=threads)
    names = [spec.name for spec in session.outputs if spec.name not in state and spec.dtype is not None]
    wanted = [name for name in names if _is_float(session, name)]
    if not wanted:
        return dict.fromkeys(changed, 0.0)
    expected = [session.run(feed, wanted) for feed in joined]
    found: dict[str, float] = {}
    for name in progress("Measuring sensitivity", list(changed)):
        array = changed[name]()
        got = (session.run({**feed, inputs[name]: array}, wanted) for feed in joined)
        found[name] = _worst(wanted, expected, got)
    return found


def _opened(model: ir.Model, names: Collection[str]) -> dict[str, str]:
    """Let constants be inputs with a default and return the inputs' names."""
    fresh = edit.Names(model)
    found: dict[str, str] = {}
    constants = [value for body in query.graphs_outside_functions(model) for value in body.initializers.values()]
    constants += [node.outputs[0] for node in query.nodes(model) if len(node.outputs) == 1]
    for value in constants:
        name = value.name or ""
        if name in names and name not in found:
            made = edit.add_initializer(model.graph, fresh, f"{name}_given", float_constants.read(value))
            model.graph.inputs.append(made)
            edit.move_readers(value, made, keep=())
            found[name] = made.name or ""
    return found


def _is_float(session: Session | FixedSession, name: str) -> bool:
    return any(spec.name == name and spec.dtype is not None and spec.dtype.kind == "f" for spec in session.outputs)


def _worst(names: Iterable[str], expected: Sequence[Mapping[str, Any]], got: Iterable[Mapping[str, Any]]) -> float:
    error, signal = dict.fromkeys(names, 0.0), dict.fromkeys(names, 0.0)
    for was, now in zip(expected, got, strict=True):
        for name in error:
            error[name] += snr.error_energy(was[name], now[name])
            signal[name] += snr.energy(was[name])
    tiny = float(np.finfo(float).tiny)
    ratios = [error[name] / max(signal[name], tiny) for name in error if np.isfinite(error[name])]
    return max(ratios, default=0.0)
