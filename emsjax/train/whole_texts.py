"""Batches of whole texts, prompts included, and what the target computes when it reads them."""

from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from emsjax.engine.ladder import CAPACITY_MULTIPLE
from emsjax.engine.model import Model
from emsjax.engine.packing import pack
from emsjax.shapes import round_up
from emsjax.train.batches import numbers_of_batch
from emsjax.train.record import Text

# Batches have few different widths, because each one needs a compiled program.
WIDTH_MULTIPLE = 64


class WholeTexts(NamedTuple):
    """A batch of R texts.

    Attributes:
      tokens: int32[R, W], prompt and output.
      starts: int32[R], tokens of each prompt.
      lens: int32[R], tokens of each text.
    """

    tokens: jax.Array
    starts: jax.Array
    lens: jax.Array


class Reading(NamedTuple):
    """What the target computed for a batch. Place a is that of the token before the a-th output.

    Attributes:
      inner: [R, A, D], the input of a layer at each place.
      hidden: [R, A, E], the final hidden states there, from which the outputs are chosen.
      outputs: int32[R, A], the a-th token of each output.
      counts: int32[R], tokens of each output, at most A.
      cache: K/V [L, R, S, rows, 128] of the whole texts.
    """

    inner: jax.Array
    hidden: jax.Array
    outputs: jax.Array
    counts: jax.Array
    cache: Any


def read_whole(target: Model, texts: WholeTexts, layer: int, places: int) -> Reading:
    """Lets the target read whole texts.

    Args:
      target: the model.
      texts: the batch.
      layer: the layer whose inputs are wanted.
      places: A, at least the tokens of the longest output.
    """
    rows, width = texts.tokens.shape
    spec = target.cache_spec(rows, round_up(width, CAPACITY_MULTIPLE))
    cache = jnp.zeros(spec.shape, spec.dtype)
    batch = pack(texts.tokens, jnp.zeros_like(texts.lens), texts.lens, rows * width)
    done = target.run(batch, cache, max_q_len=width, keep=(layer,))
    assert done.inner is not None
    steps = jnp.arange(places, dtype=jnp.int32)[None]
    at = jnp.clip(texts.starts[:, None] - 1 + steps, 0, jnp.maximum(texts.lens - 1, 0)[:, None])
    packed = jnp.minimum(batch.cu_q_lens[:-1, None] + at, rows * width - 1)
    after = jnp.minimum(texts.starts[:, None] + steps, width - 1)
    return Reading(
        inner=done.inner[packed],
        hidden=done.hidden[packed],
        outputs=jnp.take_along_axis(texts.tokens, after, axis=1),
        counts=jnp.maximum(texts.lens - texts.starts, 0),
        cache=done.cache,
    )


def whole_batch(
    texts: Sequence[Text], prompts: Sequence[Sequence[int]], longest: int
) -> WholeTexts:
    """Returns a batch of prompts and the first `longest` tokens of their outputs."""
    starts = np.asarray([len(prompts[text.prompt]) for text in texts], np.int32)
    lens = starts + np.asarray([min(len(text.tokens), longest) for text in texts], np.int32)
    tokens = np.zeros((len(texts), round_up(int(lens.max()), WIDTH_MULTIPLE)), np.int32)
    for row, text in enumerate(texts):
        whole = [*prompts[text.prompt], *text.tokens.tolist()]
        tokens[row, : lens[row]] = whole[: lens[row]]
    return WholeTexts(tokens, starts, lens)  # type: ignore[arg-type]


def whole_batch_number(
    texts: Sequence[Text],
    prompts: Sequence[Sequence[int]],
    number: int,
    rows: int,
    longest: int,
    seed: int,
) -> WholeTexts:
    """Returns the batch of a step, see `batches.batch_number`."""
    lens = [len(prompts[text.prompt]) + min(len(text.tokens), longest) for text in texts]
    chosen = numbers_of_batch(lens, number, rows, seed)
    return whole_batch([texts[at] for at in chosen], prompts, longest)


def all_whole_batches(
    texts: Sequence[Text], prompts: Sequence[Sequence[int]], rows: int, longest: int
) -> Iterator[WholeTexts]:
    """Yields batches with every text once; the last batch is padded with texts of length 0."""
    alike = sorted(texts, key=lambda text: len(prompts[text.prompt]) + len(text.tokens))
    for start in range(0, len(alike), rows):
        some = alike[start : start + rows]
        batch = whole_batch(some + [some[-1]] * (rows - len(some)), prompts, longest)
        batch.lens[len(some) :] = 0  # type: ignore[index]
        yield batch
