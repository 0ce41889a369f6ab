"""A grammar for one vocabulary: an automaton over bytes, and the tokens that each state allows."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import pairwise

import numpy as np

from emsjax.sampling.grammar import NO_ROW, WORD_BITS
from emsjax.sampling.rows import NO_TOKEN


class Vocabulary:
    """The bytes of all tokens.

    Attributes:
      texts: the bytes of each token; empty for a token without text.
      starts: int32[V+1], where the bytes of each token begin in `bytes`.
      bytes: uint8[N], the bytes of all tokens; at least one.
    """

    def __init__(self, texts: Sequence[bytes]):
        """Sorts the tokens, so that those with the same first byte are together."""
        self.texts = list(texts)
        self._lens = np.asarray([len(text) for text in self.texts], np.int32)
        self.starts = np.concatenate([[0], np.cumsum(self._lens)]).astype(np.int32)
        self.bytes = np.frombuffer(b"".join(self.texts) or b"\0", np.uint8)
        with_text = np.flatnonzero(self._lens)
        first = self.bytes[self.starts[:-1][with_text]]
        by_first = with_text[np.argsort(first, kind="stable")]
        bounds = np.searchsorted(np.sort(first), np.arange(257))
        self._by_first = [by_first[low:high] for low, high in pairwise(bounds)]

    def __len__(self) -> int:
        return len(self.texts)

    @cached_property
    def ids(self) -> dict[bytes, int]:
        """A token for each text that is one."""
        return {text: token for token, text in enumerate(self.texts) if text}

    @cached_property
    def longest(self) -> int:
        """Bytes of the longest token."""
        return int(self._lens.max(initial=0))

    def steps(self, following: np.ndarray, state: int) -> tuple[np.ndarray, np.ndarray]:
        """Returns the tokens int64[n] that may come in a state, and the states after them.

        Args:
          following: int32[N, 256], the state after each byte; `NO_ROW` if it is not allowed.
          state: the state.
        """
        first = np.flatnonzero(following[state] >= 0)
        groups = [self._by_first[byte] for byte in first]
        tokens = np.concatenate([np.zeros(0, np.int64), *groups])
        states = np.repeat(following[state, first], [len(group) for group in groups])
        found, done = [(tokens[:0], states[:0])], 1
        while len(tokens):
            whole = self._lens[tokens] == done
            found.append((tokens[whole], states[whole]))
            tokens, states = tokens[~whole], states[~whole]
            states = following[states, self.bytes[self.starts[tokens] + done]]
            tokens, states, done = tokens[states >= 0], states[states >= 0], done + 1
        return np.concatenate([f[0] for f in found]), np.concatenate([f[1] for f in found])


@dataclass(frozen=True, eq=False)
class Automaton:
    """A grammar as rows for `grammar.Tables`; N states, of which the first is the start.

    Attributes:
      vocabulary: the tokens.
      allowed: uint32[A, V / 32 rounded up], different sets of tokens.
      sets: int32[N].
      following: int32[N, 256].
      final: bool[N].
      closed: bool[N].
      guess: int32[N].
    """

    vocabulary: Vocabulary
    allowed: np.ndarray
    sets: np.ndarray
    following: np.ndarray
    final: np.ndarray
    closed: np.ndarray
    guess: np.ndarray

    def __len__(self) -> int:
        return len(self.final)

    @property
    def nbytes(self) -> int:
        """The bytes of its rows."""
        rows = (self.allowed, self.sets, self.following, self.final, self.closed, self.guess)
        return sum(array.nbytes for array in rows)


class NothingFitsError(Exception):
    """No text of the vocabulary's tokens is in the language."""


def make_automaton(vocabulary: Vocabulary, following: np.ndarray, final: np.ndarray) -> Automaton:
    """Finds the tokens that each state allows.

    A token is allowed if the text can still be completed after it, with tokens of the vocabulary.

    Args:
      vocabulary: the tokens.
      following: int32[N, 256], the state after each byte; `NO_ROW` if it is not allowed.
      final: bool[N], whether the text may end in each state.

    Raises:
      NothingFitsError: no token may come first, and the text may not be empty.
    """
    following = following.copy()
    good = _completed(following, final)
    following[~good[following] | (following < 0)] = NO_ROW
    steps = _Steps(vocabulary, following)
    if not steps.every_byte:
        good = _completed_by_tokens(steps, final)
        steps.only(good)
    first, sets = alike(following, good, vocabulary.longest)
    allowed = np.zeros((len(first), -(-len(vocabulary) // WORD_BITS)), np.uint32)
    for number, state in enumerate(first):
        tokens = steps.tokens(state)
        bits = np.uint32(1) << (tokens % WORD_BITS).astype(np.uint32)
        np.bitwise_or.at(allowed[number], tokens // WORD_BITS, bits)
    closed = final & ~np.asarray(allowed.any(axis=1))[sets]
    if not allowed[sets[0]].any() and not final[0]:
        raise NothingFitsError
    likely = _likely_bytes(following, final)
    guess = np.asarray([_guess(vocabulary, following, likely, n) for n in range(len(final))])
    return Automaton(vocabulary, allowed, sets, following, final, closed, guess.astype(np.int32))


def alike(following: np.ndarray, good: np.ndarray, length: int) -> tuple[np.ndarray, np.ndarray]:
    """Finds states that allow the same texts of up to some bytes which lead to good states.

    They are told apart by a hash of 64 bits, byte by byte.

    Args:
      following: int32[N, 256], the state after each byte; `NO_ROW` if it is not allowed.
      good: bool[N].
      length: the bytes.

    Returns:
      A state of each kind, int64[A], and the kind of each state, int32[N].
    """
    random = np.random.default_rng(0)

    def draw(count: int) -> np.ndarray:
        return random.integers(2**64, size=count, dtype=np.uint64, endpoint=False)

    # Bytes that lead to the same states everywhere are one.
    columns = (following.astype(np.uint64) * draw(len(following))[:, None]).sum(axis=0)
    following = following[:, np.unique(columns, return_index=True)[1]]
    factors, weights = draw(following.shape[1]), draw(len(following) + 2)
    own = good * weights[-1]
    kinds, first = good.astype(np.int64), np.zeros(0, np.int64)
    for _ in range(length):
        hashes = np.append(weights[kinds], np.uint64(0))  # the last one for `NO_ROW`
        found = (hashes[following] * factors).sum(axis=1, dtype=np.uint64) + own
        before = len(first)
        _, first, kinds = np.unique(found, return_index=True, return_inverse=True)
        if len(first) == before:  # kinds only ever divide, so these are the same
            break
    return first, kinds.astype(np.int32)


class _Steps:
    """The tokens of all states.

    Attributes:
      every_byte: whether each byte that a state allows is a token, so that every text has tokens.
    """

    def __init__(self, vocabulary: Vocabulary, following: np.ndarray):
        used = np.flatnonzero((following >= 0).any(axis=0))
        self.every_byte = all(bytes([byte]) in vocabulary.ids for byte in used)
        self._vocabulary, self._following = vocabulary, following
        self._good: np.ndarray | None = None

    def only(self, good: np.ndarray) -> None:
        """Leaves out tokens that lead to other states than those of bool[N]."""
        self._good = good

    def tokens(self, state: int) -> np.ndarray:
        """Returns the tokens that may come in a state, int64[n]."""
        tokens, states = self._vocabulary.steps(self._following, state)
        return tokens if self._good is None else tokens[self._good[states]]

    def targets(self) -> list[np.ndarray]:
        """Returns the states that tokens lead to from each state."""
        steps = (self._vocabulary.steps(self._following, n)[1] for n in range(len(self._following)))
        return [np.unique(states) for states in steps]


def _completed(following: np.ndarray, final: np.ndarray) -> np.ndarray:
    """Returns the states from which the text can be completed byte by byte, bool[N]."""
    states, bytes_ = np.nonzero(following >= 0)
    targets = following[states, bytes_]
    states = states[np.argsort(targets, kind="stable")]
    # Those that lead to a state are together now.
    ends = np.cumsum(np.bincount(targets, minlength=len(final)))
    starts = np.concatenate([[0], ends[:-1]])
    good = final.copy()
    newest = np.flatnonzero(final)
    while len(newest):
        before = [states[starts[state] : ends[state]] for state in newest]
        newest = np.unique(np.concatenate(before))
        newest = newest[~good[newest]]
        good[newest] = True
    return good


def _completed_by_tokens(steps: _Steps, final: np.ndarray) -> np.ndarray:
    """Returns the same with whole tokens, for vocabularies that lack some bytes."""
    targets, good = steps.targets(), final.copy()
    while True:
        more = good | np.asarray([good[states].any() for states in targets])
        if (more == good).all():
            return good
        good = more


def _likely_bytes(following: np.ndarray, final: np.ndarray) -> np.ndarray:
    """Returns the byte that comes next in each state, int32[N]; -1 where there is a choice.

    One space may often come or not. It is taken to come after a colon and a comma only, as in most
    JSON texts.
    """
    spaced = np.ones(len(final), np.bool_)
    for byte in range(256):
        if byte not in b":,":
            spaced[following[following[:, byte] >= 0, byte]] = False
    allowed = following >= 0
    choices = allowed.sum(axis=1)
    others = allowed.copy()
    others[:, ord(" ")] = False
    optional = (choices == 2) & allowed[:, ord(" ")]
    likely = np.where(optional & ~spaced, others.argmax(axis=1), allowed.argmax(axis=1))
    likely = np.where(optional & spaced, ord(" "), likely)
    return np.where(((choices == 1) | optional) & ~final, likely, -1)


def _guess(vocabulary: Vocabulary, following: np.ndarray, likely: np.ndarray, state: int) -> int:
    """Returns the longest token of the text that comes next; `NO_TOKEN` if there is a choice."""
    text = bytearray()
    while len(text) < vocabulary.longest and likely[state] >= 0:
        byte = int(likely[state])
        text.append(byte)
        state = int(following[state, byte])
    for length in range(len(text), 0, -1):
        token = vocabulary.ids.get(bytes(text[:length]))
        if token is not None:
            return token
    return NO_TOKEN
