"""The part of a checkpoint format that has no weights in int8 with one scale per row."""

from typing import NoReturn


class NoInt8:
    """A base class for a `TensorSource`."""

    int8: frozenset[str] = frozenset()
    spare: frozenset[str] = frozenset()

    def read_int8(self, name: str) -> NoReturn:
        """Never called, as `int8` names no tensor."""
        raise KeyError(name)
