"""From tokens to text, piece by piece."""

from collections.abc import Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

# Tokens before the new ones that they are decoded behind: some tokenizers drop the space at the
# beginning of what they decode, and a character may need several tokens.
CONTEXT_TOKENS = 8
_HALF = "\ufffd"


class Detokenizer:
    """The text behind a prompt, in pieces that later tokens do not change."""

    def __init__(self, tokenizer: "PreTrainedTokenizerBase", prompt: Sequence[int]):
        self._tokenizer = tokenizer
        self._window = list(prompt[-CONTEXT_TOKENS:])
        self._shown = self._decode()

    def push(self, tokens: Sequence[int]) -> str:
        """The text that these tokens add; a character that is not whole yet waits."""
        self._window.extend(tokens)
        text = self._decode()
        if text.endswith(_HALF):
            return ""
        return self._settle(text)

    def flush(self) -> str:
        """What is left at the end: a character that never became whole."""
        return self._settle(self._decode())

    def _settle(self, text: str) -> str:
        same = zip(self._shown, text, strict=False)
        kept = next((place for place, (old, new) in enumerate(same) if old != new), None)
        new = text[len(self._shown) if kept is None else kept :]
        del self._window[:-CONTEXT_TOKENS]
        self._shown = self._decode()
        return new

    def _decode(self) -> str:
        # Without clean-up, which would take back a space that was shown.
        text = self._tokenizer.decode(
            self._window, skip_special_tokens=True, clean_up_tokenization_spaces=False
        )
        return str(text)
