"""A checked prompt with its parameters, ready to run."""

import hashlib
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from emsjax.errors import UserError, short
from emsjax.loading.hf.tokenizer import encode
from emsjax.requests.detokenizer import longest_token, special_tokens
from emsjax.requests.sampling_params import SamplingParams
from emsjax.sampling.automaton import Automaton
from emsjax.sampling.choice import Choice, Settings, make_choice

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

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
      grammar: the automaton of `params.structured_outputs`; None without them.
      traced: whether its outputs have a trace, if the engine records them.
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
    grammar: Automaton | None = None
    traced: bool = True

    @property
    def bans_by_text(self) -> bool:
        """Whether the tokens that may be chosen depend on the text before."""
        params = self.params
        by_words = params.no_repeat_ngram_size or params.long_bad_words
        return bool(by_words or self._schedule() or self.grammar)

    def choice(self, index: int) -> Choice:
        """Returns how the tokens of the output at `index` are chosen."""
        params = self.params
        return make_choice(
            seed=self.seed,
            index=index,
            bias=_bias(params, self.vocab_size),
            words=params.long_bad_words,
            scheduled=self._schedule(),
            in_grammar=self.grammar is not None,
            min_len=len(self.prompt_token_ids) + params.min_tokens if params.min_tokens else None,
            logprobs=params.logprobs is not None,
            top_k=max(params.top_k or 0, 0),
            **{name: getattr(params, name) for name in _SAME},
        )

    def _schedule(self) -> list[tuple[int, int, bool]]:
        """What is forced and forbidden at the ends of the output, for `make_schedule`.

        The lengths are those of `transformers`: the first token is forced only after a prompt of
        one token, and then the second is the first that can be forbidden.
        """
        params, first = self.params, len(self.prompt_token_ids)
        last = first + self.max_tokens - 1
        opening = params.forced_first if first == 1 else ()
        begin = first + 1 if opening else first
        entries = [(begin, token, False) for token in params.begin_suppress_tokens or ()]
        # A text that its grammar does not let end is cut, like any that is too long.
        forced_last = () if self.grammar is not None else params.forced_last
        entries += [(last, token, True) for token in forced_last]
        if not (last == first and forced_last):
            entries += [(first, token, True) for token in opening]
        return entries


def _bias(params: SamplingParams, vocab_size: int) -> np.ndarray | None:
    """The bias to add to the logits, float32[V]; None if there is none."""
    allowed = params.allowed_token_ids
    banned = {*(params.banned_token_ids or ()), *params.short_bad_words}
    if allowed is None and not banned and not params.logit_bias:
        return None
    bias = np.zeros(vocab_size, np.float32)
    if allowed is not None:
        bias[:] = -np.inf
        bias[list(allowed)] = 0
    for token, value in params.biases.items():
        bias[token] += value
    bias[list(banned)] = -np.inf
    return bias


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
        "begin_suppress_tokens": params.begin_suppress_tokens,
        "forced_bos_token_id": params.forced_first,
        "forced_eos_token_id": params.forced_last,
        "bad_words_ids": [token for word in params.bad_words_ids or () for token in word],
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
      UserError: no token is allowed and not banned, not even at the beginning, and (if `min_tokens`
        is set) not a stop token.
    """
    never = {*(params.banned_token_ids or ()), *params.short_bad_words}
    begin = set(params.begin_suppress_tokens or ())
    allowed = params.allowed_token_ids
    if allowed is None and len(never) + len(begin) + len(stop_ids) < vocab_size:
        return
    left = set(range(vocab_size) if allowed is None else allowed) - never - begin
    if params.min_tokens:
        left -= set(stop_ids)
    if not left:
        raise UserError(
            "allowed_token_ids, banned_token_ids, bad_words_ids, begin_suppress_tokens and "
            "min_tokens leave no token to choose; allow more."
        )


def check_stop_strings(
    params: SamplingParams, stop_ids: tuple[int, ...], tokenizer: "PreTrainedTokenizerBase"
) -> None:
    """Checks that each stop string can occur in an output.

    Raises:
      UserError: a string has a token without text that does not end the output anyway, or is
        longer than any text of `max_tokens` tokens.
    """
    textless = special_tokens(tokenizer) if params.skip_special_tokens else {}
    for stop in params.stop or ():
        # As the tokenizer reads it: the name of a special token may be a part of a longer word.
        read = encode(tokenizer, stop, "the model", special=False) if textless else ()
        within = [token for token in read if token in textless and textless[token] in stop]
        if within and not set(within) & set(stop_ids):
            token = within[0]
            part = "is" if textless[token] == stop.strip() else f"has {short(textless[token])},"
            raise UserError(
                f"the stop string {short(stop)} {part} a special token, which is not part of the "
                f"text; give stop_token_ids=[{token}] instead"
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
