"""What is planned for: a model, a device and a batch."""

import dataclasses
from dataclasses import dataclass
from typing import Any

import jax.numpy as jnp

from emsjax.build_engine import CAPACITY_MULTIPLE, choose_ladder
from emsjax.costs.hardware import Hardware
from emsjax.costs.roofline import attended, estimated_costs
from emsjax.drafters import PromptLookup
from emsjax.engine.engine import Engine
from emsjax.engine.ladder import Rung
from emsjax.engine.model import Model, Sizes
from emsjax.engine.worth import StepCosts
from emsjax.loading.build import shape_of_model
from emsjax.shapes import round_up


@dataclass(frozen=True)
class Setting:
    """One question. Methods are to be called while tracing for `platform`.

    Attributes:
      name: of the model, for people.
      config: `emsjax.models.config.DecoderConfig`.
      topology: name of the hardware.
      hardware: the device.
      num_slots: B.
      max_model_len: the most tokens of a sample.
      context: cached tokens of each sample when a step is timed.
      dtype: of weights, activations and cache.
      acceptance: how likely a draft token is right where those before it are.
      draft_length: k.
    """

    name: str
    config: Any
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
        """S."""
        return round_up(self.max_model_len, CAPACITY_MULTIPLE)

    @property
    def attended(self) -> int:
        """Cached tokens of each sample that a layer reads, on average."""
        return round(attended(self.config.windows, self.context))

    @property
    def itemsize(self) -> int:
        """Bytes of a number."""
        return jnp.dtype(self.dtype).itemsize

    @property
    def platform(self) -> str:
        """That programs are made for."""
        return "tpu" if self.hardware.is_tpu else "gpu"

    def at(self, num_slots: int) -> "Setting":
        """The same at another batch size."""
        return dataclasses.replace(self, num_slots=num_slots)

    def sizes(self) -> Sizes:
        """Of the model."""
        return self._model().sizes

    def ladder(self) -> tuple[Rung, ...]:
        """Shapes of a step."""
        return choose_ladder(self.num_slots, self.draft_length, exact=False)

    def costs(self, sizes: Sizes) -> StepCosts:
        """Of each rung, by bytes and operations."""
        return estimated_costs(
            sizes,
            self.hardware,
            self.ladder(),
            num_slots=self.num_slots,
            draft_length=self.draft_length,
        )

    def engine(self) -> Engine:
        """With the shapes of weights but no weights.

        Looking up stands for every drafter whose drafts cost next to nothing.
        """
        model = self._model()
        return Engine(
            model,
            PromptLookup(self.draft_length),
            self.ladder(),
            num_slots=self.num_slots,
            capacity=self.capacity,
            costs=self.costs(model.sizes),
        )

    def _model(self) -> Model:
        return shape_of_model(self.config, jnp.dtype(self.dtype))
