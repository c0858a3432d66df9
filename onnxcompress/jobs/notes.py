"""Notes of a report: lines about the samples, the proof, and a result that is slower."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import onnx_ir as ir

from ..core import Action, Change, Pass
from ..data.lint import oddities
from ..ops.weight_layers import QuantizedState
from ..passes import walk
from ..runtime.latency import Latency
from .report import Verification
from .setup import RunSamples


def sample_notes(original: ir.Model, samples: RunSamples) -> list[str]:
    """Return a line for each sample that was skipped, and for each oddity of those that passes work with."""
    given = samples.given
    if given is None:
        return samples.judged.notes()
    odd = oddities(original, given.feeds, state=given.state)
    return list(dict.fromkeys((*given.notes(), *odd, *samples.judged.notes())))


def quantized_notes(state: QuantizedState | None, changes: Sequence[Change], passes: Sequence[Pass]) -> Iterator[str]:
    """Yield a line about a model that was quantized before: what is, what is not, and whether nothing was done for it.

    Args:
        state: of the model as it was given.
        changes: of the run.
        passes: of the recipe.
    """
    if state is None:
        return
    lossy = {held.name for one in passes if not one.lossless for held in walk(one)}
    is_done = any(change.action is Action.APPLIED and change.pass_name in lossy for change in changes)
    why = "" if is_done or not lossy else ": this is why the recipe did nothing more"
    yield f"{state}{why}"


def nothing_notes(changes: Sequence[Change]) -> Iterator[str]:
    """Yield a line where nothing at all was done or refused, so that an unchanged result is no mystery."""
    if not changes:
        yield "the passes found nothing to do: the graph has its smallest form already"


def measurement_notes(
    samples: RunSamples,
    latency: Latency | None,
    verification: Verification,
    *,
    is_optimized: bool,
    is_scored_plain: bool = False,
) -> Iterator[str]:
    """Yield a line for what was not measured, or not on real samples, and for a result that is slower."""
    if verification.mode == "none":
        yield "a plan: nothing was proved, scored, timed or written"
    elif verification.mode == "regions":
        yield "proved region by region; the whole model was not run, so neither scored nor timed (--verify full)"
    elif samples.judged.source == "synthetic":
        yield "compared on synthetic inputs; --eval with labelled samples, or --data, would show the real quality"
    if not is_optimized:
        yield "onnxruntime can load the original with its optimizations off only: both models were run and timed so"
    if is_scored_plain:
        yield "a run takes much memory: both models were scored with onnxruntime's optimizations off, and not timed"
    if verification.mode == "full" and latency is not None and latency.is_slower:
        yield f"the result is {latency.ratio:.2f} times as slow as the original"
    if latency is not None and latency.prompt_ratio is not None:
        yield f"the time is that of a step with a past; at a prompt it is {latency.prompt_ratio:.2f} of the original's"
