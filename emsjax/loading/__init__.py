"""Loads models: checkpoints in several formats, tokenizers and the default model."""
