"""Helpers that know nothing of models: atomic files, quantities, versions, JSON."""
