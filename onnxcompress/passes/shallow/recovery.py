"""Recover a model that lost layers: the nodes to refit, the training, the check of the limit, and the report."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import onnx_ir as ir

from ...core import Change, Context, Judge
from ...distillation.train import Distilled, affordable, distill
from ...graph import query


def reached_nodes(model: ir.Model, original: ir.Model) -> set[ir.Node]:
    """Return the nodes of a changed copy that are new or depend on new ones."""
    known = {query.label(node) for node in original.graph}
    reached: set[ir.Node] = set()
    for node in model.graph:
        if query.label(node) not in known or any(v.producer() in reached for v in query.reads(node)):
            reached.add(node)
    return reached


def train(student: ir.Model, teacher: ir.Model, context: Context, steps: int) -> Distilled | None:
    """Train all selected layers of a model in place on the outputs of the original; None for 0 steps.

    Raises:
        ModelError: the runtime can't run one of the two.
    """
    if not steps:
        return None
    steps, batch = affordable(student, context.feeds[0], steps)
    return distill(
        student,
        teacher,
        context.feeds,
        steps=steps,
        batch=batch,
        seed=context.seed,
        selects=context.selects,
        progress=context.while_time,
    )


def limit_fault(model: ir.Model, drop: float | None, judge: Judge | None) -> str | None:
    """Return why a result is over the limit, None where it is within it or there is none."""
    if judge is None or judge.limit is None:
        return None
    if drop is not None and drop > judge.limit:
        return f"the score falls by {drop:.4g}, more than {judge.limit:g}"
    return judge.fault(model)


def summary(
    pass_name: str,
    figures: Sequence[str],
    details: Mapping[str, Any],
    *,
    distilled: Distilled | None,
    loss: float | None,
    drop: float | None,
    sizes: tuple[int, int],
) -> Change:
    """Return the change of the whole model.

    Args:
        pass_name: name of the pass.
        figures: parts of the reason, to which those of the training and the drop are added.
        details: facts for the report.
        distilled: result of the training.
        loss: divergence of the outputs of the final model.
        drop: fall of the score; None where it is not known.
        sizes: bytes before and after.
    """
    figures, details = list(figures), dict(details)
    if distilled is not None:
        details["distillation"] = distilled.reason
        figures += distilled.figures(loss)
    if drop is not None:
        figures.append(f"the score falls by {drop:.4f}")
    return Change.applied(pass_name, "; ".join(figures), bytes_before=sizes[0], bytes_after=sizes[1], details=details)
