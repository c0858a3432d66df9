"""The driver of local rewrites: rules look at one node and answer with an edit, a refusal or nothing.

A rule decides and never edits; its `Rewrite.apply` edits. The driver sweeps every graph of the model, bodies
of If/Loop/Scan included, until no rule has anything left to do.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import onnx_ir as ir

from ..core import Action, Change, Context
from ..graph import edit, query
from ..shapes import infer as shapes

_MOST_SWEEPS = 64


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
    """What a rule could have done and why it does not."""

    target: str
    reason: str


class RewriteContext:
    """What rules may ask beside the node: inferred shapes, the opset, fresh names.

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

    def refresh(self) -> None:
        """Forget the inferred shapes; they are inferred again when next asked for."""
        self._shapes = None


Rule = Callable[[ir.Node, RewriteContext], Rewrite | Refusal | None]


def outside(bodies: set[int], rule: Rule) -> Rule:
    """Return the rule for nodes whose graph is none of these (by id): local functions can't hold weights."""
    return lambda node, scene: None if id(node.graph) in bodies else rule(node, scene)


def rewrite(model: ir.Model, context: Context, pass_name: str, rules: Mapping[str, Sequence[Rule]]) -> list[Change]:
    """Apply rules until none applies any more and return what was done and refused.

    Args:
        model: edited in place.
        context: its gate is asked before every edit.
        pass_name: stands in the changes.
        rules: operator type of the standard domain -> rules for it, tried in order; "*" is for every node.
    """
    scene = RewriteContext(model, context)
    changes: list[Change] = []
    refusals: dict[tuple[str, str], Change] = {}
    for _ in range(_MOST_SWEEPS):
        refusals.clear()
        edits: list[Change] = []
        for body in query.graphs(model):
            edits += _sweep(body, scene, context, pass_name, rules, refusals)
        changes += edits
        if not edits:
            break
        scene.refresh()
    return changes + list(refusals.values())


def _sweep(
    body: ir.Graph,
    scene: RewriteContext,
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
            outcome = rule(node, scene)
            if isinstance(outcome, Refusal):
                refusals[outcome.target, outcome.reason] = Change(
                    pass_name=pass_name, target=outcome.target, action=Action.SKIPPED, reason=outcome.reason
                )
            elif outcome is not None and context.gate.admits(pass_name, outcome.target):
                _ = scene.names  # before the edit
                outcome.apply()
                edits.append(
                    Change(
                        pass_name=pass_name,
                        target=outcome.target,
                        action=Action.APPLIED,
                        reason=outcome.reason,
                        bytes_before=outcome.bytes_before,
                        bytes_after=outcome.bytes_after,
                    )
                )
    return edits
