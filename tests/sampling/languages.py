"""A small language over a small vocabulary, and what its grammar must allow, by brute force."""

import itertools
from functools import cache

import numpy as np

from emsjax.sampling.automaton import Automaton, Vocabulary, make_automaton
from tests.sampling.enumerated import LENGTH, VOCAB, next_logits

# The texts of the tokens of `enumerated`; the first one ends the output.
END, TEXTS = 0, (b"", b"a", b"b", b"ab", b"c", b"ba")
# All texts that an output may be. After "abc" it must end, after "a" it may.
LANGUAGE = frozenset({b"a", b"ab", b"abc", b"aba", b"bab", b"caca"})


def automaton_of(texts: frozenset[bytes], vocabulary: Vocabulary) -> Automaton:
    """Makes the automaton of some texts: a state for each beginning."""
    states = sorted({text[:n] for text in texts for n in range(len(text) + 1)})
    number = {text: place for place, text in enumerate(states)}
    following = np.full((len(states), 256), -1, np.int32)
    for text in states[1:]:
        following[number[text[:-1]], text[-1]] = number[text]
    return make_automaton(vocabulary, following, np.asarray([text in texts for text in states]))


@cache
def grammar() -> Automaton:
    """Returns the automaton of `LANGUAGE`."""
    return automaton_of(LANGUAGE, Vocabulary(TEXTS))


def allowed_after(tokens: tuple[int, ...]) -> list[int]:
    """Returns the tokens that may come after some others, which are not the end."""
    text = b"".join(TEXTS[token] for token in tokens)
    going_on = [token for token in range(VOCAB) if TEXTS[token] and completed(text + TEXTS[token])]
    return [END, *going_on] if text in LANGUAGE else going_on


@cache
def completed(text: bytes) -> bool:
    """Returns whether tokens can complete a text."""
    if not any(each.startswith(text) for each in LANGUAGE):
        return False
    return text in LANGUAGE or any(completed(text + more) for more in TEXTS if more)


def outputs() -> dict[tuple[int, ...], float]:
    """Returns the probability of each output of at most `LENGTH` tokens at temperature 1."""
    found: dict[tuple[int, ...], float] = {(): 1.0}
    for _ in range(LENGTH):
        longer: dict[tuple[int, ...], float] = {}
        for tokens, probability in found.items():
            if tokens and tokens[-1] == END:
                longer[tokens] = probability
                continue
            allowed, logits = allowed_after(tokens), next_logits()[tokens]
            weights = np.exp(logits[allowed] - logits.max())
            for token, weight in zip(allowed, weights / weights.sum(), strict=True):
                longer[*tokens, token] = probability * weight
        found = longer
    return found


def prefixes() -> list[tuple[int, ...]]:
    """Returns all sequences of tokens with text that are shorter than an output."""
    with_text = range(1, VOCAB)
    return [s for n in range(LENGTH) for s in itertools.product(with_text, repeat=n)]
