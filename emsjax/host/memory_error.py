"""Errors of a device, or of its compiler, that has too little memory."""

from collections.abc import Iterator
from contextlib import contextmanager

import jax

from emsjax.errors import UserError


def is_out_of_memory(error: BaseException | None) -> bool:
    """Returns whether jax says that a device has too little memory."""
    return isinstance(error, jax.errors.JaxRuntimeError) and "RESOURCE_EXHAUSTED" in str(error)


@contextmanager
def naming_memory(where: str, remedy: str) -> Iterator[None]:
    """Names what to lower if a device runs out of memory.

    Raises:
      UserError: it does.
    """
    try:
        yield
    except jax.errors.JaxRuntimeError as error:
        if not is_out_of_memory(error):
            raise
        raise UserError(f"the device ran out of memory {where}; {remedy}") from error
