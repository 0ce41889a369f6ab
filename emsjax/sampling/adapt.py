"""AdapT sampling (arXiv 2309.02772): another temperature for tokens of code that are hard to guess.

A token is hard if it begins an indented line, that is, if it follows blanks that directly follow a
line break. This is a function of the prefix alone, so speculation stays exact.
"""

from collections.abc import Sequence

import jax
import numpy as np

from emsjax.sampling.rows import Rows

# Bits of a token's class.
BLANK, LINE_BREAK, INDENTATION = 1, 2, 4


def classify(texts: Sequence[str]) -> np.ndarray:
    """Returns the class of each token of a vocabulary, uint8[V], from its text."""
    return np.asarray([_class_of(text) for text in texts], np.uint8)


def _class_of(text: str) -> int:
    rest = text.rstrip(" \t")
    blanks, breaks = len(rest) < len(text), rest.endswith("\n")
    if not rest:
        return BLANK if blanks else 0
    return (INDENTATION if blanks else LINE_BREAK) if breaks else 0


def can_indent(classes: np.ndarray) -> bool:
    """Returns whether any text of tokens with these classes, uint8[V], has an indented line."""
    found = int(np.bitwise_or.reduce(classes, initial=0))
    return bool(found & INDENTATION) or found & (BLANK | LINE_BREAK) == BLANK | LINE_BREAK


def is_hard(rows: Rows, token_classes: jax.Array) -> jax.Array:
    """Returns whether each row's next token begins an indented line, bool[W].

    Args:
      rows: the prefixes.
      token_classes: uint8[V], see `classify`.
    """
    last, before = token_classes[rows.tokens], token_classes[rows.before]
    blanks_after_break = ((last & BLANK) > 0) & ((before & LINE_BREAK) > 0)
    # At position 0 there is no token before the row, and `before` is meaningless.
    return ((last & INDENTATION) > 0) | (blanks_after_break & (rows.positions > 0))
