"""Names that options take. Imports nothing: telling a wrong one should not wait for jax."""

METHODS = ("ems", "none", "vanilla", "unpad-kv", "unpad-input")
DRAFTERS = ("prompt-lookup", "draft-model", "combined", "none")
