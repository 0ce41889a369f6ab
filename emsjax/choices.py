"""From the options of `LLM` to its parts."""

from collections.abc import Sequence
from typing import Any

import jax

from emsjax.errors import UserError
from emsjax.ladder import Rung, make_ladder
from emsjax.sampling_params import SamplingParams


def choose_ladder(num_slots: int, draft_length: int, exact: bool) -> tuple[Rung, ...]:
    """Capacities for this device: on a CPU rows cost time, elsewhere reading weights does."""
    cpu = jax.default_backend() == "cpu"
    return make_ladder(
        num_slots,
        draft_length,
        exact=exact,
        exact_capacity=16 if cpu else 64,
        narrowest=4 if cpu else 8,
        prefill_chunk=256 if cpu else 512,
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
