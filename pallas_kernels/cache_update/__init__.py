"""Scatter of new K/V into the cache."""
