"""The walk over the nodes of a model, once and in order; see the head of the package."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import onnx_ir as ir

from ..graph import query
from .facts import UNKNOWN, Dims, Fact, Facts, ImpossibleError
from .infer import Shapes
from .rule_step import RuleContext
from .rules import RULES

_FORK_NODES = 400
"""Nodes behind an undecided If by which its branches are told apart; bounds the time, not measured."""


def interpret(model: ir.Model, inferred: Shapes, *, sizes: Mapping[str, Dims] | None = None) -> Facts:
    """Return what is known of every value of the main graph and its bodies.

    Args:
        model: its values have unique names.
        inferred: by shape inference.
        sizes: input -> dimensions, in place of those that inference gives.
    """
    facts = Facts(inferred)
    for value in model.graph.inputs:
        facts.of(value)
        if value.name in (sizes or {}):
            facts.set(value, Fact((sizes or {})[value.name or ""]))
    _walk(model.graph, facts)
    return facts


def _walk(body: ir.Graph, facts: Facts) -> None:
    """Find the facts of a graph's nodes in order."""
    nodes = list(body)
    for index, node in enumerate(nodes):
        try:
            found = _step(node, facts)
        except ImpossibleError:
            found = []  # it fails at every run: nothing is claimed of what follows
        _keep(node, found, facts)
        if query.is_op(node, "If") and facts.forks_left:
            _tell_branches_apart(node, nodes[index + 1 : index + 1 + _FORK_NODES], facts)


def _step(node: ir.Node, facts: Facts) -> list[Fact]:
    """Return the facts of a node's outputs."""
    if query.is_op(node, "If"):
        return _if_facts(node, facts)
    for body in query.bodies(node):
        for value in body.inputs:
            rank = facts.inferred.rank(value)
            facts.set(value, Fact(None if rank is None or node.op_type != "Scan" else facts.inferred_dims(value)))
        _walk(body, facts)
    rule = RULES.get(node.op_type) if node.domain in query.STANDARD_DOMAINS else None
    return [] if rule is None else rule(RuleContext(node, facts))


def _keep(node: ir.Node, found: Sequence[Fact], facts: Facts) -> None:
    """Store facts, completed by what shape inference knows better."""
    for index, output in enumerate(node.outputs):
        fact = found[index] if index < len(found) else UNKNOWN
        dims, other = fact.dims, facts.inferred_dims(output)
        if dims is None or other is None or len(dims) != len(other):
            dims = dims if dims is not None else other
        else:
            pairs = zip(dims, other, strict=True)
            dims = tuple(b if a.as_int() is None and b.as_int() is not None else a for a, b in pairs)
        if dims is not None:
            dims = tuple(d if d.is_tractable() else facts.fresh() for d in dims)
        content = fact.content
        if content is not None and not all(e is None or e.is_tractable() for e in content.elements):
            content = None
        facts.set(output, Fact(dims, content))


def _if_facts(node: ir.Node, facts: Facts) -> list[Fact]:
    """Walk both branches; their outputs are those of the one that is taken, or what both have in common."""
    branches = {name: node.attributes[name].as_graph() for name in ("then_branch", "else_branch")}
    for body in branches.values():
        _walk(body, facts)
    taken = taken_branch(node, facts)
    chosen = [branches[taken]] if taken else list(branches.values())
    return [_common([facts.of(body.outputs[index]) for body in chosen], facts) for index in range(len(node.outputs))]


def taken_branch(node: ir.Node, facts: Facts) -> str | None:
    """Return which branch of an If is taken at every run, None where that depends on the run."""
    content = facts.content(node.inputs[0])
    numbers = content.numbers() if content is not None else None
    return None if not numbers else ("then_branch" if numbers[0] else "else_branch")


def _common(found: Sequence[Fact], facts: Facts) -> Fact:
    """Return what holds for all of these facts."""
    if len(found) == 1:
        return found[0]
    shapes = [fact.dims for fact in found]
    dims: Dims | None = None
    ranks = {None if s is None else len(s) for s in shapes}
    if len(ranks) == 1 and None not in ranks:
        columns = zip(*(s for s in shapes if s is not None), strict=True)
        dims = tuple(c[0] if len(set(c)) == 1 else facts.fresh() for c in columns)
    contents = {fact.content for fact in found}
    return Fact(dims, contents.pop() if len(contents) == 1 else None)


def _tell_branches_apart(node: ir.Node, later: Sequence[ir.Node], facts: Facts) -> None:
    """Find the branch of an undecided If after which later nodes don't fail, where the branches give other ranks.

    A node that is reached whenever the If is, and fails for one rank at every run, rules that rank out.
    """
    if taken_branch(node, facts) is not None:
        return
    for index, output in enumerate(node.outputs):
        options = [facts.of(node.attributes[n].as_graph().outputs[index]) for n in ("then_branch", "else_branch")]
        ranks = [None if option.dims is None else len(option.dims) for option in options]
        if None in ranks or ranks[0] == ranks[1] or facts.of(output).dims is not None or not facts.forks_left:
            continue
        facts.forks_left -= 1
        left = [option for option in options if _survives(output, option, later, facts)]
        if len(left) == 1:
            facts.set(output, Fact(left[0].dims))


def _survives(output: ir.Value, assumed: Fact, later: Sequence[ir.Node], facts: Facts) -> bool:
    """Say whether later nodes may run when `output` is as assumed; only what depends on it is looked at."""
    fork = facts.fork()
    fork.set(output, Fact(assumed.dims))
    touched = {output}
    try:
        for node in later:
            if not _reads(node, touched):
                continue
            _keep(node, _step(node, fork), fork)
            touched.update(node.outputs)
    except ImpossibleError:
        return False
    return True


def _reads(node: ir.Node, values: set[ir.Value]) -> bool:
    if any(value in values for value in node.inputs if value is not None):
        return True
    return any(_reads(inner, values) for body in query.bodies(node) for inner in body)
