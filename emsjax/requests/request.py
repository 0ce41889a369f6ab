"""A checked prompt with its parameters, ready to run."""

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from emsjax.errors import UserError
from emsjax.requests.sampling_params import SamplingParams
from emsjax.sampling.choice import Choice, Settings, make_choice

# What a model's generation config gives where a request does not; chance stays the user's choice.
CONFIGURED = ("top_k", "top_p", "min_p", "repetition_penalty")
# Parameters that the device takes as they are; a request says the others in its own terms.
_SAME = frozenset(Settings._fields) - {"min_len", "logprobs", "adjusted", "top_k"}


@dataclass(frozen=True, eq=False)
class Request:
    """A checked prompt with its parameters, ready to run.

    Attributes:
      request_id: comes back with the result.
      prompt: the text that was tokenised, None where token ids were given.
      prompt_token_ids: the prompt's tokens.
      params: how to decode it.
      max_tokens: that of the parameters, or less where the context ends.
      stop_ids: end of text and stop tokens.
      seed: of its noise.
      vocab_size: V.
      has_text: whether there is a tokenizer.
    """

    request_id: str
    prompt: str | None
    prompt_token_ids: tuple[int, ...]
    params: SamplingParams
    max_tokens: int
    stop_ids: tuple[int, ...]
    seed: int
    vocab_size: int
    has_text: bool

    def choice(self, index: int) -> Choice:
        """How the tokens of one of its outputs are chosen."""
        params = self.params
        return make_choice(
            seed=self.seed,
            index=index,
            bias=_bias(params, self.vocab_size),
            min_len=len(self.prompt_token_ids) + params.min_tokens if params.min_tokens else None,
            logprobs=params.logprobs is not None,
            top_k=max(params.top_k or 0, 0),
            **{name: getattr(params, name) for name in _SAME},
        )


def _bias(params: SamplingParams, vocab_size: int) -> np.ndarray | None:
    """What is added to the logits, float32[V]; None for nothing."""
    allowed, banned = params.allowed_token_ids, params.banned_token_ids
    if allowed is None and not banned and not params.logit_bias:
        return None
    bias = np.zeros(vocab_size, np.float32)
    if allowed is not None:
        bias[:] = -np.inf
        bias[list(allowed)] = 0
    for token, value in params.biases.items():
        bias[token] += value
    bias[list(banned or ())] = -np.inf
    return bias


def with_defaults(params: SamplingParams, configured: Mapping[str, Any]) -> SamplingParams:
    """Parameters with what they leave open taken from a model's generation config."""
    missing = {name: configured[name] for name in configured if getattr(params, name) is None}
    return replace(params, **missing) if missing else params


def configured_defaults(generation_config: Mapping[str, Any], origin: str) -> dict[str, Any]:
    """Those of `CONFIGURED` that a generation config sets.

    Raises:
      UserError: it sets one to something impossible.
    """
    found = {name: generation_config.get(name) for name in CONFIGURED}
    given = {name: value for name, value in found.items() if value is not None}
    try:
        SamplingParams(**given)
    except UserError as error:
        raise UserError(
            f"the generation config of {origin}: {error} Mend its file, or take it away."
        ) from error
    return given


def check_tokens(params: SamplingParams, vocab_size: int, name: str) -> None:
    """Refuses parameters that name tokens which the model does not have.

    Raises:
      UserError: there is such a token.
    """
    lists = {
        "stop_token_ids": params.stop_token_ids,
        "allowed_token_ids": params.allowed_token_ids,
        "banned_token_ids": params.banned_token_ids,
        "logit_bias": tuple(params.biases),
    }
    for option, tokens in lists.items():
        for token in tokens or ():
            if token >= vocab_size:
                raise UserError(
                    f"{option} has token id {token}, which is out of the vocabulary: "
                    f"{name} has {vocab_size}"
                )


def check_choice_left(params: SamplingParams, stop_ids: tuple[int, ...], vocab_size: int) -> None:
    """Refuses parameters under which there may be no token to choose.

    Raises:
      UserError: allowed tokens less banned ones and, before `min_tokens`, stop tokens are none.
    """
    allowed = params.allowed_token_ids
    if allowed is None and not params.banned_token_ids and len(stop_ids) < vocab_size:
        return
    left = set(range(vocab_size) if allowed is None else allowed)
    left -= set(params.banned_token_ids or ())
    if params.min_tokens:
        left -= set(stop_ids)
    if not left:
        raise UserError(
            "allowed_token_ids, banned_token_ids and min_tokens leave no token to choose; "
            "allow more."
        )


def derive_seed(seed: int, request_id: str) -> int:
    """The seed of a request that brings none: from that of the run and from what it is called."""
    digest = hashlib.sha256(f"{seed}/{request_id}".encode()).digest()
    return int.from_bytes(digest[:8], "big")
