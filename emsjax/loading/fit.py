"""How many devices a model needs, and whether they hold a draft model, by configuration alone."""

import jax
import jax.numpy as jnp

from emsjax.engine.ladder import CAPACITY_MULTIPLE
from emsjax.errors import UserError
from emsjax.host.device import free_bytes
from emsjax.limits import DEFAULT_MAX_MODEL_LEN
from emsjax.loading.dtypes import dtype_for_device
from emsjax.loading.families import model_config
from emsjax.loading.opened import OpenedModel
from emsjax.models.division import possible_shares, share_of
from emsjax.models.sizes import decoder_sizes
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
    itemsize = jnp.dtype(dtype_for_device(dtype, opened.source.dtype)).itemsize
    platform, free = jax.default_backend(), free_bytes()
    longest = max_model_len or min(config.max_positions, DEFAULT_MAX_MODEL_LEN)
    tokens = num_slots * round_up(longest, CAPACITY_MULTIPLE)
    numbers = [number for number in possible_shares(config) if number <= len(jax.devices())]
    needed = 0
    for number in numbers:
        each = share_of(config, number)
        sizes = decoder_sizes(each, itemsize, platform, quantize, kv_dtype)
        needed = sizes.weights_bytes + tokens * sizes.token_bytes
        if free is None or needed <= _SHARE_OF_MEMORY * free:
            return number
    raise UserError(
        f"{opened.name} needs {needed / 2**30:.1f} GiB on each of {numbers[-1]} devices, and "
        f"{(free or 0) / 2**30:.1f} GiB are free; quantise it, or lower max_batch_size or "
        "max_model_len"
    )


def check_draft_fits(
    opened: OpenedModel, number: int, dtype: str, quantize: str | None, *, divided: bool
) -> None:
    """Checks that the weights of a draft model fit beside those of the target's parts.

    Args:
      opened: the draft model.
      number: how many devices share the target, which is loaded.
      dtype: as for `load_model`.
      quantize: as for `load_model`.
      divided: whether the devices share the draft model, too; if not, each has all of it.

    Raises:
      UserError: they do not fit.
    """
    itemsize = jnp.dtype(dtype_for_device(dtype, opened.source.dtype)).itemsize
    platform, free = jax.default_backend(), free_bytes()
    config = model_config(opened.hf_config)
    each = share_of(config, number) if divided else config
    needed = decoder_sizes(each, itemsize, platform, quantize).weights_bytes
    # Devices made of one CPU share its memory.
    if free is None or needed <= _SHARE_OF_MEMORY * free / (number if platform == "cpu" else 1):
        return
    raise UserError(
        f"the draft model {opened.name} needs {needed / 2**30:.1f} GiB on each of {number} "
        f"devices{'' if divided else ', which cannot divide it'}, and {free / 2**30:.1f} GiB are "
        "free; quantise it, or choose a smaller one"
    )
