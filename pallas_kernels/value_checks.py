"""Checks the values of lengths, layers and places when a program runs; every error names one.

Checking takes a call to the host in every layer. So it is off, unless `EMSJAX_CHECK_LENGTHS=1` is
in the environment or the program is traced inside `checking_lengths`.
"""

import contextlib
import functools
import os
from collections.abc import Iterator
from contextvars import ContextVar

import jax
import numpy as np

_CHECKING: ContextVar[bool] = ContextVar(
    "checking_lengths", default=os.environ.get("EMSJAX_CHECK_LENGTHS") == "1"
)


@contextlib.contextmanager
def checking_lengths() -> Iterator[None]:
    """Makes programs traced inside check the values of their lengths when they run."""
    token = _CHECKING.set(True)
    try:
        yield
    finally:
        _CHECKING.reset(token)


def check_values(
    cu_q_lens: jax.Array,
    kv_lens: jax.Array,
    layer: jax.Array,
    slot_ids: jax.Array | None = None,
    window: int | jax.Array | None = None,
    places: tuple[jax.Array, jax.Array] | None = None,
    *,
    num_rows: int,
    max_q_len: int,
    cache_shape: tuple[int, ...],
) -> None:
    """Adds a check of the values to the program being traced, if checking is on.

    Args:
      cu_q_lens: int32[B+1].
      kv_lens: int32[B].
      layer: int32[].
      slot_ids: int32[T], of the update.
      window: of the attention.
      places: `cache_update.api.Places`, of the update.
      num_rows: T.
      max_q_len: the most rows of one slot.
      cache_shape: [L, B, S, R, 128].
    """
    if _CHECKING.get():
        check = functools.partial(
            values_must_fit, num_rows=num_rows, max_q_len=max_q_len, cache_shape=cache_shape
        )
        jax.debug.callback(check, cu_q_lens, kv_lens, layer, slot_ids, window, places)


def values_must_fit(
    cu_q_lens: np.ndarray,
    kv_lens: np.ndarray,
    layer: np.ndarray,
    slot_ids: np.ndarray | None = None,
    window: np.ndarray | None = None,
    places: tuple[np.ndarray, np.ndarray] | None = None,
    *,
    num_rows: int,
    max_q_len: int,
    cache_shape: tuple[int, ...],
) -> None:
    """Checks values on the host; the arguments are those of `check_values`.

    Raises:
      ValueError: the values contradict each other or the buffers; the message names the argument.
    """
    cu_q_lens, kv_lens = np.asarray(cu_q_lens), np.asarray(kv_lens)
    num_layers, num_slots, capacity = cache_shape[:3]
    q_lens = np.diff(cu_q_lens)
    if cu_q_lens[0] != 0 or (q_lens < 0).any():
        raise ValueError(f"cu_q_lens must begin with 0 and never fall: {cu_q_lens.tolist()}")
    if cu_q_lens[-1] > num_rows:
        raise ValueError(f"cu_q_lens ends with {cu_q_lens[-1]}, and the buffer has {num_rows} rows")
    if (q_lens > max_q_len).any():
        raise ValueError(
            f"cu_q_lens gives a slot {q_lens.max()} rows, and max_q_len is {max_q_len}"
        )
    if (kv_lens > capacity).any() or (kv_lens < 0).any():
        raise ValueError(f"kv_lens must be in 0 to {capacity}: {kv_lens.tolist()}")
    if (kv_lens < q_lens).any():
        raise ValueError(
            f"kv_lens must count each slot's rows: {kv_lens.tolist()} for rows {q_lens.tolist()}"
        )
    if not 0 <= layer < num_layers:
        raise ValueError(f"layer is {layer}: the cache has {num_layers}, counted from 0")
    if window is not None and window < 1:
        raise ValueError(f"window is {window}: it must be at least 1")
    if slot_ids is not None:
        _slots_must_fit(np.asarray(slot_ids), q_lens, num_slots)
    if places is not None:
        of_row, used = map(np.asarray, places)
        _places_must_fit(of_row, used, q_lens, kv_lens)


def _slots_must_fit(slot_ids: np.ndarray, q_lens: np.ndarray, num_slots: int) -> None:
    """Checks that rows are grouped by slot as `cu_q_lens` says, with unused rows at the end."""
    used = np.repeat(np.arange(num_slots), q_lens)
    unused = np.full(len(slot_ids) - len(used), num_slots)
    if (slot_ids != np.concatenate([used, unused])).any():
        raise ValueError(
            f"slot_ids must match cu_q_lens, with {num_slots} for unused rows: {slot_ids.tolist()}"
        )


def _places_must_fit(
    of_row: np.ndarray, used: np.ndarray, q_lens: np.ndarray, kv_lens: np.ndarray
) -> None:
    """Checks that each used row's place is the one that the lengths say."""
    ranges = zip(kv_lens - q_lens, kv_lens, strict=True)
    places = np.concatenate([np.arange(start, end) for start, end in ranges])
    if used[0] != len(places):
        raise ValueError(f"places.used is {used[0]}, and cu_q_lens has {len(places)} rows")
    if (of_row[: len(places)] != places).any():
        raise ValueError(
            f"places.of_row must match cu_q_lens and kv_lens, {places.tolist()}: {of_row.tolist()}"
        )
