"""Language models as flax.nnx definitions with declarative weight maps."""
