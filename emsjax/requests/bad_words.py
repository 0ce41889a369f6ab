"""The tokens of `bad_words`."""

from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

from emsjax.errors import UserError, short
from emsjax.limits import MAX_BAD_WORD_TOKENS
from emsjax.requests.sampling_params import SamplingParams

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


def with_bad_words(params: SamplingParams, tokenizer: "PreTrainedTokenizerBase") -> SamplingParams:
    """Adds the words of `bad_words` to `banned_token_ids` and, if they are longer, `bad_words_ids`.

    Raises:
      UserError: a word has no tokens, the vocabulary does not have it, or there are too many.
    """
    words = words_of(tokenizer, params.bad_words or ())
    single = [word[0] for word in words if len(word) == 1]
    longer = [word for word in words if len(word) > 1]
    return replace(
        params,
        banned_token_ids=tuple(dict.fromkeys((*(params.banned_token_ids or ()), *single))),
        bad_words_ids=tuple(dict.fromkeys((*(params.bad_words_ids or ()), *longer))),
    )


def words_of(tokenizer: "PreTrainedTokenizerBase", words: Sequence[str]) -> list[tuple[int, ...]]:
    """Returns the tokens of words, each at the start of a text and after a space, as in vLLM.

    Args:
      tokenizer: the model's tokenizer.
      words: the words as text.

    Raises:
      UserError: a word has no tokens, or the vocabulary does not have it.
    """
    found: dict[tuple[int, ...], None] = {}
    for word in words:
        bare = word.lstrip()
        plain, spaced = (_tokens(tokenizer, text) for text in (bare, f" {bare}"))
        if not plain:
            raise UserError(f"the bad word {short(word)} has no tokens; leave it out")
        if len(plain) > MAX_BAD_WORD_TOKENS:
            raise UserError(
                f"the bad word {short(word)} has {len(plain)} tokens, more than the "
                f"{MAX_BAD_WORD_TOKENS} that can be banned; shorten it"
            )
        unknown = tokenizer.unk_token_id
        if unknown is not None and unknown in plain and tokenizer.unk_token not in bare:
            raise UserError(f"the bad word {short(word)} is not in the vocabulary; leave it out")
        found[plain] = None
        # A space that is a token of its own, or that changes nothing, makes no other word.
        if len(spaced) == len(plain) and spaced[0] != plain[0]:
            found[spaced] = None
    return list(found)


def without_end(params: SamplingParams, eos_token_ids: Sequence[int]) -> SamplingParams:
    """Drops the end of text from `bad_words_ids`, which cannot ban it in `transformers`."""
    words = params.bad_words_ids or ()
    kept = tuple(word for word in words if len(word) != 1 or word[0] not in eos_token_ids)
    return params if len(kept) == len(words) else replace(params, bad_words_ids=kept)


def _tokens(tokenizer: "PreTrainedTokenizerBase", text: str) -> tuple[int, ...]:
    return tuple(tokenizer(text, add_special_tokens=False)["input_ids"])
