"""Packed delivery: the archive beside zip -9, zstd -19 and the entropy of the exponents."""

from __future__ import annotations

import filecmp
import json
import tempfile
import time
import zlib
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import zstandard

from bench.tables import Table
from onnxcompress.io.sources import OpenFile
from onnxcompress.packing import archive as packing
from onnxcompress.packing.layout import RangeKind, model_layout

LIMIT = 0.92
"""At least 8% below zip -9."""
_ZIP_FRAME_BYTES = 120
_EXPONENTS = {
    RangeKind.FLOAT16: (10, 5),
    RangeKind.BFLOAT16: (7, 8),
    RangeKind.FLOAT32: (23, 8),
    RangeKind.FLOAT64: (52, 11),
}
"""Kind -> bits of the mantissa, bits of the exponent."""


@dataclass(frozen=True, kw_only=True)
class Row:
    """Bytes of one model, packed in several ways; `identical`: it came back byte for byte."""

    model: str
    bytes: int
    zip_bytes: int
    zstd_bytes: int
    packed_bytes: int
    bound_bytes: float
    pack_seconds: float
    unpack_seconds: float
    identical: bool


def measure(models: Sequence[Path], zoo: Path) -> Iterator[Row]:
    """Pack and unpack each model."""
    with tempfile.TemporaryDirectory() as folder:
        archive, back = Path(folder, "a.onnxpack"), Path(folder, "back.onnx")
        for model in models:
            data = model.read_bytes()
            start = time.perf_counter()
            packed = packing.pack(model, archive, force=True)
            middle = time.perf_counter()
            packing.unpack(archive, back, force=True)
            end = time.perf_counter()
            yield Row(
                model=str(model.relative_to(zoo).with_suffix("")),
                bytes=len(data),
                zip_bytes=len(zlib.compress(data, 9)) + _ZIP_FRAME_BYTES,
                zstd_bytes=len(zstandard.ZstdCompressor(level=19).compress(data)),
                packed_bytes=packed.packed_bytes,
                bound_bytes=bound_bytes(model, data),
                pack_seconds=middle - start,
                unpack_seconds=end - middle,
                identical=filecmp.cmp(model, back, shallow=False),
            )


def bound_bytes(model: Path, data: bytes) -> float:
    """Return the entropy of a file whose signs and mantissas are noise.

    Exponents and all bytes that are no floats are coded each by itself with the best code of their tensor, whose
    table is free. A code that knows repetitions, or zeros, can do better.
    """
    total, at = 0.0, 0
    rest: list[bytes] = []
    for segment in model_layout(OpenFile(model)).segments:
        piece = data[at : at + segment.length]
        at += segment.length
        if segment.kind not in _EXPONENTS:
            rest.append(piece)
            continue
        mantissa, exponent = _EXPONENTS[segment.kind]
        words = np.frombuffer(piece, f"<u{segment.kind.width}")
        total += _entropy_bytes((words >> mantissa & ((1 << exponent) - 1)).astype(np.int64))
        total += len(words) * (mantissa + 1) / 8
    return total + _entropy_bytes(np.frombuffer(b"".join(rest), np.uint8))


def _entropy_bytes(symbols: np.ndarray) -> float:
    """Return the bytes of the best code of single symbols: n H / 8 (Shannon 1948), no tables counted.

    Args:
        symbols: unsigned integers [n], below 65,536.
    """
    counts = np.bincount(symbols)
    counts = counts[counts > 0].astype(np.float64)
    return float(-(counts * np.log2(counts / len(symbols))).sum() / 8) if len(symbols) else 0.0


def table(rows: Sequence[Row]) -> Table:
    """Tabulate; a star marks what is not 8% below zip -9, or did not come back."""
    out = Table(
        "Packed delivery (* less than 8% below zip -9, or not identical)",
        [
            "model",
            "bytes",
            "zip -9",
            "zstd -19",
            "packed",
            "of zip -9",
            "of file",
            "exponent bound",
            "pack s",
            "unpack s",
        ],
    )
    for row in rows:
        share = row.packed_bytes / row.zip_bytes
        out.add(
            row.model,
            row.bytes,
            row.zip_bytes,
            row.zstd_bytes,
            row.packed_bytes,
            f"{share:.3f}{'*' * (share > LIMIT or not row.identical)}",
            f"{row.packed_bytes / row.bytes:.3f}",
            f"{row.bound_bytes / row.bytes:.3f}",
            row.pack_seconds,
            row.unpack_seconds,
        )
    return out


def as_json(rows: Sequence[Row]) -> str:
    """Return all figures as JSON."""
    return json.dumps([asdict(row) for row in rows], indent=1) + "\n"
