"""The cache directory for models, compiled programs and step costs."""

import os
from pathlib import Path

import jax
from platformdirs import user_cache_dir

# Compiling for less time than this is about as fast as reading the program from a file.
_WORTH_KEEPING_S = 0.02


def use_compile_cache() -> None:
    """Turns on jax's persistent compilation cache, unless the user has configured one."""
    if jax.config.values["jax_compilation_cache_dir"] is None:
        jax.config.update("jax_compilation_cache_dir", str(cache_dir() / "compiled"))
        # Small programs too, because every run begins with some of them.
        jax.config.update("jax_persistent_cache_min_compile_time_secs", _WORTH_KEEPING_S)


def cache_dir() -> Path:
    """Returns the cache directory; the environment variable EMSJAX_CACHE overrides the default."""
    return Path(os.environ.get("EMSJAX_CACHE") or user_cache_dir("emsjax")).expanduser()
