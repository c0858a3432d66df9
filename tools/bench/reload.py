"""`python -m bench.reload IN OUT [external]`: what merely loading and saving a model with onnx costs."""

from __future__ import annotations

import sys

import onnx

if __name__ == "__main__":
    onnx.save(onnx.load(sys.argv[1]), sys.argv[2], save_as_external_data="external" in sys.argv[3:])
