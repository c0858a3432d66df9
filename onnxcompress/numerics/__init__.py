"""Mathematics on arrays: numpy and scipy only, no graph."""
