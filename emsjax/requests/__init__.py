"""A user's contract: from prompts and parameters to texts."""
