"""Driver of local rewrites: rules look at one node and answer with an edit, a refusal or nothing.

A rule decides and never edits; its `Rewrite.apply` edits. The driver sweeps the main graph and the bodies of
If/Loop/Scan in it until no rule has anything left to do. Local functions, which can't hold weights, are skipped.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import onnx_ir as ir

from ..core import Change, Context
from ..graph import edit, query
from ..shapes import infer as shapes

_MOST_SWEEPS = 64
"""Sweeps over a model after which the driver stops, against rules that undo each other. Chosen by judgement; not
measured."""


@dataclass(frozen=True, kw_only=True)
class Rewrite:
    """An edit that a rule proposes. `apply` makes it; nothing is changed before."""

    target: str
    reason: str
    apply: Callable[[], None]
    bytes_before: int = 0
    bytes_after: int = 0


@dataclass(frozen=True, kw_only=True)
class Refusal:
    """A rewrite that a rule could have done, and the reason why it does not."""

    target: str
    reason: str


class RewriteContext:
    """Facts about the model that rules read beside the node: inferred shapes, the opset, fresh names.

    Shapes are inferred on first use and again after an edit only when `refresh` is called by the driver, once
    a sweep: values keep their meaning under rewriting, so older facts stay true; new values have none yet.
    """

    def __init__(self, model: ir.Model, context: Context) -> None:
        self.model = model
        self._context = context
        self.opset = query.opset(model)
        self._shapes: shapes.Shapes | None = None

    @functools.cached_property
    def names(self) -> edit.Names:
        """Fresh names; gathered before the first edit, so that no name that was ever there gets another meaning."""
        return edit.Names(self.model)

    @property
    def shapes(self) -> shapes.Shapes:
        """Inferred shapes and types of the model's values."""
        if self._shapes is None:
            self._shapes = shapes.inferred(self.model, self._context)
        return self._shapes

    def add_constant(self, node: ir.Node, hint: str, array: npt.ArrayLike) -> ir.Value:
        """Store a constant for a node, in the node's graph, under a fresh name that begins with `hint`."""
        return edit.add_initializer(query.home(node), self.names, hint, np.asarray(array))

    def refresh(self) -> None:
        """Forget the inferred shapes; they are inferred again when next asked for."""
        self._shapes = None


Rule = Callable[[ir.Node, RewriteContext], Rewrite | Refusal | None]


def rewrite(model: ir.Model, context: Context, pass_name: str, rules: Mapping[str, Sequence[Rule]]) -> list[Change]:
    """Apply rules until none applies any more and return what was done and refused.

    Args:
        model: edited in place.
        context: its gate is asked before every edit.
        pass_name: name of the pass in the changes.
        rules: operator type of the standard domain -> rules for it, tried in order; "*" is for every node.
    """
    ctx = RewriteContext(model, context)
    changes: list[Change] = []
    refusals: dict[tuple[str, str], Change] = {}
    for _ in range(_MOST_SWEEPS):
        refusals.clear()
        edits: list[Change] = []
        for body in query.graphs_outside_functions(model):
            edits += _sweep(body, ctx, context, pass_name, rules, refusals)
        changes += edits
        if not edits:
            break
        ctx.refresh()
    return changes + list(refusals.values())


def _sweep(
    body: ir.Graph,
    ctx: RewriteContext,
    context: Context,
    pass_name: str,
    rules: Mapping[str, Sequence[Rule]],
    refusals: dict[tuple[str, str], Change],
) -> list[Change]:
    """Try the rules on every node of one graph, once."""
    edits: list[Change] = []
    for node in tuple(body):
        own = rules.get(node.op_type, ()) if node.domain in query.STANDARD_DOMAINS else ()
        for rule in (*own, *rules.get("*", ())):
            if node.graph is None:
                break  # an earlier edit took it out
            outcome = rule(node, ctx)
            if isinstance(outcome, Refusal):
                refusals[outcome.target, outcome.reason] = Change.skipped(
                    pass_name, outcome.reason, target=outcome.target
                )
            elif outcome is not None and context.gate.admits(pass_name, outcome.target):
                _ = ctx.names  # before the edit
                outcome.apply()
                edits.append(
                    Change.applied(
                        pass_name,
                        outcome.reason,
                        target=outcome.target,
                        bytes_before=outcome.bytes_before,
                        bytes_after=outcome.bytes_after,
                    )
                )
    return edits
