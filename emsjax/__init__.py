"""Fast batched text generation in JAX with EMS-SD speculative decoding."""
