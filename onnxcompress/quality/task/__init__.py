"""Metrics of a whole task, by samples, so that the loss of a pipeline has an interval."""
