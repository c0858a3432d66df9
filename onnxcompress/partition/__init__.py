"""Models in parts that run one after another."""
