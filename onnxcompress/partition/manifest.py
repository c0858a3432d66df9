"""`manifest.json` of a split model: which parts there are, what flows between them, and what each needs.

The JSON schema of the file is `manifest-schema.json` beside this module; `schema` in the file is its version.
"""

from __future__ import annotations

import dataclasses
import json
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import ConfigDict, Field, TypeAdapter, ValidationError
from pydantic.dataclasses import dataclass

from ..errors import ModelError

FILE_NAME = "manifest.json"
_MOST_BYTES = 256 << 20
"""Largest manifest that is read: beyond any real one; chosen by judgement, to bound memory."""
_STRICT = ConfigDict(extra="forbid", strict=False)

FileName = Annotated[str, Field(pattern=r"^[A-Za-z0-9_][A-Za-z0-9._-]{0,127}$", description="a file in this folder")]
Bytes = Annotated[int, Field(ge=0)]


@dataclass(frozen=True, kw_only=True, config=_STRICT)
class StoredFile:
    """Size and hashes of a file of the folder. CRC-32, which is quick, is checked before the file is used."""

    bytes: Bytes
    crc32: Annotated[str, Field(pattern=r"^[0-9a-f]{8}$")]
    sha256: Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]


@dataclass(frozen=True, kw_only=True, config=_STRICT)
class Tensor:
    """A value that is fed, returned, or passed from part to part.

    Args:
        name: as in the model.
        type: as onnxruntime calls it, "tensor(float)".
        shape: a size, a symbol, or null for a dimension that is only known when it runs; null for an unknown rank.
        bytes: at the sizes for which the model was split.
    """

    name: str
    type: str
    shape: list[Annotated[int, Field(ge=0)] | str | None] | None
    bytes: Bytes | None = None


@dataclass(frozen=True, kw_only=True, config=_STRICT)
class Part:
    """A piece of the model that runs by itself.

    Args:
        file: its model.
        data: the files of its weights.
        inputs: the values that it reads: inputs of the whole, and outputs of parts before.
        outputs: the values that later parts, or the user, need of it.
        optional_inputs: inputs of the whole that have a default here.
        nodes: of its main graph, those that are made anew in several parts included.
        macs: multiply-accumulates at the sizes for which the model was split; null where not known.
        weight_bytes: that its weights take in memory.
        largest_bytes: of these, the largest one.
        peak_bytes: estimate of its weights and of all that is alive while it runs, what waits for later parts included.
        packs: its weights must be packed by the runtime to be used well; others may stay mapped.
    """

    file: FileName
    data: list[FileName]
    inputs: list[str]
    outputs: list[str]
    optional_inputs: list[str]
    nodes: Annotated[int, Field(ge=0)]
    macs: Annotated[int, Field(ge=0)] | None
    weight_bytes: Bytes
    largest_bytes: Bytes
    peak_bytes: Bytes
    packs: bool


@dataclass(frozen=True, kw_only=True, config=_STRICT)
class Manifest:
    """The whole file.

    Args:
        schema: version of this form.
        model: the name of the file that was split.
        sizes: input -> shape at which sizes were estimated.
        peak_bytes: of the part that needs most.
        cut_bytes: that are passed from part to part, added up over the cuts.
        inputs: of the whole model.
        outputs: of the whole model, in its order.
        values: what flows from part to part.
        parts: in the order in which they run.
        files: every file but this one.
        optional_inputs: of the whole model, those that have a default.
    """

    schema: Literal[1] = 1
    model: str
    sizes: dict[str, list[Annotated[int, Field(ge=0)]]]
    peak_bytes: Bytes
    cut_bytes: Bytes
    inputs: list[Tensor]
    outputs: list[Tensor]
    values: list[Tensor]
    parts: Annotated[list[Part], Field(min_length=1)]
    files: dict[FileName, StoredFile]
    optional_inputs: list[Tensor] = dataclasses.field(default_factory=list)

    def as_json(self) -> dict[str, Any]:
        """Return the content of the file."""
        return dataclasses.asdict(self)


def json_schema() -> dict[str, Any]:
    """Return the JSON schema of the file."""
    return TypeAdapter(Manifest).json_schema()


def to_bytes(manifest: Manifest) -> bytes:
    """Return what is written into the file."""
    return (json.dumps(manifest.as_json(), indent=1, allow_nan=False) + "\n").encode()


def read(folder: Path) -> Manifest:
    """Read and check the manifest of a folder.

    Raises:
        ModelError: there is none, or it does not describe parts that can run one after another.
    """
    path = folder / FILE_NAME
    where = os.fspath(path)
    try:
        if path.stat().st_size > _MOST_BYTES:
            raise ModelError("is too large for a manifest", where=where)
        content = path.read_bytes()
    except FileNotFoundError as error:
        raise ModelError(
            f"no {FILE_NAME} in it: not a split model", where=os.fspath(folder), hint="Make one with onnxcompress split"
        ) from error
    except OSError as error:
        raise ModelError(f"can't be read ({error.strerror or error})", where=where) from error
    try:
        manifest = TypeAdapter(Manifest).validate_json(content)
    except ValidationError as error:
        first = error.errors()[0]
        place = ".".join(str(step) for step in first["loc"])
        raise ModelError(
            f"is damaged, or of another version: {place or 'content'}: {first['msg']}", where=where, hint=_AGAIN
        ) from error
    if problem := _problem(manifest):
        raise ModelError(problem, where=where, hint=_AGAIN)
    return manifest


_AGAIN = "Split the model again"


def _problem(manifest: Manifest) -> str | None:
    """Return what keeps the parts from running in their order, None where nothing does."""
    known = {tensor.name for tensor in manifest.inputs}
    flowing = {tensor.name for tensor in manifest.values} | {tensor.name for tensor in manifest.outputs}
    for part in manifest.parts:
        if problem := _part_problem(part, known, flowing, manifest.files):
            return f"part {part.file}: {problem}"
        known.update(part.outputs)
    missing = [tensor.name for tensor in manifest.outputs if tensor.name not in known]
    return f"no part makes output {missing[0]!r}" if missing else None


def _part_problem(
    part: Part, known: set[str], flowing: set[str], files: Mapping[str, StoredFile] | Sequence[str]
) -> str | None:
    for name in (part.file, *part.data):
        if name not in files:
            return f"file {name!r} is not listed"
    for name in part.inputs:
        if name not in known and name not in part.optional_inputs:
            return f"nothing before it makes its input {name!r}"
    for name in part.outputs:
        if name in known:
            return f"its output {name!r} is made before"
        if name not in flowing:
            return f"type and shape of its output {name!r} are not listed"
    return None
