"""Lossless rewrites: folding, fusing, merging, removing."""
