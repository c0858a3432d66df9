"""Setup of a run: whole-model or regional proof, the samples, and the feeds that rewrites are proved on."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import onnx_ir as ir

from ..base.clock import Clock
from ..base.size_limits import APART_BYTES, RUN_BYTES
from ..core import Change, Feed
from ..data import evaluation_set, input_specs, synthetic
from ..data.evaluation_set import Evaluation
from ..errors import ModelError, UsageError
from ..graph import query
from ..io.wire import MAX_MESSAGE_BYTES
from ..ops.optional_inputs import listed_by_habit, optional_inputs
from ..quality.compare_outputs import measure
from ..quality.output_plan import OutputPlan, Runs
from ..quality.result import Quality
from ..recipe import Recipe
from ..runtime import session as runtime
from ..runtime.loaded_model import LoadedModel
from ..search.archive import Archive
from ..search.checkpoint import Checkpoint, digest
from ..search.effort import StepSeconds
from ..shapes import count as counting
from .judge import Timings, decisive_drop
from .limits import LatencyLimit
from .options import RunOptions, Verify

_MOST_MACS = 300_000_000_000
"""Multiply-accumulates of one round over the samples to judge by, about ten seconds, up to which seen ones are added.
Chosen by judgement; not measured."""

_PROOF_FEEDS = 2
"""Synthetic feeds of a proof: two sizes of every dynamic dimension."""


@dataclass(frozen=True, kw_only=True)
class RunSamples:
    """Samples of a run."""

    given: Evaluation | None
    """The user's data."""
    working: Evaluation | None
    """The part of it that passes see."""
    held_out: Evaluation | None
    """The part of it that candidates are judged by."""
    judged: Evaluation
    """Those by which original and result are scored: the user's, or synthetic."""
    timed: tuple[Feed, ...]
    """The feeds that are timed: the largest, or a step and a prompt of a model with a cache."""

    @property
    def largest(self) -> Feed:
        """The feed at whose shapes MACs are counted."""
        return (self.given or self.judged).largest()


@dataclass(frozen=True, kw_only=True)
class ProofInputs:
    """The feeds of a proof, and the original's outputs where known; the whole model is run, or only regions."""

    is_whole: bool
    feeds: Sequence[Feed]
    expected: Sequence[Mapping[str, Any]] | None
    notes: tuple[str, ...] = ()


@dataclass(frozen=True, kw_only=True)
class Run:
    """One run of `compress`: everything that is known before the first pass; `started` is in seconds, monotonic."""

    options: RunOptions
    recipe: Recipe
    started: float
    clock: Clock
    timings: Timings
    latency_limit: LatencyLimit | None
    base: LoadedModel
    selects: Callable[[ir.Node], bool]
    start: ir.Model
    """The original without metadata, where passes begin."""
    dropped: tuple[Change, ...]
    """The metadata that it has lost."""
    samples: RunSamples
    proof: ProofInputs
    plan: OutputPlan
    checkpoint: Checkpoint | None
    archive: Archive
    steps: StepSeconds
    """CPU seconds of the steps of the search."""
    measured: dict[str, Quality] = field(default_factory=dict)
    """Digest of a model -> what was measured of it: candidate, proof and result are often the same bytes."""

    @property
    def original(self) -> ir.Model:
        """The model as it was given."""
        return self.base.model

    @property
    def search_limit(self) -> float | None:
        """Most that the metric may fall in a search: the user's, else the recipe's."""
        return self.recipe.max_drop if self.options.max_drop is None else self.options.max_drop

    @property
    def own_limit(self) -> float | None:
        """Most that the metric may fall where the recipe backs off; None for recipes that don't."""
        return None if self.recipe.max_drop is None else self.search_limit

    @property
    def is_scored_plain(self) -> bool:
        """True where models are scored with the runtime's optimizations off: lossless recipes, where runs are heavy.

        With them on a run takes half as much memory again, and the outputs differ in rounding alone.
        """
        return self.recipe.lossless and self.base.is_heavy

    def excess_drop(self, candidate: LoadedModel, limit: float | None) -> str | None:
        """Return by how much the metric falls more than a limit on the samples that decide, None within it."""
        if limit is None:
            return None
        quality = self.quality(self.base, candidate)
        drop = decisive_drop(quality.drop, quality.drop_interval, self.options.confidence)
        if drop is None:
            return "no output can be scored, so nothing shows that the loss is within the limit"
        return None if drop <= limit else f"{quality.metric} falls by {drop:.4g}, more than {limit:g}"

    def quality(self, original: LoadedModel, other: LoadedModel, **options: Any) -> Quality:
        """Compare two models on the samples that decide; bytes that were compared before are not run again."""
        optimize = not self.is_scored_plain
        before = self.plan.session(original, optimize=optimize)
        if not optimize and before is self.base.plain and self.proof.expected:
            before = _KnownRuns(before, self.proof.feeds, self.proof.expected)
        if other is original:
            return measure(before, before, self.samples.judged, metric=self.options.metric, plan=self.plan, **options)
        key = "" if original is not self.base or other.size_bytes > APART_BYTES else digest([other.data])
        known = self.measured.get(key)
        if known is None:
            after = self.plan.session(other, optimize=optimize)
            known = measure(before, after, self.samples.judged, metric=self.options.metric, plan=self.plan, **options)
        if key:
            self.measured[key] = known
        return known


class _KnownRuns:
    """A session, some of whose runs are known.

    Args:
        session: makes the others.
        feeds: inputs of the known runs.
        outputs: theirs, feed by feed.
    """

    def __init__(self, session: Runs, feeds: Sequence[Feed], outputs: Sequence[Mapping[str, Any]]) -> None:
        self._session = session
        self._known = list(zip(feeds, outputs, strict=True))

    def run(self, feed: Mapping[str, Any]) -> dict[str, Any]:
        """Return output name -> array; nothing is run where the very arrays were run before."""
        for known, outputs in self._known:
            if known.keys() == feed.keys() and all(feed[name] is value for name, value in known.items()):
                return dict(outputs)
        return self._session.run(feed)


def open_session(base: LoadedModel, options: RunOptions) -> runtime.Session | None:
    """Return the session of the whole model, None where it is proved by regions.

    Raises:
        ModelError: the runtime can't load the model.
        UsageError: it is proved by regions, and a limit was given that needs the whole.
    """
    session = None if by_regions(base, options.verify) else open_whole(base, options.verify)
    if session is None and _needs_whole(options):
        raise UsageError("--max-drop and --max-latency need the whole model to be run", hint="Give --verify full")
    return session


def _needs_whole(options: RunOptions) -> bool:
    return options.max_drop is not None or options.max_latency is not None


def read_inputs(
    base: LoadedModel, session: runtime.Session | None, recipe: Recipe, options: RunOptions
) -> tuple[RunSamples, ProofInputs]:
    """Read the user's samples and find feeds for the proof; synthetic ones also serve as samples where none are given.

    Raises:
        DataError: the data can't be read or does not fit.
        ModelError: no feed is found that the model runs, and the whole model has to be run.
    """
    specs = input_specs.input_specs(base.model) if session is None else session.feedable
    given = (
        None
        if options.data is None
        else evaluation_set.read(options.data, specs, options.data_options, model=base.source, graph=base.model)
    )
    working, held_out = (given, given) if given is None or not recipe.uses_data else given.divided()
    if held_out is not None and held_out.seen and session is not None and _is_costly(base, held_out):
        held_out = held_out.without_seen()
    judged = held_out
    if options.eval_data is not None:
        judged = evaluation_set.read(
            options.eval_data, specs, options.data_options, model=base.source, graph=base.model
        )
    try:
        proof = proof_inputs(base.model, session, judged, seed=options.seed)
    except ModelError as error:
        if options.verify == "full" or _needs_whole(options):
            raise
        proof = proof_inputs(base.model, None, judged, seed=options.seed, notes=(str(error),))
    judged = judged or evaluation_set.synthetic(proof.feeds, specs)
    timed = (given or judged).timed(None if session is None else session.run)
    return RunSamples(given=given, working=working, held_out=held_out, judged=judged, timed=timed), proof


def _is_costly(base: LoadedModel, held_out: Evaluation) -> bool:
    """Say whether scoring one candidate takes so long that seen samples should not be run too."""
    macs = counting.count(base.model, held_out.feeds[-1]).macs
    return macs is not None and macs * len(held_out.feeds) > _MOST_MACS


def frozen_inputs(run: Run) -> frozenset[str]:
    """Return which optional inputs become constants: those that the data feeds never do.

    Raises:
        UsageError: all are to become constants, and the data feeds one.
    """
    found = frozenset(value.name or "" for value in optional_inputs(run.original))
    if not found:
        return found
    sets = [each for each in (run.samples.given, run.samples.judged) if each is not None]
    fed = found & {name for each in sets for feed in each.feeds for name in feed}
    if run.options.freeze_inputs and fed:
        raise UsageError(
            f"--freeze-inputs would make a constant of {min(fed)!r}, which the data feeds",
            hint="Leave the array out of the data, or --freeze-inputs",
        )
    return found if run.options.freeze_inputs else listed_by_habit(run.original) - fed


def by_regions(model: LoadedModel, verify: Verify) -> bool:
    """Say whether a model is proved by regions from the start: it was asked for, or the model is large."""
    return verify == "regions" or (verify == "auto" and model.runtime_bytes > RUN_BYTES)


def open_whole(model: LoadedModel, verify: Verify) -> runtime.Session | None:
    """Load the whole model in the runtime; None where operators that it doesn't know leave regions as the only way.

    Raises:
        ModelError: the runtime can't load it, for another reason or although `verify` is "full".
    """
    if model.size_bytes > MAX_MESSAGE_BYTES:
        raise ModelError(
            f"the model has {model.size_bytes:,} bytes; over 2 GiB it can't be run as one piece",
            where=model.path or "",
            hint="Give --verify regions",
        )
    try:
        return model.plain
    except ModelError:
        known = {*query.STANDARD_DOMAINS, "ai.onnx.ml", "com.microsoft"}
        functions = model.model.functions
        if verify == "full" or all(
            node.domain in known or node.op_identifier() in functions for node in query.nodes(model.model)
        ):
            raise
        return None


def proof_inputs(
    model: ir.Model,
    session: runtime.Session | None,
    judged: Evaluation | None,
    *,
    seed: int,
    notes: tuple[str, ...] = (),
) -> ProofInputs:
    """Return feeds to prove rewrites on: synthetic ones, or the user's where none of those runs.

    Without a session only their shapes, and the values of the model's inputs, are of use: the user's come first.

    Raises:
        ModelError: the model runs no synthetic feed, and there are no others.
    """
    if session is None:
        feeds = judged.feeds[:1] if judged else synthetic.synthetic_feeds(model, seed=seed, sizes=(8,))
        return ProofInputs(is_whole=False, feeds=feeds, expected=None, notes=notes)
    try:
        tried = synthetic.tried_feeds(model, session, seed=seed, count=_PROOF_FEEDS)
    except ModelError:
        if judged is None:
            raise
        return ProofInputs(is_whole=True, feeds=judged.feeds[:_PROOF_FEEDS], expected=None)
    return ProofInputs(is_whole=True, feeds=[each.feed for each in tried], expected=[each.outputs for each in tried])
