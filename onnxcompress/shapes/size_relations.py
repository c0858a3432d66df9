"""Relations between the sizes of a model's inputs, which a feed must respect: total = past + seq.

    names of dimensions       "past + seq" says it itself
    graph --interpret--> facts --operands that meet--> equations --solve--> size -> expression in the others

Operands that broadcast may differ where one is 1, so a relation is a proposal: whoever uses it tries it in the runtime.
"""

from __future__ import annotations

import itertools
import re
from collections.abc import Iterator, Mapping, Sequence

import onnx_ir as ir

from ..graph import query
from ..numerics.polynomials import Size
from ..ops.table import BROADCASTING
from . import infer, symbolic
from .facts import Dims, Facts

_NAME = r"[A-Za-z_][\w.]*"
_SUM = re.compile(rf"\s*(?:{_NAME}|\d+)(?:\s*[+]\s*(?:{_NAME}|\d+))+\s*")
"""A dimension whose name is a sum of others."""

Expression = Mapping[str, int]
"""Size -> its factor; the constant has the key ""."""

Inputs = Sequence[tuple[str, Sequence[int | str]]]
"""Name and dimensions of each input: sizes, and keys of dynamic dimensions."""


def relations(model: ir.Model, inputs: Inputs) -> Mapping[str, Expression]:
    """Return what sizes follow from others: key -> sum of keys that are free.

    Args:
        model: its graph tells which sizes meet.
        inputs: their dimensions, where the same key is the same size.
    """
    keys = list(dict.fromkeys(dim for _, dims in inputs for dim in dims if isinstance(dim, str)))
    if len(keys) < 2:
        return {}
    sizes = {name: tuple(_size(dim) for dim in dims) for name, dims in inputs}
    facts = symbolic.interpret(model, infer.infer(model), sizes=sizes)
    meetings = itertools.chain(_named(keys), _meetings(model.graph, facts))
    return _solved([a - b for a, b in meetings], keys)


def completed(sizes: Mapping[str, int], found: Mapping[str, Expression]) -> dict[str, int]:
    """Return sizes with those that follow from others; none is below 0."""
    made = dict(sizes)
    for key, expression in found.items():
        made[key] = max(0, sum(n * made[name] if name else n for name, n in expression.items()))
    return made


def _size(dim: int | str) -> Size:
    return Size.number(dim) if isinstance(dim, int) else Size.symbol(dim)


def _named(keys: Sequence[str]) -> Iterator[tuple[Size, Size]]:
    """Yield what the names of dimensions say: a sum of other names or numbers."""
    for key in keys:
        if _SUM.fullmatch(key):
            terms = [term.strip() for term in key.split("+")]
            total = Size.number(0)
            for term in terms:
                total = total + (int(term) if term.isdigit() else Size.symbol(term))
            yield Size.symbol(key), total


def _meetings(body: ir.Graph, facts: Facts) -> Iterator[tuple[Size, Size]]:
    """Yield sizes that have to be equal at every node."""
    for node in body:
        for inner in query.bodies(node):
            yield from _meetings(inner, facts)
        if node.domain not in query.STANDARD_DOMAINS:
            continue
        shapes = [facts.dims(value) for value in node.inputs]
        known = [dims for dims in shapes if dims is not None]
        if len(known) < len(shapes):
            continue
        if node.op_type in BROADCASTING:
            yield from _columns(known)
        elif node.op_type == "MatMul" and all(known):
            first, second = known
            yield first[-1], second[-2] if len(second) > 1 else second[-1]
            yield from _columns([first[:-2], second[:-2]])
        elif node.op_type == "Concat" and len({len(dims) for dims in known}) == 1:
            axis = int(query.attribute(node, "axis", 0)) % max(len(known[0]), 1)
            yield from _columns([dims[:axis] + dims[axis + 1 :] for dims in known])


def _columns(shapes: Sequence[Dims]) -> Iterator[tuple[Size, Size]]:
    """Yield the sizes that meet where operands of these dimensions are stretched to one shape."""
    rank = max((len(dims) for dims in shapes), default=0)
    padded = [(Size.number(1),) * (rank - len(dims)) + dims for dims in shapes]
    for column in zip(*padded, strict=True):
        wide = list(dict.fromkeys(size for size in column if size.as_int() != 1))
        yield from itertools.pairwise(wide)


def _solved(differences: Sequence[Size], keys: Sequence[str]) -> dict[str, dict[str, int]]:
    """Return key -> sum of free keys, of equations "difference = 0" that are linear in the keys alone."""
    found: dict[str, dict[str, int]] = {}
    for difference in differences:
        if any(len(term) > 1 or (term and term[0] not in keys) for term in difference.terms):
            continue
        linear = _substituted({term[0] if term else "": n for term, n in difference.terms.items()}, found)
        key = _dependent(linear, keys)
        if key is None:
            continue
        sign = -linear.pop(key)
        own = {name: n * sign for name, n in linear.items()}
        found = {name: _substituted(each, {key: own}) for name, each in found.items()} | {key: own}
    return found


def _substituted(linear: Mapping[str, int], found: Mapping[str, Mapping[str, int]]) -> dict[str, int]:
    """Return a sum in which sizes that follow from others are replaced by what they follow from."""
    made: dict[str, int] = {}
    for name, n in linear.items():
        for inner, m in found.get(name, {name: 1}).items():
            made[inner] = made.get(inner, 0) + n * m
    return {name: n for name, n in made.items() if n}


def _dependent(linear: Mapping[str, int], keys: Sequence[str]) -> str | None:
    """Return the size that an equation is solved for: one that is the sum of others, the last of several.

    A difference could be below zero, so a size that is one is taken only where no other is left.
    """
    unit = [key for key in keys if abs(linear.get(key, 0)) == 1]
    sums = [key for key in unit if all(n * linear[key] < 0 for name, n in linear.items() if name != key)]
    return max(sums or unit, key=keys.index, default=None)
