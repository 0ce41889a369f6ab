"""Attention and cache kernels; each operation has one `api.py` that picks a backend."""
