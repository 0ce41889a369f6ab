"""From the options of `LLM` to its parts; what contradicts itself is refused, never ignored."""

from collections.abc import Mapping, Sequence
from typing import Any

import jax

from emsjax.drafters import make_drafter
from emsjax.drafters.base import Drafter
from emsjax.errors import UserError
from emsjax.ladder import Rung, make_ladder
from emsjax.names import METHODS
from emsjax.sampling_params import SamplingParams

# Longer drafts are never worth their rows, and each doubling is one more program to compile.
MAX_DRAFT_LENGTH = 64


def choose_drafter(
    method: str, drafter: str | Drafter | None, lookup: Mapping[str, int | None]
) -> Drafter:
    """The drafter that method and options ask for together."""
    if method not in METHODS:
        raise UserError(f"method {method!r} is unknown; there is {', '.join(METHODS)}")
    if method == "none" and drafter not in (None, "none"):
        raise UserError("method 'none' drafts nothing: leave the drafter out")
    name = drafter or ("none" if method == "none" else "prompt-lookup")
    given = {option: value for option, value in lookup.items() if value is not None}
    for option, value in given.items():
        if name != "prompt-lookup":
            raise UserError(f"{option} is for the drafter 'prompt-lookup': leave it out")
        check_whole(option, value, 1, MAX_DRAFT_LENGTH)
    if given.get("max_ngram") == 1:  # below the default of min_ngram
        given.setdefault("min_ngram", 1)
    return make_drafter(name, **given) if isinstance(name, str) else name


def check_whole(name: str, value: Any, low: int, high: int | None = None) -> None:
    """Refuses what is not a whole number between `low` and `high`."""
    whole = isinstance(value, int) and not isinstance(value, bool)
    if whole and value >= low and (high is None or value <= high):
        return
    allowed = f"at least {low}" if high is None else f"between {low} and {high}"
    raise UserError(f"{name} is {value!r}; it must be a whole number, {allowed}")


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
