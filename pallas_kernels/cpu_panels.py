"""Rows side by side in panels, as the products on CPU take them, see `cpu_strips`."""

import jax
import jax.numpy as jnp

_WIDEST = 32  # rows of a panel


def multiply(name: str, x: jax.Array, kernels: jax.Array, *others: jax.Array) -> jax.Array:
    """Calls a product that Numba compiled.

    Args:
      name: of the foreign function.
      x: rows [T, in].
      kernels: weights of all layers [L, out, in], as the function takes them.
      *others: its further operands: the layer int32[], and so on.

    Returns:
      float32[T, out].
    """
    (num_rows, num_in), num_out = x.shape, kernels.shape[1]
    width = _panel_width(num_rows)
    padded = jnp.pad(x.astype(jnp.float32), ((0, -num_rows % width), (0, 0)))
    # Each panel holds its rows side by side, so that vectors hold one input of several rows.
    panels = padded.reshape(-1, width, num_in).swapaxes(1, 2)
    shape = jax.ShapeDtypeStruct((len(panels), num_out, width), jnp.float32)
    out = jax.ffi.ffi_call(name, shape, vmap_method="sequential")(panels, kernels, *others)
    # XLA turns panels into rows as it reads them, or not at all if rows become panels again. It
    # does not see that a single panel is read column by column if a reshape comes between.
    rows = out[0].T if len(out) == 1 else out.swapaxes(1, 2).reshape(-1, num_out)
    return rows[:num_rows]


def _panel_width(num_rows: int) -> int:
    """Returns how many rows lie side by side: most, but without an empty half panel."""
    if num_rows <= _WIDEST // 4:
        return _WIDEST // 4
    return _WIDEST // 2 if -num_rows % _WIDEST >= _WIDEST // 2 else _WIDEST
