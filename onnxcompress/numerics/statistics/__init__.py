"""Estimates from few samples."""
