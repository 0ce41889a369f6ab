"""From the options of `LLM` to its parts."""

from collections.abc import Sequence
from typing import Any

from emsjax.drafters.base import Drafter
from emsjax.engine import Engine
from emsjax.errors import UserError
from emsjax.ladder import ROW_MULTIPLE, Rung, make_ladder
from emsjax.memory import check_cache_fits
from emsjax.pallas_kernels.backends import target_platform
from emsjax.policy import POLICIES
from emsjax.sampling_params import SamplingParams
from emsjax.shapes import round_up

# Whole blocks of the cache for every backend.
CAPACITY_MULTIPLE = 256


def narrowest_rows() -> int:
    """The fewest rows, beside one alone, that are worth a program of their own on this device."""
    return 4 if target_platform() == "cpu" else ROW_MULTIPLE


def choose_ladder(num_slots: int, draft_length: int, exact: bool) -> tuple[Rung, ...]:
    """Capacities for the target platform: on a CPU rows cost time, elsewhere reading weights."""
    cpu = target_platform() == "cpu"
    return make_ladder(
        num_slots,
        draft_length,
        exact=exact,
        exact_capacity=16 if cpu else 64,
        narrowest=narrowest_rows(),
        prefill_chunk=256 if cpu else 512,
    )


def build_engine(
    target: Any,
    drafter: Drafter,
    *,
    name: str,
    max_batch_size: int,
    max_model_len: int,
    method: str = "ems",
    exact: bool = False,
    **options: Any,
) -> Engine:
    """An engine for this device.

    Args:
      target: the model.
      drafter: guesses tokens.
      name: the model's, for messages.
      max_batch_size: B.
      max_model_len: the most tokens of a sample.
      method: one of `POLICIES`.
      exact: one shape for every step.
      options: further ones of `Engine`.

    Raises:
      UserError: the cache does not fit in memory, or the method does not fit the model.
    """
    capacity = round_up(max_model_len, CAPACITY_MULTIPLE)
    check_cache_fits(target, drafter, max_batch_size, capacity)
    policy = POLICIES[method]
    if policy.align_cache and any(0 < w < capacity for w in target.config.windows):
        raise UserError(
            f"method {method!r} aligns the cache, and the sliding window of {name} would "
            "count its holes: compare with 'unpad-kv'"
        )
    ladder = choose_ladder(max_batch_size, drafter.draft_length, exact)
    return Engine(
        target,
        drafter,
        ladder,
        num_slots=max_batch_size,
        capacity=capacity,
        policy=policy,
        **options,
    )


def params_of_each(given: Any, count: int) -> list[SamplingParams]:
    """One `SamplingParams` for each of `count` prompts."""
    if given is None or isinstance(given, SamplingParams):
        return [given or SamplingParams()] * count
    each = list(given) if isinstance(given, Sequence) else [given]
    for params in each:
        if not isinstance(params, SamplingParams):
            raise UserError(f"sampling_params must be SamplingParams, not {params!r}")
    if len(each) != count:
        raise UserError(f"{len(each)} sampling_params do not fit {count} prompts: give one each")
    return each
