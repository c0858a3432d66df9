"""Selection of the nodes that lossy passes may touch: `--only` and `--skip`, globs on node names and `op:Type`."""

from __future__ import annotations

import difflib
import fnmatch
import re
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

import onnx_ir as ir

from ..core import any_node
from ..errors import UsageError
from ..graph import query

_OPERATOR = "op:"
_MOST_CANDIDATES = 5000
"""Names among which the nearest is looked for: more take seconds."""


def selector(model: ir.Model, only: Iterable[str] = (), skip: Iterable[str] = ()) -> Callable[[ir.Node], bool]:
    """Return the function that says whether a node may be touched: matched by `only`, if given, and not by `skip`.

    A pattern is a glob on a node's name, or `op:` and a glob on its operator type. A name that is the pattern
    itself, letter by letter, matches too, so that names with brackets can be given as they are.

    Raises:
        UsageError: a pattern matches no node of `model`; the nearest name is in the hint.
    """
    wanted, unwanted = _Patterns(only), _Patterns(skip)
    nodes = list(query.nodes(model))
    for option, patterns in (("--only", wanted), ("--skip", unwanted)):
        for text in patterns.texts:
            one = _Patterns([text])
            if not any(one.match(node) for node in nodes):
                raise UsageError(f"{option} {text!r} matches no node", hint=_nearest(text, nodes))
    return _Selection(wanted, unwanted) if wanted.texts or unwanted.texts else any_node


@dataclass(frozen=True)
class _Selection:
    """Says which nodes may be touched; can be pickled."""

    wanted: _Patterns
    unwanted: _Patterns

    def __call__(self, node: ir.Node) -> bool:
        """Say whether a node may be touched."""
        return (not self.wanted.texts or self.wanted.match(node)) and not self.unwanted.match(node)


class _Patterns:
    """Globs that are matched together."""

    def __init__(self, texts: Iterable[str]) -> None:
        self.texts = tuple(texts)
        types = [text.removeprefix(_OPERATOR) for text in self.texts if text.startswith(_OPERATOR)]
        names = [text for text in self.texts if not text.startswith(_OPERATOR)]
        self._exact = frozenset(names)
        self._names = _compiled(names)
        self._types = _compiled(types)

    def match(self, node: ir.Node) -> bool:
        """Say whether any of the patterns matches a node."""
        name = query.label(node)
        return name in self._exact or bool(self._names.match(name) or self._types.match(node.op_type))


def _compiled(globs: Sequence[str]) -> re.Pattern[str]:
    return re.compile("|".join(fnmatch.translate(glob) for glob in globs) if globs else r"(?!)")


def _nearest(text: str, nodes: Sequence[ir.Node]) -> str:
    if text.startswith(_OPERATOR):
        types = sorted({node.op_type for node in nodes})
        close = difflib.get_close_matches(text.removeprefix(_OPERATOR), types, n=1)
        if close:
            return f"The nearest is {_OPERATOR + close[0]!r}"
        return f"The model has {', '.join(_OPERATOR + each for each in types[:20])}"
    names = list(dict.fromkeys(query.label(node) for node in nodes))[:_MOST_CANDIDATES]
    plain = re.sub(r"[*?\[\]]", "", text)
    close = difflib.get_close_matches(plain, names, n=1, cutoff=0.2)
    if close:
        return f"The nearest is {close[0]!r}"
    return f"The model's nodes have names such as {', '.join(repr(name) for name in names[:3])}"
