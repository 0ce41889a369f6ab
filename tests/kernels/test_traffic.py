"""The TPU kernel fetches each slot's tokens once for each tile, up to its last row, and no more.

Fetching too much changes no result, so these tests count the fetched tokens.
"""

from dataclasses import replace

import jax
import pytest

from emsjax.pallas_kernels.ragged_attention import tpu_tiles
from emsjax.pallas_kernels.ragged_attention.tpu_stream import Stream
from emsjax.pallas_kernels.ragged_attention.tuning import TPUBlocks
from tests.kernels.caches import Ragged
from tests.kernels.contract_attention import CASES, AttentionContract

BLOCKS = TPUBlocks(kv=32, piece=8, q=4)


class Attention(AttentionContract):
    """Not collected, because its name does not begin with Test."""

    backend = "tpu"


@pytest.fixture
def fetched(interpreting_tpu: list[str], monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """The number of tokens in each copy that the kernel starts."""
    counts: list[int] = []
    copy = Stream._copy_some

    def counted(self, act, tile, block, buffer, first, count):
        if act == "start":
            jax.debug.callback(lambda: counts.append(count))
        copy(self, act, tile, block, buffer, first, count)

    monkeypatch.setattr(Stream, "_copy_some", counted)
    monkeypatch.setattr(tpu_tiles, "tpu_blocks", lambda *_: BLOCKS)
    Attention.programs.clear()
    return counts


def needed(ragged: Ragged, window: int | None) -> int:
    """Returns the tokens to fetch: for each tile, whole blocks and the pieces of the last one."""
    total = 0
    for q_len, kv_len in zip(ragged.q_lens, ragged.kv_lens, strict=True):
        for first in range(0, q_len, BLOCKS.q):
            row = kv_len - q_len + first
            end = kv_len - q_len + min(first + BLOCKS.q, q_len)
            seen = 0 if window is None else max(row - window + 1, 0)
            begin = seen // BLOCKS.kv * BLOCKS.kv
            whole = end // BLOCKS.kv * BLOCKS.kv
            total += max(whole - begin, 0) + -(-(end - whole) // BLOCKS.piece) * BLOCKS.piece
    return total


@pytest.mark.parametrize("window", [None, 20])
@pytest.mark.parametrize(
    "ragged",
    [
        Ragged((0, 0, 0, 0), (96, 10, 0, 40)),
        Ragged((0, 0, 1, 0), (96, 96, 33, 96)),
        Ragged((8, 0, 1, 5), (96, 10, 70, 64)),
        Ragged((1, 1, 1, 1), (1, 96, 57, 32)),
    ],
    ids=["no rows", "one row", "ragged", "plain"],
)
def test_only_needed_tokens_are_fetched(fetched: list[int], ragged: Ragged, window: int | None):
    case = replace(CASES["gqa"], window=window)
    Attention().check(case, [1] * case.max_q_len, ragged)
    jax.effects_barrier()
    assert sum(fetched) == needed(ragged, window)
