"""Measurements beside other tools, in one run: `python -m benchmarks --help`."""
