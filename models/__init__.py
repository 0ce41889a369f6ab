"""Language models: flax.nnx definitions with declarative weight maps."""
