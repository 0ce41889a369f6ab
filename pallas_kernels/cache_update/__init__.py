"""Writes new K/V into the cache, as a scatter."""
