"""Adds what a sublayer computed to the residual stream, and normalises it for the next one."""
