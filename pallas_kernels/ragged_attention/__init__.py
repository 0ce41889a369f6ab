"""Attention of packed rows over ragged caches."""
