"""The rows that a token takes in the K/V cache; `kv_layout` describes the whole layout.

This module imports no jax, so that forecasts need not wait for it.
"""

LANES = 128
SCALE_BYTES = 4


def token_rows(num_kv_heads: int, head_dim: int, platform: str, int8: bool = False) -> int:
    """Returns R, the rows of 128 lanes of one token in the cache.

    Args:
      num_kv_heads: K.
      head_dim: H.
      platform: "cpu", "gpu" or "tpu".
      int8: whether the cache is int8.
    """
    return _padded(rows_needed(num_kv_heads, head_dim), platform, 4 if int8 else 2)


def scale_rows(num_kv_heads: int, platform: str) -> int:
    """Returns the rows of 128 lanes that hold the scales of 128 tokens in an int8 cache.

    Args:
      num_kv_heads: K.
      platform: "cpu", "gpu" or "tpu".
    """
    return _padded(2 * num_kv_heads, platform, 2)


def token_bytes(
    num_kv_heads: int, head_dim: int, platform: str, itemsize: int, int8: bool = False
) -> int:
    """Returns the bytes of one token in one layer of the cache, scales included.

    Args:
      num_kv_heads: K.
      head_dim: H.
      platform: "cpu", "gpu" or "tpu".
      itemsize: bytes of a number, unless the cache is int8.
      int8: whether the cache is int8.
    """
    row_bytes = LANES * (1 if int8 else itemsize)
    scales = scale_rows(num_kv_heads, platform) * SCALE_BYTES if int8 else 0
    return token_rows(num_kv_heads, head_dim, platform, int8) * row_bytes + scales


def rows_needed(num_kv_heads: int, head_dim: int) -> int:
    """Returns the fewest rows of 128 lanes that hold a token's keys and values."""
    return -(-2 * num_kv_heads * head_dim // LANES)


def _padded(rows: int, platform: str, fewest: int) -> int:
    """Rounds rows up to a number for which XLA keeps the layout on TPU: `fewest`, 4, or 8 n."""
    if platform != "tpu":
        return rows
    return next((r for r in (fewest, 4) if rows <= r), -(-rows // 8) * 8)
