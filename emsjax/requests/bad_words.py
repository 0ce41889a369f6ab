"""The tokens that `bad_words` bans."""

from collections.abc import Sequence
from typing import TYPE_CHECKING

from emsjax.errors import UserError, short

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


def banned_tokens(tokenizer: "PreTrainedTokenizerBase", words: Sequence[str]) -> tuple[int, ...]:
    """Returns the tokens of words, each at the start of a text and after a space, as in vLLM.

    Args:
      tokenizer: the model's tokenizer.
      words: words that are one token each.

    Raises:
      UserError: a word is several tokens, or the vocabulary does not have it.
    """
    found: dict[int, None] = {}
    for word in words:
        bare = word.lstrip()
        plain, spaced = (_tokens(tokenizer, text) for text in (bare, f" {bare}"))
        if len(plain) != 1:
            raise UserError(
                f"the bad word {short(word)} is {len(plain)} tokens, and only words of one "
                "token can be banned; leave it out, or ban one of its tokens with banned_token_ids"
            )
        if plain[0] == tokenizer.unk_token_id and bare != tokenizer.unk_token:
            raise UserError(f"the bad word {short(word)} is not in the vocabulary; leave it out")
        found[plain[0]] = None
        if len(spaced) == 1:
            found[spaced[0]] = None
    return tuple(found)


def _tokens(tokenizer: "PreTrainedTokenizerBase", text: str) -> list[int]:
    return list(tokenizer(text, add_special_tokens=False)["input_ids"])
