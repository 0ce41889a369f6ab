"""Checks shapes and types of the operations' arguments when a program is traced.

Every error names the argument. `value_checks` checks what only a run knows.
"""

import jax
import jax.numpy as jnp

from emsjax.pallas_kernels.int8_cache import Cache, Int8Cache
from emsjax.pallas_kernels.kv_layout import storage_dtypes
from emsjax.pallas_kernels.kv_rows import LANES, rows_needed
from emsjax.pallas_kernels.norms import PartsNorm
from emsjax.pallas_kernels.quantised import Grouped

Shaped = jax.Array | jax.ShapeDtypeStruct | Int8Cache
FLOATS = (jnp.float32, jnp.bfloat16, jnp.float16)


def check_lengths(
    q: Shaped,
    cache: Shaped,
    cu_q_lens: jax.Array,
    kv_lens: jax.Array,
    trees: tuple[jax.Array | None, jax.Array | None],
    num_kv_heads: int,
    max_q_len: int,
    holes: jax.Array | None,
) -> None:
    """Checks shapes, types and static sizes for `prepare`; `trees` are ancestors and tree_starts.

    Raises:
      ValueError: an argument does not fit; the message begins with its name.
    """
    _check_shape("q", q, (None, None, None), "[T, N, H]")
    _check_type("q", q, FLOATS)
    num_rows, num_heads, head_dim = q.shape
    _check_whole("num_kv_heads", num_kv_heads)
    _check_whole("max_q_len", max_q_len)
    if num_heads % num_kv_heads:
        raise ValueError(f"num_kv_heads is {num_kv_heads}: it must divide q's {num_heads} heads")
    _check_cache(cache, q.dtype, num_kv_heads, head_dim)
    _check_lengths_arrays(cu_q_lens, kv_lens, cache.shape[1])
    if holes is not None:
        _check_shape("holes", holes, cache.shape[1:3], "[B, S]")
        _check_type("holes", holes, (jnp.bool,))
    ancestors, tree_starts = trees
    if ancestors is not None:
        _check_shape("ancestors", ancestors, (num_rows,), "[T]")
        _check_type("ancestors", ancestors, (jnp.uint32,))
    if tree_starts is not None:
        if ancestors is None:
            raise ValueError("tree_starts is for token trees: pass ancestors too")
        _check_shape("tree_starts", tree_starts, kv_lens.shape, "[B]")
        _check_type("tree_starts", tree_starts, (jnp.int32,))


def check_attention(
    q: jax.Array,
    cache: Cache,
    prepared_for: tuple[tuple[tuple[int, ...], jnp.dtype], ...],
    layer: jax.Array,
    scale: float,
    window: int | jax.Array | None,
    sink_tokens: int | jax.Array | None,
    soft_cap: float | None,
    sinks: jax.Array | None,
) -> None:
    """Checks what `ragged_attention` takes besides lengths.

    `prepared_for` holds the shapes and dtypes that `prepare` was given.

    Raises:
      ValueError: an argument does not fit; the message begins with its name.
    """
    for (name, array), (shape, dtype) in zip(
        (("q", q), ("cache", cache)), prepared_for, strict=True
    ):
        _check_shape(name, array, shape, f"{list(shape)}, as `prepare` was given")
        _check_type(name, array, (dtype,))
    _check_layer(layer)
    _check_positive("scale", scale)
    if soft_cap is not None:
        _check_positive("soft_cap", soft_cap)
    if sinks is not None:
        _check_shape("sinks", sinks, (q.shape[1],), "[N]")
        _check_type("sinks", sinks, (jnp.float32,))
    _check_tokens("window", window)
    _check_tokens("sink_tokens", sink_tokens)
    if sink_tokens is not None and window is None:
        raise ValueError("sink_tokens are given without a window, which alone could hide them")


def check_layer_matmul(x: jax.Array, kernels: jax.Array, layer: jax.Array) -> None:
    """Checks shapes and types of `layer_matmul`.

    Raises:
      ValueError: an argument does not fit; the message begins with its name.
    """
    _check_shape("x", x, (None, None), "[T, in]")
    _check_type("x", x, FLOATS)
    _check_shape("kernels", kernels, (None, None, x.shape[1]), "[L, out, in]")
    narrower = (jnp.bfloat16,) if x.dtype == jnp.float32 else ()
    _check_type("kernels", kernels, (x.dtype, *narrower, jnp.int8))
    _check_layer(layer)


def check_residual_norm(
    x: jax.Array,
    parts: jax.Array,
    scales: jax.Array,
    layer: jax.Array,
    of_parts: PartsNorm | None,
) -> None:
    """Checks shapes and types of `residual_norm`.

    Raises:
      ValueError: an argument does not fit; the message begins with its name.
    """
    _check_shape("x", x, (None, None), "[T, D]")
    _check_type("x", x, FLOATS)
    _check_shape("parts", parts, (None, None, x.shape[1]), "[P, at least T, D]")
    _check_type("parts", parts, FLOATS)
    if parts.shape[1] < x.shape[0]:
        raise ValueError(f"parts has {parts.shape[1]} rows, but x has {x.shape[0]}")
    every = {"scales": scales} | ({} if of_parts is None else {"of_parts.scales": of_parts.scales})
    for name, each in every.items():
        _check_shape(name, each, (None, x.shape[1]), "[L, D]")
        _check_type(name, each, FLOATS)
    _check_layer(layer)


def check_grouped_matmul(x: jax.Array, kernels: Grouped, layer: jax.Array) -> None:
    """Checks shapes and types of `grouped_matmul`.

    Raises:
      ValueError: an argument does not fit; the message begins with its name.
    """
    _check_shape("x", x, (None, None), "[T, in]")
    _check_type("x", x, FLOATS)
    _check_shape("kernels.values", kernels.values, (None, None, x.shape[1]), "[L, out, in]")
    _check_type("kernels.values", kernels.values, (jnp.int4,))
    _check_groups(kernels, "[L, G, out]")
    if kernels.order is not None:
        _check_shape("kernels.order", kernels.order, (len(kernels.values), x.shape[1]), "[L, in]")
        _check_type("kernels.order", kernels.order, (jnp.int32,))
    _check_layer(layer)


def _check_groups(kernels: Grouped, meaning: str) -> None:
    *stack, num_out, num_in = kernels.shape
    for name, groups in (("scales", kernels.scales), ("offsets", kernels.offsets)):
        if groups is not None:
            _check_shape(f"kernels.{name}", groups, (*stack, None, num_out), meaning)
            _check_type(f"kernels.{name}", groups, (jnp.float32,))
            number = groups.shape[-2]
            if number != kernels.scales.shape[-2] or num_in % number:
                raise ValueError(
                    f"kernels.{name} has {number} groups, which do not divide "
                    f"{num_in} inputs as the scales do"
                )


def check_expert_matmul(
    x: jax.Array, kernels: jax.Array | Grouped, layer: jax.Array, experts: jax.Array
) -> None:
    """Checks shapes and types of `expert_matmul`.

    Raises:
      ValueError: an argument does not fit; the message begins with its name.
    """
    _check_shape("x", x, (None, None, None), "[X, Y, in]")
    _check_type("x", x, FLOATS)
    shape, meaning = (None, None, None, x.shape[2]), "[L, E, out, in]"
    if isinstance(kernels, Grouped):
        _check_shape("kernels.values", kernels.values, shape, meaning)
        _check_type("kernels.values", kernels.values, (jnp.int4,))
        _check_groups(kernels, "[L, E, G, out]")
        if kernels.order is not None:
            raise ValueError("kernels.order is there, but experts take inputs in their order")
    else:
        _check_shape("kernels", kernels, shape, meaning)
        _check_type("kernels", kernels, (x.dtype, jnp.int8))
    _check_layer(layer)
    _check_shape("tiles.experts", experts, (x.shape[0],), "[X]")
    _check_type("tiles.experts", experts, (jnp.int32,))


def check_update(
    cache: Cache,
    k: jax.Array,
    v: jax.Array,
    layer: jax.Array,
    slot_ids: jax.Array,
    cu_q_lens: jax.Array,
    kv_lens: jax.Array,
    places: tuple[jax.Array, jax.Array] | None,
) -> None:
    """Checks shapes and types of `update_kv_cache`.

    Raises:
      ValueError: an argument does not fit; the message begins with its name.
    """
    _check_shape("k", k, (None, None, None), "[T, K, H]")
    _check_type("k", k, FLOATS)
    _check_shape("v", v, k.shape, "as k is")
    _check_type("v", v, (k.dtype,))
    _check_cache(cache, k.dtype, k.shape[1], k.shape[2])
    _check_shape("slot_ids", slot_ids, (k.shape[0],), "[T]")
    _check_type("slot_ids", slot_ids, (jnp.int32,))
    _check_layer(layer)
    _check_lengths_arrays(cu_q_lens, kv_lens, cache.shape[1])
    if places is not None:
        of_row, used = places
        _check_shape("places.of_row", of_row, (k.shape[0],), "[T]")
        _check_type("places.of_row", of_row, (jnp.int32,))
        _check_shape("places.used", used, (1,), "[1]")
        _check_type("places.used", used, (jnp.int32,))


def _check_cache(cache: Shaped, dtype: jnp.dtype, num_kv_heads: int, head_dim: int) -> None:
    _check_shape("cache", cache, (None, None, None, None, LANES), f"[L, B, S, R, {LANES}]")
    needed = rows_needed(num_kv_heads, head_dim)
    if cache.shape[3] < needed:
        raise ValueError(
            f"cache has {cache.shape[3]} rows a token: {num_kv_heads} key and value heads of "
            f"width {head_dim} need {needed}"
        )
    if isinstance(cache, Int8Cache):
        _check_type("cache.values", cache.values, (jnp.int8,))
        _check_scale(cache, num_kv_heads)
    else:
        _check_type("cache", cache, storage_dtypes(dtype))


def _check_scale(cache: Int8Cache, num_kv_heads: int) -> None:
    tiles = -(-cache.shape[2] // LANES)
    shape = (*cache.shape[:2], tiles, None, LANES)
    wanted = f"[L, B, {tiles}, R, {LANES}] for a cache of {cache.shape[2]} tokens"
    _check_shape("cache.scale", cache.scale, shape, wanted)
    _check_type("cache.scale", cache.scale, (jnp.float32,))
    if cache.scale.shape[3] < 2 * num_kv_heads:
        raise ValueError(
            f"cache.scale has {cache.scale.shape[3]} rows: {num_kv_heads} key and value heads need "
            f"{2 * num_kv_heads}"
        )


def _check_lengths_arrays(cu_q_lens: jax.Array, kv_lens: jax.Array, num_slots: int) -> None:
    arrays = {"cu_q_lens": (cu_q_lens, num_slots + 1), "kv_lens": (kv_lens, num_slots)}
    for name, (array, length) in arrays.items():
        _check_shape(name, array, (length,), f"[{length}] for a cache of {num_slots} slots")
        _check_type(name, array, (jnp.int32,))


def _check_layer(layer: jax.Array) -> None:
    _check_shape("layer", layer, (), "[]")
    _check_type("layer", layer, (jnp.int32,))


def _check_whole(name: str, value: int) -> None:
    if not isinstance(value, int) or isinstance(value, bool) or value < 1:
        raise ValueError(f"{name} is {value!r}: it must be a whole number, at least 1")


def _check_positive(name: str, value: float) -> None:
    if not isinstance(value, int | float) or not 0 < value < float("inf"):
        raise ValueError(f"{name} is {value!r}: it must be a number above 0")


def _check_tokens(name: str, tokens: int | jax.Array | None) -> None:
    if isinstance(tokens, int):
        _check_whole(name, tokens)
        if tokens > jnp.iinfo(jnp.int32).max:
            raise ValueError(f"{name} is {tokens}: it must fit in int32; None means no {name}")
    elif tokens is not None:
        _check_shape(name, tokens, (), "a whole number or int32[]")
        _check_type(name, tokens, (jnp.int32,))


def _check_shape(name: str, array: Shaped, shape: tuple[int | None, ...], wanted: str) -> None:
    if not hasattr(array, "shape") or not hasattr(array, "dtype"):
        raise ValueError(f"{name} is {array!r}: it must be an array, {wanted}")
    fits = len(array.shape) == len(shape) and all(
        size in (None, actual) for size, actual in zip(shape, array.shape, strict=True)
    )
    if not fits:
        raise ValueError(f"{name} has shape {list(array.shape)}: it must be {wanted}")
    if 0 in array.shape:
        raise ValueError(f"{name} has shape {list(array.shape)}: it must not be empty")


def _check_type(name: str, array: Shaped, dtypes: tuple) -> None:
    if array.dtype not in dtypes:
        names = " or ".join(jnp.dtype(dtype).name for dtype in dtypes)
        raise ValueError(f"{name} is {array.dtype}: it must be {names}")
