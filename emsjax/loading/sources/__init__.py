"""Sources of checkpoint tensors, one module per file format."""
