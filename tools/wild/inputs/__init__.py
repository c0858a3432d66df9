"""Realistic inputs, by what they are of; every function yields feeds for one half of the trial."""
