"""Measures of the loss between an original and a result."""
