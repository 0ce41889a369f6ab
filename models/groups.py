"""The groups of weights in 4 bits. Without jax, because formats are read where it is not needed."""

from typing import NamedTuple


class Groups(NamedTuple):
    """How weights in 4 bits are divided into groups.

    Attributes:
      size: inputs of a group.
      offsets: whether groups have offsets.
    """

    size: int
    offsets: bool = False
