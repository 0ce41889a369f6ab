"""The groups of weights in 4 bits. Without jax, because formats are read where it is not needed."""

from typing import NamedTuple


class Groups(NamedTuple):
    """How weights in 4 bits are divided into groups.

    Attributes:
      size: inputs of a group.
      offsets: whether groups have offsets.
      order: the input of each column, as the bytes of int32[in], or of int32[L, in] for a stack of
        layers, if columns are sorted by their groups; None for columns in the order of inputs.
    """

    size: int
    offsets: bool = False
    order: bytes | None = None
