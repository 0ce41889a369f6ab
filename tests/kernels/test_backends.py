import subprocess
import sys

import jax.numpy as jnp
import pytest

from emsjax.pallas_kernels.backends import (
    Backend,
    Backends,
    always_supported,
    compiling_for,
    noting_backends,
    pick,
    target_platform,
)
from emsjax.pallas_kernels.cache_update.api import update_kv_cache
from emsjax.pallas_kernels.ragged_attention.api import ragged_attention


def backends(reason: str | None = None) -> Backends:
    return {
        "reference": lambda: Backend(len, always_supported),
        "tpu": lambda: Backend(max, lambda *_: reason),
    }


def test_a_named_backend_is_picked():
    assert pick("op", backends(), "tpu") is max
    assert pick("op", backends(), "reference") is len


@pytest.mark.parametrize(
    ("platform", "reason", "chosen"),
    [("tpu", None, max), ("tpu", "too wide", len), ("gpu", None, len), ("cpu", None, len)],
)
def test_none_picks_the_platforms_backend_if_supported(platform, reason, chosen):
    with compiling_for(platform):
        assert pick("op", backends(reason), None) is chosen


def test_backends_of_other_platforms_are_not_imported():
    """On a CPU they would take a good part of the time to the first token."""
    script = (
        "import sys, emsjax.llm, emsjax.drafters\n"
        "slow = [name for name in sys.modules if name.startswith('jax.experimental.pallas')]\n"
        "assert not slow, slow"
    )
    command = [sys.executable, "-c", script]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def test_a_named_but_unsupported_backend_is_an_error_with_the_reason():
    with compiling_for("tpu"), pytest.raises(ValueError, match=r"op: .*'tpu' .* too wide"):
        pick("op", backends("too wide"), "tpu")


def test_an_unknown_backend_is_an_error_that_names_all():
    with pytest.raises(ValueError, match=r"op has no backend 'triton'; use one of reference, tpu"):
        pick("op", backends(), "triton")


def test_each_operation_is_noted_with_the_backend_that_it_was_given():
    with compiling_for("tpu"), noting_backends() as picked:
        pick("can", backends(), None)
        pick("cannot", backends("too wide"), None)
        pick("named", backends(), "reference")
    pick("later", backends(), None)
    assert picked == {"can": "tpu", "cannot": "reference", "named": "reference"}


def test_attention_and_cache_update_reject_an_unknown_backend():
    x = jnp.zeros((1, 1, 1, 1, 128), jnp.float32)
    i = jnp.zeros(1, jnp.int32)
    lengths = {"layer": i[0], "cu_q_lens": jnp.zeros(2, jnp.int32), "kv_lens": i}
    row = jnp.zeros((1, 1, 16), jnp.float32)
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
