"""The texts of single tokens."""

from typing import TYPE_CHECKING

import numpy as np

from emsjax.errors import UserError
from emsjax.loading.hf.tokenizer import decode
from emsjax.sampling.adapt import classify

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


class TokenTexts:
    """Decodes tokens alone, each one once."""

    def __init__(self, tokenizer: "PreTrainedTokenizerBase | None"):
        self._tokenizer = tokenizer
        self._known: dict[int, str | None] = {}

    def __call__(self, token: int) -> str | None:
        """Returns the text of a token; None without a tokenizer, or if it cannot be decoded."""
        if self._tokenizer is None:
            return None
        if token not in self._known:
            # Log-probabilities also name tokens that no text contains, and models have more tokens
            # than their tokenizers.
            try:
                self._known[token] = decode(self._tokenizer, [token])
            except UserError:
                self._known[token] = None
        return self._known[token]


def token_classes(tokenizer: "PreTrainedTokenizerBase", vocab_size: int) -> np.ndarray:
    """Returns which tokens are blanks and line breaks, uint8[V], see `sampling.adapt`.

    Raises:
      UserError: the tokenizer cannot decode a token.
    """
    count = min(vocab_size, len(tokenizer))
    classes = np.zeros(vocab_size, np.uint8)
    classes[:count] = classify([decode(tokenizer, [token]) for token in range(count)])
    return classes
