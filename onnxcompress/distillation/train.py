"""Train the weights of a changed model on the outputs of the original, without labels, by its derivative as ONNX.

    student: weights become inputs, the loss against the teacher's outputs is appended --gradients--> its derivative
    step:    teacher runs on a batch -> derivative runs -> Adam moves the weights

Of every batch one half are samples as they are; the others are mixed with each other (mixup, Zhang et al. 2018), which
invents no labels, since the teacher is run on every mixture (Beyer et al. 2022). Samples that are not floats are not
mixed. The result is kept only where the loss on samples held out falls. Where the derivative can't be had, for all
weights or for those before an operator, the result says so: nothing else is lost.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx_ir as ir
from scipy.special import softmax

from ..activations import observe
from ..core import Feed
from ..errors import ModelError
from ..graph import query
from ..io import model_io
from ..numerics.optimization.adam import Adam, falling
from ..ops import table as ops
from ..quality import divergence
from ..quality.divergence import DivergenceKind
from ..runtime import session as runtime
from ..shapes import count as counting
from ..shapes import resolve
from . import loss_graph, sample_split, trainable
from .gradients.reverse import NoDerivativeError, reverse
from .loss_graph import LOSS, SMALL, target_name

_LEAST_SAMPLES = 64
"""Fewest samples of one shape to train on. Chosen by judgement; not measured."""
_SEEN = 2
"""Batches that show the shapes of values. Chosen by judgement: one can't show which depend on the data."""
_CHECKS = 10
"""Evaluations of the held-out loss in a training. Chosen by judgement; not measured."""
_DIVERGED = 4.0
"""Factor over the first loss that ends the training in its second half. Chosen by judgement; not measured."""
_RATE, _RATES = 0.05, (1e-4, 2e-3)
"""Learning rate per unit of the loss at the start, and its bounds. Chosen on the zoo models."""
_BATCHES = (16, 128)
"""Fewest and most samples of a batch. Chosen by judgement, for memory; not measured."""
GROUPED_COST = 24
"""Cost in training of a MAC of a grouped convolution beyond that of others, in MACs, for one input channel in a group:
it falls with their number. Measured: 25 for depthwise layers, 2.4 for groups of 16 (64 samples, 14 x 14, 3 x 3)."""
_TRAINING_MACS = 8e11
"""Most MACs of the samples that are run forwards in training; with the backward pass they take a minute or two."""


@dataclass(frozen=True, kw_only=True)
class Distilled:
    """Result of a training.

    Args:
        is_applied: True where the student has been changed.
        reason: the gain, or why there was none.
        before: loss on samples held out, above the least one that there can be.
        after: the same with the best weights.
        steps: steps taken.
        gaps: which operators have no derivative and what it costs; "" for none.
    """

    is_applied: bool
    reason: str
    before: float = math.nan
    after: float = math.nan
    steps: int = 0
    gaps: str = ""

    def figures(self, loss: float | None) -> list[str]:
        """Return the figures for a report beside the final loss of the model, and what was not trained."""
        gaps = [self.gaps] if self.gaps else []
        if self.is_applied and loss is not None:
            return [f"distilled {loss:.3g}", *gaps]
        return gaps if self.steps else [f"not distilled: {self.reason}"]


def distill(
    student: ir.Model,
    teacher: ir.Model,
    feeds: Sequence[Feed],
    *,
    steps: int = 400,
    batch: int = 128,
    rate: float | None = None,
    seed: int = 0,
    threads: int = 1,
    selects: Callable[[ir.Node], bool] = lambda _: True,
    progress: Callable[[str, Sequence[Any]], Iterator[Any]] = lambda _, items: iter(items),
) -> Distilled:
    """Train the weights of `student`, in place, so that its outputs become those of `teacher`.

    Args:
        student: the changed model.
        teacher: the original.
        feeds: complete feeds of one sample each; every eighth is held out to judge by, or fourth of few.
        steps: batches to learn from.
        batch: samples of a batch.
        rate: learning rate of Adam, which falls along half a cosine. None for one in proportion to the loss: so is the
            loss that the noise of steps of a rate leaves.
        seed: seed of the choice of samples.
        threads: threads of the runtime.
        selects: False for nodes whose weights are kept.
        progress: wraps the loop over the steps.

    Raises:
        ModelError: the teacher or the student can't be loaded.
    """
    indices = sample_split.commonest_shape(feeds)
    first = [feeds[index] for index in indices[: batch + 1]]
    if len(indices) < _LEAST_SAMPLES:
        return Distilled(is_applied=False, reason=f"{len(indices)} samples of one shape are too few to learn from")
    if observe.batched(student, first, batch) is first or observe.batched(teacher, first, batch) is first:
        return Distilled(is_applied=False, reason="it takes one sample at a time")
    chosen = set(sample_split.held_out_of(indices))
    train = [feeds[index] for index in indices if index not in chosen]
    held_out = [feeds[index] for index in indices if index in chosen]
    size = min(batch, len(held_out))
    teaching = _Teacher(teacher, threads=threads)
    try:
        trainer = _Trainer(student, teaching, held_out, size, selects, threads=threads)
        before = trainer.excess()
        rate = min(max(_RATE * before, _RATES[0]), _RATES[1]) if rate is None else rate
        random = np.random.default_rng(seed)
        batches = ((step, _mixed(train, size, random)) for step in progress("Distilling", range(steps)))
        best, weights, taken = _trained(trainer, batches, steps, rate, before)
    except _UntrainableError as error:
        return Distilled(is_applied=False, reason=str(error))
    except ModelError as error:
        return Distilled(is_applied=False, reason=f"the training can't be run: {error.message}")
    is_better = best < before
    if is_better:
        trainable.write(student, weights)
    figures = f"loss on held-out samples {before:.4g} to {best:.4g} in {taken} steps"
    reason = "; ".join(part for part in (figures if is_better else f"no gain: {figures}", trainer.gaps) if part)
    return Distilled(is_applied=is_better, reason=reason, before=before, after=best, steps=taken, gaps=trainer.gaps)


def _trained(
    trainer: _Trainer, batches: Iterable[tuple[int, Feed]], steps: int, rate: float, first_loss: float
) -> tuple[float, dict[str, np.ndarray], int]:
    """Train on numbered batches; return the least held-out loss, the weights with it, and the number of steps."""
    best, weights, taken = first_loss, dict(trainer.adam.values), 0
    for step, batch in batches:
        trainer.step(batch, rate * falling(step, steps))
        taken = step + 1
        if taken % max(1, steps // _CHECKS) == 0 or taken == steps:
            loss = trainer.excess()
            if loss < best:
                best, weights = loss, dict(trainer.adam.values)
            elif taken > steps / 2 and not loss < _DIVERGED * first_loss:
                break
    return best, weights, taken


def affordable(model: ir.Model, feed: Feed, steps: int, *, training_macs: float = _TRAINING_MACS) -> tuple[int, int]:
    """Return steps and samples of a batch within a budget: smaller batches, then fewer steps.

    Shapes that can't be inferred are seen in a run; layers whose shape stays unknown count nothing.

    Args:
        model: the student.
        feed: one sample.
        steps: most steps, 1 at least.
        training_macs: most MACs of all samples run forwards.

    Raises:
        ModelError: the model can't be run.
    """
    shape_of = resolve.shape_lookup(counting.count(model, feed).shapes)
    work = sum(
        (macs or 0) * (1 + (GROUPED_COST / _inputs_of_group(node) if int(query.attribute(node, "group", 1)) > 1 else 0))
        for node, macs in ops.node_macs(model, shape_of)
    )
    batch = min(max(int(training_macs / max(1, work) / steps), _BATCHES[0]), _BATCHES[1])
    return max(1, min(steps, int(training_macs / max(1, work) / batch))), batch


def _inputs_of_group(node: ir.Node) -> int:
    """Return the channels of each group of a convolution, 1 where its weight is not constant."""
    tensor = query.constant_tensor(node.inputs[1]) if len(node.inputs) > 1 else None
    return 1 if tensor is None else query.dims(tensor)[1]


class _UntrainableError(Exception):
    """No derivative of a model can be computed, for the reason that the exception holds."""


class _Teacher:
    """The original, run on batches."""

    def __init__(self, model: ir.Model, *, threads: int) -> None:
        self._model = model
        self._session = runtime.open_session(model_io.to_bytes(model), optimize=True, threads=threads)
        self.kinds: dict[str, DivergenceKind] | None = None
        """The outputs that can be learnt from; known after the first run."""

    def run(self, feed: Feed) -> dict[str, np.ndarray]:
        """Return the targets, float32: probabilities where the outputs score classes."""
        outputs = self._session.run(feed)
        if self.kinds is None:
            self.kinds = divergence.kinds(self._model, outputs)
        return {
            name: np.asarray(
                softmax(outputs[name], axis=-1) if kind is DivergenceKind.LOGITS else outputs[name], np.float32
            )
            for name, kind in self.kinds.items()
        }


class _Trainer:
    """A student with its weights as inputs, its loss, and the derivative of the loss.

    Args:
        student: the model; not changed.
        teacher: the original.
        held_out: samples to evaluate the loss on.
        size: samples of a batch.
        selects: False for nodes whose weights are kept.
        threads: threads of the runtime.

    Raises:
        _UntrainableError: there is nothing to learn, or no derivative.
    """

    def __init__(
        self,
        student: ir.Model,
        teacher: _Teacher,
        held_out: Sequence[Feed],
        size: int,
        selects: Callable[[ir.Node], bool],
        *,
        threads: int,
    ) -> None:
        feed = sample_split.joined(held_out[:size])
        targets = teacher.run(feed)
        if not teacher.kinds:
            raise _UntrainableError("it has no output of floats to learn from")
        weights = trainable.weights(student, selects)
        if not weights:
            raise _UntrainableError("it has no linear layer with weights of its own")
        self._teacher = teacher
        self._kinds = teacher.kinds
        starts = range(0, len(held_out) - size + 1, size)
        batches = [sample_split.joined(held_out[start : start + size]) for start in starts]
        self._tests = [(batch, teacher.run(batch)) for batch in batches]
        self._all = weights
        self.adam = Adam({})
        self._open(student, targets, feed, threads)
        self.adam = Adam({name: weights[name] for name in self._gradients})

    def _open(self, student: ir.Model, targets: Mapping[str, np.ndarray], feed: Feed, threads: int) -> None:
        """Open sessions of the loss and of its derivative."""
        try:
            proto = loss_graph.with_loss(student, self._kinds, feed, targets, self._all)
            feeds = [self._inputs(batch, wanted) for batch, wanted in self._tests[:_SEEN]]
            found = reverse(proto, feeds, list(self._all), LOSS)
        except NoDerivativeError as error:
            raise _UntrainableError(f"no weight has a derivative: {error}") from error
        except ModelError as error:
            raise _UntrainableError(f"its loss can't be differentiated: {error.message}") from error
        self._gradients, self.gaps = found.outputs, found.gaps()
        try:
            self._loss = runtime.open_session(proto.SerializeToString(), optimize=True, threads=threads)
            self._derivative = runtime.open_session(found.model.SerializeToString(), optimize=True, threads=threads)
        except ModelError as error:
            raise _UntrainableError(f"its derivative can't be run: {error.message}") from error

    def step(self, feed: Feed, rate: float) -> None:
        """Move the weights by the gradient of a batch, unless it is not finite.

        Raises:
            ModelError: the runtime fails.
        """
        inputs = self._inputs(feed, self._teacher.run(feed))
        found = self._derivative.run(inputs, list(self._gradients.values()))
        gradients = {name: found[output] for name, output in self._gradients.items()}
        if all(np.isfinite(each).all() for each in gradients.values()):
            self.adam.step(gradients, rate)

    def excess(self) -> float:
        """Return the held-out loss above that of the teacher itself, as a mean over batches."""
        losses = []
        for feed, targets in self._tests:
            loss = float(np.sum(self._loss.run(self._inputs(feed, targets), [LOSS])[LOSS]))
            for name, kind in self._kinds.items():
                if kind is not DivergenceKind.NUMBERS:
                    p = targets[name].astype(np.float64)
                    rows = p.size // p.shape[-1]
                    loss += float((p * np.log(p + SMALL)).sum()) / rows / len(self._kinds)
            losses.append(loss if math.isfinite(loss) else math.inf)
        return float(np.mean(losses))

    def _inputs(self, feed: Feed, targets: Mapping[str, np.ndarray]) -> dict[str, Any]:
        return {
            **feed,
            **self._all,
            **self.adam.values,
            **{target_name(name): array for name, array in targets.items()},
        }


def _mixed(feeds: Sequence[Feed], size: int, random: np.random.Generator) -> Feed:
    """Return a batch, of which about every second sample is mixed with another one where all inputs are floats."""
    one = sample_split.joined([feeds[index] for index in random.choice(len(feeds), size, replace=len(feeds) < size)])
    if any(array.dtype.kind != "f" for array in one.values()):
        return one
    other = sample_split.joined([feeds[index] for index in random.choice(len(feeds), size)])
    share = np.where(random.random(size) < 0.5, 1.0, random.random(size))
    found = {}
    for name, array in one.items():
        part = np.repeat(share, len(array) // size).reshape(-1, *[1] * (array.ndim - 1))
        found[name] = (part * array + (1 - part) * other[name]).astype(array.dtype)
    return found
