"""The solution of everything that a walk has collected: which ids are removed together, and which are kept.

    ids --unions--> classes --products--> a class is removed with any of its factors --> atoms: what can be chosen

Connected components of scipy do the union-find; all is linear in the number of ids, whatever their order.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from scipy import sparse
from scipy.sparse import csgraph

from .relations import Relations
from .types import Ids, Pin

_MOST_ROUNDS = 32
"""Products of products deeper than this are kept as they are."""


@dataclass(frozen=True, eq=False)
class Solved:
    """Equivalence classes of channel ids, and which are pinned.

    Args:
        classes: int64 [ids], the class of each id.
        removed_with: bool CSR [classes, atoms of which any is removable]: column j is what is removed with atom j.
            Atoms that are kept have no entry.
        pins: int64 [classes], index into `reasons` of what keeps a class; -1 for the others.
        reasons: the pins.
    """

    classes: Ids
    removed_with: sparse.csr_array
    pins: Ids
    reasons: Sequence[Pin]

    def reason(self, index: int) -> Pin:
        """Return why a class is kept."""
        return self.reasons[int(self.pins[index])]


def solve(flow: Relations) -> Solved:
    """Return which ids go together and which are kept, with the reason."""
    classes = _components(np.arange(flow.count), flow.unions)
    flat, factors = _stacked(flow)
    classes, unmatched = _consistent(classes, flat, factors)
    count = int(classes.max(initial=-1)) + 1
    reasons = [pin for _, pin in flow.pins]
    numbers = np.repeat(np.arange(len(flow.pins)), [len(ids) for ids, _ in flow.pins])
    kept = np.full(count, np.iinfo(np.int64).max)
    np.minimum.at(kept, classes[_joined([ids for ids, _ in flow.pins])], numbers)
    if len(unmatched):
        reasons.append(Pin("graph", "it is cut up in two ways that don't go together"))
        np.minimum.at(kept, classes[unmatched], len(reasons) - 1)
    of_flat, of_factors = classes[flat], np.where(factors >= 0, classes[factors], -1)
    _pin_factors(kept, of_flat, of_factors)
    removed_with, circular = _closure(count, of_flat, of_factors)
    if len(circular):
        reasons.append(Pin("graph", "it depends on itself"))
        np.minimum.at(kept, circular, len(reasons) - 1)
        _pin_factors(kept, of_flat, of_factors)
    is_free = kept == np.iinfo(np.int64).max
    removed_with = _without(removed_with, ~is_free)
    whole, of_axis = _whole_axes(flow, classes, removed_with)
    reasons += of_axis
    kept[whole] = np.minimum(kept[whole], np.arange(len(reasons) - len(of_axis), len(reasons)))
    removed_with = _without(removed_with, kept < np.iinfo(np.int64).max)
    return Solved(classes, removed_with, _explained(kept, removed_with, of_flat, of_factors), reasons)


def _joined(arrays: Sequence[Ids]) -> Ids:
    return np.concatenate([np.zeros(0, np.int64), *arrays])


def _components(classes: Ids, pairs: Sequence[tuple[Ids, Ids]]) -> Ids:
    """Return classes int64 [ids] after those of each pair have been put together."""
    count = int(classes.max(initial=-1)) + 1
    one, other = (classes[_joined([pair[side] for pair in pairs])] for side in (0, 1))
    edges = sparse.coo_array((np.ones(len(one), bool), (one, other)), shape=(count, count))
    labels = np.asarray(csgraph.connected_components(edges, directed=False)[1], np.int64)
    return np.take(labels, classes)


def _stacked(flow: Relations) -> tuple[Ids, Ids]:
    """Return all products as flat int64 [n] and factors int64 [n, k], -1 where there are fewer."""
    width = max((len(product.factors) for product in flow.products), default=0)
    flat = _joined([product.flat for product in flow.products])
    factors = np.full((len(flat), width), -1, np.int64)
    row = 0
    for product in flow.products:
        for column, ids in enumerate(product.factors):
            factors[row : row + len(ids), column] = ids
        row += len(product.flat)
    return flat, factors


def _consistent(classes: Ids, flat: Ids, factors: Ids) -> tuple[Ids, Ids]:
    """Put the factors of one class together wherever it is cut up; return classes, and factors without a partner."""
    while len(flat):
        _, first, inverse = np.unique(classes[flat], return_index=True, return_inverse=True)
        one, other = factors[first[inverse]], factors
        both = (one >= 0) & (other >= 0)
        pair = one[both], other[both]
        differs = classes[pair[0]] != classes[pair[1]]
        if not differs.any():
            lone = (one >= 0) != (other >= 0)
            return classes, np.unique(np.maximum(one, other)[lone])
        classes = _components(classes, [(pair[0][differs], pair[1][differs])])
    return classes, np.zeros(0, np.int64)


def _pin_factors(kept: Ids, flat: Ids, factors: Ids) -> None:
    """Keep the factors of every class that is kept, and theirs."""
    while True:
        before = kept.copy()
        for column in factors.T:
            there = column >= 0
            np.minimum.at(kept, column[there], kept[flat[there]])
        if (before == kept).all():
            return


def _closure(count: int, flat: Ids, factors: Ids) -> tuple[sparse.csr_array, Ids]:
    """Return bool [classes, classes], the atoms with which each class is removed; a class may be its own atom."""
    is_product = np.zeros(count, bool)
    is_product[flat] = True
    _, first = np.unique(flat, return_index=True)
    rows = np.repeat(flat[first], factors.shape[1])
    columns = factors[first].reshape(-1)
    there = columns >= 0
    atoms = np.flatnonzero(~is_product)
    rows, columns = np.concatenate([rows[there], atoms]), np.concatenate([columns[there], atoms])
    step = sparse.csr_array((np.ones(len(rows), bool), (rows, columns)), shape=(count, count))
    removed_with = step
    for _ in range(_MOST_ROUNDS):
        if not is_product[removed_with.indices].any():
            break
        removed_with = sparse.csr_array(removed_with @ step)
    entries = removed_with.tocoo()
    return removed_with, np.unique(entries.row[is_product[entries.col]]).astype(np.int64)


def _without(removed_with: sparse.csr_array, columns: np.ndarray) -> sparse.csr_array:
    """Return the matrix without the entries of some columns, bool [columns]."""
    entries = removed_with.tocoo()
    left = ~columns[entries.col]
    return sparse.csr_array(
        (np.ones(int(left.sum()), bool), (entries.row[left], entries.col[left])), shape=removed_with.shape
    )


def _whole_axes(flow: Relations, classes: Ids, removed_with: sparse.csr_array) -> tuple[Ids, list[Pin]]:
    """Return the atoms that are all of some axis, with which nothing would be left of it, and the reasons."""
    arrays = {
        id(axis): (axis, value) for value, axes in flow.axes.items() for axis in axes if not isinstance(axis, Pin)
    }
    if not arrays:
        return np.zeros(0, np.int64), []
    lengths = np.array([len(axis) for axis, _ in arrays.values()])
    names = [str(value.name) for _, value in arrays.values()]
    incidence = incidences([axis for axis, _ in arrays.values()], classes, removed_with.shape[0])
    counts = (incidence @ removed_with.astype(np.int64)).tocoo()
    full = counts.data == lengths[counts.row]
    atoms, first = np.unique(counts.col[full], return_index=True)
    pins = [Pin(names[row], "all of an axis would go", by_nature=True) for row in counts.row[full][first]]
    return atoms.astype(np.int64), pins


def incidences(arrays: Sequence[Ids], classes: Ids, count: int) -> sparse.csr_array:
    """Return int64 [axes, classes]: how many indices of each axis are of each class."""
    rows = np.repeat(np.arange(len(arrays)), [len(ids) for ids in arrays])
    columns = classes[_joined(arrays)]
    return sparse.csr_array((np.ones(len(rows), np.int64), (rows, columns)), shape=(len(arrays), count))


def _explained(kept: Ids, removed_with: sparse.csr_array, flat: Ids, factors: Ids) -> Ids:
    """Return for each class that can't go the number of a reason, that of a factor where it has none; else -1."""
    unset = np.iinfo(np.int64).max
    can_go = np.diff(removed_with.indptr) > 0
    kept = np.where(can_go, unset, kept)
    for _ in range(_MOST_ROUNDS):
        before = kept.copy()
        for column in factors.T:
            there = (column >= 0) & ~can_go[flat]
            np.minimum.at(kept, flat[there], kept[column[there]])
        if (before == kept).all():
            break
    return np.where(kept == unset, -1, kept)
