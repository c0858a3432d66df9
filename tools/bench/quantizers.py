"""`python -m bench.quantizers SETTING MODEL SAMPLES OUT`: onnxruntime's own quantizers as their users call them.

Calibration reads the samples as they are: one .npz a feed, all arrays of the model's inputs in it.
"""

from __future__ import annotations

import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from onnxruntime.quantization import (
    CalibrationDataReader,
    CalibrationMethod,
    QuantFormat,
    QuantType,
    quantize_dynamic,
    quantize_static,
)
from onnxruntime.quantization.shape_inference import quant_pre_process


class Reader(CalibrationDataReader):  # type: ignore[misc]
    """Hands the samples out one by one."""

    def __init__(self, folder: Path) -> None:
        self._feeds: Iterator[dict[str, Any]] = (dict(np.load(path)) for path in sorted(folder.glob("*.npz")))

    def get_next(self) -> dict[str, Any] | None:
        """Return the next feed, None after the last."""
        return next(self._feeds, None)


EXPERT: dict[str, Any] = {
    "per_channel": True,
    "activation_type": QuantType.QUInt8,
    "weight_type": QuantType.QInt8,
    "op_types_to_quantize": ["Conv", "MatMul", "Gemm"],
}
STATIC: dict[str, dict[str, Any]] = {
    "static": {},
    "static, per channel": {"per_channel": True},
    "static, expert": EXPERT,
    "static, expert, entropy": EXPERT | {"calibrate_method": CalibrationMethod.Entropy},
    "static, expert, percentile": EXPERT | {"calibrate_method": CalibrationMethod.Percentile},
}
DYNAMIC: dict[str, dict[str, Any]] = {
    "dynamic": {},
    "dynamic, MatMul": {"op_types_to_quantize": ["MatMul", "Gemm"], "per_channel": True},
}
SETTINGS = (*STATIC, *DYNAMIC)


def main(setting: str, model: Path, samples: Path, out: Path) -> None:
    """Quantize a model; the preprocessing that the documentation asks for is tried first."""
    with tempfile.TemporaryDirectory() as folder:
        prepared = Path(folder, "prepared.onnx")
        try:
            quant_pre_process(model, prepared, skip_symbolic_shape=True)
        except Exception:  # noqa: BLE001 - then it is quantized as it is
            prepared = model
        if setting in STATIC:
            quantize_static(prepared, out, Reader(samples), quant_format=QuantFormat.QDQ, **STATIC[setting])
        else:
            quantize_dynamic(prepared, out, **DYNAMIC[setting])


if __name__ == "__main__":
    main(sys.argv[1], Path(sys.argv[2]), Path(sys.argv[3]), Path(sys.argv[4]))
