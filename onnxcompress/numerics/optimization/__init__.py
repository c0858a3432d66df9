"""Solvers: Adam, allocation, minimum cut, partitioning."""
