"""Tensors of checkpoints, format by format."""
