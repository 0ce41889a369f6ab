"""Ragged packed batches, and caches that hold NaN wherever nothing was written."""

from dataclasses import dataclass
from typing import Any

import jax.numpy as jnp
import numpy as np
from hypothesis import strategies as st

from emsjax.pallas_kernels.backends import target_platform
from emsjax.pallas_kernels.int8_cache import Int8Cache
from emsjax.pallas_kernels.kv_layout import rows_per_token, storage_dtype
from emsjax.pallas_kernels.kv_rows import LANES, scale_rows


@dataclass(frozen=True)
class Ragged:
    """The number of rows and of valid tokens in each slot; the rows are the last tokens."""

    q_lens: tuple[int, ...]
    kv_lens: tuple[int, ...]

    @property
    def cu_q_lens(self) -> np.ndarray:
        return np.cumsum([0, *self.q_lens], dtype=np.int32)

    def rows(self) -> list[tuple[int, int, int]]:
        """Returns (slot, index in the slot's rows, cache position) of each row, in packed order."""
        pairs = enumerate(zip(self.q_lens, self.kv_lens, strict=True))
        return [(slot, j, kv - q + j) for slot, (q, kv) in pairs for j in range(q)]

    def arrays(self) -> dict[str, np.ndarray]:
        return {"cu_q_lens": self.cu_q_lens, "kv_lens": np.asarray(self.kv_lens, np.int32)}

    def only(self, slot: int, *, at: int) -> "Ragged":
        """Returns a batch of only this slot's rows, moved to the slot `at`."""
        here = range(len(self.q_lens))
        return Ragged(
            tuple(self.q_lens[slot] if b == at else 0 for b in here),
            tuple(self.kv_lens[slot] if b == at else 0 for b in here),
        )

    def one_row_each(self, place: int) -> tuple[np.ndarray, "Ragged"]:
        """Makes each slot's row at this place, or its last row, the only row of the slot.

        Returns the packed indices of these rows in this batch, and the batch of only these rows.
        """
        used = [b for b, q in enumerate(self.q_lens) if q > 0]
        places = [min(place, q - 1) for q in self.q_lens]
        firsts = [kv - q for q, kv in zip(self.q_lens, self.kv_lens, strict=True)]
        here = range(len(self.q_lens))
        single = Ragged(
            tuple(int(b in used) for b in here),
            tuple(firsts[b] + places[b] + 1 if b in used else 0 for b in here),
        )
        rows = [self.cu_q_lens[b] + places[b] for b in used]
        return np.asarray(rows, np.int32), single


@st.composite
def raggedness(draw: Any, num_slots: int, capacity: int, max_q_len: int, cache_len: int) -> Ragged:
    """Draws a batch of at most `capacity` rows, often with empty, one-row and longest slots."""
    q_lens, kv_lens = [0] * num_slots, [0] * num_slots
    left = capacity
    for slot in draw(st.permutations(range(num_slots))):
        most = min(left, max_q_len)
        q_lens[slot] = draw(st.sampled_from((0, min(1, most), most)) | st.integers(0, most))
        fewest = q_lens[slot]
        kv_lens[slot] = draw(st.sampled_from((fewest, cache_len)) | st.integers(fewest, cache_len))
        left -= q_lens[slot]
    return Ragged(tuple(q_lens), tuple(kv_lens))


def edge_cases(num_slots: int, capacity: int, max_q_len: int, cache_len: int) -> list[Ragged]:
    """Returns the batches that every backend is always tested with."""
    last = num_slots - 1
    full, left = [], capacity
    for _ in range(num_slots):
        full.append(min(left, max_q_len))
        left -= full[-1]
    return [
        Ragged((0,) * num_slots, (0,) * num_slots),  # only empty slots
        Ragged((0,) * num_slots, (cache_len,) * num_slots),  # only finished slots
        Ragged((0,) * last + (1,), (0,) * last + (1,)),  # the first token of one sample
        Ragged((1,) * num_slots, (cache_len,) * num_slots),  # plain decoding, last position
        Ragged(tuple(full), tuple(full)),  # a full buffer of prompts, from their first tokens
        Ragged(tuple(full[::-1]), (cache_len,) * num_slots),  # a full buffer, last positions
    ]


def store(values: np.ndarray) -> np.ndarray:
    """Reinterprets the bits of the values in the cache's storage type."""
    return values.view(storage_dtype(jnp.dtype(values.dtype)))


def make_cache(
    k: np.ndarray, v: np.ndarray, kv_lens: tuple[int, ...], *, layer: int, num_layers: int
) -> np.ndarray:
    """Returns a cache [L, B, S, R, 128] that is NaN except for one layer's valid tokens.

    These are the first `kv_lens[b]` tokens of slot b from k and v [B, S, K, H]. This function does
    not use `kv_layout`, so that the layout itself is tested.
    """
    num_slots, cache_len, num_kv_heads, head_dim = k.shape
    rows, width = rows_per_token(num_kv_heads, head_dim), num_kv_heads * head_dim
    cache = np.full((num_layers, num_slots, cache_len, rows * LANES), np.nan, k.dtype)
    for slot, kv_len in enumerate(kv_lens):
        token = cache[layer, slot, :kv_len]
        token[:, :width] = k[slot, :kv_len].reshape(kv_len, width)
        token[:, width : 2 * width] = v[slot, :kv_len].reshape(kv_len, width)
        token[:, 2 * width :] = 0
    return store(cache.reshape(num_layers, num_slots, cache_len, rows, LANES))


def make_int8_cache(
    k: np.ndarray,
    v: np.ndarray,
    k_scale: np.ndarray,
    v_scale: np.ndarray,
    kv_lens: tuple[int, ...],
    *,
    layer: int,
    num_layers: int,
) -> Int8Cache:
    """Returns a cache of random numbers and NaN scales except for one layer's valid tokens.

    As `make_cache`, from int8[B, S, K, H] and float32[B, S, K].
    """
    num_slots, cache_len, num_kv_heads, head_dim = k.shape
    rows, width = rows_per_token(num_kv_heads, head_dim, int8=True), num_kv_heads * head_dim
    shape = (num_layers, num_slots, cache_len, rows * LANES)
    values = np.random.default_rng(4).integers(-128, 128, shape, np.int8)
    tiles, heads = -(-cache_len // LANES), scale_rows(num_kv_heads, target_platform())
    scale = np.full((num_layers, num_slots, tiles * LANES, heads), np.nan, np.float32)
    for slot, kv_len in enumerate(kv_lens):
        token, factors = values[layer, slot, :kv_len], scale[layer, slot, :kv_len]
        token[:, :width] = k[slot, :kv_len].reshape(kv_len, width)
        token[:, width : 2 * width] = v[slot, :kv_len].reshape(kv_len, width)
        factors[:, :num_kv_heads] = k_scale[slot, :kv_len]
        factors[:, num_kv_heads : 2 * num_kv_heads] = v_scale[slot, :kv_len]
    scale = scale.reshape(num_layers, num_slots, tiles, LANES, heads).swapaxes(3, 4)
    return Int8Cache(
        jnp.asarray(values.reshape(num_layers, num_slots, cache_len, rows, LANES)),
        jnp.asarray(scale),
    )
