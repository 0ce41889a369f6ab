"""Texts into batches, and into those to learn from and those held out."""

import zlib
from collections.abc import Iterator, Sequence

import numpy as np

from emsjax.shapes import round_up
from emsjax.train.loss import Texts
from emsjax.train.record import Text

# Few widths, for each is a program to compile.
WIDTH_MULTIPLE = 64
# Texts of one batch differ in length by about so many tokens.
SPREAD = 32.0


def is_held_out(prompt: Sequence[int], share: float) -> bool:
    """Whether all texts of this prompt, token ids, are for evaluation only; the same in every run.

    A prompt that is there twice is held out twice.
    """
    return zlib.crc32(repr(list(prompt)).encode()) % 10_000 < 10_000 * share


def frequent_tokens(texts: Sequence[Text], vocab_size: int, count: int) -> np.ndarray:
    """The `count` tokens that occur most often, in ascending order, int32[count].

    Of tokens that never occur the first ones: merges are numbered by how frequent they are.
    """
    every = np.concatenate([text.tokens for text in texts])
    often = np.bincount(every, minlength=vocab_size).astype(np.float64)
    often -= np.linspace(0.0, 0.5, len(often))
    return np.sort(np.argsort(-often, kind="stable")[:count]).astype(np.int32)


def batch_of(texts: Sequence[Text], width: int) -> Texts:
    """The first `width` tokens of each text, in arrays."""
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
    """The batch of a step: texts about as long as each other, others each time round.

    The same in every run.

    Args:
      texts: to choose from.
      number: of the step, from 0 on.
      rows: texts a batch.
      width: tokens of each text that are used, at most.
      seed: of the order.
    """
    turn, place = divmod(number, max(len(texts) // rows, 1))
    random = np.random.default_rng((seed, turn))
    drawn = np.resize(random.permutation(len(texts)), (max(len(texts) // rows, 1), rows)).ravel()
    lens = np.minimum([len(texts[at].tokens) for at in drawn.tolist()], width)
    alike = drawn[np.argsort(lens + random.uniform(0, SPREAD, len(drawn)))].reshape(-1, rows)
    chosen = [texts[int(at)] for at in random.permutation(alike)[place]]
    longest = max(len(text.tokens) for text in chosen)
    return batch_of(chosen, min(round_up(longest, WIDTH_MULTIPLE), width))


def all_batches(texts: Sequence[Text], rows: int, width: int) -> Iterator[Texts]:
    """Every text once; the last batch is filled up with texts of no length."""
    for start in range(0, len(texts), rows):
        some = list(texts[start : start + rows])
        batch = batch_of(some + [some[-1]] * (rows - len(some)), width)
        batch.lens[len(some) :] = 0  # type: ignore[index]
        yield batch
