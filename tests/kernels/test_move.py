"""Moves within the cache, compared with a loop, and the memory that the compiled move needs."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from emsjax.pallas_kernels.cache_update.api import move_kv
from emsjax.pallas_kernels.int8_cache import Int8Cache, int8_cache_spec

LAYERS, SLOTS, CAPACITY, PLACES = 2, 3, 200, 4


def random_cache(int8: bool) -> jax.Array | Int8Cache:
    noise = np.random.default_rng(0)
    if not int8:
        return jnp.asarray(noise.normal(size=(LAYERS, SLOTS, CAPACITY, 2, 128)), jnp.bfloat16)
    spec = int8_cache_spec(LAYERS, SLOTS, CAPACITY, 2, 128)
    return jax.tree.map(lambda s: jnp.asarray(noise.integers(-99, 99, s.shape), s.dtype), spec)


def token_of(cache: jax.Array | Int8Cache, slot: int, place: int) -> list[np.ndarray]:
    """The K/V of a token in all layers, with its scales."""
    if not isinstance(cache, Int8Cache):
        return [np.asarray(cache[:, slot, place], np.float32)]
    return [
        np.asarray(cache.values[:, slot, place]),
        np.asarray(cache.scale[:, slot, place // 128, :, place % 128]),
    ]


moves = st.lists(
    st.tuples(st.integers(0, CAPACITY - 1), st.integers(0, CAPACITY - 1), st.booleans()),
    min_size=PLACES,
    max_size=PLACES,
    unique_by=lambda move: move[1],
)


@pytest.mark.parametrize("int8", [False, True])
@given(plan=st.lists(moves, min_size=SLOTS, max_size=SLOTS))
@settings(max_examples=25, deadline=None)
def test_tokens_move_and_all_others_stay(int8: bool, plan: list[list[tuple[int, int, bool]]]):
    cache = random_cache(int8)
    sources, targets, moved = (jnp.asarray(x) for x in np.moveaxis(np.asarray(plan), 2, 0))
    result = jax.jit(move_kv)(
        cache, sources.astype(jnp.int32), targets.astype(jnp.int32), moved.astype(jnp.bool)
    )
    for slot, of_slot in enumerate(plan):
        came_from = {target: source for source, target, moves in of_slot if moves}
        for place in {*(p for move in of_slot for p in move[:2]), 0, CAPACITY - 1}:
            expected = token_of(cache, slot, came_from.get(place, place))
            for ours, theirs in zip(token_of(result, slot, place), expected, strict=True):
                np.testing.assert_array_equal(ours, theirs)


@pytest.mark.parametrize("int8", [False, True])
def test_the_cache_is_moved_in_place(int8: bool):
    sizes = (8, 4, 2048, 2, 128)
    spec = int8_cache_spec(*sizes) if int8 else jax.ShapeDtypeStruct(sizes, jnp.float32)
    places = jax.ShapeDtypeStruct((4, 8), jnp.int32)
    flags = jax.ShapeDtypeStruct((4, 8), jnp.bool)
    moving = jax.jit(move_kv, donate_argnums=0).lower(spec, places, places, flags).compile()
    memory = moving.memory_analysis()
    cache_bytes = sum(math.prod(x.shape) * x.dtype.itemsize for x in jax.tree.leaves(spec))
    assert memory.alias_size_in_bytes >= cache_bytes
    assert memory.temp_size_in_bytes < cache_bytes / 100
