"""Puts a few trees in the place of a large ensemble that two pieces share, so that neither loads it.

    before:  x --Identity--> h --trees A--> p          x --Identity--> h --first trees of A--> p
    after :  x ----------------trees A--> p            x ----------------first trees of A--> p

Whatever function an operator is, as long as it is the same in both pieces: if these agree with another one in its
place, over the same features and labels, they agree on what is around it. The runtime takes eleven times the bytes of
an ensemble to load it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import onnx
import onnx_ir as ir

from ..graph import query
from ..io.stored_lists import StoredList

_OPERATORS = ("TreeEnsembleClassifier", "TreeEnsembleRegressor")
_MOST_NODES = 1 << 14
"""Nodes of trees that are kept: the first tree whatever its size, then those that fit. Chosen by judgement."""
_FIELDS = {
    ir.AttributeType.FLOATS: "floats",
    ir.AttributeType.INTS: "ints",
    ir.AttributeType.STRINGS: "strings",
}

Key = tuple[str, ...]
"""Operator and attributes of a node: equal for equal functions."""


def shrink_shared(before: ir.Model, after: ir.Model) -> None:
    """Replace the ensembles that both models have by few of their trees, in place; others stay as they are."""
    found = [_ensembles(model) for model in (before, after)]
    for key in found[0].keys() & found[1].keys():
        nodes = (*found[0][key], *found[1][key])
        small = _few_trees(nodes[0])
        for node in nodes if small is not None else ():
            node.attributes.update(small or {})


def _ensembles(model: ir.Model) -> Mapping[Key, Sequence[ir.Node]]:
    """Return the ensembles whose lists are still in their file, by what they compute."""
    found: dict[Key, list[ir.Node]] = {}
    for node in query.nodes(model):
        stored = any(isinstance(attr, StoredList) for attr in node.attributes.values())
        if node.domain == "ai.onnx.ml" and node.op_type in _OPERATORS and stored:
            attributes = (f"{name}={_text(attr)}" for name, attr in sorted(node.attributes.items()))
            found.setdefault((node.op_type, *attributes), []).append(node)
    return found


def _text(attribute: ir.Attr) -> str:
    return repr(attribute) if isinstance(attribute, StoredList) else f"{attribute.type}:{attribute.value!r}"


def _few_trees(node: ir.Node) -> Mapping[str, ir.Attr] | None:
    """Return the lists of a node cut to its first trees, None where they don't fit each other."""
    kept = {}
    chosen: np.ndarray | None = None
    prefixes = ("nodes", "class" if node.op_type.endswith("Classifier") else "target")
    for prefix in prefixes:
        ids = _ints(node, f"{prefix}_treeids")
        if not len(ids):
            return None
        chosen = _first_trees(ids) if chosen is None else chosen
        rows = np.flatnonzero(np.isin(ids, chosen))
        for name, attribute in node.attributes.items():
            if not name.startswith(f"{prefix}_"):
                continue
            found = _cut(attribute, rows, len(ids))
            if found is None:
                return None
            kept[name] = found
    return kept


def _first_trees(ids: np.ndarray) -> np.ndarray:
    """Return the trees whose nodes come first, int64 [trees], as many as have few nodes in all.

    Args:
        ids: int64 [nodes], the tree of each node.
    """
    trees, first, counts = np.unique(ids, return_index=True, return_counts=True)
    order = np.argsort(first)
    fits = np.cumsum(counts[order]) <= _MOST_NODES
    fits[0] = True
    return np.asarray(trees[order][fits])


def _ints(node: ir.Node, name: str) -> np.ndarray:
    attribute = node.attributes.get(name)
    if attribute is None or attribute.type != ir.AttributeType.INTS:
        return np.zeros(0, np.int64)
    values = _proto(attribute).ints if isinstance(attribute, StoredList) else attribute.value
    return np.fromiter(values, np.int64, len(values))


def _cut(attribute: ir.Attr, rows: np.ndarray, length: int) -> ir.Attr | None:
    """Return a list without all but some of its rows, None where it is of another length."""
    if attribute.type not in _FIELDS:
        return None
    if isinstance(attribute, StoredList):
        values = getattr(_proto(attribute), _FIELDS[attribute.type])  # as compact as in the file: no Python objects
    else:
        values = attribute.value
    if not len(values):
        return attribute
    if len(values) != length:
        return None
    found = [values[int(row)] for row in rows]
    texts = [each.decode() if isinstance(each, bytes) else each for each in found]
    return ir.Attr(attribute.name, attribute.type, texts)


def _proto(attribute: StoredList) -> onnx.AttributeProto:
    proto: onnx.AttributeProto = onnx.AttributeProto.FromString(attribute.stored.tobytes())
    return proto
