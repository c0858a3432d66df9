"""Options of channel pruning: the budget, the order in which channels are removed, and the repair afterwards."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from typing import Annotated, Literal

from pydantic import Field
from pydantic.dataclasses import dataclass

from ...errors import UsageError
from .budgets import Of
from .loss_curves import Norm

Criterion = Literal["reconstruction", "activation", "magnitude"]
Share = Annotated[float | None, Field(gt=0, le=1)]
Stage = Annotated[float, Field(gt=0, le=1)]


@dataclass(frozen=True, kw_only=True)
class PruneOptions:
    """Options of the pass `prune-channels`."""

    keep_macs: Share = None
    """Part of the multiply-accumulates that is kept. Without any budget 0.7, more where the score falls too much."""
    keep_parameters: Share = None
    """Part of the parameters that is kept."""
    keep_bytes: Share = None
    """Part of the file's bytes that is kept."""
    keep_latency: Share = None
    """Part of the time of a run that is kept, on this machine."""
    criterion: Criterion | None = None
    """Removed first: what the others compensate best; what gives least on the samples; the smallest weights.
    None: reconstruction with data, magnitude without."""
    norm: Norm = "l2"
    """How magnitude measures the weights of a channel."""
    scope: Literal["global", "uniform"] = "global"
    """global: channels go where they cost least for what they save. uniform: the same share of every layer."""
    min_keep: Annotated[float, Field(ge=0, lt=1)] = 0.1
    """Part of the channels of a layer that stays at least."""
    multiple: Annotated[int | None, Field(ge=1)] = None
    """The number of channels of a layer is a multiple of this afterwards. None: of what the target's kernels like."""
    rounds: Annotated[int, Field(ge=1, le=8)] = 2
    """Cuts, each with a refit after it: more are slower, and lose less where much is cut."""
    stages: tuple[Stage, ...] = ()
    """Parts of the budget's quantity that are left after cuts before the last one, falling; none: even `rounds`."""
    refit: bool = True
    """Refit layers to what the original gives in their place, from samples."""
    distill_steps: Annotated[int, Field(ge=0)] = 400
    """Batches by which all layers are trained on the original's outputs in the end; 0 for none."""
    samples: Annotated[int, Field(ge=2)] = 2048
    """Samples that are used, at most."""

    def __post_init__(self) -> None:
        """Refuse several budgets at once."""
        if len(self.budgets) > 1:
            given = " and ".join(f"keep_{name}" for name, _ in self.budgets)
            raise UsageError(f"prune-channels: {given} are given", hint="Give one of them")
        last = [keep for _, keep in self.budgets]
        if any(before <= after for before, after in itertools.pairwise((*self.stages, *last))):
            raise UsageError("prune-channels: stages must fall, down to the budget", hint="Write them as 0.7,0.5")

    @property
    def budgets(self) -> list[tuple[Of, float]]:
        """The budgets that are given: none or one, with the part that is kept."""
        every: Sequence[tuple[Of, float | None]] = (
            ("macs", self.keep_macs),
            ("parameters", self.keep_parameters),
            ("bytes", self.keep_bytes),
            ("latency", self.keep_latency),
        )
        return [(name, value) for name, value in every if value is not None]
