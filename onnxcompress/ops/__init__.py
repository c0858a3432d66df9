"""Facts about operators."""
