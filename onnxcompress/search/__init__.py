"""Candidates, their archive and checkpoints."""
