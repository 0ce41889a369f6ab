"""The sizes of a model that forecasts need; imports no jax."""

from typing import NamedTuple


class Sizes(NamedTuple):
    """The bytes that a model moves and the operations that it needs.

    Attributes:
      weights_bytes: bytes of all parameters.
      read_bytes: bytes of the parameters that every step reads in full. Tables of which a step
        reads only a few rows are left out.
      row_flops: operations for one row in all layers, without attention.
      logit_flops: operations for the logits of one row.
      token_bytes: bytes of one token's keys and values in the cache, all layers, in the layout of
        the platform that is compiled for.
      token_flops: operations for one row's attention to one cached token, all layers.
      itemsize: bytes of a number in the products.
    """

    weights_bytes: int
    read_bytes: int
    row_flops: int
    logit_flops: int
    token_bytes: int
    token_flops: int
    itemsize: int
