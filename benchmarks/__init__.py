"""Measurements, run as `python -m benchmarks.NAME` from the repository root; see the README here."""
