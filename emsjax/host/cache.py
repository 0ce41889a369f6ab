"""What is kept on disk between runs: models, compiled programs, step costs."""

import os
from pathlib import Path

import jax
from platformdirs import user_cache_dir


def use_compile_cache() -> None:
    """Turns jax's persistent compilation cache on, unless the user has chosen a place for it."""
    if jax.config.values["jax_compilation_cache_dir"] is None:
        jax.config.update("jax_compilation_cache_dir", str(cache_dir() / "compiled"))


def cache_dir() -> Path:
    """Where converted models are kept; the environment's EMSJAX_CACHE overrides it."""
    return Path(os.environ.get("EMSJAX_CACHE") or user_cache_dir("emsjax")).expanduser()
