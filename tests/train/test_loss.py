"""Unrolled drafts, compared with a loop over texts, positions and draft tokens."""

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from emsjax.models.recurrent_draft import RecurrentConfig, RecurrentDraft, Shared
from emsjax.train.loss import Texts, total, unroll

VOCAB, WIDTH, DEPTH, STEPS = 12, 9, 16, 3


def setting() -> tuple[RecurrentDraft, Shared, Texts]:
    rng = np.random.default_rng(0)
    ids = jnp.asarray([0, 1, 2, 5, 7, 8, 11], jnp.int32)
    embedding = jnp.asarray(rng.normal(size=(VOCAB, DEPTH)), jnp.float32)
    draft = RecurrentDraft(RecurrentConfig(DEPTH, 24, 2), rngs=nnx.Rngs(1))
    lens = np.asarray([WIDTH, 5, 1, 0], np.int32)
    tokens = rng.choice([1, 5, 11, 3], size=(4, WIDTH)).astype(np.int32)
    hidden = rng.normal(size=(4, WIDTH, DEPTH)).astype(np.float32)
    return draft, Shared(embedding, embedding[ids], ids), Texts(tokens, hidden, lens)


def test_counts_equal_drafting_one_by_one():
    draft, shared, texts = setting()
    counted, reached, right = (np.zeros(STEPS) for _ in range(3))
    for row, length in enumerate(texts.lens.tolist()):
        for start in range(length):
            hidden, good = jnp.asarray(texts.hidden[row, start : start + 1]), True
            for step in range(STEPS):
                at = start + step
                if at + 1 >= length:
                    break
                hidden = draft(hidden, shared.embedding[texts.tokens[row, at]][None])
                guess = int(shared.token_ids[jnp.argmax(draft.logits(hidden, shared)[0])])
                counted[step] += 1
                reached[step] += good
                good = good and guess == texts.tokens[row, at + 1]
                right[step] += good
    found = unroll(draft, shared, jax.tree.map(jnp.asarray, texts), STEPS)
    assert [float(place.counted) for place in found] == counted.tolist()
    assert [float(place.reached) for place in found] == reached.tolist()
    assert [float(place.right) for place in found] == right.tolist()
    assert right[0] > 0, "the test needs at least one right draft token"


def test_values_after_the_end_of_a_text_do_not_count():
    draft, shared, texts = setting()
    changed = Texts(texts.tokens.copy(), texts.hidden.copy(), texts.lens)
    for row, length in enumerate(texts.lens.tolist()):
        changed.tokens[row, length:] = 7
        changed.hidden[row, max(length - 1, 0) :] = 1e3
    losses = [
        float(total(unroll(draft, shared, jax.tree.map(jnp.asarray, t), STEPS)))
        for t in (texts, changed)
    ]
    assert losses[0] == losses[1]
    assert np.isfinite(losses).all()
