"""What differs between the devices of a `jax.shard_map`, whose check every kernel must tell."""

from typing import Any

import jax


def result_like(shape: tuple[int, ...], dtype: Any, *operands: Any) -> jax.ShapeDtypeStruct:
    """Returns the shape of a kernel's result, which differs between devices if an operand does.

    Args:
      shape: of the result.
      dtype: of the result.
      *operands: trees of the arrays that the kernel reads.
    """
    if not _kinds(operands):
        return jax.ShapeDtypeStruct(shape, dtype)
    # Inside a `jax.shard_map`, a result that is the same everywhere must say so, too.
    kind = jax.sharding.ManualAxisType(varying=_varying(operands))
    return jax.ShapeDtypeStruct(shape, dtype, manual_axis_type=kind)


def varying_like(array: jax.Array, *others: Any) -> jax.Array:
    """Returns an array as one that may differ between devices if any of the others does.

    A loop whose results differ must begin with such arrays.
    """
    missing = _varying(others) - _varying(array)
    return jax.lax.pcast(array, tuple(missing), to="varying") if missing else array


def _varying(arrays: Any) -> frozenset[Any]:
    """Returns the axes of the mesh along which any of the arrays differs."""
    return frozenset().union(*(kind.varying for kind in _kinds(arrays)))


def _kinds(arrays: Any) -> list[Any]:
    """Returns how each array differs between devices. Not every version of jax says so."""
    kinds = (getattr(jax.typeof(x), "mat", None) for x in jax.tree.leaves(arrays))
    return [kind for kind in kinds if kind is not None]
