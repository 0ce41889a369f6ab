"""A checked prompt with its parameters, ready to run."""

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np

from emsjax.errors import UserError
from emsjax.loading.hf.generation import check_generation
from emsjax.requests.detokenizer import longest_token, special_tokens
from emsjax.requests.sampling_params import SamplingParams
from emsjax.sampling.choice import Choice, Settings, make_choice

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

# The parameters that a model's generation config sets under the same name for requests that leave
# them out. Temperature is not one of them: whether to sample is up to the user.
CONFIGURED = ("top_k", "top_p", "min_p", "repetition_penalty")
# Parameters that the device takes as they are; a request says the others in its own terms.
_SAME = frozenset(Settings._fields) - {"min_len", "logprobs", "adjusted", "top_k"}


@dataclass(frozen=True, eq=False)
class Request:
    """A checked prompt with its parameters.

    Attributes:
      request_id: returned with the result.
      prompt: the text that was tokenised; None if the prompt was given as token ids.
      prompt_token_ids: the prompt's tokens.
      params: how to decode it.
      max_tokens: `params.max_tokens`, or less if the context ends earlier.
      stop_ids: the end of text and stop tokens.
      seed: the seed of its sampling noise.
      vocab_size: V.
      has_text: whether the model has a tokenizer.
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
        """Returns how the tokens of the output at `index` are chosen."""
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
    """The bias to add to the logits, float32[V]; None if there is none."""
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
    """Fills in parameters of None from a model's generation config."""
    missing = {name: configured[name] for name in configured if getattr(params, name) is None}
    if "min_tokens" in missing:
        most = missing["min_tokens"] if params.max_tokens is None else params.max_tokens
        missing["min_tokens"] = min(missing["min_tokens"], most)
    return replace(params, **missing) if missing else params


def configured_defaults(
    generation_config: Mapping[str, Any], origin: str, eos_token_ids: Sequence[int] = ()
) -> dict[str, Any]:
    """Returns the parameters that a generation config sets.

    Args:
      generation_config: the model's.
      origin: the model's name for messages.
      eos_token_ids: the model's end of text, which `bad_words_ids` cannot ban.

    Raises:
      UserError: a value is out of range, or the generation config sets something else that could
        change the text.
    """
    named = f"the generation config of {origin}"
    check_generation(generation_config, named)
    found = {name: generation_config.get(name) for name in CONFIGURED}
    found["min_tokens"] = generation_config.get("min_new_tokens")
    found["banned_token_ids"] = _banned(generation_config, named, eos_token_ids)
    given = {name: value for name, value in found.items() if value is not None}
    try:
        SamplingParams(**given | {"max_tokens": 2**31 - 1})
    except UserError as error:
        raise UserError(f"{named}: {error} Fix or remove its file.") from error
    return given


def _banned(
    generation_config: Mapping[str, Any], named: str, eos_token_ids: Sequence[int]
) -> list[Any] | None:
    """Returns the tokens that a generation config bans; None if it bans none."""
    suppressed = generation_config.get("suppress_tokens") or []
    words = generation_config.get("bad_words_ids") or []
    for name, value in (("suppress_tokens", suppressed), ("bad_words_ids", words)):
        if not isinstance(value, list):
            raise UserError(f"{named} has {name}={_short(value)}; make it a list of token ids.")
    for word in words:
        if not isinstance(word, list) or len(word) != 1:
            raise UserError(
                f"{named} has {_short(word)} in bad_words_ids, but only words of one token can be "
                "banned; remove it from generation_config.json."
            )
    # As in transformers, which does not let bad words ban the end of text.
    banned = suppressed + [word[0] for word in words if word[0] not in eos_token_ids]
    return banned or None


def _short(value: object) -> str:
    return f"{str(value)[:40]!r}"


def check_tokens(params: SamplingParams, vocab_size: int, name: str) -> None:
    """Checks that the vocabulary has all tokens that the parameters name.

    Raises:
      UserError: a token is outside the vocabulary.
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
                    f"{option} has token id {token}, which is outside the vocabulary; "
                    f"{name} has {vocab_size} tokens, from 0 on"
                )


def check_choice_left(params: SamplingParams, stop_ids: tuple[int, ...], vocab_size: int) -> None:
    """Checks that at least one token can be chosen at every step.

    Raises:
      UserError: no token is allowed, not banned, and (if `min_tokens` is set) not a stop token.
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


def check_stop_strings(
    params: SamplingParams, stop_ids: tuple[int, ...], tokenizer: "PreTrainedTokenizerBase"
) -> None:
    """Checks that each stop string can occur in an output.

    Raises:
      UserError: a string is a token without text that does not end the output anyway, or is longer
        than any text of `max_tokens` tokens.
    """
    special = special_tokens(tokenizer) if params.skip_special_tokens else {}
    textless = {name: token for token, name in special.items()}
    for stop in params.stop or ():
        token = textless.get(stop.strip())
        if token is not None and token not in stop_ids:
            raise UserError(
                f"the stop string {stop!r} is a special token, which is not part of the text; give "
                f"stop_token_ids=[{token}] instead"
            )
        # Looking for the longest token takes a moment, and stop strings are nearly always short.
        if params.max_tokens is not None and len(stop) > params.max_tokens:
            longest = params.max_tokens * longest_token(tokenizer)
            if len(stop) > longest:
                raise UserError(
                    f"a stop string has {len(stop)} characters, but max_tokens={params.max_tokens} "
                    f"tokens have at most {longest}; shorten it or raise max_tokens"
                )


def derive_seed(seed: int, request_id: str) -> int:
    """Derives the seed of a request without one from the seed of the run and the request's id."""
    digest = hashlib.sha256(f"{seed}/{request_id}".encode()).digest()
    return int.from_bytes(digest[:8], "big")
