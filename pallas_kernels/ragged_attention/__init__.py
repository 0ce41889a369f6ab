"""Attention of packed rows against ragged caches."""
