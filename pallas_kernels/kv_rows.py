"""The rows that a token takes in the K/V cache; `kv_layout` describes the whole layout.

This module imports no jax, so that forecasts need not wait for it.
"""

LANES = 128


def token_rows(num_kv_heads: int, head_dim: int, platform: str) -> int:
    """Returns R, the rows of 128 lanes of one token in the cache.

    Args:
      num_kv_heads: K.
      head_dim: H.
      platform: "cpu", "gpu" or "tpu".
    """
    rows = rows_needed(num_kv_heads, head_dim)
    if platform != "tpu":
        return rows
    return next((r for r in (2, 4) if rows <= r), -(-rows // 8) * 8)


def rows_needed(num_kv_heads: int, head_dim: int) -> int:
    """Returns the fewest rows of 128 lanes that hold a token's keys and values."""
    return -(-2 * num_kv_heads * head_dim // LANES)
