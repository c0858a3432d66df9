"""Trains the weights of a changed model on what the original gives, label-free: by its derivative, as an ONNX graph.

    student: weights become inputs, the loss against the teacher's outputs is appended --onnx-ad--> adjoint graph
    step:    teacher runs on a batch -> adjoint runs -> Adam moves the weights

Of every batch one half are samples as they are; the others are mixed with each other (mixup, Zhang et al. 2018), which
is no invention of labels, since the teacher is asked about every mixture (Beyer et al. 2022). Samples that are not
floats are not mixed. The outcome is kept only where the loss on samples held out falls.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx
import onnx_ad
import onnx_ir as ir
from onnx import helper, numpy_helper
from scipy.special import softmax

from ..activations import observe
from ..core import Feed
from ..data import feeds as feed_facts
from ..data.feeds import Lazy
from ..errors import ModelError
from ..graph import constants as float_constants
from ..graph import edit, query
from ..io import model_io
from ..numerics.optimization.adam import Adam, falling
from ..ops import table as ops
from ..ops.linear import linear_layers
from ..quality import divergence
from ..quality.divergence import DivergenceKind
from ..runtime import session as runtime
from ..shapes import count as counting

_PREFIX = "onnxcompress_"
_LOSS = f"{_PREFIX}loss"
_HELD_OUT, _FEW = (8, 4), 512
"""Every how manieth sample is held out: of many, and of fewer than so many."""
_LEAST_SAMPLES = 64
_CHECKS = 10
"""Times that the loss on samples held out is looked at."""
_LOST = 4.0
"""Half way through, a loss that is so many times the first one ends the training."""
_RATE, _RATES = 0.05, (1e-4, 2e-3)
"""Rate for each unit of the loss at the start, and its bounds."""
_SMALL = 1e-8
_BATCHES = (16, 128)
"""Samples of a batch to train on."""
_GROUPED = 100
"""What a MAC of a grouped convolution costs in training, for it is differentiated by slow kernels."""
_TRAINING_MACS = 8e11
"""MACs of the samples that are run forwards in training, at most; there and back they take about a minute or two."""
_LOSS_OPSET = 13
"""From here on the operators of the loss are what is written here."""


@dataclass(frozen=True, kw_only=True)
class Distilled:
    """How a training went.

    Args:
        is_applied: whether the student has been changed.
        reason: what was gained, or why nothing was.
        before: loss on samples held out, above the least one that there can be.
        after: the same with the best weights.
        steps: steps taken.
    """

    is_applied: bool
    reason: str
    before: float = math.nan
    after: float = math.nan
    steps: int = 0

    def figures(self, loss: float | None) -> list[str]:
        """Return what a report says of it beside the loss that the model came to; nothing where nothing was gained."""
        if self.is_applied and loss is not None:
            return [f"distilled {loss:.3g}"]
        return [] if self.steps else [f"not distilled: {self.reason}"]


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
    """Train the linear layers of `student`, in place, so that its outputs become those of `teacher`.

    Args:
        student: the changed model.
        teacher: the original.
        feeds: complete feeds of one sample each; every eighth is held out to judge by, or fourth of few.
        steps: batches to learn from.
        batch: samples of a batch.
        rate: of Adam; it falls along half a cosine. None for one in proportion to the loss: so is the loss that steps
            of a rate leave behind by their noise.
        seed: of the choice of samples.
        threads: of the runtime.
        selects: False for nodes whose weights stay as they are.
        progress: wraps the loop over the steps.

    Raises:
        ModelError: the teacher can't be run.
    """
    chosen = _alike(feeds)
    some = [feeds[index] for index in chosen[: batch + 1]]
    if len(chosen) < _LEAST_SAMPLES:
        return Distilled(is_applied=False, reason=f"{len(chosen)} samples of one shape are too few to learn from")
    if observe.batched(student, some, batch) is some or observe.batched(teacher, some, batch) is some:
        return Distilled(is_applied=False, reason="it takes one sample at a time")
    judging = set(_judging(chosen))
    train = [feeds[index] for index in chosen if index not in judging]
    held_out = [feeds[index] for index in chosen if index in judging]
    size = min(batch, len(held_out))
    asked = _Teacher(teacher, threads=threads)
    first = _joined(held_out[:size])
    try:
        outputs = asked.run(first)
        if not asked.kinds:
            return Distilled(is_applied=False, reason="it has no output of floats to learn from")
        trainer = _Trainer(student, _weights(student, selects), asked.kinds, first, outputs, threads=threads)
    except _UntrainableError as error:
        return Distilled(is_applied=False, reason=str(error))
    parts = [_joined(held_out[start : start + size]) for start in range(0, len(held_out) - size + 1, size)]
    tests = [(feed, asked.run(feed)) for feed in parts]
    random = np.random.default_rng(seed)
    before = best = trainer.excess(tests)
    if rate is None:
        rate = min(max(_RATE * before, _RATES[0]), _RATES[1])
    kept = dict(trainer.adam.values)
    taken = 0
    check = max(1, steps // _CHECKS)
    for step in progress("Distilling", range(steps)):
        feed = _mixed(train, size, random)
        trainer.step(feed, asked.run(feed), rate * falling(step, steps))
        taken = step + 1
        if taken % check == 0 or taken == steps:
            now = trainer.excess(tests)
            if now < best:
                best, kept = now, dict(trainer.adam.values)
            elif taken > steps / 2 and not now < _LOST * before:
                break
    figures = f"loss on held-out samples {before:.4g} to {best:.4g} in {taken} steps"
    if best >= before:
        return Distilled(is_applied=False, reason=f"no gain: {figures}", before=before, after=before, steps=taken)
    for name, array in kept.items():
        value = student.graph.initializers[name]
        tensor = query.constant_tensor(value)
        assert tensor is not None
        edit.set_weight(value, float_constants.cast(array, tensor.dtype.numpy()))
    return Distilled(is_applied=True, reason=figures, before=before, after=best, steps=taken)


def divided(feeds: Sequence[Feed]) -> tuple[Sequence[Feed], Sequence[Feed] | None]:
    """Return the feeds that may be learnt from before `distill` gets all of them, and those that it judges by.

    A model that has seen the latter could only seem to get worse. None where there are too few to hold any out.
    """
    judging = _judging(_alike(feeds))
    if not judging:
        return feeds, None
    rest = [index for index in range(len(feeds)) if index not in set(judging)]
    return Lazy(rest, feeds.__getitem__), Lazy(judging, feeds.__getitem__)


def _judging(chosen: Sequence[int]) -> Sequence[int]:
    """Return which ones of samples of one shape are held out."""
    every = _HELD_OUT[len(chosen) < _FEW]
    return chosen[every - 1 :: every]


def affordable(model: ir.Model, feed: Feed, steps: int) -> tuple[int, int]:
    """Return steps and the samples of a batch, smaller and then fewer where the model is large.

    Args:
        model: what is to be trained.
        feed: one sample.
        steps: steps that are wanted, 1 at least.

    Raises:
        ModelError: the model can't be run.
    """
    shape_of = counting.shape_lookup(counting.resolve_shapes(model, feed))
    work = sum(
        (macs or 0) * (_GROUPED if int(query.attribute(node, "group", 1)) > 1 else 1)
        for node, macs in ops.node_macs(model, shape_of)
    )
    batch = min(max(int(_TRAINING_MACS / max(1, work) / steps), _BATCHES[0]), _BATCHES[1])
    return max(1, min(steps, int(_TRAINING_MACS / max(1, work) / batch))), batch


class _UntrainableError(Exception):
    """A model that no derivative can be had of, for the reason that the exception holds."""


class _Teacher:
    """The original, asked about batches."""

    def __init__(self, model: ir.Model, *, threads: int) -> None:
        self._model = model
        self._session = runtime.open_session(model_io.to_bytes(model), optimize=True, threads=threads)
        self._kinds: dict[str, DivergenceKind] | None = None

    @property
    def kinds(self) -> dict[str, DivergenceKind]:
        """The outputs that can be learnt from; known after the first run."""
        return self._kinds or {}

    def run(self, feed: Feed) -> dict[str, np.ndarray]:
        """Return what the student is to give: probabilities where the outputs score classes."""
        found = self._session.run(feed)
        if self._kinds is None:
            self._kinds = divergence.kinds(self._model, found)
        return {
            name: np.asarray(
                softmax(found[name], axis=-1) if kind is DivergenceKind.LOGITS else found[name], np.float32
            )
            for name, kind in self._kinds.items()
        }


class _Trainer:
    """A student with its weights outside, its loss, and the derivative of the loss."""

    def __init__(
        self,
        student: ir.Model,
        weights: Mapping[str, np.ndarray],
        kinds: Mapping[str, DivergenceKind],
        feed: Feed,
        targets: Mapping[str, np.ndarray],
        *,
        threads: int,
    ) -> None:
        if not weights:
            raise _UntrainableError("it has no linear layer with weights of its own")
        self._kinds = kinds
        proto = _with_loss(student, kinds, feed, targets, weights)
        try:
            adjoint = onnx_ad.reverse(proto, inputs=list(weights), outputs=[_LOSS], layout="onnx")
        except (NotImplementedError, ValueError, KeyError, TypeError, RuntimeError, IndexError) as error:
            raise _UntrainableError(f"onnx-ad gives no derivative: {runtime.reason(error)}") from error
        try:
            self._loss = runtime.open_session(proto.SerializeToString(), optimize=True, threads=threads)
            self._both = runtime.open_session(adjoint.SerializeToString(), optimize=True, threads=threads)
        except ModelError as error:
            raise _UntrainableError(f"its derivative can't be run: {error.message}") from error
        known = {*feed, *weights, *(_target(name) for name in kinds)}
        self._seeds = {
            spec.name: np.ones([n if isinstance(n, int) else 1 for n in spec.shape], np.float32)
            for spec in self._both.inputs
            if spec.name not in known
        }
        names = [spec.name for spec in self._both.outputs]
        self._gradients = {name: f"adj_{name}" for name in weights}
        if not set(self._gradients.values()) <= set(names):
            raise _UntrainableError("onnx-ad gives no derivative for some weights")
        self.adam = Adam(weights)

    def step(self, feed: Feed, targets: Mapping[str, np.ndarray], rate: float) -> None:
        """Move the weights."""
        found = self._both.run(self._fed(feed, targets) | self._seeds, list(self._gradients.values()))
        gradients = {
            name: np.reshape(found[output], self.adam.values[name].shape) for name, output in self._gradients.items()
        }
        if all(np.isfinite(each).all() for each in gradients.values()):
            self.adam.step(gradients, rate)

    def excess(self, tests: Sequence[tuple[Feed, Mapping[str, np.ndarray]]]) -> float:
        """Return the loss above what the teacher itself has, as a mean over batches."""
        found = []
        for feed, targets in tests:
            loss = float(np.sum(self._loss.run(self._fed(feed, targets), [_LOSS])[_LOSS]))
            for name, kind in self._kinds.items():
                if kind is not DivergenceKind.NUMBERS:
                    p = targets[name].astype(np.float64)
                    rows = p.size // p.shape[-1]
                    loss += float((p * np.log(p + _SMALL)).sum()) / rows / len(self._kinds)
            found.append(loss if math.isfinite(loss) else math.inf)
        return float(np.mean(found))

    def _fed(self, feed: Feed, targets: Mapping[str, np.ndarray]) -> dict[str, Any]:
        return {**feed, **self.adam.values, **{_target(name): array for name, array in targets.items()}}


def _weights(model: ir.Model, selects: Callable[[ir.Node], bool]) -> dict[str, np.ndarray]:
    """Return matrices and biases of linear layers that initializers of the main graph hold; none of grouped layers.

    A grouped convolution keeps its matrix, of which there is no derivative; its bias is trained.
    """
    found: dict[str, np.ndarray] = {}
    for layer in [each for each in linear_layers(model) if selects(each.node)]:
        for value in (layer.weight if layer.groups == 1 else None, layer.bias_value):
            name = "" if value is None else value.name or ""
            held = model.graph.initializers.get(name)
            tensor = query.constant_tensor(value)
            if value is not None and held is value and tensor is not None and tensor.dtype == ir.DataType.FLOAT:
                found[name] = np.array(float_constants.read(value), np.float32)
    return found


def _with_loss(
    student: ir.Model,
    kinds: Mapping[str, DivergenceKind],
    feed: Feed,
    targets: Mapping[str, np.ndarray],
    weights: Mapping[str, np.ndarray],
) -> onnx.ModelProto:
    """Return the student at a batch's shapes, with weights and targets as inputs and the loss as its only output."""
    if query.opset(student) < _LOSS_OPSET:
        student = model_io.convert_opset(student, _LOSS_OPSET)
    proto = onnx.ModelProto.FromString(model_io.to_bytes(student))
    body = proto.graph
    left = [tensor for tensor in body.initializer if tensor.name not in weights]
    given = [spec for spec in body.input if spec.name in feed]
    del body.initializer[:], body.input[:], body.value_info[:]
    body.initializer.extend(left)
    for spec in given:
        array = np.asarray(feed[spec.name])
        body.input.append(
            helper.make_tensor_value_info(spec.name, helper.np_dtype_to_tensor_dtype(array.dtype), array.shape)
        )
    for name, array in weights.items():
        body.input.append(helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, array.shape))
    losses = []
    for number, (name, kind) in enumerate(kinds.items()):
        target = targets[name]
        body.input.append(helper.make_tensor_value_info(_target(name), onnx.TensorProto.FLOAT, target.shape))
        losses.append(_append_loss(body, name, number, kind, target, 1 / len(kinds)))
    body.node.append(helper.make_node("Sum" if len(losses) > 1 else "Identity", losses, [_LOSS]))
    del body.output[:]
    body.output.append(helper.make_tensor_value_info(_LOSS, onnx.TensorProto.FLOAT, []))
    return onnx.shape_inference.infer_shapes(proto)


def _append_loss(
    body: onnx.GraphProto, name: str, number: int, kind: DivergenceKind, target: np.ndarray, weight: float
) -> str:
    """Append the loss of one output, a scalar, and return its name."""
    at = f"{_PREFIX}{number}_"

    def constant(hint: str, array: np.ndarray) -> str:
        body.initializer.append(numpy_helper.from_array(array, f"{at}{hint}"))
        return f"{at}{hint}"

    def node(op_type: str, inputs: Sequence[str], hint: str, **attributes: Any) -> str:
        body.node.append(helper.make_node(op_type, list(inputs), [f"{at}{hint}"], **attributes))
        return f"{at}{hint}"

    axes = constant("axes", np.arange(target.ndim, dtype=np.int64))
    if kind is DivergenceKind.NUMBERS:
        missed = node("Sub", [name, _target(name)], "missed")
        terms = node("Mul", [missed, missed], "terms")
        factor = weight / max(float(np.var(target)), _SMALL) / target.size
    else:
        if kind is DivergenceKind.LOGITS:
            logs = node("LogSoftmax", [name], "logs", axis=-1)
        else:
            logs = node(
                "Log", [node("Add", [name, constant("small", np.asarray(_SMALL, np.float32))], "above")], "logs"
            )
        terms = node("Mul", [logs, _target(name)], "terms")
        factor = -weight * target.shape[-1] / target.size
    total = node("ReduceSum", [terms, axes], "total", keepdims=0)
    return node("Mul", [total, constant("factor", np.asarray(factor, np.float32))], "loss")


def _target(name: str) -> str:
    return f"{_PREFIX}target_{name}"


def _alike(feeds: Sequence[Feed]) -> list[int]:
    """Return which feeds are of the commonest shapes."""
    of_kind: dict[tuple[Any, ...], list[int]] = {}
    for index, feed in enumerate(feeds):
        key = tuple(
            sorted((name, dims, np.asarray(feed[name]).dtype.str) for name, dims in feed_facts.dims(feed).items())
        )
        of_kind.setdefault(key, []).append(index)
    return max(of_kind.values(), key=len, default=[])


def _joined(feeds: Sequence[Feed]) -> Feed:
    return {name: np.concatenate([feed[name] for feed in feeds]) for name in feeds[0]}


def _mixed(feeds: Sequence[Feed], size: int, random: np.random.Generator) -> Feed:
    """Return a batch, of which about every second sample is mixed with another one where all inputs are floats."""
    one = _joined([feeds[index] for index in random.choice(len(feeds), size, replace=len(feeds) < size)])
    if any(array.dtype.kind != "f" for array in one.values()):
        return one
    other = _joined([feeds[index] for index in random.choice(len(feeds), size)])
    share = np.where(random.random(size) < 0.5, 1.0, random.random(size))
    found = {}
    for name, array in one.items():
        part = np.repeat(share, len(array) // size).reshape(-1, *[1] * (array.ndim - 1))
        found[name] = (part * array + (1 - part) * other[name]).astype(array.dtype)
    return found
