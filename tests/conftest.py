"""Settings of the whole suite, such as strict promotion of types and ranks."""

import gc
import os

from emsjax.pallas_kernels.environment import tpu_compiler

# This must precede the import of jax: run on the CPU, and let the TPU compiler load without a TPU.
# If the variable is set, the kernel tests run on the available device instead, see CONTRIBUTING.md.
if "EMSJAX_TEST_ON_DEVICE" not in os.environ:
    os.environ.update(tpu_compiler())
# Two test processes run in parallel. PyTorch's threads spin while they wait for work. With one
# thread per core in each process, a test takes five times as long.
os.environ.setdefault("OMP_NUM_THREADS", "1")

from collections.abc import Iterator
from pathlib import Path

import jax
import pytest
from hypothesis import settings
from jax.experimental.compilation_cache import compilation_cache

from emsjax import build_engine
from emsjax.host.cache import use_compile_cache
from emsjax.pallas_kernels.foreign import kept_in
from emsjax.plan import setting
from tests.browser import browser  # noqa: F401
from tests.interpreters import (  # noqa: F401
    interpreting_gpu,
    interpreting_tpu,
    interpreting_triton,
)
from tests.ladders import short_ladder_for

# Examples have no deadline, because programs compile on first use, on a machine that may be busy.
settings.register_profile("any-time", deadline=None)
settings.load_profile("any-time")

# The same tiny models are compiled over and over, so programs are cached on disk, as for users.
use_compile_cache()
jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.3)


_MAPPINGS = Path("/proc/self/maps")

# Slow tests in these places run real models or long loops. Programs compiled in a hurry would cost
# them more time than they save, so `.ci/run` has them compiled as for users.
OPTIMISED = (
    "real",
    "docs",
    "colab",
    "release",
    "loading/test_default_model.py",
    "kernels/test_gpu.py",
    "sampling/test_distribution.py",
)


def _is_optimised(path: Path) -> bool:
    """Returns whether the slow tests of a file are compiled as for users."""
    place = path.relative_to(Path(__file__).parent)
    return any(place.is_relative_to(each) for each in OPTIMISED)


def pytest_ignore_collect(collection_path: Path, config: pytest.Config) -> bool | None:
    """Spares `-m optimised` the import of files that have no such test."""
    wanted = config.option.markexpr != "optimised" or collection_path.is_dir()
    return None if wanted or _is_optimised(collection_path) else True


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Marks the slow tests in `OPTIMISED` as such."""
    for item in items:
        if _is_optimised(item.path) and item.get_closest_marker("slow"):
            item.add_marker("optimised")


def pytest_collection_finish() -> None:
    """Lets Python look for garbage less often, which takes a quarter of the time of tracing.

    Modules and tests stay to the end, so it need not look there at all.
    """
    gc.collect()
    gc.freeze()
    gc.set_threshold(10_000, 10, 10)


@pytest.fixture(autouse=True)
def _strict_promotion():
    with jax.numpy_dtype_promotion("strict"), jax.numpy_rank_promotion("raise"):
        yield


@pytest.fixture(autouse=True)
def _short_ladder(monkeypatch: pytest.MonkeyPatch) -> None:
    """Gives each `LLM` a short ladder; only commands, notebooks and real models need all rungs."""
    for module in (build_engine, setting):
        monkeypatch.setattr(module, "ladder_for", short_ladder_for)


@pytest.fixture(scope="module", autouse=True)
def _few_mappings() -> Iterator[None]:
    """Forgets compiled programs before the process has too many of them.

    Each program takes some mappings of memory. Linux allows a process 65,530, and XLA crashes
    without a word if it gets no more.
    """
    yield
    if _MAPPINGS.exists() and _MAPPINGS.read_bytes().count(b"\n") > 20_000:
        jax.clear_caches()
        gc.collect()


@pytest.fixture
def no_compile_cache(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Turns the cache off: a program for an absent TPU can be written to it, but not read.

    Numba's kernels for CPUs are still kept, since each takes seconds to compile.
    """
    directory = kept_in()
    monkeypatch.setattr("emsjax.pallas_kernels.host_call.kept_in", lambda: directory)
    jax.config.update("jax_enable_compilation_cache", False)
    compilation_cache.reset_cache()
    yield
    jax.config.update("jax_enable_compilation_cache", True)
    compilation_cache.reset_cache()
