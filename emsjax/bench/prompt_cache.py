"""The cache that all contenders share, with a batch of prompts in it."""

from collections.abc import Sequence

import jax

from emsjax.bench.contenders import Contender
from emsjax.engine.job import Job
from emsjax.errors import UserError
from emsjax.host.device import free_bytes


class PromptCache:
    """The cache that all contenders share, with a batch of prompts in it.

    A text is written after its prompt and leaves the prompt unchanged, so that the next contender
    finds the same prompts as the first one did.

    Attributes:
      jobs: the batch.
      seconds: time of the last prefill.
    """

    def __init__(self, plain: Contender, jobs: Sequence[Job]):
        self.jobs, self._plain = jobs, plain
        self._cache: jax.Array | None = None
        self.seconds = 0.0

    def lend(self) -> jax.Array:
        """Returns the cache, to be given back; reads the prompts again if it was lost."""
        cache, self._cache = self._cache, None
        if cache is None:
            cache, self.seconds = self._plain.prefill(self.jobs)
        return cache

    def give_back(self, cache: jax.Array) -> None:
        """Takes the cache back after a run that did not fail."""
        self._cache = cache


def check_fits(nbytes: int, option: str) -> None:
    """Checks that another cache fits.

    On a CPU a failed allocation raises no error: the system grants the memory and kills the process
    when it is used.

    Args:
      nbytes: bytes of the cache.
      option: the option for which each method has its own cache.

    Raises:
      UserError: the cache does not fit.
    """
    free = free_bytes()
    if free is not None and nbytes > free:
        raise UserError(
            f"out of memory: {option} needs a cache for each method, {nbytes / 2**30:.2f} GiB "
            f"more, and {free / 2**30:.2f} GiB are free; leave it out, or name fewer --methods"
        )
