"""Knowledge transfer: layer targets, reconstruction, gradient training."""
