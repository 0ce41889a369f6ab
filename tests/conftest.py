"""Settings of the whole suite: nothing is promoted silently, in rank or in type."""

import os

from emsjax.pallas_kernels.environment import tpu_compiler

# Before jax is imported: run on the CPU, and let the TPU compiler load without a TPU. With this
# variable the kernels' contracts run on the device that is there: see CONTRIBUTING.md.
if "EMSJAX_TEST_ON_DEVICE" not in os.environ:
    os.environ.update(tpu_compiler())
# Tests run side by side. PyTorch's threads wait for work by spinning: with as many of them as cores
# in each of two processes, a test takes five times as long.
os.environ.setdefault("OMP_NUM_THREADS", "1")

from collections.abc import Iterator

import jax
import pytest
from hypothesis import settings
from jax.experimental.compilation_cache import compilation_cache

from emsjax import build_engine
from emsjax.host.cache import use_compile_cache
from tests.interpreters import interpreting_gpu, interpreting_tpu  # noqa: F401
from tests.ladders import short_ladder

# A program is compiled on first use, on a machine that may be busy: time is no matter of a test.
settings.register_profile("any-time", deadline=None)
settings.load_profile("any-time")

# The same tiny models are compiled over and over: on disk, as users' programs are.
use_compile_cache()
jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.3)


@pytest.fixture(autouse=True)
def _strict_promotion():
    with jax.numpy_dtype_promotion("strict"), jax.numpy_rank_promotion("raise"):
        yield


@pytest.fixture(autouse=True)
def _short_ladder(monkeypatch: pytest.MonkeyPatch) -> None:
    """Only commands, notebooks and the tests of real models compile all rungs of an `LLM`."""
    monkeypatch.setattr(build_engine, "make_ladder", short_ladder)


@pytest.fixture
def no_compile_cache() -> Iterator[None]:
    """A program for a TPU that is not there can be put into the cache and not taken out."""
    jax.config.update("jax_enable_compilation_cache", False)
    compilation_cache.reset_cache()
    yield
    jax.config.update("jax_enable_compilation_cache", True)
    compilation_cache.reset_cache()
