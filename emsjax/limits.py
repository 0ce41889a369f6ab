"""The names and limits of options.

This module imports nothing, so that a wrong option is reported without waiting for jax.
"""

# Longer drafts never pay off, and each doubling of the length adds a program to compile.
MAX_DRAFT_LENGTH = 64
DRAFT_LENGTH = 7
# Where rows cost little, see `engine.ladder.default_draft_length`.
LONG_DRAFT_LENGTH = 15

# The batch size where none is given.
BATCH_SIZE = 8

# Far more than any device decodes together, and few enough for all arithmetic on sizes.
MAX_BATCH_SIZE = 65536

# Far more than one machine has devices for.
MAX_REPLICAS = 256
# Far more than any machine has, and as many as a model has heads.
MAX_DEVICES = 1024

# jax and NumPy take seeds of 64 bits.
MAX_SEED = 2**63 - 1

# The stop tokens that a slot can hold. Shorter lists are padded with -1, which is not a token.
MAX_STOP_IDS = 64

# The words of several tokens that a slot can ban, and the tokens of each.
MAX_BAD_WORDS, MAX_BAD_WORD_TOKENS = 32, 8

# The tokens that a slot can forbid at the beginning of its output, and force at either end.
MAX_BEGIN_SUPPRESSED, MAX_FORCED = 32, 16
MAX_SCHEDULED = MAX_BEGIN_SUPPRESSED + 2 * MAX_FORCED

MAX_LOGPROBS = 20

# The tables on the device that hold the grammars of structured outputs: the states, which take a
# kilobyte each, and the bytes for sets of tokens, which many states share.
MAX_GRAMMAR_STATES, GRAMMAR_SET_BYTES = 32768, 32 << 20

DEFAULT_MAX_MODEL_LEN = 4096

# What weights can be turned into when they are loaded.
# "int4" only keeps what a checkpoint has in 4 bits.
QUANTIZATIONS = ("int8", "int4", "none")
# What weights may be in a forecast. Files hold 4 bits, which are found with more than rounding.
PLANNED_QUANTIZATIONS = ("int8", "int4")
# Inputs with a scale of their own in such a file, as most have them.
PLANNED_GROUP = 128

# What the K/V cache may hold instead of the model's dtype.
KV_DTYPES = ("int8",)

METHODS = ("ems", "none", "vanilla", "unpad-kv", "unpad-input")
# The kinds of drafts that `emsjax.train` makes.
RECURRENT, OWN_LAYERS = "recurrent", "own-layers"
HIDDEN_TRANSFER, JAKIRO = "hidden-transfer", "jakiro"
DRAFT_KINDS = (RECURRENT, OWN_LAYERS, HIDDEN_TRANSFER, JAKIRO)
# The target as its own draft model, on a part of its cache.
SELF_WINDOW = "self-window"
# The module for multi-token prediction in the target's own checkpoint.
MTP = "mtp"
# Draft models that are no directories.
NAMED_DRAFTS = (OWN_LAYERS, SELF_WINDOW, MTP)
DRAFTERS = ("prompt-lookup", "draft-model", "combined", "none")
