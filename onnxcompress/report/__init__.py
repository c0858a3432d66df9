"""Rendering of results as tables and pages."""
