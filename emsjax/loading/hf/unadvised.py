"""Importing transformers without its advice."""

import os
from collections.abc import Iterator
from contextlib import contextmanager

_VARIABLE = "TRANSFORMERS_NO_ADVISORY_WARNINGS"


@contextmanager
def without_advice() -> Iterator[None]:
    """While transformers is imported: that it misses PyTorch is no fault where none is used."""
    if _VARIABLE in os.environ:
        yield
        return
    os.environ[_VARIABLE] = "1"
    try:
        yield
    finally:
        del os.environ[_VARIABLE]
