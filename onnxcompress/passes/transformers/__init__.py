"""Blocks of transformers, recognised in what exporters spell out, and written as one operator."""
