"""Lossless archives for delivery."""
