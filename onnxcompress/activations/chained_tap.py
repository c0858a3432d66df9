"""Inner values of a model that are too large to be taken out in one run: part by part, each node about once for a feed.

    feed --nodes up to part 1--> values of part 1, frontier --nodes up to part 2--> values of part 2, frontier ...

The frontier is what later parts read of what was computed so far. Each part is a model of its own in the runtime, all
of which stay loaded: together they hold the weights once.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx_ir as ir

from ..runtime import isolation
from ..runtime import session as runtime
from ..shapes import expose, infer
from .partial_run import between, cone, fed, fixed_values, open_segment

Take = Callable[[str, np.ndarray], None]
"""Takes in a value by its name."""


@dataclass
class _ChainLink:
    """The nodes between two frontiers.

    Args:
        shown: value -> output that gives it.
        live: outputs that are read behind the segment.
        session: None until it is loaded.
    """

    shown: Mapping[str, str]
    live: Sequence[str]
    session: runtime.Session | None = None

    def joined(self, follower: _ChainLink) -> _ChainLink:
        """Return both as one: between them is a value that is no array, which can't be fed into a part of a model."""
        return _ChainLink({**self.shown, **follower.shown}, follower.live)


class ChainedTap:
    """A model that gives some of its inner values part by part; see `observe.ActivationTap` for all at once.

    Args:
        model: is not changed, and need not stay as it is.
        parts: the values wanted, of any graph of the model, in the order of its nodes; inputs too.
        state: input -> output whose value it gets from the run before.
        threads: threads that one operator may use.

    Raises:
        ModelError: the model has an If of an old opset, and can't be converted to a newer one.
    """

    def __init__(
        self,
        model: ir.Model,
        parts: Sequence[Sequence[str]],
        *,
        state: Mapping[str, str] | None = None,
        threads: int = 1,
    ) -> None:
        inputs = {value.name for value in model.graph.inputs}
        inner = [[name for name in part if name not in inputs] for part in parts]
        self._from_feed = [name for part in parts for name in part if name in inputs]
        self._state = dict(state or {})
        self._threads = threads
        carried = list(dict.fromkeys(self._state.values()))
        shown = expose.expose(model, [name for part in inner for name in part], keep=carried)
        self.refused = dict(shown.refused)
        """Value -> why it can't be observed."""
        self._model, self._shapes = shown.model, infer.infer(shown.model)
        self._links = _planned(shown, inner, carried)
        self._last: dict[str, Any] = {}

    def run(self, feed: Mapping[str, Any], take: Take) -> None:
        """Run the model once; values that it does not compute, or as empty, are not given.

        Raises:
            ModelError: the runtime fails.
        """
        inputs = {**feed, **{name: self._last[output] for name, output in self._state.items() if output in self._last}}
        _give(take, inputs, {name: name for name in self._from_feed if name in inputs})
        known = inputs
        at = 0
        while at < len(self._links):
            link = self._links[at]
            found = {**known, **self._run(link, known)}
            if at + 1 < len(self._links) and not all(isinstance(found[name], np.ndarray) for name in link.live):
                self._links[at : at + 2] = [link.joined(self._links[at + 1])]
                continue
            _give(take, found, link.shown)
            known = {**inputs, **{name: found[name] for name in link.live}}
            del found  # before the next segment runs
            at += 1
        self._last = {output: known[output] for output in self._state.values()}

    def _run(self, link: _ChainLink, known: Mapping[str, Any]) -> dict[str, Any]:
        """Return what a segment makes."""
        wanted = dict.fromkeys((*link.shown.values(), *link.live))
        outputs = [name for name in wanted if name not in known]
        if not outputs:
            return {}
        session = link.session
        if session is None:
            session = open_segment(self._model, self._shapes, known, outputs, threads=self._threads, is_heavy=True)
            if isolation.current() != "apart":  # where each has a process of its own, which are too many at a time
                link.session = session
        return session.run(fed(session, known), outputs)


def _planned(shown: expose.Exposure, parts: Sequence[Sequence[str]], carried: Sequence[str]) -> list[_ChainLink]:
    """Return a segment for each part that can be observed; the last one gives what is carried to the next run too."""
    graph = shown.model.graph
    values = {value.name: value for node in graph for value in node.outputs}
    found = [[name for name in part if name in shown.outputs] for part in parts]
    found = [part for part in found if part] or ([[]] if carried else [])
    asked = [[values[shown.outputs[name]] for name in part] for part in found]
    last = [values[name] for name in carried if name in values]
    needed = cone([*last, *(value for part in asked for value in part)])
    fixed = fixed_values(shown.model)
    done: set[ir.Node] = set()
    links = []
    for place, part in enumerate(asked):
        done |= cone(part)
        later = [*last, *(value for other in asked[place + 1 :] for value in other)]
        live = [v.name or "" for v in between(done, needed, later) if v not in fixed and not v.is_graph_input()]
        links.append(_ChainLink({name: shown.outputs[name] for name in found[place]}, live))
    if links:
        links[-1].live = list(carried)
    return links


def _give(take: Take, found: Mapping[str, Any], outputs: Mapping[str, str]) -> None:
    for name, output in outputs.items():
        array = found[output]
        if isinstance(array, np.ndarray) and array.size:
            take(name, array)
