"""Measurements, run by `python -m benchmarks.NAME` from the repository root; see README.md here."""
