"""`python -m bench.nbits SETTING BITS MODEL SAMPLES OUT`: onnxruntime's weight-only quantizer as its users call it.

Blocks of 32. Calibration reads the samples as they are: one .npz a feed, all arrays of the model's inputs in it.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from onnxruntime.quantization import CalibrationDataReader
from onnxruntime.quantization import matmul_nbits_quantizer as peer

BLOCK = 32


class Reader(CalibrationDataReader):  # type: ignore[misc]
    """Hands the samples out one by one; it can be copied, as GPTQ does."""

    def __init__(self, folder: Path) -> None:
        self._paths = sorted(folder.glob("*.npz"))

    def get_next(self) -> dict[str, Any] | None:
        """Return the next feed, None after the last."""
        return dict(np.load(self._paths.pop(0))) if self._paths else None


SETTINGS: Mapping[str, Callable[[int, Path], dict[str, Any]]] = {
    "nearest": lambda _, __: {"is_symmetric": True},
    "nearest, int8 products": lambda _, __: {"is_symmetric": True, "accuracy_level": 4},
    "nearest, asymmetric": lambda _, __: {"is_symmetric": False},
    "HQQ": lambda bits, _: {"algo_config": peer.HQQWeightOnlyQuantConfig(block_size=BLOCK, bits=bits)},
    "GPTQ": lambda _, samples: {
        "algo_config": peer.GPTQWeightOnlyQuantConfig(Reader(samples), block_size=BLOCK),
    },
    "k-quant": lambda _, __: {"algo_config": peer.KQuantWeightOnlyQuantConfig()},
}


def main(setting: str, bits: int, model: Path, samples: Path, out: Path) -> None:
    """Quantize a model."""
    options = SETTINGS[setting](bits, samples)
    quantizer = peer.MatMulNBitsQuantizer(onnx.load(model), bits=bits, block_size=BLOCK, **options)
    quantizer.process()
    quantizer.model.save_model_to_file(str(out), use_external_data_format=False)


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]), *(Path(each) for each in sys.argv[3:6]))
