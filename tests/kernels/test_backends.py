import jax.numpy as jnp
import pytest

from emsjax.pallas_kernels.backends import compiling_for, pick, target_platform
from emsjax.pallas_kernels.cache_update.api import update_kv_cache
from emsjax.pallas_kernels.ragged_attention.api import ragged_attention

BACKENDS = {"reference": len, "tpu": max}


def test_a_named_backend_is_taken_and_none_is_one_that_runs_anywhere():
    assert pick("op", BACKENDS, "tpu") is max
    assert pick("op", {"tpu": max, "reference": len}, None) in BACKENDS.values()
    assert pick("op", {"reference": len}, None) is len


def test_an_unknown_backend_is_an_error_that_names_all():
    with pytest.raises(ValueError, match=r"op has no backend 'triton'; there is reference, tpu"):
        pick("op", BACKENDS, "triton")


def test_both_operations_refuse_an_unknown_backend():
    x = jnp.zeros((1, 1, 1, 1, 128), jnp.float32)
    i = jnp.zeros(1, jnp.int32)
    lengths = {"layer": i[0], "cu_q_lens": jnp.zeros(2, jnp.int32), "kv_lens": i}
    row = x[0, 0]
    with pytest.raises(ValueError, match="ragged_attention has no backend 'triton'"):
        ragged_attention(
            row, x, **lengths, num_kv_heads=1, max_q_len=1, scale=1.0, backend="triton"
        )
    with pytest.raises(ValueError, match="update_kv_cache has no backend 'triton'"):
        update_kv_cache(x, row, row, **lengths, slot_ids=i, backend="triton")


def test_the_target_platform_is_restored_after_an_error():
    before = target_platform()
    with pytest.raises(KeyError), compiling_for("tpu"):
        raise KeyError
    assert target_platform() == before
