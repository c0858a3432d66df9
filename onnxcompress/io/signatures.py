"""First look at a model file: it can be opened, does not begin as something else, and its outermost message is whole.

Nothing heavy is imported, so that the command line refuses a wrong file in the time of its own start.
"""

from __future__ import annotations

from pathlib import Path

from ..errors import ModelError
from .sources import PACKED, OpenFile
from .wire import check_outline

EXPORT_AGAIN = "Export or download the model again"
"""Hint for files that hold no model."""

_SIGNATURES = {
    b"PK\x03\x04": "a zip archive",
    b"\x89PNG": "a PNG image",
    b"\xff\xd8\xff": "a JPEG image",
    b"%PDF": "a PDF document",
    b"\x89HDF": "an HDF5 file",
    b"GGUF": "a GGUF model",
    b"\x80\x02": "a Python pickle",
    b"\x1f\x8b": "a gzip archive",
    b"version https://git-lfs": "a Git LFS pointer, not the model itself",
    b"<": "an HTML or XML page",
}


def open_model(path: Path) -> OpenFile:
    """Open a file that may hold a model: it is there, not empty or cut short, and does not begin as something else.

    Raises:
        ModelError: it can't be a model, with what it is, or where it is malformed.
    """
    file = OpenFile(path)
    if not file.size:
        raise ModelError("is empty", where=file.label, hint=EXPORT_AGAIN)
    start = file.read(0, min(64, file.size))
    if start.startswith(PACKED):
        hint = f"Run `onnxcompress unpack {file.label} -o MODEL.onnx` first"
        raise ModelError("is a packed model", where=file.label, hint=hint)
    for signature, kind in _SIGNATURES.items():
        if start.startswith(signature):
            raise ModelError(f"is {kind}, not an ONNX model", where=file.label, hint=EXPORT_AGAIN)
    if start[4:8] == b"ORTM":
        raise ModelError("is an ORT-format model", where=file.label, hint="Give the .onnx file it was made from")
    if start[4:8] == b"TFL3":
        raise ModelError("is a TensorFlow Lite model", where=file.label, hint="Convert it to ONNX first")
    check_outline(file)
    return file
