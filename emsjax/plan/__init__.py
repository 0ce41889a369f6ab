"""Forecasts memory, step time and speedup of a model on a device that you do not have."""
