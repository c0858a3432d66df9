"""Store equal initializers once, and one of two that are each other's transpose.

Candidates have the same type and shape; then a few kilobytes of each are compared, and the whole only of
those that still agree, so that the weights of a large model are hardly read. The same numbers under another
shape are kept: a Reshape for each would cost more than it saves.
"""

from __future__ import annotations

import hashlib
from collections import Counter, defaultdict
from collections.abc import Callable, Hashable, Iterable, Iterator
from typing import ClassVar

import numpy as np
import onnx_ir as ir
from pydantic.dataclasses import dataclass

from ...core import Change, Context, LosslessPass
from ...graph import edit, query
from ...io.tensors import chunks, excerpt

_SAMPLE_BYTES = 4096
"""Bytes at the start, middle and end that are compared before the whole. Chosen by judgement; not measured."""
_MOVED_BYTES = 1024
"""Least size of a constant that is moved out of a body: runtimes fold smaller ones best inside. Chosen by judgement;
not measured."""
_TRANSPOSED_BYTES = 65536
"""Least size of a transposed matrix that is worth a rewrite. Chosen by judgement; not measured."""
_CORNER = 16
"""Rows and columns that are compared first. Chosen by judgement; not measured."""
_STRIP = 1024
"""Rows that are compared at a time, for memory. Chosen by judgement; not measured."""


@dataclass(frozen=True, kw_only=True)
class ShareDuplicates(LosslessPass):
    """Store equal initializers once, also across If/Loop bodies, and read transposed matrices from one."""

    name: ClassVar[str] = "share-duplicates"

    tied: bool = False
    """True: what multiplies by the transpose of a table of embeddings (a language model's head) reads the table through
    a Transpose. Half the bytes, the same time, since runtimes compute it at load, and no more memory than with both."""

    def run(self, model: ir.Model, context: Context) -> list[Change]:
        """Merge the initializers of every graph of `model`."""
        changes = self._equal(model, context)
        return changes + self._transposed(model, context)

    def _equal(self, model: ir.Model, context: Context) -> list[Change]:
        order = {id(value): number for number, value in enumerate(_weights(model))}
        parents = _parents(model)
        changes: list[Change] = []
        names: edit.Names | None = None
        counts = Counter(name for body in query.graphs(model) for name in body.initializers)
        found = _groups(_weights(model), _alike, _sample, _digest)
        for group in sorted(found, key=lambda values: order[id(values[0])]):
            keepers: list[ir.Value] = []
            for value in group:
                keeper = next((k for k in keepers if _sees(value.graph, k.graph, parents)), None)
                tensor = value.const_value
                assert tensor is not None
                assert value.name is not None
                moves = keeper is None and bool(keepers) and tensor.nbytes >= _MOVED_BYTES
                if keeper is None and not moves:
                    keepers.append(value)
                    continue
                if not context.gate.admits(self.name, value.name):
                    keepers.append(value)
                    continue
                name = value.name
                if keeper is None:
                    keeper = keepers[0]
                    names = names or edit.Names(model)
                    _move_out(keeper, model.graph, names, alone=counts[keeper.name or ""] == 1)
                value.replace_all_uses_with(keeper)
                edit.remove_initializer(value)
                reason = f"equals {keeper.name}"
                changes.append(Change.applied(self.name, reason, target=name, bytes_before=tensor.nbytes))
        return changes

    def _transposed(self, model: ir.Model, context: Context) -> list[Change]:
        changes: list[Change] = []
        large = [v for v in model.graph.initializers.values() if _is_shareable(v) and _is_large_matrix(v)]
        corners: dict[Hashable, list[ir.Value]] = defaultdict(list)
        for value in large:
            for other in corners.get(_corner(value, transposed=True), []):
                change = self._read_transposed(value, other, model, context)
                if change is not None:
                    changes.append(change)
                    break
            else:
                corners[_corner(value, transposed=False)].append(value)
        return changes

    def _read_transposed(self, one: ir.Value, other: ir.Value, model: ir.Model, context: Context) -> Change | None:
        """Let the readers of one of two matrices read the other, if a Gemm is all that reads it."""
        for removed, kept in ((one, other), (other, one)):
            readers = list(removed.uses())
            if not all(use.idx in (0, 1) and query.is_op(use.node, "Gemm") for use in readers):
                continue
            name, tensor = removed.name, removed.const_value
            if name is None or tensor is None or not _is_transpose(removed, kept):
                return None
            if not context.gate.admits(self.name, name):
                return None
            for use in readers:
                attribute = ("transA", "transB")[use.idx]
                flag = 1 - int(query.attribute(use.node, attribute, 0))
                use.node.attributes.add(ir.AttrInt64(attribute, flag))
                use.node.replace_input_with(use.idx, kept)
            edit.remove_initializer(removed)
            reason = f"is the transpose of {kept.name}, which Gemm reads as well"
            return Change.applied(self.name, reason, target=name, bytes_before=tensor.nbytes)
        if not _is_transpose(one, other):
            return None
        for removed, table in ((one, other), (other, one)):
            if self.tied and _is_looked_up(table) and _is_multiplied_by(removed):
                return self._read_table(removed, table, model, context)
        return Change.skipped(
            self.name,
            f"is the transpose of {other.name}, but not all that reads one of them is a Gemm, "
            "and a Transpose would hold both in memory at run time",
            target=one.name or "",
        )

    def _read_table(self, removed: ir.Value, table: ir.Value, model: ir.Model, context: Context) -> Change | None:
        """Let products read a table of embeddings through a Transpose."""
        name, tensor = removed.name or "", removed.const_value
        if tensor is None or not context.gate.admits(self.name, name):
            return None
        names = edit.Names(model)
        for use in list(removed.uses()):
            turned = edit.insert_before(use.node, names, "Transpose", [table], attributes={"perm": [1, 0]}, hint=name)
            use.node.replace_input_with(use.idx, turned.outputs[0])
        edit.remove_initializer(removed)
        reason = f"is the transpose of {table.name}, which is looked up and now stored once"
        return Change.applied(self.name, reason, target=name, bytes_before=tensor.nbytes)


def _is_looked_up(value: ir.Value) -> bool:
    """Say whether rows of a matrix are looked up."""
    return any(
        use.idx == 0 and query.is_op(use.node, "Gather") and query.attribute(use.node, "axis", 0) == 0
        for use in value.uses()
    )


def _is_multiplied_by(value: ir.Value) -> bool:
    """Say whether a matrix is only the right-hand side of products."""
    return all(use.idx == 1 and query.is_op(use.node, "MatMul") for use in value.uses())


def _is_shareable(value: ir.Value) -> bool:
    tensor = value.const_value
    return (
        tensor is not None
        and tensor.dtype != ir.DataType.STRING
        and not value.is_graph_input()
        and not value.is_graph_output()
    )


def _weights(model: ir.Model) -> Iterator[ir.Value]:
    for body in query.graphs_outside_functions(model):
        yield from (v for v in tuple(body.initializers.values()) if _is_shareable(v))


def _parents(model: ir.Model) -> dict[int, ir.Graph]:
    """Map each body (by id) to the graph around it."""
    return {
        id(body): outer
        for outer in query.graphs_outside_functions(model)
        for node in outer
        for body in query.bodies(node)
    }


def _sees(inner: ir.Graph | None, outer: ir.Graph | None, parents: dict[int, ir.Graph]) -> bool:
    """Say whether the values of `outer` can be read in `inner`."""
    while inner is not None and inner is not outer:
        inner = parents.get(id(inner))
    return inner is not None


def _move_out(value: ir.Value, home: ir.Graph, names: edit.Names, *, alone: bool) -> None:
    """Make an initializer of a body one of the outermost graph, where every body sees it."""
    if value.graph is home or value.graph is None or value.name is None:
        return
    value.graph.initializers.pop(value.name)
    if not alone:
        value.name = names.fresh(value.name)
    home.register_initializer(value)


def _groups(values: Iterable[ir.Value], *keys: Callable[[ir.Value], Hashable]) -> list[list[ir.Value]]:
    """Return the groups of more than one that agree in all keys; a later key is asked only where needed."""
    groups = [list(values)]
    for key in keys:
        finer: list[list[ir.Value]] = []
        for group in groups:
            if len(group) < 2:
                continue
            by_key: dict[Hashable, list[ir.Value]] = defaultdict(list)
            for value in group:
                by_key[key(value)].append(value)
            finer += by_key.values()
        groups = finer
    return [group for group in groups if len(group) > 1]


def _alike(value: ir.Value) -> Hashable:
    tensor = value.const_value
    assert tensor is not None
    return tensor.dtype, query.dims(tensor)


def _sample(value: ir.Value) -> Hashable:
    tensor = value.const_value
    assert tensor is not None
    starts = (0, tensor.nbytes // 2, max(0, tensor.nbytes - _SAMPLE_BYTES))
    return hashlib.blake2b(b"".join(excerpt(tensor, start, _SAMPLE_BYTES) for start in starts)).digest()


def _digest(value: ir.Value) -> Hashable:
    tensor = value.const_value
    assert tensor is not None
    digest = hashlib.blake2b()
    for chunk in chunks(tensor):
        digest.update(chunk)
    return digest.digest()


def _is_large_matrix(value: ir.Value) -> bool:
    tensor = value.const_value
    whole_bytes = tensor is not None and tensor.dtype.bitwidth >= 8
    return whole_bytes and tensor is not None and len(tensor.shape) == 2 and tensor.nbytes >= _TRANSPOSED_BYTES


def _rows(tensor: ir.TensorProtocol, start: int, count: int) -> np.ndarray:
    """Return rows of a matrix as bytes [rows, columns, bytes of a number]; of a file no others are read."""
    rows, columns = query.dims(tensor)
    size = tensor.dtype.bitwidth // 8
    data = excerpt(tensor, start * columns * size, min(count, rows - start) * columns * size)
    return np.frombuffer(data, np.uint8).reshape(-1, columns, size)


def _corner(value: ir.Value, *, transposed: bool) -> Hashable:
    """Return type, shape and first numbers of a matrix, or those of its transpose."""
    tensor = value.const_value
    assert tensor is not None
    dims, corner = query.dims(tensor), _rows(tensor, 0, _CORNER)[:, :_CORNER]
    if transposed:
        dims, corner = dims[::-1], corner.transpose(1, 0, 2)
    return tensor.dtype, dims, corner.tobytes()


def _is_transpose(one: ir.Value, other: ir.Value) -> bool:
    """Compare bit by bit; the second is held in memory, of the first a strip at a time."""
    first, second = one.const_value, other.const_value
    if first is None or second is None or query.dims(first) != query.dims(second)[::-1]:
        return False
    whole = _rows(second, 0, query.dims(second)[0]).transpose(1, 0, 2)
    starts = range(0, query.dims(first)[0], _STRIP)
    return all(np.array_equal(_rows(first, at, _STRIP), whole[at : at + _STRIP]) for at in starts)
