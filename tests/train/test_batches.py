"""Batches: every text once per round, similar lengths together, the same in every run."""

import numpy as np

from emsjax.train.batches import SPREAD, WIDTH_MULTIPLE, batch_number
from emsjax.train.record import Text

ROWS, WIDTH = 4, 160


def texts(count: int) -> list[Text]:
    """Text n has n % 150 + 2 tokens, all of them n."""
    sizes = [n % 150 + 2 for n in range(count)]
    return [
        Text(n, 0, np.full(size, n, np.int32), np.zeros((size - 1, 8), np.float16))
        for n, size in enumerate(sizes)
    ]


def rows_of(batch) -> list[int]:
    return batch.tokens[:, 0].tolist()


def test_a_round_contains_every_text_once():
    some, seen = texts(80), []
    for number in range(20):
        seen += rows_of(batch_number(some, number, ROWS, WIDTH, seed=3))
    assert sorted(seen) == list(range(80))
    again: list[int] = []
    for number in range(20, 40):
        again += rows_of(batch_number(some, number, ROWS, WIDTH, seed=3))
    assert again != seen
    assert sorted(again) == list(range(80))


def test_texts_of_a_batch_have_similar_lengths():
    some = texts(600)
    for number in range(20):
        batch = batch_number(some, number, ROWS, WIDTH, seed=0)
        # Texts are sorted by their length plus a random number below SPREAD.
        assert np.ptp(batch.lens) < SPREAD + 8
        width = batch.tokens.shape[1]
        assert width in (WIDTH_MULTIPLE, 2 * WIDTH_MULTIPLE, WIDTH)
        assert width - max(batch.lens) < WIDTH_MULTIPLE


def test_batches_depend_on_the_seed_only():
    some = texts(80)
    one, same = (batch_number(some, 7, ROWS, WIDTH, seed=1) for _ in range(2))
    np.testing.assert_array_equal(one.tokens, same.tokens)
    assert rows_of(one) != rows_of(batch_number(some, 7, ROWS, WIDTH, seed=2))


def test_texts_repeat_if_there_are_fewer_than_rows():
    batch = batch_number(texts(3), 5, ROWS, WIDTH, seed=0)
    assert set(rows_of(batch)) == {0, 1, 2}
