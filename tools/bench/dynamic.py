"""`python -m bench.dynamic IN OUT [external]`: onnxruntime's dynamic quantization as its users call it."""

from __future__ import annotations

import sys

from onnxruntime.quantization import quantize_dynamic

if __name__ == "__main__":
    quantize_dynamic(sys.argv[1], sys.argv[2], use_external_data_format="external" in sys.argv[3:])
