"""From tokens to text, piece by piece."""

from collections.abc import Collection, Sequence
from functools import lru_cache
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

# Tokens that new ones are decoded behind: some tokenizers drop the space at the beginning of what
# they decode. A few more where these begin inside of a character, which is 4 bytes at most.
CONTEXT_TOKENS = 8
_LONGEST_CHARACTER = 4
_HALF = "\ufffd"


class Detokenizer:
    """The text behind a prompt, in pieces that are not taken back.

    The text is what tokens give one by one, however many come at once: where the bytes of a broken
    character spoil those before it, which some decoders do, that may differ from decoding all.
    """

    def __init__(self, tokenizer: "PreTrainedTokenizerBase", prompt: Sequence[int]):
        self._tokenizer = tokenizer
        self._textless = _special_tokens(tokenizer)
        self._window = self._context(self._with_text(prompt))
        self._settled = len(self._window)
        self._shown = self._decode(self._window).rstrip(_HALF)

    def push(self, tokens: Sequence[int]) -> str:
        """The text that these tokens add; a character that is not whole yet waits."""
        return "".join(map(self._push_one, self._with_text(tokens)))

    def push_all(self, tokens: Sequence[int]) -> str:
        """The same for all there will be, as the first and only call: faster."""
        tokens = self._with_text(tokens)
        text = self._decode([*self._window, *tokens])
        if _HALF in text:
            return self.push(tokens)
        self._window.extend(tokens)
        return self._show(text)

    def flush(self) -> str:
        """What is left at the end: a character that never became whole."""
        return self._show(self._decode(self._window))

    def _push_one(self, token: int) -> str:
        self._window.append(token)
        text = self._decode(self._window)
        new = self._show(text.rstrip(_HALF) if text.endswith(_HALF) else text)
        if new and not text.endswith(_HALF):
            self._settle()
        return new

    def _settle(self) -> None:
        """Makes the latest tokens that gave text the context, where they are whole characters."""
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
        """The end of the prompt, not cut inside of a character if that can be."""
        lengths = range(CONTEXT_TOKENS, CONTEXT_TOKENS + _LONGEST_CHARACTER)
        tails = [list(prompt[-length:]) for length in lengths]
        whole = (tail for tail in tails if _HALF not in self._decode(tail))
        return next(whole, tails[0])

    def _with_text(self, tokens: Sequence[int]) -> list[int]:
        return [token for token in tokens if token not in self._textless]

    def _decode(self, tokens: Sequence[int]) -> str:
        # Without clean-up, which would take back a space that was shown.
        text = self._tokenizer.decode(
            tokens, skip_special_tokens=True, clean_up_tokenization_spaces=False
        )
        return str(text)


def text_pieces(
    tokenizer: "PreTrainedTokenizerBase",
    prompt: Sequence[int],
    tokens: Sequence[int],
    stop_ids: Collection[int] = (),
) -> tuple[str, ...]:
    """The text that each token adds behind a prompt; put together, they are the whole text.

    Args:
      tokenizer: of the model.
      prompt: token ids.
      tokens: all that were generated.
      stop_ids: such a token ends the text; its piece is what it stands for by itself, if anything.
    """
    detokenizer = Detokenizer(tokenizer, prompt)
    stops = bool(tokens) and tokens[-1] in stop_ids
    shown = tokens[:-1] if stops else tokens
    pieces = [detokenizer.push([token]) for token in shown]
    left = detokenizer.flush()
    if left and pieces:  # a character that never became whole
        pieces[-1] += left
    return (*pieces, detokenizer.push(tokens[-1:])) if stops else tuple(pieces)


@lru_cache(maxsize=4)
def _special_tokens(tokenizer: "PreTrainedTokenizerBase") -> frozenset[int]:
    """Tokens without text; asked once a tokenizer, since making the list takes a while."""
    added = tokenizer.added_tokens_decoder
    return frozenset(token for token, what in added.items() if what.special)
