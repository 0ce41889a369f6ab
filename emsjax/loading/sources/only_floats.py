"""The part of a checkpoint format that has no weights in int8 or 4 bits to keep as they are."""

from collections.abc import Mapping
from types import MappingProxyType

from emsjax.loading.sources.int4 import Int4
from emsjax.loading.sources.int8 import Int8
from emsjax.models.groups import Groups


class OnlyFloats:
    """A base class for a `TensorSource`."""

    int8: frozenset[str] = frozenset()
    int4: Mapping[str, Groups] = MappingProxyType({})
    spare: frozenset[str] = frozenset()

    def read_int8(self, name: str) -> Int8:
        """Never called, as `int8` names no tensor."""
        raise KeyError(name)

    def read_int4(self, name: str) -> Int4:
        """Never called, as `int4` names no tensor."""
        raise KeyError(name)
