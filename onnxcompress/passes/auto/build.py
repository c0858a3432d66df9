"""Builds reduced models by passes: on demand here, or ahead of time in processes or on a cluster.

    ahead(orders) --executor--> done elsewhere |
                                                >-- built(order) -> Built
    nobody does it, or its worker was lost     |

What is built is the same wherever that is done; a lost worker costs time only.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, replace
from typing import Any

import onnx
import onnx_ir as ir

from ...base.gate import Gate, Memo
from ...core import BestSoFar, Built, Change, Context, Feed
from ...data.augment import varied
from ...errors import LostWorkerError
from ...io import model_io
from .. import build as build_pass


@dataclass(frozen=True, kw_only=True)
class PassCall:
    """A pass with its options."""

    name: str
    options: tuple[tuple[str, Any], ...]

    @property
    def label(self) -> str:
        """Name that is unique among the steps of the run."""
        return " ".join([self.name, *(f"{key}={value}" for key, value in self.options)])


@dataclass(frozen=True)
class BuildOrder:
    """Passes to be run on the model one after another."""

    steps: tuple[PassCall, ...]

    @property
    def label(self) -> str:
        """Name that is unique among the orders of the run."""
        return " + ".join(step.label for step in self.steps)


@dataclass(frozen=True, kw_only=True)
class BuildInput:
    """Model and context that orders are carried out on; it can be pickled, and is sent to workers once."""

    model: bytes
    feeds: Sequence[Feed]
    state: Mapping[str, str]
    seed: int
    target: str
    selects: Callable[[ir.Node], bool]


class Builder:
    """Carries orders on one model out."""

    def __init__(self, model: ir.Model, context: Context) -> None:
        self._model = model
        self._findings: dict[str, Any] = {}
        self._context = replace(context, findings=self._findings)
        self._sent: dict[str, Future[tuple[bytes, tuple[Change, ...]]]] = {}
        self._material: Any = None

    def ahead(self, orders: Iterable[BuildOrder]) -> None:
        """Let orders be carried out that may be asked for; without an executor nothing happens."""
        executor = self._context.executor
        if executor is None:
            return
        if self._material is None:
            self._material = executor.share(self._packed())
        for order in orders:
            if order.label not in self._sent:
                self._sent[order.label] = executor.submit(carry_out, self._material, order)

    def built(self, order: BuildOrder) -> Built:
        """Return what an order gives.

        Raises:
            ModelError: the pass can't be run.
        """
        sent = self._sent.pop(order.label, None)
        if sent is not None:
            try:
                data, changes = sent.result()
            except LostWorkerError:
                pass
            else:
                return Built(model_io.load(onnx.load_model_from_string(data)), changes)
        copy = model_io.clone(self._model)
        return Built(copy, tuple(_run(order, copy, self._context)))

    def close(self) -> None:
        """Give up what was ordered ahead and not asked for, and the findings."""
        for future in self._sent.values():
            future.cancel()
        self._sent.clear()
        self._findings.clear()

    def _packed(self) -> BuildInput:
        c = self._context
        return BuildInput(
            model=model_io.to_bytes(self._model),
            feeds=list(c.feeds),
            state=dict(c.state),
            seed=c.seed,
            target=c.target,
            selects=c.selects,
        )


def carry_out(material: BuildInput, order: BuildOrder) -> tuple[bytes, tuple[Change, ...]]:
    """Run a pass on a model that was sent, and return the model and what was done to it; for another process."""
    model = model_io.load(onnx.load_model_from_string(material.model))
    context = Context(
        feeds=material.feeds,
        state=material.state,
        seed=material.seed,
        target=material.target,
        selects=material.selects,
        frozen_inputs=frozenset(),
    )
    changes = _run(order, model, context)
    return model_io.to_bytes(model), tuple(changes)


def _run(order: BuildOrder, model: ir.Model, context: Context) -> list[Change]:
    """Run the passes of an order."""
    changes: list[Change] = []
    feeds = varied(context.feeds, seed=context.seed, state=context.state)
    for step in order.steps:
        gate = Gate()
        inner = replace(
            context, feeds=feeds, gate=gate, memo=Memo(gate), judge=None, archive=None, executor=None, best=BestSoFar()
        )
        changes += build_pass(step.name, dict(step.options)).run(model, inner)
    return changes
