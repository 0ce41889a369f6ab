"""The setting of a forecast: a model, the devices that share it, and a batch."""

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass
from types import MappingProxyType

from emsjax.costs.hardware import Hardware
from emsjax.costs.roofline import attended, estimated_costs
from emsjax.engine.ladder import CAPACITY_MULTIPLE, Rung, ladder_for
from emsjax.engine.sizes import Sizes
from emsjax.engine.step_costs import StepCosts
from emsjax.models.config import DecoderConfig
from emsjax.models.division import share_of
from emsjax.models.sizes import decoder_sizes, grouped_sizes
from emsjax.plan.slices import Slice
from emsjax.shapes import round_up

# The dtypes of weights and cache, with the bytes of a number.
DTYPES = MappingProxyType({"bfloat16": 2, "float16": 2, "float32": 4})


@dataclass(frozen=True)
class Setting:
    """A model, the devices that share it, and a batch.

    There may be several replicas of all of these, each with its own part of the samples.

    Attributes:
      name: display name of the model.
      config: the configuration of the whole model.
      topology: the device's name in `HARDWARE`.
      hardware: one device.
      num_slots: B, of each replica.
      max_model_len: most tokens of a sample.
      context: cached tokens per sample in the timed step.
      dtype: dtype of activations, and of cache and weights that are not int8, one of `DTYPES`.
      acceptance: probability that a draft token is accepted if those before it are.
      draft_length: k.
      quantize: "int8" for int8 weights, "int4" for 4 bits in groups, or None.
      kv_dtype: "int8" for an int8 cache, or None.
      shards: how many devices share the model.
      replicas: how often there is the model with its devices.
    """

    name: str
    config: DecoderConfig
    topology: str
    hardware: Hardware
    num_slots: int
    max_model_len: int
    context: int
    dtype: str
    acceptance: float
    draft_length: int
    quantize: str | None = None
    kv_dtype: str | None = None
    shards: int = 1
    replicas: int = 1

    @property
    def devices(self) -> Slice:
        """The devices of all replicas."""
        return Slice(self.topology, self.shards * self.replicas)

    @property
    def capacity(self) -> int:
        """S, the cache capacity of a slot in tokens."""
        return round_up(self.max_model_len, CAPACITY_MULTIPLE)

    @property
    def attended(self) -> int:
        """Cached tokens per sample that a layer reads, averaged over the layers."""
        return round(attended(self.config.windows, self.context))

    @property
    def itemsize(self) -> int:
        """Bytes per number."""
        return DTYPES[self.dtype]

    @property
    def numbers(self) -> str:
        """The dtypes, for display."""
        quantised = {"weights": self.quantize, "cache": self.kv_dtype}
        parts = [f"{dtype} {part}" for part, dtype in quantised.items() if dtype is not None]
        return f"{self.dtype} with {' and '.join(parts)}" if parts else self.dtype

    @property
    def platform(self) -> str:
        """The platform that programs are made for, "tpu" or "gpu"."""
        return self.hardware.platform

    def at(self, num_slots: int) -> "Setting":
        """Returns the same setting with another batch size of each replica."""
        return dataclasses.replace(self, num_slots=num_slots)

    def sizes(self) -> Sizes:
        """Returns the sizes of the model, or of a device's share of it."""
        share, kinds = share_of(self.config, self.shards), (self.quantize, self.kv_dtype)
        return decoder_sizes(share, self.itemsize, self.platform, *kinds)

    def grouped_sizes(self) -> tuple[int, int]:
        """Returns the bytes and operations of a TPU's kernel of products with 4-bit weights."""
        return grouped_sizes(share_of(self.config, self.shards))

    def ladder(self) -> tuple[Rung, ...]:
        """Returns the shapes of a step."""
        return ladder_for(self.platform, self.num_slots, self.draft_length)

    def costs(self, sizes: Sizes, ladder: Sequence[Rung] | None = None) -> StepCosts:
        """Returns the costs of a step on each rung, estimated from bytes and operations.

        Args:
          sizes: sizes of the model.
          ladder: the rungs; all by default.
        """
        return estimated_costs(
            sizes,
            self.hardware,
            self.ladder() if ladder is None else ladder,
            num_slots=self.num_slots,
            draft_length=self.draft_length,
        )
