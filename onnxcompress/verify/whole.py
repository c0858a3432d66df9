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
from ..runtime import session as runtime
from ..runtime.loaded_model import LoadedModel
from ..shapes.fixed_values import FixedSession, FixedValues
from ..shapes.infer import all_graphs
from .equal_outputs import EqualOutputs, most_seconds

log = logging.getLogger(__name__)

GROWTH_RATIO = 1.01
"""Factor by which a rewrite may make a file grow, beside `GROWTH_BYTES`; chosen by judgement."""
GROWTH_BYTES = 2048
"""Bytes by which a rewrite may make a file grow: names, a scale, a shape constant; chosen by judgement."""

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

    Lossless: outputs must agree but for rounding, see `EqualOutputs`. Lossy: types and shapes must agree and nothing
    may become NaN or infinite; how good the outputs are is judged by the limits, not here.

    Args:
        before: the model before.
        feeds: what both are run on.
        lossless: whether the outputs must agree.
        limit: says by how much a lossy result is over a limit.
        reference: a model with the same outputs as `before`, where one is loaded already.
        expected: these outputs, feed by feed, where they are known already.
        size_bytes: of `before`, where it is known already.
        threads: of the session with optimizations.
        like: a model whose runs take about as much memory.
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
        like: LoadedModel | None = None,
    ) -> None:
        self._limit = limit
        self._structure = Structure(before, size_bytes)
        self._lossless = lossless
        self._feeds = feeds
        self._before = reference or LoadedModel(before, like=like)
        self._expected = expected
        self._threads = threads
        self.proved: LoadedModel | None = None
        """The candidate that was judged last, with its sessions."""

    @functools.cached_property
    def _equality(self) -> EqualOutputs:
        return EqualOutputs(self._before, self._feeds, self._expected)

    @functools.cached_property
    def _fixed(self) -> FixedValues:
        """Random numbers and amounts of the model before, which a lossy candidate is given."""
        return FixedValues.of(self._before.model)

    def _plain(self, loaded: LoadedModel) -> runtime.Session | FixedSession:
        return self._fixed.session(loaded, optimize=False) if self._fixed else loaded.plain

    @functools.cached_property
    def _reference(self) -> tuple[Sequence[Mapping[str, Any]], float]:
        """The outputs of the model before, and the seconds of its longest run."""
        session = self._plain(self._before)
        known = None if self._fixed else self._expected
        found = known or [session.run(feed) for feed in self._feeds]
        return [{name: each[name] for name in self._fixed.sizing} for each in found], session.slowest_seconds

    def problem(self, candidate: ir.Model) -> str | None:
        """Return one line that says what is wrong with the candidate, None where it is as good as before."""
        self.proved = None
        opened = LoadedModel(candidate, threads=self._threads, like=self._before)
        if fault := self._structure.problem(candidate, opened.data):
            return fault
        try:
            fault = self._equality.mismatch(opened) if self._lossless else self._degenerate(opened)
            opened.close_plain()  # the memory is wanted for the next
            if self._lossless and fault is None:
                self._before.close_plain()
            if fault is None and not opened.fast.is_optimized and self._before.fast.is_optimized:
                fault = "onnxruntime can load it with its optimizations off only"  # its rewrites must survive ours
            if fault is None:
                self.proved = opened
        except ModelError as error:
            return error.message
        return fault

    def notes(self) -> tuple[str, ...]:
        """Return a line on each output that could not be proved equal, or not well."""
        return self._equality.notes() if self._lossless else ()

    def _degenerate(self, candidate: LoadedModel) -> str | None:
        """Return what makes a lossy candidate's outputs unusable.

        Nothing is random; sizes that follow from numbers that the model computes may differ.
        """
        reference, slowest_seconds = self._reference
        session = self._plain(candidate)
        for feed, expected in zip(self._feeds, reference, strict=True):
            got = session.run(feed, max_seconds=most_seconds(slowest_seconds))
            if fault := equality.degenerate(expected, got, sized=self._fixed.sized):
                return fault
        return None

    def excess(self, candidate: ir.Model) -> str | None:
        """Return what `limit` says of the candidate: None within it."""
        if self._lossless:
            return None
        is_last = self.proved is not None and self.proved.model is candidate
        known = self.proved if is_last else None
        return self._limit(known or LoadedModel(candidate, threads=self._threads, like=self._before))


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
