"""Measures which block sizes make the kernels fastest on this device."""
