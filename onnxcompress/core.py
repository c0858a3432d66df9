"""Values of a run: the protocol of a pass, its context, and the changes that it reports."""

from __future__ import annotations

import enum
from collections.abc import Callable, Iterator, Mapping, MutableMapping, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, ClassVar, Literal, Protocol, Self, TypeVar, runtime_checkable

from .base.clock import Clock
from .base.gate import Gate, Memo
from .base.search_terms import Effort, SearchStatus, StepLog, no_status

if TYPE_CHECKING:  # a second of imports that a refused command line does without
    import numpy as np
    import onnx_ir as ir

T = TypeVar("T")

Progress = Callable[[str, Sequence[Any]], Iterator[Any]]
"""Wraps a loop in a progress display: (title, items) -> items."""


def no_progress(_: str, items: Sequence[Any]) -> Iterator[Any]:
    """Show no progress."""
    return iter(items)


Feed = dict[str, "np.ndarray"]
"""One set of inputs of a model: input name -> array, batch axis included."""


Prefer = Literal["balanced", "speed", "size"]
"""Order of candidates: by size ratio times latency ratio, by latency, or by size."""


GRAPH = "graph"
"""Target of a change that concerns the whole model."""
DESELECTED = "left out by --only/--skip"
"""Reason for what the user keeps away from lossy passes."""


class Need(enum.Enum):
    """Input that a pass requires; the pipeline provides it or refuses before anything runs."""

    DATA = "data"
    """Feeds that the user gave (synthetic ones don't count)."""
    DATA_IF_GIVEN = "data-if-given"
    """The same, but without them it does something else."""


class Action(enum.StrEnum):
    """Outcome of a decision."""

    APPLIED = "applied"
    SKIPPED = "skipped"
    ROLLED_BACK = "rolled-back"


@dataclass(frozen=True, kw_only=True)
class Change:
    """One decision about one target: the rewrite that was applied to it, or the reason why none was.

    `target` names a node, an initializer, or is `GRAPH` for the whole model.
    `details` holds further JSON-serialisable facts (a predicted loss, a scheme, a node count).
    """

    pass_name: str
    target: str
    action: Action
    reason: str
    bytes_before: int = 0
    bytes_after: int = 0
    details: Mapping[str, Any] = field(default_factory=dict)

    @classmethod
    def applied(
        cls,
        pass_name: str,
        reason: str,
        *,
        target: str = GRAPH,
        bytes_before: int = 0,
        bytes_after: int = 0,
        details: Mapping[str, Any] | None = None,
    ) -> Self:
        """Return a rewrite that was done."""
        return cls(
            pass_name=pass_name,
            target=target,
            action=Action.APPLIED,
            reason=reason,
            bytes_before=bytes_before,
            bytes_after=bytes_after,
            details=details or {},
        )

    @classmethod
    def skipped(
        cls,
        pass_name: str,
        reason: str,
        *,
        target: str = GRAPH,
        bytes_before: int = 0,
        bytes_after: int | None = None,
        details: Mapping[str, Any] | None = None,
    ) -> Self:
        """Return a rewrite that was refused; `bytes_after` is `bytes_before` unless given."""
        return cls(
            pass_name=pass_name,
            target=target,
            action=Action.SKIPPED,
            reason=reason,
            bytes_before=bytes_before,
            bytes_after=bytes_before if bytes_after is None else bytes_after,
            details=details or {},
        )

    def as_json(self) -> dict[str, Any]:
        """Return the entry of `changes` in the JSON report."""
        return {
            "pass": self.pass_name,
            "target": self.target,
            "action": str(self.action),
            "reason": self.reason,
            "bytes_before": self.bytes_before,
            "bytes_after": self.bytes_after,
            **self.details,
        }


@dataclass(frozen=True, kw_only=True)
class Trial:
    """Figures of a candidate against the original, on samples that passes don't see.

    `latency_ratio` is None where the model is meant for a processor that is not this one, `drop` where no output can
    be scored.
    """

    bytes: int
    size_ratio: float
    latency_ratio: float | None
    drop: float | None
    drop_interval: tuple[float, float] | None = None
    """The ends of the 90% interval of `drop`."""
    divergence: float | None = None
    """A figure of low variance by which candidates are ranked, see `quality.divergence`; None where none is known."""
    decisive_drop: float | None = None
    """The figure that is held against a limit where that is not `drop`: the upper end at the confidence asked for."""
    latency_ms: float | None = None
    slower: bool | None = None
    """Whether it is slower than the original beyond the noise of the times; None where only the ratio is known."""

    @property
    def limited_drop(self) -> float | None:
        """The loss that a limit is compared with."""
        return self.drop if self.decisive_drop is None else self.decisive_drop


class Workers(Protocol):
    """Does pieces of work elsewhere, see `executors`."""

    @property
    def elsewhere_seconds(self) -> float:
        """CPU seconds of the pieces that were done by processes that are no children of this one."""
        ...

    def submit(self, fn: Callable[..., Any], /, *args: Any) -> Future[Any]:
        """Run a function of the top level of a module; arguments and value are pickled."""
        ...

    def share(self, value: Any) -> Any:
        """Return a handle of a value that many pieces get."""
        ...


class Judge(Protocol):
    """Measures candidates for passes that choose by measurement."""

    limit: float | None
    """Most that the score may fall on the held-out samples; None: no limit."""
    prefer: Prefer

    def __call__(self, model: ir.Model, label: str) -> Trial:
        """Score and time a candidate; times are recorded and replayed under the label."""
        ...

    def score(self, model: ir.Model, *, most: int | None = None) -> Trial:
        """Score a candidate, on `most` samples at most, without timing it (`latency_ratio` is None)."""
        ...

    def fault(self, model: ir.Model) -> str | None:
        """Return by how much a candidate is over the limit where the user's own samples decide, None within it."""
        ...


@dataclass(frozen=True)
class Built:
    """A model that could be the result, and what was done to get it."""

    model: ir.Model
    changes: tuple[Change, ...]


@dataclass(frozen=True, kw_only=True)
class Candidate:
    """A model that could be the result: what was done to get it, and what was measured of it."""

    label: str
    model: ir.Model
    changes: tuple[Change, ...]
    trial: Trial


class BestSoFar:
    """Takes what a pass could return if it had to end now; thread-safe, since one reference is replaced.

    Args:
        is_wanted: False where the pass can't be stopped, so that nobody asks.
    """

    _KEPT: ClassVar[int] = 3
    """Offers that are kept: the proof may refuse the last ones. Chosen by judgement."""

    def __init__(self, *, is_wanted: bool = False) -> None:
        self.is_wanted = is_wanted
        self.offers: tuple[Built, ...] = ()
        """What was offered, the last one first."""

    def offer(self, model: ir.Model, changes: Sequence[Change]) -> None:
        """Take something better than all that was offered before.

        Args:
            model: complete, and not edited any more.
            changes: what was done to get it, the summary included.
        """
        self.offers = (Built(model, tuple(changes)), *self.offers)[: self._KEPT]


class DataFor:
    """`needs` of a pass: data, where an option of the instance has one of some values; else data if there are any.

    Args:
        option: name of the option.
        values: those that need data.
    """

    def __init__(self, option: str, *values: str) -> None:
        self._option = option
        self._values = values

    def __get__(self, instance: Any, owner: type[Any]) -> frozenset[Need]:
        """Return the needs of an instance, or of the class with its defaults."""
        is_needed = instance is not None and getattr(instance, self._option) in self._values
        return frozenset({Need.DATA if is_needed else Need.DATA_IF_GIVEN})


class CandidateLog(Protocol):
    """Takes the candidates of a run and returns those that an interrupted run had built, see `search.archive`."""

    def has(self, label: str) -> bool:
        """Say whether an earlier, interrupted run has built a candidate."""
        ...

    def built(self, label: str, build: Callable[[], Built]) -> Built:
        """Return what was built under a label, or build it."""
        ...

    def offer(self, candidate: Candidate, *, prefer: Prefer, limit: float | None, place: str = "") -> None:
        """Take a measured candidate into the report."""
        ...

    def within(self, place: str) -> CandidateLog:
        """Return a log for a pass that makes a part of candidates: it can't choose the result."""
        ...

    def choose(self, candidate: Candidate, *, place: str = "") -> None:
        """Note that a candidate of a pass became the model."""
        ...


class Cache(Protocol[T]):
    """Values by key, see `activations.calibration.CalibrationCache`."""

    def get(self, key: str) -> T:
        """Return the value of a key, an empty one where nothing is known."""
        ...

    def put(self, key: str, value: T, /) -> None:
        """Keep a value under a key."""
        ...


def any_node(node: ir.Node) -> bool:  # noqa: ARG001 - as its signature is wanted
    """Select every node; can be pickled."""
    return True


def no_excess(trial: Trial) -> str | None:  # noqa: ARG001 - as its signature is wanted
    """Find no limit."""
    return None


@dataclass(frozen=True, kw_only=True)
class Context:
    """Inputs of a pass beside the model. A pass changes nothing in here, except the gate's count."""

    gate: Gate = field(default_factory=Gate)
    feeds: Sequence[Feed] = ()
    """The user's data, already fitted to the model's inputs; empty without `--data`."""
    state: Mapping[str, str] = field(default_factory=dict)
    """Input -> output whose value it gets from the run before, for `feeds` that are steps of a recurrent model."""
    calibrations: Cache[Any] | None = None
    """Ranges of activations, kept through all attempts of a run."""
    findings: MutableMapping[str, Any] | None = None
    """Figures that passes have measured and may need again, by a digest of all that they depend on; None: not kept."""
    memo: Memo | None = None
    """Set by the pipeline, for the model that it lets the passes edit."""
    seed: int = 0
    target: str = "cpu"
    judge: Judge | None = None
    """Measures candidates; None where the whole model can't be run or nothing is to be measured (a plan)."""
    archive: CandidateLog | None = None
    """Takes the candidates of passes that measure several; None where nothing is measured."""
    is_plan: bool = False
    """True where only a plan is asked for, so that nothing that takes long has to be done."""
    clock: Clock = field(default_factory=Clock)
    """Time limit of searches."""
    executor: Workers | None = None
    """Builds candidates ahead of time; None: they are built here, when they are asked for."""
    selects: Callable[[ir.Node], bool] = any_node
    """False for nodes that `--only`/`--skip` keep away from the lossy passes."""
    frozen_inputs: frozenset[str] | None = None
    """Optional inputs that become constants; None: those that are inputs by an exporter's habit only."""
    race: Callable[[ir.Model, str], float] | None = None
    """Returns the latency ratio of a candidate to the original, on synthetic inputs where the user gave none; times are
    recorded and replayed under the label. None where nothing is to be timed."""
    max_bytes: int | None = None
    """Most bytes of the result, where the user set a limit."""
    excess: Callable[[Trial], str | None] = no_excess
    """Returns by how much a candidate is over the user's limits of bytes and time, None within them."""
    progress: Progress = no_progress
    """Wraps a loop in a progress display: `for item in context.progress("Quantizing", items)`."""
    best: BestSoFar = field(default_factory=BestSoFar)
    """What a pass that searches has found: it becomes the model where the pass is stopped before it ends."""
    effort: Effort = "default"
    """How long searches go on."""
    steps: StepLog | None = None
    """Takes the CPU seconds of the steps of a search; None where nobody asks."""
    show: Callable[[SearchStatus], None] = no_status
    """Shows how far a search is."""

    def while_time(self, title: str, items: Sequence[Any]) -> Iterator[Any]:
        """Wrap a loop that may end before its last item: as `progress`, until the clock is over."""
        for item in self.progress(title, items):
            if self.clock.is_over:
                return
            yield item


class LosslessPass:
    """Class attributes of passes that keep every output and need no data."""

    lossless: ClassVar[bool] = True
    needs: ClassVar[frozenset[Need]] = frozenset()


@runtime_checkable
class Pass(Protocol):
    """A rewrite of the graph. Its fields are its options; its docstring's first line says what changes.

    `run` edits the model in place and returns what it did and what it refused. Before each rewrite it asks
    `context.gate.admits(self.name, target)` and leaves the target alone on a no. A model is valid before and
    after a pass, not in between.

    A pass may have two more attributes, see `accounting`: `covers_layers`, a ClassVar that is True where every layer
    with weights is its business, and `why_left(layer, changes)`, which returns why it left a layer alone,
    None where it knows no more than that.
    """

    name: ClassVar[str]
    lossless: ClassVar[bool]
    needs: ClassVar[frozenset[Need]]

    def run(self, model: ir.Model, context: Context) -> list[Change]:
        """Rewrite `model` in place."""
        ...
