"""Shapes of values: inferred, symbolic, counted."""
