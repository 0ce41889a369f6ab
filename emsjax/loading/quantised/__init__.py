"""Checkpoints whose weights other libraries quantised, a file for each format."""
