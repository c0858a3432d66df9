"""Rendering of results as tables and pages; the values and their JSON schema are those of `jobs`."""
