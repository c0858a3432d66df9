"""The trial of real models: what they are, the recipes they go through, and what came out; see ../wild.py."""
