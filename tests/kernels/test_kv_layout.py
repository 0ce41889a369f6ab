import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest

from emsjax.pallas_kernels.backends import compiling_for, target_platform
from emsjax.pallas_kernels.kv_layout import pack_kv, read_kv, rows_per_token, storage_dtype
from emsjax.pallas_kernels.kv_rows import LANES
from tests.kernels.contract_attention import bits


@pytest.mark.parametrize("platform", ["cpu", "tpu"])
@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16"])
@pytest.mark.parametrize(
    ("num_kv_heads", "head_dim"), [(1, 16), (3, 64), (3, 80), (8, 128), (2, 256)]
)
def test_packing_and_reading_keeps_every_bit(platform, dtype, num_kv_heads, head_dim):
    shape = (2, 5, num_kv_heads, head_dim)
    k, v = np.random.default_rng(0).standard_normal(shape).astype(ml_dtypes.finfo(dtype).dtype)
    k[1], v[2] = np.nan, -0.0
    with compiling_for(platform):
        rows = rows_per_token(num_kv_heads, head_dim)
        stored = storage_dtype(jnp.dtype(dtype))
    cache = jnp.zeros((1, 1, 1, rows, LANES), stored)

    def there_and_back(k, v):
        packed = pack_kv(k, v, cache)
        kv = jnp.zeros((3, 4, 16, rows, LANES), stored).at[2, 1, 7:12].set(packed)
        layer, slot, start = (jnp.asarray(n, jnp.int32) for n in (2, 1, 7))
        kv = read_kv(kv, layer, slot, start, 5, num_kv_heads, head_dim, jnp.dtype(dtype))
        return packed, *(heads.swapaxes(0, 1) for heads in kv)

    packed, *back = jax.jit(there_and_back)(k, v)
    assert (packed.shape, packed.dtype) == ((5, rows, LANES), stored)
    padding = np.asarray(packed).reshape(5, -1)[:, 2 * num_kv_heads * head_dim :]
    assert not padding.any()
    for given, returned in zip((k, v), back, strict=True):
        assert returned.dtype == given.dtype
        np.testing.assert_array_equal(bits(np.asarray(returned)), bits(given))


@pytest.mark.parametrize(
    ("model", "num_kv_heads", "head_dim", "on_tpu", "elsewhere"),
    [
        ("SmolLM2-135M", 3, 64, 4, 3),
        ("OPT-125m", 12, 64, 16, 12),
        ("Llama-3-8B", 8, 128, 16, 16),
        ("OPT-6.7B", 32, 128, 64, 64),
        ("one row", 1, 64, 2, 1),
        ("nine rows", 9, 64, 16, 9),
    ],
)
def test_rows_per_token(model, num_kv_heads, head_dim, on_tpu, elsewhere):
    assert rows_per_token(num_kv_heads, head_dim) == elsewhere, model
    with compiling_for("tpu"):
        assert rows_per_token(num_kv_heads, head_dim) == on_tpu, model


def test_bfloat16_is_stored_as_integers_on_cpu_only():
    bfloat16, float32 = jnp.dtype(jnp.bfloat16), jnp.dtype(jnp.float32)
    assert storage_dtype(bfloat16) == jnp.uint16
    assert storage_dtype(float32) == jnp.float32
    for platform in ("tpu", "gpu"):
        with compiling_for(platform):
            assert target_platform() == platform
            assert storage_dtype(bfloat16) == jnp.bfloat16
    assert target_platform() == "cpu"
