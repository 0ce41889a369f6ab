"""The attention work that is compiled and counted: ragged batches of a model's heads."""

from typing import Any, NamedTuple

import numpy as np


class Heads(NamedTuple):
    """A model's attention: N query heads, K key and value heads, each of width H."""

    num_heads: int
    num_kv_heads: int
    head_dim: int


def heads_of(config: Any) -> Heads:
    """Of a model, from its `emsjax.models.config.DecoderConfig`."""
    return Heads(config.num_heads, config.num_kv_heads, config.head_dim)


# Every kind of head there is among the built-in configurations.
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
ROW_MULTIPLE = 8


class Work(NamedTuple):
    """One call: B slots, their rows and their valid tokens.

    Attributes:
      heads: the model's.
      q_lens: rows of each slot.
      kv_lens: valid tokens of each slot, its rows included.
      capacity: S.
      max_q_len: the most rows of a slot.
      itemsize: bytes of a number; 2 for bfloat16.
    """

    heads: Heads
    q_lens: tuple[int, ...]
    kv_lens: tuple[int, ...]
    capacity: int
    max_q_len: int
    itemsize: int = 2

    @property
    def num_slots(self) -> int:
        """B."""
        return len(self.q_lens)

    @property
    def num_rows(self) -> int:
        """T: the rows, rounded up as a ladder rounds them."""
        return -(-sum(self.q_lens) // ROW_MULTIPLE) * ROW_MULTIPLE

    @property
    def token_bytes(self) -> int:
        """What one token's keys and values need."""
        return 2 * self.heads.num_kv_heads * self.heads.head_dim * self.itemsize

    @property
    def least_bytes(self) -> int:
        """Each slot's keys and values once, and each row's queries and results."""
        rows = 2 * sum(self.q_lens) * self.heads.num_heads * self.heads.head_dim
        return sum(self.kv_lens) * self.token_bytes + rows * self.itemsize


def ragged(heads: Heads, batch: int, rows: int, context: int) -> Work:
    """A batch in mid-decode: 1 to `rows` rows a slot, `context` / 2 to `context` tokens."""
    rng = np.random.default_rng(0)
    q_lens = rng.integers(1, rows + 1, batch)
    q_lens[0] = rows
    kv_lens = rng.integers(context // 2, context + 1, batch)
    capacity = -(-context // 512) * 512
    return Work(heads, tuple(q_lens.tolist()), tuple(kv_lens.tolist()), capacity, rows)
