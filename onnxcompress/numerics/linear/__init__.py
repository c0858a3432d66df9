"""Linear algebra of compression: least squares, elimination, low rank, moments."""
