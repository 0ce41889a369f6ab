"""The TPU kernels keep the contracts, interpreted on a CPU with the race detector on.

The interpreter fills new memory with NaN, raises on reads out of bounds, and delays each copy until
it is awaited.
"""

from typing import ClassVar

import pytest

from emsjax.pallas_kernels.ragged_attention import tpu_tiles
from emsjax.pallas_kernels.ragged_attention.tuning import TPUBlocks
from tests.kernels.contract_attention import CASES, INT8, AttentionContract
from tests.kernels.contract_cache_update import CASES as UPDATE_CASES
from tests.kernels.contract_cache_update import CacheUpdateContract


@pytest.fixture(autouse=True)
def _interpreted(interpreting_tpu: list[str]) -> None:
    pass


class TestAttention(AttentionContract):
    backend = "tpu"
    cases: ClassVar = tuple(name for name in CASES if name != "float16")
    examples = 4
    quick: ClassVar = ("bfloat16", "holes", "int8")


class TestAttentionSmallBlocks(AttentionContract):
    """With several tiles and blocks in a slot, and several pieces in a block."""

    backend = "tpu"
    cases: ClassVar = (
        *("gqa", "prompts", "all", "holes-and-all", "bfloat16"),
        *("sink-tokens", "sink-tokens-and-all"),
    )
    examples = 4
    quick: ClassVar = ("gqa", "all", "sink-tokens")

    @pytest.fixture(autouse=True)
    def _blocks(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(tpu_tiles, "tpu_blocks", lambda *_: TPUBlocks(kv=32, piece=8, q=4))


class TestInt8AttentionSmallBlocks(AttentionContract):
    """With two blocks in a slot, which hold whole tiles of scales, and several tiles of rows."""

    backend = "tpu"
    cases: ClassVar = INT8
    examples = 4
    quick: ClassVar = ("int8-and-all",)

    @pytest.fixture(autouse=True)
    def _blocks(self, monkeypatch: pytest.MonkeyPatch) -> None:
        def blocks(cache: tuple[int, ...], *_: int) -> TPUBlocks:
            # Slots of other dtypes may be shorter than a tile of scales.
            return TPUBlocks(kv=128 if cache[2] % 128 == 0 else 32, piece=8, q=4)

        monkeypatch.setattr(tpu_tiles, "tpu_blocks", blocks)


class TestCacheUpdate(CacheUpdateContract):
    backend = "tpu"
    cases: ClassVar = tuple(name for name in UPDATE_CASES if name != "float16")
    examples = 4
    quick: ClassVar = ("three-rows", "bfloat16")
    quick_int8: ClassVar = ("three-rows",)
