"""Attributes that hold very long lists, such as the nodes of a tree ensemble: they stay in the file until asked for.

    file --wire.scan--> attribute with a reference in place of the list --from_proto--> StoredList
    StoredList --to_proto--> the same --wire.plan--> the bytes of the attribute as they were

As Python objects, or as a repeated field of protobuf, such a list takes several times its bytes in the file. Only the
lists of operators whose types and shapes don't follow from them are treated so: see `_names`.
"""

from __future__ import annotations

import functools
from typing import TYPE_CHECKING, Any

import onnx
import onnx_ir as ir

from ..errors import ModelError
from .tensors import StoredTensor, refer
from .varints import header
from .wire import LIST_LOCATION

if TYPE_CHECKING:
    from .sources import ByteSource

LARGE_LIST_BYTES = 64 << 10
"""Attributes of this many bytes and more are left in the file. Chosen by judgement: some MB of Python objects."""

_FIELDS = {
    ir.AttributeType.FLOATS: "floats",
    ir.AttributeType.INTS: "ints",
    ir.AttributeType.STRINGS: "strings",
}
_OPERATORS = (
    *("LinearClassifier", "LinearRegressor", "SVMClassifier", "SVMRegressor"),
    *("TreeEnsemble", "TreeEnsembleClassifier", "TreeEnsembleRegressor"),
)
_LABELS = "classlabels"
"""Begin of the names of lists that decide the type of a result."""


@functools.cache
def _names() -> frozenset[str]:
    """Return the names of the attributes that may stay in the file; onnx's schemas take 7 MB, so not at once."""
    found = set()
    for operator in _OPERATORS:
        for name, attribute in onnx.defs.get_schema(operator, domain="ai.onnx.ml").attributes.items():
            kind = ir.AttributeType(int(attribute.type.value))  # type: ignore[attr-defined]
            if kind in _FIELDS and not name.startswith(_LABELS):
                found.add(name)
    return frozenset(found)


_NAME_BYTES = 64
"""Read to see an attribute's name: a tag, a length of one byte, and more than the longest of the names."""


class StoredList(ir.Attr):
    """An attribute whose list is read from the file at each use, never kept: `value` gives a fresh tuple.

    Args:
        name: of the attribute.
        kind: FLOATS, INTS or STRINGS.
        stored: the bytes of the AttributeProto, as a tensor of uint8.
    """

    __slots__ = ("stored",)

    def __init__(self, name: str, kind: ir.AttributeType, stored: StoredTensor) -> None:
        super().__init__(name, kind, None)
        self.stored = stored

    @property
    def value(self) -> tuple[Any, ...]:
        """The list: floats, integers or texts (bytes where they are not UTF-8)."""
        proto = onnx.AttributeProto.FromString(self.stored.tobytes())
        found = getattr(proto, _FIELDS[self.type])
        return tuple(_text(each) for each in found) if self.type == ir.AttributeType.STRINGS else tuple(found)

    @property
    def nbytes(self) -> int:
        """Bytes of the attribute in the file."""
        return self.stored.nbytes

    def __repr__(self) -> str:
        return f"StoredList({self.name!r}, {self.type!r}, {self.stored.stored!r})"


class Lists:
    """Takes long lists out of a model while it is scanned.

    Args:
        source: the model.
    """

    def __init__(self, source: ByteSource) -> None:
        self._source = source
        self.taken: set[int] = set()
        """Where the attributes begin whose lists were taken out."""

    def stand_in(self, start: int, end: int) -> bytes | None:
        """Return the attribute at [start, end) with a reference in place of its list, None to keep it as it is."""
        if end - start < LARGE_LIST_BYTES or not _begins_with_a_name(self._source.read(start, _NAME_BYTES)):
            return None
        found = _stand_in(self._source.read(start, end - start), start)
        if found is not None:
            self.taken.add(start)
        return found


def _begins_with_a_name(data: bytes) -> bool:
    """Say whether the first field of an attribute is one of the names; where it is another, the attribute is kept."""
    return data[0] == header(1, 0)[0] and data[2 : 2 + data[1]] in {name.encode() for name in _names()}


def _stand_in(data: bytes, offset: int) -> bytes | None:
    try:
        proto = onnx.AttributeProto.FromString(data)
    except Exception:  # noqa: BLE001 - protobuf's own, which has no public base: the whole model is then refused
        return None
    filled = {field.name for field, _ in proto.ListFields()} - {"name", "type", "doc_string"}
    kind = next((kind for kind, field in _FIELDS.items() if filled == {field}), None)
    if kind is None or proto.name not in _names() or proto.type not in (kind.value, 0):
        return None
    tensor = onnx.TensorProto(name=kind.name, data_type=onnx.TensorProto.UINT8, dims=[len(data)])
    refer(tensor, LIST_LOCATION, offset, len(data))
    found = onnx.AttributeProto(name=proto.name, type=onnx.AttributeProto.TENSOR, t=tensor)
    written: bytes = found.SerializeToString(deterministic=True)
    return written


def stored_list(name: str, reference: ir.ExternalTensor, tensor: ir.TensorProtocol) -> StoredList:
    """Return the attribute whose list a stand-in refers to.

    Args:
        name: of the attribute.
        reference: the tensor of the stand-in.
        tensor: the bytes that it refers to.

    Raises:
        ModelError: it is no stand-in of a list.
    """
    kind = ir.AttributeType.__members__.get(reference.name or "")
    if kind not in _FIELDS or not isinstance(tensor, StoredTensor):
        raise ModelError("a reference to a list that is none", where=repr(name))
    return StoredList(name, kind, tensor)


def without_list(proto: onnx.AttributeProto, attribute: StoredList) -> None:
    """Turn a stand-in into an empty list of the right type, for the checker and for shape inference."""
    proto.Clear()
    proto.name, proto.type = attribute.name, onnx.AttributeProto.AttributeType.Value(attribute.type.name)


def _text(data: bytes) -> str | bytes:
    try:
        return data.decode()
    except UnicodeDecodeError:
        return data
