"""Tries every pass on a copy of a model, for `inspect`: what it could do, and what blocks the rest."""

from __future__ import annotations

import gc
import logging
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import numpy as np
import onnx_ir as ir

from .. import passes
from ..accounting import covers_layers, unmentioned
from ..base.gate import Gate
from ..channels import groups as channel_groups
from ..core import Action, Change, Context, Feed, Need, Pass
from ..errors import OnnxCompressError
from ..graph import query
from ..io import model_io
from ..ops.weight_layers import weighted_layers
from ..recipe import Recipe
from ..runtime import isolation
from ..search import drafts

if TYPE_CHECKING:
    import onnx_ir as ir

    from ..channels.groups import Prunable

log = logging.getLogger(__name__)

_EXAMPLES = 3
"""Targets that are named of each reason; chosen by judgement."""

_BY_PIECES = frozenset({"quantize-dynamic", "quantize-weights", "convert-float16"})
"""Lossy passes that read a weight piece by piece, and keep none."""
_MOST_BYTES, _MOST_TENSOR_BYTES = 128 << 20, 64 << 20
"""Of models, and of single weights, on which the other lossy passes are tried: these take several times as much.

Chosen by judgement; not measured.
"""


@dataclass(frozen=True, kw_only=True)
class Blocked:
    """Refusals of a pass for one reason, with the bytes they leave as they are."""

    reason: str
    count: int
    bytes: int
    examples: tuple[str, ...]


@dataclass(frozen=True, kw_only=True)
class PassPotential:
    """Effect of a pass on a copy: rewrites, the bytes it touched, the bytes saved, and what blocked the rest.

    `draft` says what a run of the pass would do and this trial did not, None where nothing was left out;
    `draft_samples` on how many samples the choice rests then, 0 for weights alone.
    """

    pass_name: str
    rewrites: int
    reached_bytes: int
    saved_bytes: int
    blocked: tuple[Blocked, ...]
    draft: str | None = None
    draft_samples: int | None = None


class Still:
    """A model put away: a proto without weights takes a fraction of the room of a graph."""

    def __init__(self, model: ir.Model) -> None:
        self._proto, self._tensors = model_io.detach(model)
        self._has_many_nodes = query.node_count(model) > isolation.MANY_NODES
        largest = max((tensor.nbytes for tensor in self._tensors.values()), default=0)
        self.is_heavy = largest > _MOST_TENSOR_BYTES or model_io.model_bytes(model) > _MOST_BYTES

    def copy(self) -> ir.Model:
        """Return the model, to be changed freely."""
        if self._has_many_nodes:
            gc.collect()  # graphs are circles: without this several wait for their end
        return model_io.restore(self._proto, self._tensors)


def tried(start: Still, size_bytes: int, context: Context, notes: list[str]) -> tuple[PassPotential, ...]:
    """Run each shipped pass on a copy of its own, after weights and nodes have been brought into a regular form."""
    found: list[PassPotential] = []
    spare: ir.Model | None = None
    untried: list[str] = []
    for name in passes.SHIPPED:
        kind = passes.pass_class(name)
        if getattr(kind, "command_line_only", None) or (Need.DATA in kind.needs and not context.feeds):
            continue
        if start.is_heavy and not kind.lossless and name not in _BY_PIECES:
            untried.append(name)
            continue
        candidate, spare = spare or start.copy(), None
        try:
            built = passes.build(name, {})
            layers = weighted_layers(candidate) if covers_layers(built) else []
            changes = built.run(candidate, replace(context, gate=type(context.gate)()))
            changes += unmentioned(built, layers, candidate, changes, context)
            notes += drafts.notes(changes)
        except Exception as error:  # a pass that fails here fails in `compress` too, and is named there as well
            log.info("%s failed", name, exc_info=error)
            notes.append(f"{name} could not be tried: {_told(error)}")
            continue
        if not any(change.action is Action.APPLIED for change in changes):
            spare = candidate  # as it was: the next pass gets it
            found.append(_reach(name, changes, 0))
            continue
        left_bytes = model_io.model_bytes(candidate)
        found.append(_reach(name, changes, size_bytes - left_bytes))
        if _prepares(kind):
            start, size_bytes = Still(candidate), left_bytes
        del candidate, changes, layers
    if untried:
        notes.append(f"weights of this size take too much memory to try {', '.join(untried)}")
    return tuple(found)


def channels_of(start: Still, feed: Feed, context: Context, notes: list[str]) -> channel_groups.Prunable | None:
    """Return what channel pruning could cut, None where that could not be determined."""
    try:
        return reach(start.copy(), feed, context)
    except Exception as error:  # an inspection goes on without
        log.info("channels could not be followed", exc_info=error)
        notes.append(f"channel pruning could not be tried: {_told(error)}")
        return None


def _told(error: Exception) -> str:
    return str(error) if isinstance(error, OnnxCompressError) else f"internal error: {type(error).__name__}"


def _prepares(kind: type[Pass]) -> bool:
    """Say whether the later passes are tried on what this one leaves, as in every recipe."""
    return kind.name == "normalize"


def _reach(name: str, changes: Sequence[Change], saved_bytes: int) -> PassPotential:
    applied = [c for c in changes if c.action is Action.APPLIED]
    refused: defaultdict[str, list[Change]] = defaultdict(list)
    for change in changes:
        if change.action is not Action.APPLIED:
            refused[change.reason].append(change)
    blocked = [
        Blocked(
            reason=reason,
            count=len(found),
            bytes=sum(c.bytes_before for c in found),
            examples=tuple(c.target for c in found[:_EXAMPLES]),
        )
        for reason, found in refused.items()
    ]
    details = next((change.details for change in changes if drafts.SHORTCUT in change.details), {})
    return PassPotential(
        pass_name=name,
        rewrites=len(applied),
        reached_bytes=sum(c.bytes_before for c in applied),
        saved_bytes=saved_bytes,
        blocked=tuple(sorted(blocked, key=lambda b: (-b.bytes, -b.count, b.reason))),
        draft=details.get(drafts.SHORTCUT),
        draft_samples=details.get(drafts.SAMPLES),
    )


def reach(model: ir.Model, feed: Mapping[str, np.ndarray], context: Context) -> Prunable:
    """Fold a model; return what can be cut of it then, at the shapes of a feed, and what keeps the rest.

    Raises:
        OnnxCompressError: a pass of the recipe `fold` fails.
    """
    for one in Recipe.load("fold").active:
        one.run(model, replace(context, gate=Gate(), memo=None))
    return channel_groups.find_groups(model, feed).reach()
