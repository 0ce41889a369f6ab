"""Which rows of a step the logits belong to."""

from typing import NamedTuple

import jax


class Rows(NamedTuple):
    """Where each row of logits [W, V] stands.

    Attributes:
      slots: int32[W], its slot, 0 to B - 1.
      positions: int32[W], the place in its sample of the token that the logits follow.
    """

    slots: jax.Array
    positions: jax.Array
