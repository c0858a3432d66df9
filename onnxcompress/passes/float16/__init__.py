"""Weights and arithmetic in float16."""
