"""The sizes of a model that forecasts need; imports no jax."""

from typing import Any, NamedTuple


class Exchange(NamedTuple):
    """Rows that the devices which share a model add up, or choose from.

    Attributes:
      times: how often in a step.
      row_bytes: bytes of one row.
    """

    times: int
    row_bytes: int


class Sizes(NamedTuple):
    """The bytes that a model moves and the operations that it needs.

    Attributes:
      weights_bytes: bytes of all parameters.
      read_bytes: bytes of the parameters that every step reads in full. Tables of which a step
        reads only a few rows are left out, and so are experts.
      row_flops: operations for one row in all layers, without attention.
      logit_flops: operations for the logits of one row.
      token_bytes: bytes of one token's keys and values in the cache, all layers, in the layout of
        the platform that is compiled for.
      token_flops: operations for one row's attention to one cached token, all layers.
      itemsize: bytes of a number in the products.
      expert_bytes: bytes of all experts, of which a step reads those that a row chose.
      expert_share: the part of the experts that one row chooses.
      devices: how many devices share the model. If there are several, the sizes are those of one.
      exchanges: what they exchange in a step.
    """

    weights_bytes: int
    read_bytes: int
    row_flops: int
    logit_flops: int
    token_bytes: int
    token_flops: int
    itemsize: int
    expert_bytes: int = 0
    expert_share: float = 0.0
    devices: int = 1
    exchanges: tuple[Exchange, ...] = ()

    def step_bytes(self, rows: Any) -> Any:
        """Returns the bytes of parameters that a step of `rows` rows, a number or array, reads.

        Rows are taken to choose their experts at random and independently of each other, so each
        row leaves the same part of what is not yet chosen. Texts that are alike choose alike, and
        then fewer experts are read.
        """
        return self.read_bytes + self.expert_bytes * (1 - (1 - self.expert_share) ** rows)
