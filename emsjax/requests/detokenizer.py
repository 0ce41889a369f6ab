"""Decodes tokens to text piece by piece."""

from collections.abc import Collection, Mapping, Sequence
from functools import lru_cache
from typing import TYPE_CHECKING

from emsjax.errors import UserError
from emsjax.loading.hf.tokenizer import decode

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

# New tokens are decoded after this many earlier ones, because some tokenizers drop a space at the
# beginning of what they decode.
CONTEXT_TOKENS = 8
# The most bytes of a character in UTF-8, and so the most tokens.
_LONGEST_CHARACTER = 4
# What decoders write for an incomplete character.
_HALF = "\ufffd"


class Detokenizer:
    """Decodes the tokens that follow a prompt into pieces of text that never change later.

    The text does not depend on how many tokens come at once: it is always that of decoding one by
    one. It may differ from decoding all tokens at once, because some decoders let the bytes of a
    broken character spoil whole characters before it.
    """

    def __init__(
        self,
        tokenizer: "PreTrainedTokenizerBase",
        prompt: Sequence[int],
        skip_special_tokens: bool = True,
    ):
        """Starts after a prompt.

        Args:
          tokenizer: the model's tokenizer.
          prompt: token ids.
          skip_special_tokens: whether special tokens have no text.
        """
        self._tokenizer = tokenizer
        self._skip = skip_special_tokens
        self._textless = special_tokens(tokenizer) if skip_special_tokens else frozenset[int]()
        # `_window` holds the context and the tokens after it. Its first `_settled` tokens are the
        # context, and `_shown` is the part of its text that was returned already.
        self._window = self._context(self._with_text(prompt))
        self._settled = len(self._window)
        self._shown = self._decode(self._window).rstrip(_HALF)

    def push(self, tokens: Sequence[int]) -> str:
        """Returns the text that these tokens add, holding back an incomplete character."""
        return "".join(map(self._push_one, self._with_text(tokens)))

    def push_all(self, tokens: Sequence[int]) -> str | None:
        """Returns the text of all tokens at once, which is faster; must be the first call.

        None if that may be another text than one by one, or fails. Nothing has changed then.
        """
        tokens = self._with_text(tokens)
        try:
            text = self._decode([*self._window, *tokens])
        except UserError:
            return None
        if _HALF in text:
            return None
        self._window.extend(tokens)
        return self._show(text)

    def flush(self) -> str:
        """Returns the rest of the text: a character that was never completed."""
        return self._show(self._decode(self._window))

    def _push_one(self, token: int) -> str:
        self._window.append(token)
        text = self._decode(self._window)
        new = self._show(text.rstrip(_HALF) if text.endswith(_HALF) else text)
        if new and not text.endswith(_HALF):
            self._settle()
        return new

    def _settle(self) -> None:
        """Makes the tokens since the last call the new context, if they are whole characters.

        Otherwise the old context stays and the window grows.
        """
        latest = self._window[self._settled :]
        text = self._decode(latest)
        if _HALF not in text:
            self._window, self._shown = latest, text
        self._settled = len(self._window)

    def _show(self, text: str) -> str:
        new = text[len(self._shown) :]
        self._shown += new
        return new

    def _context(self, prompt: Sequence[int]) -> list[int]:
        """The end of the prompt, if possible not starting in the middle of a character."""
        lengths = range(CONTEXT_TOKENS, CONTEXT_TOKENS + _LONGEST_CHARACTER)
        tails = [list(prompt[-length:]) for length in lengths]
        whole = (tail for tail in tails if _HALF not in self._decode(tail))
        return next(whole, tails[0])

    def _with_text(self, tokens: Sequence[int]) -> list[int]:
        return [token for token in tokens if token not in self._textless]

    def _decode(self, tokens: Sequence[int]) -> str:
        # Clean-up is off because it could remove a space that was already returned.
        options = {"skip_special_tokens": self._skip, "clean_up_tokenization_spaces": False}
        return decode(self._tokenizer, tokens, **options)


def text_pieces(
    tokenizer: "PreTrainedTokenizerBase",
    prompt: Sequence[int],
    tokens: Sequence[int],
    stop_ids: Collection[int] = (),
    skip_special_tokens: bool = True,
) -> tuple[str, ...]:
    """Returns the text that each token adds; the pieces together are the whole text.

    Args:
      tokenizer: the model's tokenizer.
      prompt: token ids.
      tokens: all generated tokens.
      stop_ids: tokens that end the text. If the last token is one of them, its piece is the text
        it decodes to, if any, although that may not be part of the output's text.
      skip_special_tokens: whether special tokens have no text.
    """
    detokenizer = Detokenizer(tokenizer, prompt, skip_special_tokens)
    stops = bool(tokens) and tokens[-1] in stop_ids
    shown = tokens[:-1] if stops else tokens
    pieces = [detokenizer.push([token]) for token in shown]
    rest = detokenizer.flush()
    if rest and pieces:
        pieces[-1] += rest
    return (*pieces, detokenizer.push(tokens[-1:])) if stops else tuple(pieces)


@lru_cache(maxsize=4)
def special_tokens(tokenizer: "PreTrainedTokenizerBase") -> Mapping[int, str]:
    """Returns the names of the tokens without text; cached because listing them is slow."""
    added = tokenizer.added_tokens_decoder
    return {token: str(what.content) for token, what in added.items() if what.special}


@lru_cache(maxsize=4)
def longest_token(tokenizer: "PreTrainedTokenizerBase") -> int:
    """Returns a number of characters that no token exceeds, a space between tokens included."""
    return 1 + max(map(len, tokenizer.get_vocab()), default=0)
