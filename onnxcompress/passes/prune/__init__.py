"""Removal of channels and of single weights."""
