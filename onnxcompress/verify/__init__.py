"""Proof that a rewrite left the outputs as they were."""
