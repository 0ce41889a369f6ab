"""How many devices a model needs, and whether they hold a draft model, before it is loaded."""

import jax

from emsjax.engine.devices import Devices, shared_by
from emsjax.engine.ladder import CAPACITY_MULTIPLE
from emsjax.errors import UserError
from emsjax.host.device import free_bytes
from emsjax.limits import DEFAULT_MAX_MODEL_LEN
from emsjax.loading.build import planned_sizes
from emsjax.loading.dtypes import dtype_for_device
from emsjax.loading.families import model_config
from emsjax.loading.opened import OpenedModel
from emsjax.models.division import possible_shares
from emsjax.shapes import round_up

# The rest is for a drafter, for logits and for what the compiler needs besides.
_SHARE_OF_MEMORY = 0.85


def fewest_devices(
    opened: OpenedModel,
    *,
    num_slots: int,
    max_model_len: int | None,
    dtype: str,
    quantize: str | None,
    kv_dtype: str | None,
) -> int:
    """Returns the smallest number of devices of this process that hold a model and its cache.

    Args:
      opened: the model.
      num_slots: B.
      max_model_len: the most tokens of a sample; None for the default.
      dtype: as for `load_model`.
      quantize: as for `load_model`.
      kv_dtype: as for `load_model`.

    Raises:
      UserError: they do not fit on as many devices as there are.
    """
    config = model_config(opened.hf_config)
    computed, free = dtype_for_device(dtype, opened.source.dtype), free_bytes()
    longest = max_model_len or min(config.max_positions, DEFAULT_MAX_MODEL_LEN)
    tokens = num_slots * round_up(longest, CAPACITY_MULTIPLE)
    numbers = [number for number in possible_shares(config) if number <= len(jax.devices())]
    needed = 0
    for number in numbers:
        sizes = planned_sizes(opened, computed, quantize, kv_dtype, shared_by(number))
        needed = sizes.weights_bytes + tokens * sizes.token_bytes
        if free is None or needed <= _SHARE_OF_MEMORY * free:
            return number
    raise UserError(
        f"{opened.name} needs {needed / 2**30:.1f} GiB on each of {numbers[-1]} devices, and "
        f"{(free or 0) / 2**30:.1f} GiB are free; quantise it, or lower max_batch_size or "
        "max_model_len"
    )


def check_draft_fits(
    opened: OpenedModel, devices: Devices, dtype: str, quantize: str | None, *, divided: bool
) -> None:
    """Checks that the weights of a draft model fit beside those of the target's parts.

    Args:
      opened: the draft model.
      devices: those that share the target, which is loaded.
      dtype: as for `load_model`.
      quantize: as for `load_model`.
      divided: whether the devices share the draft model, too; if not, each has all of it.

    Raises:
      UserError: they do not fit.
    """
    computed, free = dtype_for_device(dtype, opened.source.dtype), free_bytes()
    sizes = planned_sizes(opened, computed, quantize, devices=devices, divided=divided)
    needed, number = sizes.weights_bytes, devices.number
    # Devices made of one CPU share its memory.
    sharing = number if jax.default_backend() == "cpu" else 1
    if free is None or needed <= _SHARE_OF_MEMORY * free / sharing:
        return
    raise UserError(
        f"the draft model {opened.name} needs {needed / 2**30:.1f} GiB on each of {number} "
        f"devices{'' if divided else ', which cannot divide it'}, and {free / 2**30:.1f} GiB are "
        "free; quantise it, or choose a smaller one"
    )
