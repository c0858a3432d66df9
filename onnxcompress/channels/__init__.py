"""Channel ids: which channels of which weights belong together, and their removal."""
