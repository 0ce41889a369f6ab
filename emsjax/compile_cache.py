"""Compiled programs are kept on disk, so that only the first run compiles."""

import jax

from emsjax.loading.default_model import cache_dir


def use_compile_cache() -> None:
    """Turns jax's persistent compilation cache on, unless the user has chosen a place for it."""
    if jax.config.values["jax_compilation_cache_dir"] is None:
        jax.config.update("jax_compilation_cache_dir", str(cache_dir() / "compiled"))
