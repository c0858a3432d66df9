"""Low-rank factors, dropped blocks, linearized activations."""
