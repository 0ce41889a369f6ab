"""The programs that take long to compile. Imports no jax, so that commands may use it early."""

from collections.abc import Mapping
from types import MappingProxyType

# What each one is for, by the name under which jax reports it.
PROGRAMS: Mapping[str, str] = MappingProxyType(
    {
        "decode": "the decode program",
        "decode_sampled": "the decode program for prompts that sample (others do not wait for it)",
    }
)
