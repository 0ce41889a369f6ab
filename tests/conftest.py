"""Settings of the whole suite: nothing is promoted silently, in rank or in type."""

import os

from emsjax.pallas_kernels.report.environment import tpu_compiler

# Before jax is imported: run on the CPU, and let the TPU compiler load without a TPU. With this
# variable the kernels' contracts run on the device that is there: see CONTRIBUTING.md.
if "EMSJAX_TEST_ON_DEVICE" not in os.environ:
    os.environ.update(tpu_compiler())

from collections.abc import Iterator

import jax
import pytest
from jax.experimental.compilation_cache import compilation_cache

from tests.interpreters import interpreting_gpu, interpreting_tpu  # noqa: F401


@pytest.fixture(autouse=True)
def _strict_promotion():
    with jax.numpy_dtype_promotion("strict"), jax.numpy_rank_promotion("raise"):
        yield


@pytest.fixture
def no_compile_cache() -> Iterator[None]:
    """A program for a TPU that is not there can be put into the cache and not taken out."""
    jax.config.update("jax_enable_compilation_cache", False)
    compilation_cache.reset_cache()
    yield
    jax.config.update("jax_enable_compilation_cache", True)
    compilation_cache.reset_cache()
