"""The XLA backends keep the contracts of their operations."""

import pytest

from emsjax.pallas_kernels.ragged_attention import reference
from emsjax.pallas_kernels.ragged_attention.tuning import BLOCKS, Blocks
from tests.kernels.contract_attention import AttentionContract
from tests.kernels.contract_cache_update import CacheUpdateContract


class TestAttention(AttentionContract):
    """With the block sizes of this platform, which are 32 for a cache of 96 tokens."""

    backend = "reference"


class TestAttentionSeveralTilesAtOnce(AttentionContract):
    """Several tiles at once, as on a GPU, with small blocks: all dimensions need several.

    `row_multiple` stays as on this platform, whose products need it to keep a row's bits.
    """

    backend = "reference"
    cases = ("gqa", "prompts", "all", "bfloat16", "int8", "sink-tokens")

    @pytest.fixture(autouse=True)
    def _blocks(self, monkeypatch):
        blocks = Blocks(kv=16, q=4, tiles_at_once=3, row_multiple=BLOCKS["cpu"].row_multiple)
        monkeypatch.setattr(reference, "BLOCKS", {"cpu": blocks})


class TestCacheUpdate(CacheUpdateContract):
    backend = "reference"
