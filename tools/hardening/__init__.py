"""What `fuzz.py`, `kills.py` and `sweep.py` share: mutations, cases, and processes that may die."""
