"""Kernels for attention, the cache and products; each operation's `api.py` picks a backend."""
