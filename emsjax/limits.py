"""Names that options take. Imports nothing: telling a wrong one should not wait for jax."""

# Longer drafts are never worth their rows, and each doubling is one more program to compile.
MAX_DRAFT_LENGTH = 64
DRAFT_LENGTH = 7

# Stop tokens a slot can hold; shorter lists are filled up with -1, which is no token.
MAX_STOP_IDS = 64

MAX_LOGPROBS = 20

DEFAULT_MAX_MODEL_LEN = 4096

METHODS = ("ems", "none", "vanilla", "unpad-kv", "unpad-input")
DRAFTERS = ("prompt-lookup", "draft-model", "combined", "none")
