"""Imports transformers without its warning about PyTorch."""

import os
from collections.abc import Iterator
from contextlib import contextmanager

_VARIABLE = "TRANSFORMERS_NO_ADVISORY_WARNINGS"


@contextmanager
def without_advice() -> Iterator[None]:
    """Hides the warning that PyTorch is missing while the block imports transformers.

    emsjax uses transformers only for configurations and tokenizers, which do not need PyTorch.
    """
    if _VARIABLE in os.environ:
        yield
        return
    os.environ[_VARIABLE] = "1"
    try:
        yield
    finally:
        del os.environ[_VARIABLE]
