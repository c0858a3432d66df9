"""Random numbers and amounts are the same in two models, so that what differs in their outputs is what they compute.

    original  --same draws, up to the amounts-->  amounts of a feed
    a model   --same draws, amounts are inputs->  outputs, and its own amounts

A voice synthesizer draws noise, and rounds the durations that it predicts to whole frames. From the first frame
that two models count otherwise on, nothing in their signals meets its counterpart, and two runs of one model differ
as much as two models. So durations are given to both (as in duration-aligned evaluation of speech synthesis) and
each model's own are an output more, which is compared by itself.
"""

from __future__ import annotations

import functools
import hashlib
import itertools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import onnx_ir as ir

from ..graph import edit
from ..runtime.loaded_model import LoadedModel
from ..runtime.session import RunTime, Session
from ..runtime.tensor_spec import TensorSpec
from . import infer as shapes
from .expose import expose
from .same_draws import Draw, counterparts, draws, with_same_draws
from .sized_by import Sizing, sizing

_MOST_KEPT = 4096
"""Feeds whose amounts are kept. Chosen by judgement: a vector of durations has some hundred numbers."""


class FixedSession:
    """A session whose draws and amounts are the original's; has what a race and a judge need of `Session`.

    Args:
        session: of a model in which nothing is random.
        fed: amount of the original -> input that takes it.
        shown: amount of the original -> output that gives the model's own.
        amounts: gives the original's for a feed.
    """

    def __init__(
        self, session: Session, fed: Mapping[str, str], shown: Mapping[str, str], amounts: FixedValues | None
    ) -> None:
        self._session = session
        self._amounts = amounts
        self._dtypes = {spec.name: spec.dtype for spec in session.inputs}
        self._fed = fed
        self._shown = shown
        self.threads = session.threads
        self.provider = session.provider
        self.is_optimized = session.is_optimized

    @property
    def slowest_seconds(self) -> float:
        """Wall seconds of the longest run so far."""
        return self._session.slowest_seconds

    @property
    def fastest_seconds(self) -> float:
        """Wall seconds of the shortest run so far."""
        return self._session.fastest_seconds

    @property
    def outputs(self) -> tuple[TensorSpec, ...]:
        """The outputs, the model's own amounts behind the others."""
        names = {output: name for name, output in self._shown.items()}
        return tuple(replace(spec, name=names.get(spec.name, spec.name)) for spec in self._session.outputs)

    def run(
        self, feed: Mapping[str, Any], names: Sequence[str] | None = None, *, max_seconds: float | None = None
    ) -> dict[str, Any]:
        """Run the model once; its own amounts have the names that they have in the original."""
        wanted = None if names is None else [self._shown.get(name, name) for name in names]
        found = self._session.run(self._complete(feed), wanted, max_seconds=max_seconds)
        own = {name: found.pop(output) for name, output in self._shown.items() if output in found}
        return {**found, **own}

    def run_time(self, feed: Mapping[str, Any]) -> RunTime:
        """Run the model once and return its time."""
        return self._session.run_time(self._complete(feed))

    def _complete(self, feed: Mapping[str, Any]) -> Mapping[str, Any]:
        if not self._fed or self._amounts is None:
            return feed
        known = self._amounts.of_feed(feed)
        return {**feed, **{name: known[amount].astype(self._dtypes[name]) for amount, name in self._fed.items()}}


@dataclass
class FixedValues:
    """Draws and amounts of an original, for it and for what is made of it.

    Args:
        model: the original.
        draws: its random operators.
        sizing: output -> what its shape depends on.
        types: amount -> type.
    """

    model: ir.Model
    draws: tuple[Draw, ...]
    sizing: Mapping[str, Sizing]
    types: Mapping[str, ir.DataType]
    _kept: dict[bytes, dict[str, np.ndarray]] = field(default_factory=dict)

    @classmethod
    def of(cls, model: ir.Model) -> FixedValues:
        """Read them off the graph."""
        found = sizing(model)
        amounts = _amounts(found)
        known = shapes.infer(model) if amounts else None
        values = {value.name: value for node in model.graph for value in node.outputs}
        dtypes = {name: values[name].dtype or (known.dtype(values[name]) if known else None) for name in amounts}
        return cls(model, draws(model), found, {name: dtype for name, dtype in dtypes.items() if dtype is not None})

    def __bool__(self) -> bool:
        return bool(self.draws or self.types)

    @property
    def sized(self) -> frozenset[str]:
        """Outputs whose shape depends on numbers that the model computes."""
        return frozenset(name for name, each in self.sizing.items() if each.is_computed)

    def amounts(self, output: str) -> tuple[str, ...]:
        """Return the amounts that size an output and can be given."""
        found = self.sizing.get(output)
        return () if found is None else tuple(name for name in found.amounts if name in self.types)

    def session(self, loaded: LoadedModel, shown: ir.Model | None = None, *, optimize: bool = True) -> FixedSession:
        """Load a model that has the draws and amounts of the original, as far as it has counterparts of them.

        Args:
            loaded: the original or what was made of it.
            shown: a copy of it with more outputs, None for itself.
            optimize: with the runtime's optimizations.
        """
        pairs = self.counterparts(loaded.model)
        copy = with_same_draws(shown or loaded.model, counterparts(draws(loaded.model), self.draws))
        fed, given = _fed(copy, pairs, self.types)
        return FixedSession(loaded.showing(copy, optimize=optimize), fed, given, self)

    def counterparts(self, model: ir.Model) -> dict[str, str]:
        """Return amount of the original -> the same in a model: by its name, else by its place among as many."""
        if model is self.model or not self.types:
            return {name: name for name in self.types}
        ours = _amounts(sizing(model))
        theirs = _amounts(self.sizing)
        found = {name: name for name in theirs if name in ours}
        if len(ours) == len(theirs) and len(found) < len(theirs):
            operators = [_operators(each, list_) for each, list_ in ((self.model, theirs), (model, ours))]
            found = dict(zip(theirs, ours, strict=True)) if operators[0] == operators[1] else found
        return {name: other for name, other in found.items() if name in self.types}

    def of_feed(self, feed: Mapping[str, Any]) -> Mapping[str, np.ndarray]:
        """Return the amounts of the original for a feed.

        Raises:
            ModelError: the original can't run it.
        """
        wanted = {spec.name for spec in self._recorder[0].inputs}
        read = {name: value for name, value in feed.items() if name in wanted}
        key = _digest(read)
        if key not in self._kept:
            outputs = self._recorder[0].run(read)
            while len(self._kept) >= _MOST_KEPT:
                self._kept.pop(next(iter(self._kept)))
            self._kept[key] = {name: outputs[output] for name, output in self._recorder[1].items()}
        return self._kept[key]

    @functools.cached_property
    def _recorder(self) -> tuple[Session, Mapping[str, str]]:
        """A session of the part of the original that computes the amounts, and amount -> its output."""
        shown = expose(self.model, self.types)
        copy = with_same_draws(shown.model, {name: name for _, name in self.draws})
        return LoadedModel(copy).fast, shown.outputs


def opened(model: ir.Model, changed: ir.Model, *, threads: int = 1) -> Session | FixedSession:
    """Load a changed copy of a model, with random numbers and amounts of the model where it has any.

    Raises:
        ModelError: the runtime can't load it.
    """
    fixed, loaded = FixedValues.of(model), LoadedModel(model, threads=threads)
    return fixed.session(loaded, changed) if fixed else loaded.showing(changed)


def _amounts(found: Mapping[str, Sizing]) -> list[str]:
    return list(dict.fromkeys(itertools.chain.from_iterable(each.amounts for each in found.values())))


def _operators(model: ir.Model, names: Sequence[str]) -> list[str]:
    made = {value.name: node.op_type for node in model.graph for value in node.outputs}
    return [made[name] for name in names]


def _fed(
    model: ir.Model, pairs: Mapping[str, str], types: Mapping[str, ir.DataType]
) -> tuple[dict[str, str], dict[str, str]]:
    """Let all readers of amounts read inputs, in place; return amount of the original -> input, and -> output."""
    names = edit.Names(model)
    values = {value.name: value for node in model.graph for value in node.outputs}
    known = shapes.infer(model) if pairs else None
    fed, shown = {}, {}
    for amount, own in pairs.items():
        value = values.get(own)
        if value is None:
            continue
        dtype = value.dtype or (known.dtype(value) if known else None) or types[amount]
        given = ir.Value(name=names.fresh(f"{own}_given"), type=ir.TensorType(dtype))
        model.graph.inputs.append(given)
        for use in tuple(value.uses()):
            use.node.replace_input_with(use.idx, given)
        if not value.is_graph_output():
            model.graph.outputs.append(value)
        if value.type is None:
            value.type = ir.TensorType(dtype)
        fed[amount], shown[amount] = given.name or "", own
    return fed, shown


def _digest(feed: Mapping[str, Any]) -> bytes:
    found = hashlib.blake2b(digest_size=16)
    for name in sorted(feed):
        array = np.asarray(feed[name])
        found.update(f"{name} {array.dtype} {array.shape}".encode())
        found.update(repr(array.tolist()).encode() if array.dtype.kind in "OUS" else np.ascontiguousarray(array).data)
    return found.digest()
