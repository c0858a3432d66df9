"""Reconstruct a changed model layer by layer, so that its layers give the outputs of the original again.

Layers are refitted in the order of the graph, as in AdaRound and BRECQ (arXiv 2004.10568, 2102.05426). The rows of
each are its inputs in the student, whose earlier layers are refitted already; its targets are the outputs of the layer
in the teacher. The solution is closed-form (`numerics.linear.ridge`), chosen and accepted by feeds that it was not
computed from. No labels, no gradients.

A pass that changes weights itself, for instance by rounding, does so within the walk: `finish` gets the refitted
weights and returns those to write, and the layers after it compensate.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx_ir as ir

from ..activations.partial_run import Frontier
from ..core import Feed
from ..graph import edit
from ..numerics.linear import ridge
from ..numerics.linear.moments import MOST_COLUMNS, Moments
from ..numerics.linear.positive_definite import NotFiniteError
from ..numerics.threads import one_thread
from ..ops.linear import LinearLayer, linear_layer
from .targets import LayerMatch, RefitEffort, RefitSamples, TargetRows, TeacherTargets, targets_of


@dataclass(frozen=True, kw_only=True)
class LayerData:
    """Moments of one layer's rows in the student, with the teacher's outputs as targets."""

    train: Moments
    held_out: Moments


Finish = Callable[[LinearLayer, np.ndarray, "np.ndarray | None", LayerData], "tuple[np.ndarray, np.ndarray | None]"]
"""(layer, matrix float32 [groups, out, columns], bias float32 [groups * out], data) -> the matrix and bias to write."""


@dataclass(frozen=True, kw_only=True)
class RefitChange:
    """Result of the refit of one layer.

    Args:
        layer: its label.
        is_applied: True where the fit changed weights or bias.
        reason: the change, or why there was none.
        rows: rows the solution was computed from, per group.
        error_before: error on the held-out feeds as a part of the targets' variance; NaN where it was not measured.
        error_after: the same with the solution.
        ratio: the penalty chosen, see `numerics.linear.ridge`; None for the bias alone.
    """

    layer: str
    is_applied: bool
    reason: str
    rows: int = 0
    error_before: float = math.nan
    error_after: float = math.nan
    ratio: float | None = None


def refit(
    student: ir.Model,
    teacher: ir.Model,
    feeds: Sequence[Feed],
    match: LayerMatch | None = None,
    *,
    held_out: Sequence[Feed] | None = None,
    selects: Callable[[ir.Node], bool] = lambda _: True,
    finish: Finish | None = None,
    effort: RefitEffort | None = None,
    seed: int = 0,
    progress: Callable[[str, Sequence[Any]], Iterator[Any]] = lambda _, items: iter(items),
) -> list[RefitChange]:
    """Refit the linear layers of `student`, in place, to the outputs of the same layers in `teacher`.

    Args:
        student: the changed model.
        teacher: the original.
        feeds: complete feeds of both, best of one sample each, to solve from.
        match: the teacher's values and channels for the student's layers; None for those of the same names.
        held_out: feeds to choose and accept by; None to hold out every fifth of `feeds`.
        selects: False for nodes to skip.
        finish: takes the solution, or the old weights where there is none better, and returns those to write; called
            for every layer whose weights may be changed and for which there are rows and targets.
        effort: rows, memory and threads.
        seed: seed of the choice of rows.
        progress: wraps the loop over the layers.

    Returns:
        one entry for each linear layer of the main graph that `selects` admits, in order.

    Raises:
        ModelError: the runtime can't run one of the two.
        DataError: there are fewer than two feeds.
    """
    names = edit.Names(student)
    found = [linear_layer(node) for node in student.graph if selects(node)]
    layers = [layer for layer in found if isinstance(layer, LinearLayer)]
    samples = RefitSamples(student, teacher, feeds, held_out)
    match, effort = match or LayerMatch(), effort or RefitEffort()
    layer_targets = targets_of(student, layers, match.values)
    outputs = TeacherTargets(teacher, samples, match.channels, effort, seed)
    walk = Frontier(student, samples, threads=effort.threads)
    changes = []
    with one_thread():
        for index, target in enumerate(progress("Refitting", layer_targets)):
            rows = outputs.of(layer_targets[index:])
            if isinstance(rows, str):
                changes.append(RefitChange(layer=target.layer.label, is_applied=False, reason=rows))
                continue
            later = [value for each in layer_targets[index + 1 :] for value in each.needs]
            skip = target.skip if outputs.uses_sum(target) else None
            data = _gather(target.layer, skip, walk.values(target.needs, later), rows, samples)
            changes.append(_refit_layer(target.layer, data, names, finish))
    return changes


def _gather(
    layer: LinearLayer,
    skip: ir.Value | None,
    values: Iterable[Mapping[str, np.ndarray]],
    targets: TargetRows,
    samples: RefitSamples,
) -> LayerData | str:
    """Return the moments of a layer's rows and targets, or why they don't belong together.

    Args:
        layer: the layer.
        skip: the value that is added to the output, where the target is the sum.
        values: the layer's input, and `skip`, for each joined feed.
        targets: rows of the teacher's value, for each joined feed.
        samples: the joined feeds.
    """
    groups, out, columns = layer.shape
    is_full = _is_free(layer) and columns <= MOST_COLUMNS
    data = LayerData(
        train=Moments(groups, columns, out, is_full=is_full, is_single=True),
        held_out=Moments(groups, columns, out, is_full=is_full),
    )
    fault = ""
    for number, (inputs, chosen) in enumerate(zip(values, targets, strict=True)):
        x = inputs[layer.x.name or ""]
        wanted = math.prod(chosen.shape) // (groups * out)
        if layer.count(x.shape) != wanted:
            fault = f"it has {layer.count(x.shape)} rows where the teacher's output has {wanted}"
        elif not fault:
            wanted_rows = chosen.targets
            if skip is not None:
                wanted_rows = wanted_rows - layer.targets(
                    np.broadcast_to(inputs[skip.name or ""], chosen.shape), chosen.at
                )
            moments = data.train if number < samples.train_count else data.held_out
            moments.update(layer.rows(x, chosen.at), wanted_rows)
    try:
        data.train.require_finite()
        data.held_out.require_finite()
    except NotFiniteError as error:
        return fault or str(error)
    return fault or data


def _refit_layer(layer: LinearLayer, data: LayerData | str, names: edit.Names, finish: Finish | None) -> RefitChange:
    if isinstance(data, str):
        return RefitChange(layer=layer.label, is_applied=False, reason=data)
    groups, out, _ = layer.shape
    matrix, bias = layer.matrix(), layer.bias()
    is_free = _is_free(layer)
    try:
        found = ridge.fit(
            data.train,
            data.held_out,
            matrix,
            np.zeros((groups, out)) if bias is None else bias.reshape(groups, out),
            has_bias=bias is not None or (layer.has_bias and not layer.is_fixed),
            ratios=ridge.RATIOS if is_free else (),
        )
    except NotFiniteError as error:  # of the layer's own weights
        return RefitChange(layer=layer.label, is_applied=False, reason=str(error))
    is_better = found.after < found.before
    if is_better:
        matrix = found.weights.astype(np.float32)
        bias = found.bias.astype(np.float32).reshape(-1) if bias is not None or layer.has_bias else None
    if finish is not None and is_free:
        matrix, bias = finish(layer, matrix, bias, data)
    reason = _reason(found, is_free=is_free)
    if is_better or (finish is not None and is_free):
        try:
            layer.with_weights(matrix if is_free else None, bias, names)
        except ValueError as error:
            is_better, reason = False, f"{reason}, but {error}"
    return RefitChange(
        layer=layer.label,
        is_applied=is_better,
        reason=reason,
        rows=data.train.count,
        error_before=found.before,
        error_after=found.after,
        ratio=found.ratio,
    )


def _is_free(layer: LinearLayer) -> bool:
    """Say whether the matrix may be changed: stored as floats, and for this layer alone."""
    return not layer.is_fixed and len(layer.weight.uses()) == 1


def _reason(found: ridge.RidgeFit, *, is_free: bool) -> str:
    if found.after < found.before:
        what = "bias" if found.ratio is None else "weights"
        return f"{what} refitted: held-out error {found.before:.3g} to {found.after:.3g} of the variance"
    if not found.before > ridge.EXACT:
        return "it gives what the teacher gives"
    return f"no {'weights' if is_free else 'bias'} lower the held-out error of {found.before:.3g} of the variance"
