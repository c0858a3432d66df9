"""States that go from run to run: which output becomes which input, and how an empty cache begins.

'past_key_values.*=present.*'    every input of that name gets the output whose name has the same in place of the star
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import onnx_ir as ir

from ..errors import UsageError
from ..numerics.polynomials import Size
from ..shapes import infer, symbolic

if TYPE_CHECKING:
    from ..runtime.tensor_spec import TensorSpec

_LENGTH = re.compile("past|cache|seq|len|time", re.IGNORECASE)
"""Names of dimensions that grow from run to run."""

_MOST_LISTED = 5
"""Names in a hint. Chosen by judgement."""


def expanded(pairs: Mapping[str, str], inputs: Sequence[str], outputs: Sequence[str] | None) -> dict[str, str]:
    """Return input -> output, each pattern with stars in place of the pairs that it stands for.

    Args:
        pairs: names or patterns, as they were given.
        inputs: of the model.
        outputs: of the model, None where they are not known.

    Raises:
        UsageError: a name or pattern fits nothing, the stars of a pair differ in number, or an output is missing.
    """
    found: dict[str, str] = {}
    for given, output in pairs.items():
        if given.count("*") != output.count("*"):
            raise UsageError(f"{given}={output} has another number of stars on each side", where="--state")
        names = {given: ()} if given in inputs else _matching(given, inputs)
        if not names:
            raise UsageError(f"no input is called {given!r}", where="--state", hint=_nearest(given, inputs))
        for name, parts in names.items():
            wanted = _filled(output, parts) if parts else output
            if outputs is not None and wanted not in outputs:
                hint = _nearest(wanted, outputs)
                raise UsageError(f"no output is called {wanted!r}, for input {name!r}", where="--state", hint=hint)
            found[name] = wanted
    return found


def growing_axes(
    state: Mapping[str, str], specs: Sequence[TensorSpec], graph: ir.Model | None
) -> dict[str, frozenset[int]]:
    """Return input -> axes along which a cache grows, where it is empty at first.

    Args:
        state: input -> output.
        specs: the inputs.
        graph: the model: an axis grows where the output's is the input's and more; without one, or where its operators
            don't tell, it is told by the name of the dimension.
    """
    chosen = [spec for spec in specs if spec.name in state]
    known = {dim for spec in specs if spec.name not in state for dim in spec.shape if isinstance(dim, str)}
    facts = None
    if graph is not None and chosen:
        sizes = {spec.name: tuple(_size(spec, axis) for axis in range(len(spec.shape))) for spec in specs}
        facts = symbolic.interpret(graph, infer.infer(graph), sizes=sizes)
    outputs = {} if graph is None else {value.name: value for value in graph.graph.outputs}
    found: dict[str, frozenset[int]] = {}
    for spec in chosen:
        made = None if facts is None else facts.dims(outputs.get(state[spec.name]))
        axes = set()
        for axis, dim in enumerate(spec.shape):
            if isinstance(dim, int) and dim >= 0:
                continue
            if made is not None and len(made) == len(spec.shape) and not _is_open(made[axis]):
                more = made[axis] - _size(spec, axis)
                grows = bool(more.terms) and more.at_least(0)
            else:
                grows = isinstance(dim, str) and dim not in known and bool(_LENGTH.search(dim))
            if grows:
                axes.add(axis)
        found[spec.name] = frozenset(axes)
    return found


def _size(spec: TensorSpec, axis: int) -> Size:
    dim = spec.shape[axis]
    if isinstance(dim, int) and dim >= 0:
        return Size.number(dim)
    return Size.symbol(str(dim) if isinstance(dim, str) and dim != "?" else f"{spec.name}#{axis}")


def _is_open(size: Size) -> bool:
    """Say whether a size is nothing but a symbol that inference has made up."""
    return any(name.startswith(("?", "unk__")) for term in size.terms for name in term)


def _matching(pattern: str, names: Sequence[str]) -> dict[str, tuple[str, ...]]:
    """Return name -> what its stars stand for, of the names that fit a pattern."""
    if "*" not in pattern:
        return {}
    regular = re.compile("(.*)".join(re.escape(part) for part in pattern.split("*")))
    return {name: match.groups() for name in names if (match := regular.fullmatch(name))}


def _filled(pattern: str, parts: Sequence[str]) -> str:
    pieces = pattern.split("*")
    return pieces[0] + "".join(part + piece for part, piece in zip(parts, pieces[1:], strict=True))


def _nearest(text: str, names: Sequence[str]) -> str:
    close = difflib.get_close_matches(text.replace("*", ""), names, n=_MOST_LISTED, cutoff=0.3)
    listed = ", ".join(repr(name) for name in close or names[:_MOST_LISTED])
    return f"{'The nearest are' if close else 'There are'} {listed}"
