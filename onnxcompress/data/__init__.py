"""Samples: loading, fitting to inputs, checking, augmenting, synthesizing."""
