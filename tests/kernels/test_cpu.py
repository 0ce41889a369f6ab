"""The CPU kernel keeps the contract of ragged attention."""

import sys

import jax
import jax.numpy as jnp
import pytest

from emsjax.pallas_kernels.backends import noting_backends
from emsjax.pallas_kernels.ragged_attention import cpu
from emsjax.pallas_kernels.ragged_attention.api import prepare
from tests.kernels.contract_attention import CASES, AttentionContract


class TestAttention(AttentionContract):
    """Caches of 96 tokens are three blocks long."""

    backend = "cpu"
    cases = tuple(name for name in CASES if name != "float16")


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
    monkeypatch.setattr(cpu, "_register", cpu._register.__wrapped__)  # the kernel may be there
    with noting_backends() as picked:
        attend(arguments("float32", "float32"))
    assert picked == {"ragged_attention": "reference"}
    assert "Numba does not compile it" in cpu.unsupported(*arguments("float32", "float32"))
