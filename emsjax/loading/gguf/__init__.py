"""Reads GGUF files: configuration, tokenizer and tensors."""
