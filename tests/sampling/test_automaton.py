"""Automata of languages with many states share the sets of tokens that states allow."""

import numpy as np
import pytest

from emsjax.engine.grammar_table import Places, Size, size_of, table_size
from emsjax.sampling.automaton import Automaton, Vocabulary, alike, make_automaton
from emsjax.sampling.grammar import NO_ROW, WORD_BITS

LETTERS = b"abc"


def drawn(seed: int, size: int) -> tuple[np.ndarray, np.ndarray]:
    """Draws an automaton of which some states are copies of others in all but their number."""
    rng = np.random.default_rng(seed)
    following = np.full((size, 256), NO_ROW, np.int32)
    for letter in LETTERS:
        following[:, letter] = np.where(rng.random(size) < 0.6, rng.integers(0, size, size), NO_ROW)
    final = rng.random(size) < 0.3
    final[-1] = True
    copies = rng.integers(0, size, size)
    return np.concatenate([following, following[copies]]), np.concatenate([final, final[copies]])


def texts_from(following: np.ndarray, good: np.ndarray, state: int, length: int) -> set[bytes]:
    """Returns the texts of 1 to `length` letters that lead from a state to a good one."""
    found, now = set(), {b"": state}
    for _ in range(length):
        now = {
            text + bytes([letter]): following[at, letter]
            for text, at in now.items()
            for letter in LETTERS
            if following[at, letter] >= 0
        }
        found |= {text for text, at in now.items() if good[at]}
    return found


@pytest.mark.parametrize("length", [1, 2, 4])
@pytest.mark.parametrize("seed", range(4))
def test_states_of_a_kind_allow_the_same_texts(seed: int, length: int):
    following, good = drawn(seed, 12)
    first, kinds = alike(following, good, length)
    texts = [texts_from(following, good, n, length) for n in range(len(good))]
    for state, kind in enumerate(kinds):
        assert texts[state] == texts[first[kind]], "they are told apart"
    assert len(first) <= 12, "copies are of one kind"
    # No more kinds than differ in some text, in whether it leads somewhere, or in themselves.
    anything = np.ones_like(good)
    known = [texts_from(following, anything, n, length) for n in range(len(good))]
    different = zip(map(frozenset, texts), map(frozenset, known), good.tolist(), strict=True)
    assert len(first) == len(set(different))


def tokens_of(automaton: Automaton, state: int) -> list[int]:
    bits = automaton.allowed[automaton.sets[state]]
    return [
        n for n in range(len(automaton.vocabulary)) if bits[n // WORD_BITS] >> n % WORD_BITS & 1
    ]


def test_a_long_text_has_few_sets():
    """Between the ends of a text of bounded length, all states allow the same tokens."""
    count, longest = 5000, 4
    following = np.full((count + 1, 256), NO_ROW, np.int32)
    following[:-1, LETTERS[0]] = np.arange(1, count + 1)
    final = np.zeros(count + 1, np.bool_)
    final[-1] = True
    vocabulary = Vocabulary([b"", *(b"a" * n for n in range(1, longest + 1)), b"b"])
    made = make_automaton(vocabulary, following, final)
    assert len(made) == count + 1
    assert len(made.allowed) <= longest + 2
    for state in (0, 1234, count - longest):
        assert tokens_of(made, state) == [1, 2, 3, 4]
    assert [tokens_of(made, count - left) for left in (3, 2, 1, 0)] == [[1, 2, 3], [1, 2], [1], []]
    assert made.closed.tolist() == [False] * count + [True]


def chain(length: int, different: int) -> Automaton:
    """Returns an automaton with so many states and sets, to the next multiple of 64."""
    automaton = make_automaton(Vocabulary([b"", b"a"]), np.full((1, 256), NO_ROW), np.ones(1, bool))
    object.__setattr__(automaton, "final", np.zeros(length, np.bool_))
    object.__setattr__(automaton, "allowed", np.zeros((different, 1), np.uint32))
    return automaton


def test_grammars_take_rows_of_both_tables():
    places = Places(Size(256, 192))
    first, second, third = chain(100, 1), chain(60, 100), chain(64, 30)
    assert size_of(second) == (64, 128)
    assert places.make_room(first, [])
    assert places.make_room(second, [first])
    assert [places.take(each)[0] for each in (first, second)] == [(0, 0), (128, 64)]
    assert not places.make_room(third, [first, second]), "no set is left"
    assert places.make_room(third, [first])
    assert places.take(third) == ((128, 64), True)
    assert places.make_room(first, [third])
    assert places.take(first) == ((0, 0), False)


@pytest.mark.parametrize("vocab_size", [100, 49_152, 262_144])
def test_tables_take_64_megabytes(vocab_size: int):
    states, sets = table_size(vocab_size)
    assert states * 256 * 4 + sets * vocab_size / 8 < 1 << 26
    assert sets >= 900
