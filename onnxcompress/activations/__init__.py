"""Record what flows through a model: calibration, layer inputs, partial runs."""
