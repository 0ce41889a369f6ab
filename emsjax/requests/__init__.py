"""Requests and results as users see them: prompts and parameters in, texts out."""
