"""Arithmetic of quantization: grids, ranges, rounding, clipping."""
