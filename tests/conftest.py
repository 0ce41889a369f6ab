"""Settings of the whole suite: nothing is promoted silently, in rank or in type."""

import os

# Before jax is imported: run on the CPU, and let the TPU compiler load without a TPU.
os.environ.update(
    JAX_PLATFORMS="cpu",
    TPU_SKIP_MDS_QUERY="1",
    TPU_WORKER_HOSTNAMES="localhost",
    TPU_ACCELERATOR_TYPE="v5litepod-4",
    ALLOW_MULTIPLE_LIBTPU_LOAD="1",
)

import jax
import pytest

from tests.interpreters import interpreting_gpu, interpreting_tpu  # noqa: F401


@pytest.fixture(autouse=True)
def _strict_promotion():
    with jax.numpy_dtype_promotion("strict"), jax.numpy_rank_promotion("raise"):
        yield
