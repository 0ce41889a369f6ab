"""Reads configuration and tokenizer from Hugging Face model directories."""
