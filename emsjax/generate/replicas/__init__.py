"""Processes that each hold a copy of the model on a device of their own, for one command.

The command (`pool.py`) starts them, hands prompts out and takes results in. It does not import jax:
a process that looks for a TPU keeps it.
"""
