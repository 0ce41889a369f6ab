"""A draft model with a cache drafts the same tokens as it would without one."""

from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from emsjax.engine.job import Job
from emsjax.engine.packing import pack
from tests.engine.setup import make_drafter, make_engine, run_all, tiny_model
from tests.engine.states import make_state

LONGEST, TOKENS = 256, 60


def from_scratch(drafter) -> Callable[[list[int]], int]:
    """Returns a function that computes the likeliest token after a text in one pass over it."""

    @jax.jit
    def program(weights, tokens, length):
        model = drafter.merge(weights)
        spec = model.cache_spec(1, LONGEST)
        batch = pack(tokens[None], jnp.zeros(1, jnp.int32), length[None], LONGEST)
        hidden, _ = model(batch, jnp.zeros(spec.shape, spec.dtype), max_q_len=LONGEST)
        return jnp.argmax(model.logits(hidden[length - 1][None])[0])

    def guess(text: list[int]) -> int:
        tokens = np.zeros(LONGEST, np.int32)
        tokens[: len(text)] = text
        return int(program(drafter.weights, tokens, np.int32(len(text))))

    return guess


def test_counts_equal_those_of_a_model_without_a_cache():
    """The text has rejected drafts, fully accepted ones, and one that is cut at the limit."""
    model = tiny_model("llama3")
    drafter = make_drafter(model, "alike")
    guess, k = from_scratch(drafter), drafter.draft_length
    prompt = [5, 6, 7, 8, 9] * 5
    (result,) = run_all(make_engine(model, "alike", 1), [Job(0, prompt, TOKENS)])
    known, output = [*prompt, result.token_ids[0]], list(result.token_ids)
    drafted, accepted, steps = [0] * k, [0] * k, 1
    while len(known) < len(prompt) + TOKENS:
        rest, right = output[len(known) - len(prompt) :], 0
        for place in range(min(k, len(rest) - 1)):
            drafted[place] += 1
            text = known + rest[:place]
            if right == place and guess(text) == rest[place]:
                right += 1
                accepted[place] += 1
        known += rest[: right + 1]
        steps += 1
    found = result.metrics
    assert found.target_steps == steps
    assert list(found.drafted_by_position) == drafted
    assert list(found.accepted_by_position) == accepted
    assert 0.3 < sum(accepted) / sum(drafted) < 0.95, "drafts should be right and wrong"
    assert 0 < accepted[-1] < drafted[-1]


@pytest.mark.parametrize("right", [0, 1, 4])
def test_it_continues_from_the_text_whoever_guessed_it(right: int):
    """The cache holds K/V of guesses that did not become text, and must not use them."""
    model = tiny_model("llama3")
    drafter = make_drafter(model, "alike")
    guess, k, prompt = from_scratch(drafter), drafter.draft_length, [5, 6, 7, 8, 9] * 5

    def worth(survival, _found=None):
        return jnp.int32(survival.shape[1])

    propose = jax.jit(lambda state: drafter.propose(state, drafter.weights, worth))

    def drafts(text: list[int], memory):
        tokens = np.zeros((1, LONGEST), np.int32)
        tokens[0, : len(text)] = text
        state = make_state(
            *(1, LONGEST, k),
            tokens=tokens,
            lens=np.asarray([len(text)], np.int32),
            kv_lens=np.asarray([len(text) - 1], np.int32),
            max_lens=np.asarray([LONGEST], np.int32),
            live=np.ones(1, np.bool),
        )
        draft, memory = propose(state.replace(drafter=memory))
        return draft.tokens[0, : int(draft.lens[0])].tolist(), memory

    def without_cache(text: list[int]) -> list[int]:
        guessed: list[int] = []
        for _ in range(k):
            guessed.append(guess(text + guessed))
        return guessed

    first, memory = drafts(prompt, drafter.init(1, LONGEST))
    assert first == without_cache(prompt)
    others = [(token + 1) % model.vocab_size for token in first[right:]]
    text = [*prompt, *first[:right], *others, 11]
    stale = without_cache([*prompt, *first, 11])
    assert without_cache(text) != stale or right == k, "stale K/V would not show"
    assert drafts(text, memory)[0] == without_cache(text)


def test_a_new_request_has_no_more_read_than_it_shares():
    """Not what the text before it in the slot had, nor K/V of guesses that may be wrong."""
    drafter = make_drafter(tiny_model("llama3"), "draft-model")
    mine = drafter.init(2, 256)
    mine = mine._replace(kv_lens=jnp.asarray([9, 7]), guessed_from=jnp.asarray([8, 256]))
    for source, length, read in ((0, 5, 5), (0, 20, 8), (1, 0, 0), (1, 3, 3)):
        after = drafter.share(mine, *map(jnp.int32, (1, source, length)))
        assert after.kv_lens.tolist() == [9, read]
        assert after.guessed_from.tolist() == [8, 256]
