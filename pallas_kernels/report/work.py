"""The attention work that is compiled and counted: ragged batches, for the heads of a model."""

from typing import Any, NamedTuple

import numpy as np

from emsjax.pallas_kernels.kv_rows import SCALE_BYTES


class Heads(NamedTuple):
    """A model's attention: N query heads, K key and value heads, each of width H."""

    num_heads: int
    num_kv_heads: int
    head_dim: int


def heads_of(config: Any) -> Heads:
    """Returns the heads of a model, from its `emsjax.models.config.DecoderConfig`."""
    return Heads(config.num_heads, config.num_kv_heads, config.head_dim)


# One model for every kind of heads among the built-in configurations.
MODELS = {
    "smollm2-135m": Heads(9, 3, 64),
    "opt-125m": Heads(12, 12, 64),
    "opt-350m": Heads(16, 16, 64),
    "opt-1.3b": Heads(32, 32, 64),
    "opt-2.7b": Heads(32, 32, 80),
    "opt-6.7b": Heads(32, 32, 128),
    "opt-13b": Heads(40, 40, 128),
    "llama-3-8b": Heads(32, 8, 128),
    "qwen3-8b": Heads(32, 8, 128),
}
# The width of each of these models, that of its feed-forward part, and whether that has a gate.
WIDTHS = {
    "smollm2-135m": (576, 1536, True),
    "opt-125m": (768, 3072, False),
    "opt-350m": (1024, 4096, False),
    "opt-1.3b": (2048, 8192, False),
    "opt-2.7b": (2560, 10240, False),
    "opt-6.7b": (4096, 16384, False),
    "opt-13b": (5120, 20480, False),
    "llama-3-8b": (4096, 14336, True),
    "qwen3-8b": (4096, 12288, True),
}
ROW_MULTIPLE = 8


def weights_of(model: str) -> list[tuple[int, int]]:
    """Returns [out, in] of each kernel in a layer of a model in `MODELS`."""
    num_heads, num_kv_heads, head_dim = MODELS[model]
    width, inner, gated = WIDTHS[model]
    projected = (num_heads + 2 * num_kv_heads) * head_dim
    up = inner * (2 if gated else 1)
    return [(projected, width), (width, num_heads * head_dim), (up, width), (width, inner)]


class Work(NamedTuple):
    """One call of the attention: B slots, their rows and their valid tokens.

    Attributes:
      heads: of the model.
      q_lens: rows of each slot.
      kv_lens: valid tokens of each slot, its rows included.
      capacity: S.
      max_q_len: the most rows of a slot.
      itemsize: bytes of a number; 2 for bfloat16.
      int8: whether the cache is int8.
    """

    heads: Heads
    q_lens: tuple[int, ...]
    kv_lens: tuple[int, ...]
    capacity: int
    max_q_len: int
    itemsize: int = 2
    int8: bool = False

    @property
    def num_slots(self) -> int:
        """B, the number of slots."""
        return len(self.q_lens)

    @property
    def num_rows(self) -> int:
        """T, the number of rows, rounded up as a ladder rounds it."""
        return -(-sum(self.q_lens) // ROW_MULTIPLE) * ROW_MULTIPLE

    @property
    def token_bytes(self) -> int:
        """Bytes of one token's keys and values."""
        _, num_kv_heads, head_dim = self.heads
        head_bytes = head_dim + SCALE_BYTES if self.int8 else head_dim * self.itemsize
        return 2 * num_kv_heads * head_bytes

    @property
    def least_bytes(self) -> int:
        """Bytes of each slot's keys and values, once, and of each row's queries and results."""
        rows = 2 * sum(self.q_lens) * self.heads.num_heads * self.heads.head_dim
        return sum(self.kv_lens) * self.token_bytes + rows * self.itemsize


def ragged(heads: Heads, batch: int, rows: int, context: int) -> Work:
    """Makes a random batch in mid-decode.

    Args:
      heads: of the model.
      batch: B.
      rows: the most rows of a slot; each has at least one, and the first has this many.
      context: the most tokens of a slot; each has at least half of it.
    """
    rng = np.random.default_rng(0)
    q_lens = rng.integers(1, rows + 1, batch)
    q_lens[0] = rows
    kv_lens = rng.integers(context // 2, context + 1, batch)
    capacity = -(-context // 512) * 512
    return Work(heads, tuple(q_lens.tolist()), tuple(kv_lens.tolist()), capacity, rows)
