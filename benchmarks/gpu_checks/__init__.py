"""Checks of `benchmarks/gpu.py`."""
