"""The CPU kernel keeps the contract of ragged attention."""

import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from emsjax.pallas_kernels import foreign
from emsjax.pallas_kernels.backends import noting_backends
from emsjax.pallas_kernels.ragged_attention import cpu
from emsjax.pallas_kernels.ragged_attention.api import prepare, ragged_attention
from tests.kernels.caches import edge_cases
from tests.kernels.contract_attention import CASES, AttentionContract, Case, draw_tree


class TestAttention(AttentionContract):
    """Caches of 96 tokens are three blocks long."""

    backend = "cpu"
    cases = tuple(name for name in CASES if name != "float16")

    def test_many_slots_whose_heads_are_read_together(self):
        """With fewer slots, as in the cases above, and alone, each head is an item of its own."""
        case = Case(num_heads=6, num_kv_heads=3, head_dim=20, num_slots=9, capacity=30)
        for ragged in edge_cases(*case.sizes()):
            self.check(case, draw_tree(case.max_q_len, seed=1), ragged)
            self.check_independence(case, ragged, shift=1, place=2)


def arguments(queries: str, cache: str) -> tuple:
    return (
        jax.ShapeDtypeStruct((4, 6, 64), jnp.dtype(queries)),
        jax.ShapeDtypeStruct((2, 4, 96, 2, 128), jnp.dtype(cache)),
        2,
    )


def attend(given: tuple) -> None:
    q, cache, num_kv_heads = given
    lengths = {"cu_q_lens": jnp.arange(5), "kv_lens": jnp.full(4, 7)}
    prepare(q, cache, **lengths, num_kv_heads=num_kv_heads, max_q_len=1)


def attention(q=None, **other):
    """Returns the attention of one row in each of two slots of 48 tokens."""
    q = np.ones((2, 2, 64), np.float32) if q is None else q
    cache = np.random.default_rng(0).standard_normal((2, 2, 48, 2, 128)).astype(np.float32)
    given = {
        "layer": jnp.int32(1),
        "cu_q_lens": np.asarray([0, 1, 2], np.int32),
        "kv_lens": np.asarray([48, 40], np.int32),
    }
    static = {"num_kv_heads": 2, "max_q_len": 2, "scale": 0.125, "backend": "cpu"}
    return ragged_attention(jnp.asarray(q), jnp.asarray(cache), **given | other, **static)


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_a_query_that_is_not_finite_shows(bad):
    q = np.ones((2, 2, 64), np.float32)
    q[0, 0] = bad
    out = attention(q)
    assert np.isnan(out[0, 0]).all()
    np.testing.assert_array_equal(out[0, 1], attention()[0, 1])
    np.testing.assert_array_equal(out[1], attention()[1])


@pytest.mark.parametrize(
    ("wrong", "nearest"),
    [
        ({"layer": jnp.int32(2)}, {}),
        ({"layer": jnp.int32(-1)}, {"layer": jnp.int32(0)}),
        ({"kv_lens": np.asarray([48, 50], np.int32)}, {"kv_lens": np.asarray([48, 48], np.int32)}),
        ({"cu_q_lens": np.asarray([0, 1, 3], np.int32)}, {}),
    ],
)
def test_what_is_out_of_range_does_not_reach_outside_the_buffers(wrong, nearest):
    np.testing.assert_array_equal(attention(**wrong), attention(**nearest))


def test_may_be_mapped():
    layers = jnp.arange(2)
    mapped = jax.vmap(lambda layer: attention(layer=layer))(layers)
    np.testing.assert_array_equal(mapped, [attention(layer=layer) for layer in layers])


@pytest.mark.parametrize(
    ("queries", "cache"),
    [("float32", "float32"), ("bfloat16", "uint16")],
)
def test_takes_what_the_cache_of_a_cpu_holds(queries, cache):
    assert cpu.unsupported(*arguments(queries, cache)) is None


@pytest.mark.parametrize(
    ("queries", "cache"),
    [("float16", "float16"), ("float16", "uint16"), ("bfloat16", "bfloat16")],
)
def test_leaves_other_types_to_the_reference(queries, cache):
    assert f"not {queries} in {cache}" in cpu.unsupported(*arguments(queries, cache))


def test_leaves_everything_to_the_reference_without_numba(monkeypatch):
    monkeypatch.setitem(sys.modules, "emsjax.pallas_kernels.ragged_attention.cpu_kernel", None)
    monkeypatch.setattr(foreign, "_OUTCOMES", {})  # the kernel may be there
    with noting_backends() as picked:
        attend(arguments("float32", "float32"))
    assert picked == {"ragged_attention": "reference"}
    assert "Numba does not compile it" in cpu.unsupported(*arguments("float32", "float32"))
