"""Grammars on the device allow what brute force allows, and change no probability otherwise."""

from collections import Counter

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from emsjax.engine.grammar_table import Size, blocks_of, empty_tables, put_rows
from emsjax.engine.job import Job
from emsjax.engine.state import empty_state
from emsjax.sampling.automaton import Automaton, NothingFitsError, Vocabulary
from emsjax.sampling.choice import make_choice
from emsjax.sampling.grammar import (
    NO_ROW,
    Grammars,
    after_path,
    allowed_length,
    forced,
    keep_grammar,
    rows_of,
)
from emsjax.sampling.rows import NO_TOKEN, Rows
from tests.sampling import chi_square
from tests.sampling.enumerated import LENGTH, PROMPT, VOCAB, Liar, Sampler, make_engine
from tests.sampling.languages import (
    END,
    TEXTS,
    allowed_after,
    automaton_of,
    completed,
    grammar,
    outputs,
    prefixes,
)
from tests.sampling.test_distribution import SIGNIFICANCE, drafter_of

FIRST = 64  # the row at which the grammar begins, so that it is not 0


def grammars(rows: list[int], automaton: Automaton) -> Grammars:
    """Returns slots in these rows of a table with the grammar."""
    made = Grammars(empty_tables(automaton.vocabulary), jnp.asarray(rows, jnp.int32))
    for first, block in blocks_of(automaton, Size(FIRST, 2 * FIRST)):
        made = put_rows(made, jnp.asarray(first), jax.tree.map(jnp.asarray, block))
    return made


def text_of(tokens: tuple[int, ...]) -> bytes:
    return b"".join(TEXTS[token] for token in tokens)


def test_all_prefixes_allow_what_brute_force_allows():
    """Each prefix is a path of draft tokens after an empty text; half the slots have no grammar."""
    paths = prefixes()
    path = np.full((len(paths), LENGTH), NO_TOKEN, np.int32)
    for row, tokens in zip(path, paths, strict=True):
        row[: len(tokens)] = tokens
    count = len(paths)
    slots = jnp.asarray(np.repeat([0, 1], count), jnp.int32)
    zeros = jnp.zeros(2 * count, jnp.int32)
    rows = Rows(slots, zeros, zeros, zeros, jnp.asarray(np.tile(path, (2, 1))))
    both = grammars([FIRST, NO_ROW], grammar())
    state = empty_state(jax.ShapeDtypeStruct((1, 2, 256), jnp.float32), 1, ())
    state = state.replace(stop_ids=state.stop_ids.at[:, 1:].set(-1))  # END is 0
    at = rows_of(both, rows)
    logits = jnp.zeros((2 * count, VOCAB))
    kept = np.isfinite(np.asarray(keep_grammar(logits, rows, at, both, state)))
    for place, tokens in enumerate(paths):
        text = text_of(tokens)
        assert (at[place] >= 0) == (not text or completed(text)), tokens
        if at[place] >= 0:
            assert np.flatnonzero(kept[place]).tolist() == allowed_after(tokens), tokens
    assert kept[count:].all()
    assert (np.asarray(at[count:]) == NO_ROW).all()


def test_numbers_that_are_none_stay():
    logits = jnp.asarray([[jnp.nan, jnp.inf, 0.0, 0.0, jnp.nan, jnp.inf]])
    zeros = jnp.zeros(1, jnp.int32)
    rows = Rows(zeros, zeros, zeros, zeros, jnp.zeros((1, 0), jnp.int32))
    made = grammars([FIRST], grammar())
    state = empty_state(jax.ShapeDtypeStruct((1, 1, 256), jnp.float32), 1, ())
    kept = np.asarray(keep_grammar(logits, rows, rows_of(made, rows), made, state))[0]
    assert np.isnan(kept[[0, 4]]).all()  # of which token 4 is allowed
    assert np.isposinf(kept[1])
    assert kept[2] == 0


def test_drafts_are_cut_where_a_grammar_forbids_them():
    tokens = jnp.asarray([[1, 2, 4], [2, 2, 1], [4, 4, 4], [1, VOCAB + 3, 1], [2, 2, 2]], jnp.int32)
    made = grammars([FIRST] * 4 + [NO_ROW], grammar())
    # a b c; b, not bb; c, not cc; a, no token; and anything in a slot without a grammar
    assert allowed_length(made, tokens).tolist() == [3, 1, 1, 1, 3]


def test_forced_text_is_guessed():
    start = after_path(
        grammars([FIRST], grammar()).tables,
        jnp.full(4, FIRST, jnp.int32),
        jnp.asarray([[4, NO_TOKEN], [2, NO_TOKEN], [1, NO_TOKEN], [3, 4]], jnp.int32),
    )
    made = grammars(np.asarray(start).tolist(), grammar())
    tokens, count = forced(made, 3)
    # c must go on with aca, b with ab, a may end, and abc must.
    assert tokens.tolist() == [[1, 4, 1], [3, -1, -1], [-1, -1, -1], [-1, -1, -1]]
    assert count.tolist() == [3, 1, 0, 0]


def test_an_optional_space_is_guessed_after_a_colon_only():
    texts = [f'{{"a"{before}:{after}1}}'.encode() for before in ("", " ") for after in ("", " ")]
    tokens = [b"", *(bytes([byte]) for byte in b'{"a: 1}'), b'{"', b'":', b" 1", b'" :']
    made = automaton_of(frozenset(texts), Vocabulary(tokens))
    state, written = 0, b""
    while made.guess[state] != NO_TOKEN:
        written += tokens[made.guess[state]] + b"|"
        for byte in tokens[made.guess[state]]:
            state = made.following[state, byte]
    assert written == b'{"|a|":| 1|}|'
    assert made.closed[state]


def test_tokens_that_lead_nowhere_are_not_allowed():
    """The vocabulary lacks a byte, without which "xy" cannot be completed."""
    vocabulary = Vocabulary([b"", b"x", b"z"])
    made = automaton_of(frozenset({b"xy", b"z"}), vocabulary)
    assert made.allowed[made.sets[0]].tolist() == [1 << 2]
    with pytest.raises(NothingFitsError):
        automaton_of(frozenset({b"xy"}), vocabulary)


def sample(drafter: str, count: int, *, exact: bool) -> tuple[Counter, int]:
    """Counts outputs in a batch in which every other job has no grammar; returns the steps too."""
    drafters = {"liar": Liar(guesses=(3, 4)), "sampler": Sampler()}
    engine = make_engine(drafters.get(drafter) or drafter_of(drafter), 8, exact=exact)
    found, steps = Counter(), 0
    jobs = (
        Job(
            seed % 2,
            PROMPT,
            LENGTH,
            stop_ids=(END,),
            choice=make_choice(seed=seed, temperature=1.0, in_grammar=seed % 2 == 0),
            grammar=grammar() if seed % 2 == 0 else None,
        )
        for seed in range(2 * count)
    )
    for finished in engine.run(jobs):
        if finished.job.key == 0:
            found[finished.token_ids] += 1
            steps += finished.metrics.target_steps
    return found, steps


def p_value(found: Counter) -> float:
    wanted = outputs()
    assert found.keys() <= wanted.keys()
    counts = np.asarray([found[tokens] for tokens in wanted])
    return chi_square.p_value(counts, np.asarray(list(wanted.values())))


def test_the_distribution_is_that_of_masked_sampling_step_by_step():
    assert sum(outputs().values()) == pytest.approx(1)
    found, steps = sample("prompt-lookup", 5000, exact=True)
    assert found.total() == 5000
    assert p_value(found) > SIGNIFICANCE
    # What must follow is drafted, so that fewer steps do than there are tokens.
    assert steps < sum(len(tokens) * count for tokens, count in found.items())


@pytest.mark.slow
@pytest.mark.parametrize("drafter", ["none", "liar", "sampler", "draft-model", "tree"])
def test_no_drafter_changes_the_distribution(drafter: str):
    found, _ = sample(drafter, 2000, exact=False)
    assert p_value(found) > SIGNIFICANCE
