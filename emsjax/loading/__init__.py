"""Reading models: checkpoints of several formats, tokenizers, the default model."""
