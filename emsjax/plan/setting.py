"""The setting of a forecast: a model, a device and a batch."""

import dataclasses
from dataclasses import dataclass
from functools import lru_cache

import jax.numpy as jnp

from emsjax.build_engine import CAPACITY_MULTIPLE, choose_ladder
from emsjax.costs.hardware import Hardware
from emsjax.costs.roofline import attended, estimated_costs
from emsjax.drafters import PromptLookup
from emsjax.engine.engine import Engine
from emsjax.engine.ladder import Rung
from emsjax.engine.model import Sizes
from emsjax.engine.worth import StepCosts
from emsjax.loading.build import shape_of_model
from emsjax.models.config import DecoderConfig
from emsjax.shapes import round_up


@dataclass(frozen=True)
class Setting:
    """A model, a device and a batch.

    Call `sizes`, `ladder`, `costs` and `engine` inside `compiling_for(platform)`.

    Attributes:
      name: display name of the model.
      config: shape of the model.
      topology: the device's name in `HARDWARE`.
      hardware: the device.
      num_slots: B.
      max_model_len: most tokens of a sample.
      context: cached tokens per sample in the timed step.
      dtype: dtype of weights, activations and cache.
      acceptance: probability that a draft token is accepted if those before it are.
      draft_length: k.
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
        return jnp.dtype(self.dtype).itemsize

    @property
    def platform(self) -> str:
        """The platform that programs are made for, "tpu" or "gpu"."""
        return "tpu" if self.hardware.is_tpu else "gpu"

    def at(self, num_slots: int) -> "Setting":
        """Returns the same setting with another batch size."""
        return dataclasses.replace(self, num_slots=num_slots)

    def sizes(self) -> Sizes:
        """Returns the sizes of the model."""
        return _sizes(self.config, self.dtype, self.platform)

    def ladder(self) -> tuple[Rung, ...]:
        """Returns the shapes of a step."""
        return choose_ladder(self.num_slots, self.draft_length, exact=False)

    def costs(self, sizes: Sizes) -> StepCosts:
        """Returns the costs of a step on each rung, estimated from bytes and operations."""
        return estimated_costs(
            sizes,
            self.hardware,
            self.ladder(),
            num_slots=self.num_slots,
            draft_length=self.draft_length,
        )

    def engine(self) -> Engine:
        """Returns an engine whose weights are only shapes.

        Its drafter is prompt lookup, which stands for every drafter that costs next to nothing.
        """
        model = shape_of_model(self.config, jnp.dtype(self.dtype))
        return Engine(
            model,
            PromptLookup(self.draft_length),
            self.ladder(),
            num_slots=self.num_slots,
            capacity=self.capacity,
            costs=self.costs(model.sizes),
        )


@lru_cache(maxsize=8)
def _sizes(config: DecoderConfig, dtype: str, platform: str) -> Sizes:
    """Returns the sizes of a model; cached, because tracing a model takes a while."""
    del platform  # part of the key: call this in `compiling_for(platform)`
    return shape_of_model(config, jnp.dtype(dtype)).sizes
