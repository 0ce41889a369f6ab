"""`query_tiles` equals tiles that are cut one by one in Python."""

import functools
import itertools

import jax
import numpy as np
import pytest
from hypothesis import given, settings

from emsjax.pallas_kernels.ragged_attention.tiles import (
    QueryTiles,
    Walk,
    Window,
    query_tiles,
    tile_count,
)
from tests.kernels.caches import Ragged, edge_cases, raggedness

NUM_SLOTS, NUM_ROWS = 5, 24


def cut(ragged: Ragged, tile_rows: int) -> list[tuple[int, int, int]]:
    """Returns (slot, first row, number of rows) of each used tile."""
    tiles = []
    for slot, q_len in enumerate(ragged.q_lens):
        for offset in range(0, q_len, tile_rows):
            first = int(ragged.cu_q_lens[slot]) + offset
            tiles.append((slot, first, min(tile_rows, q_len - offset)))
    return tiles


@functools.cache
def program(max_q_len: int, tile_rows: int):
    return jax.jit(lambda cu_q_lens: query_tiles(cu_q_lens, NUM_ROWS, max_q_len, tile_rows))


def check(ragged: Ragged, max_q_len: int, tile_rows: int) -> None:
    tiles = QueryTiles(*map(np.asarray, program(max_q_len, tile_rows)(ragged.cu_q_lens)))
    count = tile_count(NUM_ROWS, NUM_SLOTS, max_q_len, tile_rows)
    assert tiles.slot.shape == tiles.first_row.shape == tiles.num_rows.shape == (count,)

    expected = cut(ragged, tile_rows)
    found = np.stack([tiles.slot, tiles.first_row, tiles.num_rows], axis=1)
    assert [tuple(tile) for tile in found[: len(expected)].tolist()] == expected
    assert not tiles.num_rows[len(expected) :].any()
    assert ((tiles.slot >= 0) & (tiles.slot < NUM_SLOTS)).all()

    used = np.arange(ragged.cu_q_lens[-1])
    np.testing.assert_array_equal(np.flatnonzero(tiles.used), used)
    for tile, (_, first, num_rows) in enumerate(expected):
        np.testing.assert_array_equal(tiles.rows[tile, :num_rows], first + np.arange(num_rows))
    assert ((tiles.rows >= 0) & (tiles.rows < NUM_ROWS)).all()
    of_row, offset_of_row = np.divmod(tiles.place_of_row[used], tile_rows)
    np.testing.assert_array_equal(tiles.first_row[of_row] + offset_of_row, used)
    assert (offset_of_row < tiles.num_rows[of_row]).all()
    # Unused rows are looked up too, so their indices must be valid.
    assert ((tiles.place_of_row >= 0) & (tiles.place_of_row < count * tile_rows)).all()


@pytest.mark.parametrize(
    ("max_q_len", "tile_rows"), [(1, 1), (4, 4), (4, 8), (24, 1), (24, 4), (24, 7), (24, 24)]
)
def test_tiles_equal_the_oracle(max_q_len, tile_rows):
    for ragged in edge_cases(NUM_SLOTS, NUM_ROWS, max_q_len, 30):
        check(ragged, max_q_len, tile_rows)

    @settings(max_examples=100)
    @given(raggedness(NUM_SLOTS, NUM_ROWS, max_q_len, 30))
    def any_raggedness(ragged: Ragged) -> None:
        check(ragged, max_q_len, tile_rows)

    any_raggedness()


def read(walk: Walk) -> list[int]:
    return [int(walk.block(step)) for step in range(int(walk.start), int(walk.end))]


@pytest.mark.parametrize("sink_tokens", [None, 1, 5, 40])
@pytest.mark.parametrize("window", [1, 5, 30])
def test_a_walk_reads_the_blocks_that_some_row_sees_in_order(window: int, sink_tokens: int | None):
    block, blocks, seen_by = 2, 10, Window(window, sink_tokens)
    for rows, kv_end in ((1, 1), (1, 7), (3, 16), (1, 20)):
        least, end = kv_end - rows, -(-kv_end // block)
        first, sinks = max(least - window + 1, 0) // block, -(-(sink_tokens or 0) // block)
        expected = [b for b in range(end) if b < sinks or b >= first]
        assert read(seen_by.walk(least, end, block)) == expected
        sections = [
            read(seen_by.walk(least, min(end, begin + 3), block, begin))
            for begin in range(0, blocks, 3)
        ]
        assert [*itertools.chain(*sections)] == expected
