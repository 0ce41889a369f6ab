"""The start and the loss of a state map, compared with loops over texts and draft tokens."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from emsjax.engine.model import Inner
from emsjax.models.recurrent_draft import Shared
from emsjax.models.state_map import StateMap, StateMapConfig
from emsjax.train import least_squares
from emsjax.train.loss import HARD
from emsjax.train.record import Text
from emsjax.train.state_loss import Frozen, guess_states, run_drafts, unroll_states
from emsjax.train.whole_texts import Reading, WholeTexts, all_whole_batches, read_whole
from tests.engine.setup import tiny_model
from tests.tiny import VOCAB_SIZE

LAYER, PLACES, ROWS = 2, 9, 4
# Of 17 texts, so that the last batch is nearly empty.
LENS = [*np.random.default_rng(1).integers(1, PLACES, 4 * ROWS).tolist(), PLACES]


def state_map_for(model: object) -> StateMap:
    """Returns a random map for a layer of a tiny model, which is as wide as its embedding."""
    width, num_layers = model.hidden_size, model.num_layers  # type: ignore[attr-defined]
    sizes = width, width, VOCAB_SIZE, num_layers, LAYER
    return StateMap(StateMapConfig(*sizes, width=0), rngs=nnx.Rngs(2))


def batches() -> list[WholeTexts]:
    """Returns random texts, each after its prompt."""
    rng = np.random.default_rng(0)
    prompts = [rng.integers(3, VOCAB_SIZE, 1 + n).tolist() for n in range(len(LENS))]
    texts = [
        Text(n, 0, rng.integers(3, VOCAB_SIZE, size).astype(np.int32), np.zeros((0, 0)))
        for n, size in enumerate(LENS)
    ]
    return [
        jax.tree.map(jnp.asarray, each) for each in all_whole_batches(texts, prompts, ROWS, PLACES)
    ]


def test_the_linear_part_is_the_closest_to_every_pair_of_every_text(
    monkeypatch: pytest.MonkeyPatch,
):
    monkeypatch.setattr(least_squares, "RIDGE", 1e-7)
    model = tiny_model("llama3")
    target_def, params = nnx.split(model)
    embedding = model.embedder.tokens[...]
    shared = Shared(embedding, embedding, jnp.arange(VOCAB_SIZE, dtype=jnp.int32))
    read = jax.jit(lambda texts: read_whole(model, texts, LAYER, PLACES + 1))
    inputs, outputs = [], []
    for texts in batches():
        reading = read(texts)
        for row, count in enumerate(reading.counts.tolist()):
            for place in range(count):
                token = embedding[reading.outputs[row, place]]
                inputs.append(np.concatenate([reading.inner[row, place], token, [1.0]]))
                outputs.append(np.asarray(reading.inner[row, place + 1]))
    x, y = np.asarray(inputs, np.float64), np.asarray(outputs, np.float64)
    assert len(x) == sum(LENS)
    assert len(x) > x.shape[1], "otherwise every pair is met"
    expected = x @ np.linalg.lstsq(x, y)[0]
    state_map = state_map_for(model)
    learnt = partial(least_squares.pairs, layer=LAYER, places=PLACES)
    least_squares.solve(state_map.linear, learnt, target_def, Frozen(shared, params), batches())
    width = model.hidden_size
    found = state_map(jnp.asarray(x[:, :width]), jnp.asarray(x[:, width:-1]))
    np.testing.assert_allclose(found, expected, atol=2e-3 * np.abs(expected).max())


def test_the_loss_equals_that_of_drafting_one_by_one():
    model, steps = tiny_model("llama3"), 3
    embedding = model.embedder.tokens[...]
    # Every other token cannot be drafted.
    ids = jnp.arange(0, VOCAB_SIZE, 2, dtype=jnp.int32)
    shared, state_map = Shared(embedding, model.output_kernel[ids], ids), state_map_for(model)
    texts = batches()[-2]

    @jax.jit
    def all_of(texts: WholeTexts) -> tuple[list, Reading, jax.Array, jax.Array]:
        reading = read_whole(model, texts, LAYER, PLACES)
        states = guess_states(state_map, shared, reading, steps)
        hidden = run_drafts(model, Inner(states, LAYER), reading, texts.starts)
        logits = [
            model.logits(x.reshape(-1, x.shape[-1]), shared) for x in (hidden, reading.hidden)
        ]
        shape = ROWS, PLACES, len(ids)
        found = unroll_states(state_map, model, shared, texts, steps, PLACES)
        return found, reading, logits[0].reshape(steps, *shape), logits[1].reshape(shape)

    found, reading, drafts, true = jax.tree.map(np.asarray, all_of(texts))
    loss, counted, reached, right = (np.zeros(steps) for _ in range(4))
    for row, count in enumerate(reading.counts.tolist()):
        for place in range(count - 1):
            good = True
            for step in range(min(steps, count - 1 - place)):
                token = int(reading.outputs[row, place + step + 1])
                logq = np.asarray(jax.nn.log_softmax(drafts[step, row, place]))
                loss[step] -= jax.nn.softmax(true[row, place + step + 1]) @ logq
                if not token % 2:
                    loss[step] -= HARD * logq[token // 2]
                counted[step] += 1
                reached[step] += good
                good = good and int(ids[logq.argmax()]) == token
                right[step] += good
    np.testing.assert_allclose([x.loss for x in found], loss, rtol=1e-4)
    assert [float(x.counted) for x in found] == counted.tolist()
    assert [float(x.reached) for x in found] == reached.tolist()
    assert [float(x.right) for x in found] == right.tolist()
