"""Benchmarks beside other tools: `python tools/bench.py --help`; figures stand in BENCHMARKS.md."""

from bench.cli import app

if __name__ == "__main__":
    app()
