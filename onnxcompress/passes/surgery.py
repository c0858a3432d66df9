"""Let a user's own function edit the model as an onnx-graphsurgeon graph."""

from __future__ import annotations

import traceback
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any, ClassVar

import onnx_ir as ir
from pydantic.dataclasses import dataclass

from ..base import user_code
from ..core import GRAPH, Change, Context, Need
from ..errors import ModelError, UsageError
from ..graph import edit as graph
from ..graph import query
from ..io import model_io


@dataclass(frozen=True, kw_only=True)
class Surgery:
    """Runs `function(graph: gs.Graph) -> gs.Graph | None` of the user's on the graph."""

    name: ClassVar[str] = "surgery"
    lossless: ClassVar[bool] = False
    needs: ClassVar[frozenset[Need]] = frozenset()
    command_line_only: ClassVar[frozenset[str]] = frozenset({"function"})

    function: str | None = None
    """`module:function`, importable from the current directory. It returns the new graph, or nothing after an
    edit in place."""

    def run(self, model: ir.Model, context: Context) -> list[Change]:
        """Carry the model to graphsurgeon, call the function, and carry the result back."""
        if self.function is None:
            return []
        edit = user_code.load_function(self.function)
        from ..io import graphsurgeon  # slow to import, and most runs have no surgery

        try:
            carried = graphsurgeon.to_surgeon(model)
            lost = _lost(model, graphsurgeon.from_surgeon(carried, origin=model))
        except ModelError as error:
            return [Change.skipped(self.name, f"graphsurgeon can't carry the model: {error}")]
        if lost:
            return [Change.skipped(self.name, f"graphsurgeon can't carry the model: it changes {lost}")]
        if not context.gate.admits(self.name, GRAPH):
            return []
        edited = _called(edit, self.function, carried)
        if edited is None:
            edited = carried  # edited in place, as graphsurgeon's users often do
        if not isinstance(edited, type(carried)):
            raise UsageError(
                f"returned {type(edited).__name__} and not a graph",
                where=f"surgery function {self.function}",
                hint="Return the edited onnx_graphsurgeon.Graph, or nothing after editing in place",
            )
        try:
            result = graphsurgeon.from_surgeon(edited, origin=model)
        except ModelError as error:
            return [Change.skipped(self.name, f"what {self.function} returned can't be carried back: {error}")]
        before = model_io.model_bytes(model)
        graph.become(model, result)
        after = model_io.model_bytes(model)
        return [Change.applied(self.name, f"edited by {self.function}", bytes_before=before, bytes_after=after)]


def _lost(model: ir.Model, returned: ir.Model) -> str:
    """Return the first node that graphsurgeon changes, "" where it changes none.

    It may lose the names that the bodies of an If read from outside.
    """
    expected, got = Counter(map(_signature, query.nodes(model))), Counter(map(_signature, query.nodes(returned)))
    if expected == got:
        return ""
    missing = set((expected - got).keys())
    return next((query.label(node) for node in query.nodes(model) if _signature(node) in missing), "the nodes")


def _signature(node: ir.Node) -> tuple[object, ...]:
    """Return operator, inputs, outputs and attributes of a node, without empty inputs and outputs at the end."""
    ends = tuple(" ".join(value.name or "" if value else "" for value in side) for side in (node.inputs, node.outputs))
    return node.domain, node.op_type, *(end.rstrip() for end in ends), *sorted(node.attributes)


def _called(edit: Callable[..., Any], name: str, carried: Any) -> Any:
    """Return the result of the user's function; exceptions that it raises become a UsageError with its line."""
    try:
        return edit(carried)
    except MemoryError:
        raise
    except (Exception, SystemExit) as error:
        place = _place(error, edit)
        message = " ".join(str(error).split())
        raise UsageError(
            f"{type(error).__name__}: {message}" if message else type(error).__name__,
            where=f"surgery function {name}{place}",
            hint="Correct the function",
        ) from error


def _place(error: BaseException, edit: Callable[..., Any]) -> str:
    """Return " (file, line n)" of the last frame in the file that defines the user's function."""
    frames = [frame for frame in traceback.extract_tb(error.__traceback__) if frame.filename != __file__]
    own = getattr(getattr(edit, "__code__", None), "co_filename", None)
    frames = [frame for frame in frames if frame.filename == own] or frames
    return f" ({Path(frames[-1].filename).name}, line {frames[-1].lineno})" if frames else ""
