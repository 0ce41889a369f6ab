"""Splits texts into training and held-out sets, and puts them into batches."""

import zlib
from collections.abc import Iterator, Sequence
from typing import NamedTuple

import numpy as np

from emsjax.shapes import round_up
from emsjax.train.loss import Texts
from emsjax.train.record import Text

# Batches have few different widths, because each one needs a compiled program.
WIDTH_MULTIPLE = 64
# Texts of one batch differ in length by up to about this many tokens.
SPREAD = 32.0


class Split(NamedTuple):
    """The texts to train on, and those to evaluate on."""

    learn: Sequence[Text]
    held_out: Sequence[Text]


def is_held_out(prompt: Sequence[int], share: float) -> bool:
    """Returns whether all texts of a prompt are for evaluation only.

    The decision depends only on the arguments, so that it is the same in every run and for all
    duplicates of a prompt.

    Args:
      prompt: token ids.
      share: share of prompts to hold out, 0 to 1.
    """
    return zlib.crc32(repr(list(prompt)).encode()) % 10_000 < 10_000 * share


def frequent_tokens(texts: Sequence[Text], vocab_size: int, count: int) -> np.ndarray:
    """Returns the `count` most frequent tokens in ascending order, int32[count].

    Ties, including tokens that never occur, go to the lower id: tokenizers number their merges by
    frequency.
    """
    tokens = np.concatenate([text.tokens for text in texts])
    counts = np.bincount(tokens, minlength=vocab_size)
    return np.sort(np.argsort(-counts, kind="stable")[:count]).astype(np.int32)


def batch_of(texts: Sequence[Text], width: int) -> Texts:
    """Returns a batch of the first `width` tokens of each text."""
    depth = texts[0].hidden.shape[1]
    tokens = np.zeros((len(texts), width), np.int32)
    hidden = np.zeros((len(texts), width, depth), np.float32)
    lens = np.zeros(len(texts), np.int32)
    for row, text in enumerate(texts):
        kept, seen = text.tokens[:width], text.hidden[:width]
        tokens[row, : len(kept)], hidden[row, : len(seen)] = kept, seen
        lens[row] = len(kept)
    return Texts(tokens, hidden, lens)  # type: ignore[arg-type]


def batch_number(texts: Sequence[Text], number: int, rows: int, width: int, seed: int) -> Texts:
    """Returns the batch of a step, see `numbers_of_batch`.

    Args:
      texts: the texts to train on.
      number: number of the step, from 0.
      rows: texts per batch.
      width: most tokens used of each text.
      seed: seed of the order.
    """
    lens = [min(len(text.tokens), width) for text in texts]
    chosen = [texts[at] for at in numbers_of_batch(lens, number, rows, seed)]
    longest = max(len(text.tokens) for text in chosen)
    return batch_of(chosen, min(round_up(longest, WIDTH_MULTIPLE), width))


def numbers_of_batch(lens: Sequence[int], number: int, rows: int, seed: int) -> list[int]:
    """Returns which texts are in the batch of a step: texts of similar length.

    Each round goes through the texts in a new random order and puts them into new batches. The
    result depends only on the arguments, so that a resumed run sees the same batches.

    Args:
      lens: tokens of each text.
      number: number of the step, from 0.
      rows: texts per batch.
      seed: seed of the order.
    """
    batches = max(len(lens) // rows, 1)
    turn, place = divmod(number, batches)
    random = np.random.default_rng((seed, turn))
    # `resize` repeats texts if there are fewer than `rows`, and drops those left over otherwise.
    drawn = np.resize(random.permutation(len(lens)), batches * rows)
    near = np.asarray(lens)[drawn] + random.uniform(0, SPREAD, len(drawn))
    alike = drawn[np.argsort(near)].reshape(-1, rows)
    return [int(at) for at in random.permutation(alike)[place]]


def all_batches(texts: Sequence[Text], rows: int, width: int) -> Iterator[Texts]:
    """Yields batches with every text once; the last batch is padded with texts of length 0."""
    for start in range(0, len(texts), rows):
        some = list(texts[start : start + rows])
        batch = batch_of(some + [some[-1]] * (rows - len(some)), width)
        batch.lens[len(some) :] = 0  # type: ignore[index]
        yield batch
