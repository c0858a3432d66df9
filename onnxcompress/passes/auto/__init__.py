"""The search over recipes that the recipe `auto` runs."""
