"""Proofs that a group of passes left the model right: its structure, and its outputs in onnxruntime."""

from __future__ import annotations

import functools
import logging
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import onnx
import onnx_ir as ir

from ..core import Feed
from ..errors import ModelError
from ..io import model_io
from ..quality import equality
from ..quality.estimated_drop import sigmoid_values
from ..runtime.loaded_model import LoadedModel
from ..shapes.infer import all_graphs

log = logging.getLogger(__name__)

GROWTH_RATIO = 1.01
"""Factor by which a rewrite may make a file grow, beside `GROWTH_BYTES`; chosen by judgement."""
GROWTH_BYTES = 2048
"""Bytes by which a rewrite may make a file grow: names, a scale, a shape constant; chosen by judgement."""

_LEAST_SECONDS = 10.0
"""Time below which no candidate counts as stuck; chosen by judgement."""
_MOST_TIMES = 20
"""A candidate that takes so many times what the model before took, and `_LEAST_SECONDS`, is stuck."""

_CHECKED_BYTES = 4 << 20
"""Larger models are checked without their weights."""


class Structure:
    """Structure that a rewrite must keep: inputs, outputs, validity, and nearly the size of the file."""

    def __init__(self, before: ir.Model, size_bytes: int | None = None) -> None:
        self._before = before
        self._known_bytes = size_bytes
        self._inputs = _required_inputs(before)
        self._outputs = _typed(before.graph.outputs)

    @functools.cached_property
    def _bytes(self) -> int:
        return model_io.model_bytes(self._before) if self._known_bytes is None else self._known_bytes

    @functools.cached_property
    def _fault_before(self) -> str | None:
        return checker_fault(self._before)

    def problem(self, candidate: ir.Model, data: bytes | None = None) -> str | None:
        """Return what the candidate broke, None where nothing.

        A model that the checker refused before is not held against the checker afterwards: only what was
        right must stay right.

        Args:
            candidate: the model after.
            data: the same as one message, where the caller has it already.
        """
        if (inputs := _required_inputs(candidate)) != self._inputs:
            return f"the inputs changed from {self._inputs} to {inputs}"
        if (outputs := _typed(candidate.graph.outputs)) != self._outputs:
            return f"the outputs changed from {self._outputs} to {outputs}"
        if (fault := checker_fault(candidate, data)) and self._fault_before is None:
            return f"the model became invalid: {fault}"
        size_bytes = model_io.model_bytes(candidate) if data is None else len(data)
        if size_bytes > self._bytes * GROWTH_RATIO + GROWTH_BYTES:
            return f"the file grew from {self._bytes:,} to {size_bytes:,} bytes"
        return None


class WholeProof:
    """Runs the whole model before and after on the same feeds; the runtime's own optimizations are off.

    With them on, the runtime would make some of our rewrites itself and hide the difference. Lossless: outputs
    must agree within `validate.mismatch`'s tolerance. Lossy: types and shapes must agree and nothing may become
    NaN or infinite; how good the outputs are is judged by the limits, not here.

    Args:
        before: the model before.
        feeds: what both are run on.
        lossless: whether the outputs must agree.
        limit: says by how much a lossy result is over a limit.
        reference: a model with the same outputs as `before`, where one is loaded already.
        expected: these outputs, feed by feed, where they are known already.
        size_bytes: of `before`, where it is known already.
        threads: of the session with optimizations.
    """

    def __init__(
        self,
        before: ir.Model,
        feeds: Sequence[Feed],
        *,
        lossless: bool,
        limit: Callable[[LoadedModel], str | None] = lambda _: None,
        reference: LoadedModel | None = None,
        expected: Sequence[Mapping[str, Any]] | None = None,
        size_bytes: int | None = None,
        threads: int = 1,
    ) -> None:
        self._limit = limit
        self._structure = Structure(before, size_bytes)
        self._expected = expected
        self._lossless = lossless
        self._feeds = feeds
        self._before = reference or LoadedModel(before)
        self._threads = threads
        self.proved: LoadedModel | None = None
        """The candidate that was judged last, with its sessions."""

    @functools.cached_property
    def _reference(self) -> Sequence[Mapping[str, Any]]:
        return self._expected or [self._before.plain.run(feed) for feed in self._feeds]

    def problem(self, candidate: ir.Model) -> str | None:
        """Return one line that says what is wrong with the candidate, None where it is as good as before."""
        self.proved = None
        opened = LoadedModel(candidate, threads=self._threads)
        if fault := self._structure.problem(candidate, opened.data):
            return fault
        limit = self._most_seconds()
        try:
            outputs = [opened.plain.run(feed, max_seconds=limit) for feed in self._feeds]
            del opened.plain  # the memory is wanted for the next
            _ = opened.fast  # the runtime's own rewrites must survive ours
            self.proved = opened
        except ModelError as error:
            return error.message
        judge = self._mismatch if self._lossless else equality.degenerate
        for index, (expected, got) in enumerate(zip(self._reference, outputs, strict=True)):
            if judge(expected, got) is None:
                continue
            stable = self._stable(index)
            if fault := judge({name: expected[name] for name in stable}, {n: got[n] for n in stable if n in got}):
                return fault
        return None

    def excess(self, candidate: ir.Model) -> str | None:
        """Return what `limit` says of the candidate: None within it."""
        if self._lossless:
            return None
        is_last = self.proved is not None and self.proved.model is candidate
        return self._limit(self.proved if is_last and self.proved else LoadedModel(candidate, threads=self._threads))

    def _most_seconds(self) -> float:
        """Return how long a candidate may run: many times as long as the model before."""
        _ = self._reference
        return _LEAST_SECONDS + _MOST_TIMES * self._before.plain.slowest_seconds

    def _mismatch(self, expected: Mapping[str, Any], got: Mapping[str, Any]) -> str | None:
        return equality.mismatch(expected, got, sigmoids=self._sigmoids)

    @functools.cached_property
    def _sigmoids(self) -> frozenset[str]:
        return sigmoid_values(self._before.model.graph.outputs)

    def _stable(self, index: int) -> list[str]:
        """Return the outputs that come out the same when the model before is run again on this feed.

        A model may draw random numbers; what differs from itself can't be held against a rewrite.
        """
        again = self._before.plain.run(self._feeds[index])
        expected = self._reference[index]
        return [name for name in expected if self._mismatch({name: expected[name]}, {name: again[name]}) is None]


def checker_fault(model: ir.Model, data: bytes | None = None) -> str | None:
    """Return the first line of what the onnx checker has against a model, None where it has nothing.

    Large weights stay on disk: they are stood in for by empty tensors, unless the whole model is here as `data`.
    """
    if data is None or len(data) > _CHECKED_BYTES:
        proto = model_io.skeleton(model)
        _empty_external(proto.graph)
        data = proto.SerializeToString()
    try:
        onnx.checker.check_model(data)
    except onnx.checker.ValidationError as error:
        return str(error).strip().splitlines()[0]
    except (ValueError, RuntimeError) as error:
        return f"the checker gave up: {error}".splitlines()[0]
    return None


def _empty_external(proto: onnx.GraphProto) -> None:
    for graph in all_graphs(proto):
        attributes = [attr for node in graph.node for attr in node.attribute]
        for tensor in (*graph.initializer, *(t for attr in attributes for t in (attr.t, *attr.tensors))):
            if tensor.data_location == onnx.TensorProto.EXTERNAL:
                del tensor.external_data[:]
                tensor.ClearField("data_location")
                del tensor.dims[:]
                tensor.dims.append(0)


def _required_inputs(model: ir.Model) -> list[str]:
    return _typed([v for v in model.graph.inputs if not v.is_initializer()])


def _typed(values: Sequence[ir.Value]) -> list[str]:
    return [f"{v.name} {v.type} {v.shape}" for v in values]
