"""Invalid arguments are rejected with an error that names the argument."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from emsjax.pallas_kernels.cache_update.api import Places, update_kv_cache
from emsjax.pallas_kernels.int8_cache import Int8Cache
from emsjax.pallas_kernels.ragged_attention.api import prepare, ragged_attention
from emsjax.pallas_kernels.value_checks import checking_lengths, values_must_fit

T, N, K, H, B, S = 8, 4, 2, 64, 3, 32


def good() -> dict[str, Any]:
    return {
        "q": jnp.zeros((T, N, H), jnp.float32),
        "cache": jnp.zeros((1, B, S, 2, 128), jnp.float32),
        "layer": jnp.zeros((), jnp.int32),
        "cu_q_lens": jnp.asarray([0, 1, 1, 4], jnp.int32),
        "kv_lens": jnp.asarray([5, 0, 32], jnp.int32),
        "num_kv_heads": K,
        "max_q_len": 4,
        "scale": 0.125,
    }


def zeros(*shape: int, dtype: Any = jnp.float32) -> jax.Array:
    return jnp.zeros(shape, dtype)


def int8_cache(*scale: int, dtype: Any = jnp.float32) -> Int8Cache:
    return Int8Cache(zeros(1, B, S, 2, 128, dtype=jnp.int8), zeros(*scale, dtype=dtype))


@pytest.mark.parametrize(
    ("name", "value", "sentence"),
    [
        ("q", zeros(T, N * H), r"q has shape \[8, 256\]: it must be \[T, N, H\]"),
        ("q", zeros(T, N, H, dtype=jnp.int32), "q is int32: it must be float32 or bfloat16"),
        ("num_kv_heads", 3, "num_kv_heads is 3: it must divide q's 4 heads"),
        ("num_kv_heads", 2.0, "num_kv_heads is 2.0: it must be a whole number"),
        ("max_q_len", 0, "max_q_len is 0: it must be a whole number, at least 1"),
        ("scale", zeros(1), "scale is .*: it must be a number above 0"),
        ("soft_cap", 0.0, "soft_cap is 0.0: it must be a number above 0"),
        ("sinks", zeros(K), r"sinks has shape \[2\]: it must be \[N\]"),
        ("sinks", zeros(N, dtype=jnp.bfloat16), "sinks is bfloat16: it must be float32"),
        ("window", 0, "window is 0: it must be a whole number, at least 1"),
        ("window", 2**31, "window is 2147483648: it must fit in int32"),
        ("sink_tokens", 0, "sink_tokens is 0: it must be a whole number, at least 1"),
        ("sink_tokens", 4, "sink_tokens are given without a window"),
        ("window", zeros(3, dtype=jnp.int32), r"window has shape \[3\]"),
        ("q", zeros(0, N, H), r"q has shape \[0, 4, 64\]: it must not be empty"),
        ("q", [1.0], r"q is \[1.0\]: it must be an array, \[T, N, H\]"),
        ("cache", zeros(B, S, 2, 128), r"cache has shape .* \[L, B, S, R, 128\]"),
        ("cache", zeros(1, B, S, 1, 128), "cache has 1 rows a token: .* need 2"),
        ("cache", zeros(1, B, S, 2, 128, dtype=jnp.bfloat16), "cache is bfloat16"),
        ("cache", int8_cache(1, B, 2, 4, 128), r"cache.scale has shape .* \[L, B, 1, R, 128\]"),
        ("cache", int8_cache(1, B, 1, 3, 128), "cache.scale has 3 rows: .* need 4"),
        ("cache", int8_cache(1, B, 1, 4, 128, dtype=jnp.bfloat16), "cache.scale is bfloat16"),
        ("layer", zeros(1, dtype=jnp.int32), r"layer has shape \[1\]"),
        ("cu_q_lens", zeros(B, dtype=jnp.int32), r"cu_q_lens has shape \[3\]: .*\[4\]"),
        ("cu_q_lens", zeros(B + 1), "cu_q_lens is float32: it must be int32"),
        ("kv_lens", zeros(B + 1, dtype=jnp.int32), r"kv_lens has shape \[4\]"),
        ("holes", zeros(B, S - 1, dtype=jnp.bool), r"holes has shape"),
        ("holes", zeros(B, S), "holes is float32: it must be bool"),
        ("ancestors", zeros(T - 1, dtype=jnp.uint32), r"ancestors has shape \[7\]"),
        ("ancestors", zeros(T, dtype=jnp.int32), "ancestors is int32: it must be uint32"),
        ("tree_starts", zeros(B, dtype=jnp.int32), "tree_starts is for token trees"),
    ],
)
def test_attention_rejects(name, value, sentence):
    with pytest.raises(ValueError, match=f"^{sentence}"):
        ragged_attention(**good() | {name: value})


@pytest.mark.parametrize(
    ("name", "other", "sentence"),
    [
        ("q", zeros(T + 1, N, H), r"q has shape \[9, 4, 64\]: .*, as `prepare` was given"),
        ("q", zeros(T, N, H, dtype=jnp.bfloat16), "q is bfloat16: it must be float32"),
        ("cache", zeros(2, B, S, 2, 128), "cache has shape .*, as `prepare` was given"),
    ],
)
def test_prepared_attention_rejects_other_shapes(name, other, sentence):
    given = good()
    called = {key: given.pop(key) for key in ("layer", "scale")}
    attend = prepare(**given)
    arrays = {"q": given["q"], "cache": given["cache"]} | {name: other}
    with pytest.raises(ValueError, match=f"^{sentence}"):
        attend(**arrays, **called)


def places(**other: jax.Array) -> Places:
    return Places(zeros(T, dtype=jnp.int32), zeros(1, dtype=jnp.int32))._replace(**other)


@pytest.mark.parametrize(
    ("name", "value", "sentence"),
    [
        ("k", zeros(T, K * H), r"k has shape \[8, 128\]"),
        ("v", zeros(T, K, 1), r"v has shape \[8, 2, 1\]: it must be as k is"),
        ("v", zeros(T, K, H, dtype=jnp.bfloat16), "v is bfloat16: it must be float32"),
        ("slot_ids", zeros(T + 1, dtype=jnp.int32), r"slot_ids has shape \[9\]"),
        ("slot_ids", zeros(T), "slot_ids is float32"),
        ("cache", zeros(1, B, S, 1, 128), "cache has 1 rows a token"),
        ("places", places(of_row=zeros(T + 1, dtype=jnp.int32)), r"places.of_row has shape \[9\]"),
        ("places", places(of_row=zeros(T)), "places.of_row is float32: it must be int32"),
        ("places", places(used=zeros(dtype=jnp.int32)), r"places.used has shape \[\]: it must be"),
        ("places", places(used=zeros(1)), "places.used is float32: it must be int32"),
    ],
)
def test_cache_update_rejects(name, value, sentence):
    arguments = {key: good()[key] for key in ("cache", "layer", "cu_q_lens", "kv_lens")}
    arguments |= {"k": zeros(T, K, H), "v": zeros(T, K, H)}
    arguments["slot_ids"] = jnp.full(T, B, jnp.int32)
    with pytest.raises(ValueError, match=f"^{sentence}"):
        update_kv_cache(**arguments | {name: value})


LENGTHS = [
    ([0, 2, 1, 4], [5, 5, 5], "cu_q_lens must begin with 0 and never fall"),
    ([1, 2, 3, 4], [5, 5, 5], "cu_q_lens must begin with 0"),
    ([0, 4, 8, 9], [5, 5, 5], "cu_q_lens ends with 9, and the buffer has 8 rows"),
    ([0, 5, 5, 5], [5, 5, 5], "cu_q_lens gives a slot 5 rows, and max_q_len is 4"),
    ([0, 1, 2, 3], [5, 5, 33], "kv_lens must be in 0 to 32"),
    ([0, 1, 2, 3], [5, -1, 5], "kv_lens must be in 0 to 32"),
    ([0, 3, 4, 5], [2, 5, 5], "kv_lens must count each slot's rows"),
]


@pytest.mark.parametrize(("cu_q_lens", "kv_lens", "sentence"), LENGTHS)
def test_lengths_that_contradict_each_other(cu_q_lens, kv_lens, sentence):
    with pytest.raises(ValueError, match=f"^{sentence}"):
        values_must_fit(np.asarray(cu_q_lens), np.asarray(kv_lens), np.asarray(0), **SIZES)


SIZES = {"num_rows": T, "max_q_len": 4, "cache_shape": (2, B, S, 2, 128)}
GOOD_VALUES = {
    "cu_q_lens": np.asarray([0, 1, 1, 4]),
    "kv_lens": np.asarray([5, 0, 32]),
    "layer": np.asarray(1),
    "slot_ids": np.asarray([0, 2, 2, 2, 3, 3, 3, 3]),
    "window": np.asarray(1),
    # What unused rows hold means nothing.
    "places": (np.asarray([4, 29, 30, 31, 9, 9, 9, 9]), np.asarray([4])),
}


@pytest.mark.parametrize(
    ("name", "value", "sentence"),
    [
        ("layer", 2, "layer is 2: the cache has 2"),
        ("layer", -1, "layer is -1"),
        ("window", 0, "window is 0: it must be at least 1"),
        ("slot_ids", [0, 1, 2, 2, 3, 3, 3, 3], "slot_ids must match cu_q_lens"),
        ("slot_ids", [0, 2, 2, 2, 2, 3, 3, 3], "slot_ids must match cu_q_lens, with 3 for unused"),
    ],
)
def test_values_that_contradict_the_lengths_or_the_cache(name, value, sentence):
    values_must_fit(**GOOD_VALUES, **SIZES)
    with pytest.raises(ValueError, match=f"^{sentence}"):
        values_must_fit(**GOOD_VALUES | {name: np.asarray(value)}, **SIZES)


@pytest.mark.parametrize(
    ("of_row", "used", "sentence"),
    [
        ([4, 28, 29, 30], 4, r"places.of_row must match cu_q_lens and kv_lens, \[4, 29, 30, 31\]"),
        ([4, 29, 30, 31], 3, "places.used is 3, and cu_q_lens has 4 rows"),
    ],
)
def test_places_that_contradict_the_lengths(of_row, used, sentence):
    other = {"places": (np.asarray([*of_row, 0, 0, 0, 0]), np.asarray([used]))}
    with pytest.raises(ValueError, match=f"^{sentence}"):
        values_must_fit(**GOOD_VALUES | other, **SIZES)


def run(program: Any, arguments: Any) -> None:
    jax.block_until_ready(program(arguments))
    jax.effects_barrier()


def test_a_program_checks_the_places_that_it_is_given():
    arguments = {key: good()[key] for key in ("cache", "layer", "cu_q_lens", "kv_lens")}
    arguments |= {"k": zeros(T, K, H), "v": zeros(T, K, H)}
    arguments["slot_ids"] = jnp.asarray([0, 2, 2, 2, 3, 3, 3, 3], jnp.int32)
    with checking_lengths():
        program = jax.jit(lambda given: update_kv_cache(**arguments, places=given))
        with pytest.raises(jax.errors.JaxRuntimeError, match=r"places\.used is 0, and cu_q_lens"):
            run(program, places())


def test_lengths_may_be_numbers_lists_and_numpy_arrays():
    plain = {"layer": 0, "cu_q_lens": [0, 1, 1, 4], "kv_lens": np.asarray([5, 0, 32], np.int32)}
    expected = ragged_attention(**good())
    np.testing.assert_array_equal(ragged_attention(**good() | plain), expected)


def test_a_program_checks_its_lengths_only_if_traced_inside_checking_lengths():
    arguments = good()
    static = {key: arguments.pop(key) for key in ("num_kv_heads", "max_q_len", "scale")}
    bad = arguments | {"cu_q_lens": jnp.asarray([0, 2, 1, 4], jnp.int32)}

    def fresh_program():
        def call(arguments: dict[str, jax.Array]) -> jax.Array:
            return ragged_attention(**arguments, **static)

        return jax.jit(call)

    run(fresh_program(), bad)
    with checking_lengths():
        checked = fresh_program()
        run(checked, arguments)
        with pytest.raises(jax.errors.JaxRuntimeError, match="cu_q_lens must begin with 0"):
            run(checked, bad)
