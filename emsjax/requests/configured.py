"""The parameters that a model's generation config sets for requests that leave them out."""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

from emsjax.errors import UserError, short
from emsjax.loading.hf.generation import check_generation
from emsjax.requests.sampling_params import SamplingParams

# The keys that set the parameter of the same name. Temperature is not one of them: whether to
# sample is up to the user.
_SAME = (
    *("top_k", "top_p", "min_p", "repetition_penalty", "no_repeat_ngram_size"),
    *("bad_words_ids", "begin_suppress_tokens", "forced_bos_token_id", "forced_eos_token_id"),
)
# The keys that set a parameter of another name.
_RENAMED = {"min_new_tokens": "min_tokens", "suppress_tokens": "banned_token_ids"}


@dataclass(frozen=True)
class Configured:
    """What a generation config sets.

    Attributes:
      params: sampling parameters by name.
      min_length: the least tokens of prompt and output together, if `params` has no `min_tokens`.
    """

    params: Mapping[str, Any]
    min_length: int = 0

    def fill(self, params: SamplingParams, prompt_len: int) -> SamplingParams:
        """Fills in parameters of None.

        Args:
          params: those of a request.
          prompt_len: the tokens of its prompt.
        """
        given = {"min_tokens": max(self.min_length - prompt_len, 0) or None, **self.params}
        if given["min_tokens"] is not None and params.max_tokens is not None:
            given["min_tokens"] = min(given["min_tokens"], params.max_tokens)
        missing = {name: given[name] for name in given if getattr(params, name) is None}
        return replace(params, **missing)

    def alone(self) -> SamplingParams:
        """Returns the parameters of a request that leaves everything to the model."""
        return SamplingParams(**self.params, max_tokens=2**31 - 1)


def read_configured(generation_config: Mapping[str, Any], origin: str) -> Configured:
    """Reads what a generation config sets.

    Args:
      generation_config: the model's.
      origin: the model's name for messages.

    Raises:
      UserError: a value is out of range, or the generation config sets something else that could
        change the text.
    """
    named = f"the generation config of {origin}"
    check_generation(generation_config, named)
    found = {name: generation_config.get(name) for name in _SAME}
    found |= {name: generation_config.get(key) for key, name in _RENAMED.items()}
    given = {name: value for name, value in found.items() if value is not None}
    configured = Configured(given, _min_length(generation_config, named))
    try:
        configured.alone()
    except UserError as error:
        raise UserError(f"{named}: {error} Fix or remove its file.") from error
    return configured


def _min_length(generation_config: Mapping[str, Any], named: str) -> int:
    value = generation_config.get("min_length")
    if value is None:
        return 0
    if isinstance(value, bool) or not isinstance(value, int) or not 0 <= value < 2**31:
        raise UserError(
            f"{named} has min_length={short(value)}; make it a number of tokens, or remove it."
        )
    return value
