"""The benchmarks behind `tools/bench.py`; imports nothing, because worker processes load this too."""
