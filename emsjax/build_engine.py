"""Builds the engine of `LLM` from its options."""

import math
from functools import partial
from typing import Any

import jax

from emsjax.drafters.chains import as_chains
from emsjax.engine.devices import ONE, Devices
from emsjax.engine.drafter import Drafter
from emsjax.engine.engine import Engine
from emsjax.engine.ladder import CAPACITY_MULTIPLE, Rung, ladder_for
from emsjax.engine.led import LeadingEngine
from emsjax.engine.model import Model
from emsjax.engine.policy import EMS, POLICIES, Policy
from emsjax.engine.tree import MOST_GUESSES
from emsjax.errors import UserError
from emsjax.host.device import check_device, free_bytes
from emsjax.pallas_kernels.backends import target_platform
from emsjax.pallas_kernels.beside import compile_beside
from emsjax.pallas_kernels.cache_update.api import new_cache
from emsjax.pallas_kernels.scoped_vmem import compiler_options
from emsjax.shapes import round_up


def compile_ahead(dtype: str) -> None:
    """Starts to compile the slowest kernel in another process, if a new machine needs it.

    Args:
      dtype: of the cache: "int8", or as for `load_model`, which may run meanwhile.

    Raises:
      UserError: jax has no device.
    """
    check_device()
    compile_beside("ragged_attention", "float32" if dtype == "auto" else dtype)


def choose_ladder(num_slots: int, draft_length: int, exact: bool) -> tuple[Rung, ...]:
    """Chooses the row capacities of the compiled programs for the target platform."""
    return ladder_for(target_platform(), num_slots, draft_length, exact=exact)


def build_engine(
    target: Model,
    drafter: Drafter,
    *,
    name: str,
    max_batch_size: int,
    max_model_len: int,
    method: str = "ems",
    exact: bool = False,
    devices: Devices = ONE,
    hosts: Any = None,
    **options: Any,
) -> Engine:
    """Builds an engine for this device.

    Args:
      target: the model.
      drafter: the drafter.
      name: the model's name for messages.
      max_batch_size: B, the number of slots.
      max_model_len: the most tokens of a sample, prompt plus output; rounded up to a multiple of
        `CAPACITY_MULTIPLE`.
      method: one of `POLICIES`.
      exact: whether every step has the same shape.
      devices: those that share the model.
      hosts: those that follow this process, see `LeadingEngine`; None for none.
      options: further options of `Engine`.

    Raises:
      UserError: the cache does not fit in memory, or the method does not support the model.
    """
    capacity = round_up(max_model_len, CAPACITY_MULTIPLE)
    check_cache_fits(target, drafter, max_batch_size, capacity, devices.number)
    policy = POLICIES[method]
    if policy.align_cache and any(0 < w < capacity for w in target.windows):
        raise UserError(
            f"method {method!r} aligns the cache and leaves holes, which the sliding window of "
            f"{name} would count as tokens; compare with 'unpad-kv'"
        )
    if exact or not _takes_trees(target, policy, drafter.draft_length):
        drafter = as_chains(drafter)
    ladder = choose_ladder(max_batch_size, drafter.draft_length, exact)
    make = Engine if hosts is None else partial(LeadingEngine, hosts=hosts)
    return make(
        target,
        drafter,
        ladder,
        num_slots=max_batch_size,
        capacity=capacity,
        policy=policy,
        new_cache=new_cache,
        devices=devices,
        compiler_options=compiler_options(),
        **options,
    )


def _takes_trees(target: Model, policy: Policy, draft_length: int) -> bool:
    """Returns whether steps may verify trees of k guesses; the padded methods take chains only."""
    seen_whole = not any(0 < window <= draft_length for window in target.windows)
    return policy == EMS and draft_length <= MOST_GUESSES and seen_whole


def check_cache_fits(
    model: Model, drafter: Drafter, num_slots: int, capacity: int, number: int = 1
) -> None:
    """Checks that the K/V cache fits in each device's free memory.

    Args:
      model: the model, which must be loaded so that its weights do not count as free memory.
      drafter: the drafter, loaded too; a draft model adds its own cache.
      num_slots: B.
      capacity: S, in tokens.
      number: how many devices share the model.

    Raises:
      UserError: the cache does not fit; the message names the largest batch that would.
    """
    own = jax.eval_shape(lambda: drafter.init(1, capacity))
    parts = jax.tree.leaves((model.cache_spec(1, capacity), own))
    per_slot = sum(math.prod(part.shape) * part.dtype.itemsize for part in parts)
    free = free_bytes()
    if free is not None and target_platform() == "cpu":
        # Devices made of one CPU share its memory.
        free //= min(number, jax.local_device_count())
    if free is None or num_slots * per_slot <= free:
        return
    fitting = free // per_slot
    remedy = (
        f"the largest batch size that fits is {fitting}"
        if fitting
        else f"one sample of at most {capacity * free // per_slot} tokens would fit"
    )
    raise UserError(
        f"the K/V cache of {num_slots} samples of {capacity} tokens needs "
        f"{num_slots * per_slot / 2**30:.2f} GiB but {free / 2**30:.2f} GiB are free; {remedy}"
    )
